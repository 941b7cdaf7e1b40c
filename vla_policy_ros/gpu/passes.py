# SPDX-License-Identifier: Apache-2.0
"""A camera's geometry as passes over the image, each with one resize at most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from vla_policy_ros.bundle.geometry import GeometryStep, Pad, Resize
from vla_policy_ros.core.errors import ImageError
from vla_policy_ros.gpu.taps import (
    Arithmetic,
    Resampling,
    Taps,
    make_resampling,
    pick,
    resize_arithmetics,
)
from vla_policy_ros.preprocess.geometry import crop_box, pad_offset, resized_size
from vla_policy_ros.preprocess.resize import Size

SHARED_WORDS = 6144
"""Shared memory of a block in words of four bytes: 24 KiB, of which every GPU has room for several blocks."""
PARTIAL_WORDS: Mapping[Arithmetic, int] = MappingProxyType(
    {'ROUNDED': 1, 'LINEAR': 3, 'CUBIC': 3, 'AREA': 3}
)
"""Arithmetic to the words that are kept per pixel between its two passes."""
# A row of a tile is a warp, whose threads write next to each other; large tiles decode fewer pixels twice.
_TILES = (
    (8, 32),
    (4, 32),
    (8, 16),
    (2, 32),
    (4, 16),
    (2, 16),
    (4, 8),
    (2, 8),
    (2, 4),
    (1, 4),
    (1, 2),
    (1, 1),
)


@dataclass(frozen=True, slots=True, eq=False)
class Pass:
    """One way from pixels to pixels: crop, resize, crop, pad; everything but the arithmetic is part of the taps."""

    resampling: Resampling
    border: int | None = None
    """Level of the border; None where there is none."""

    @property
    def size(self) -> Size:
        """Height and width of the result in pixels."""
        return len(self.resampling.rows.first), len(self.resampling.columns.first)

    def cut(self, top: int, left: int, size: Size) -> Pass:
        """Keep a part of the result."""
        rows, columns = self.resampling.rows, self.resampling.columns
        return self._with(rows.cut(top, size[0]), columns.cut(left, size[1]))

    def pad(self, top: int, left: int, step: Pad) -> Pass:
        """Put a border around the result."""
        rows, columns = self.resampling.rows, self.resampling.columns
        padded = self._with(rows.pad(top, step.height), columns.pad(left, step.width))
        return replace(padded, border=step.value)

    def resize(self, resampling: Resampling) -> Pass:
        """Resize the result, which must be one of pixels picked, without a border."""
        rows, columns = self.resampling.rows, self.resampling.columns
        return Pass(
            replace(
                resampling,
                rows=resampling.rows.after(rows),
                columns=resampling.columns.after(columns),
            )
        )

    def _with(self, rows: Taps, columns: Taps) -> Pass:
        return replace(self, resampling=replace(self.resampling, rows=rows, columns=columns))


def plan_passes(steps: Sequence[GeometryStep], size: Size, *, where: str) -> tuple[Pass, ...]:
    """Return the passes for images of one size, at least one.

    Args:
        steps: Steps of the manifest, in order.
        size: Height and width of the images in pixels.
        where: Start of error messages, such as the camera's name.

    Raises:
        ImageError: `crop_outside` or `pad_too_small`: a step does not fit the image it gets.
    """
    done: list[Pass] = []
    current = _copy(size)
    for index, step in enumerate(steps):
        size, place = current.size, f'{where}, geometry[{index}]'
        if isinstance(step, Resize):
            target = resized_size(step, size)
            if target == size:  # every step leaves an image of the right size as it is
                continue
            if current.resampling.arithmetic != 'PICK' or current.border is not None:
                done.append(current)
                current = _copy(size)
            current = current.resize(make_resampling(step, size, target))
        elif isinstance(step, Pad):
            top, left = pad_offset(step, size, where=place)
            if (step.height, step.width) == size:
                continue
            if current.border not in (None, step.value):
                done.append(current)
                current = _copy(size)
            current = current.pad(top, left, step)
        else:
            top, left, height, width = crop_box(step, size, where=place)
            current = current.cut(top, left, (height, width))
    return (*done, current)


def is_one_pass(steps: Sequence[GeometryStep]) -> bool:
    """Tell whether the geometry is one pass for images of every size."""
    kinds = [type(step) for step in steps if isinstance(step, Resize | Pad)]
    borders = {step.value for step in steps if isinstance(step, Pad)}
    return Resize not in kinds[1:] and len(borders) <= 1


def possible_arithmetics(steps: Sequence[GeometryStep]) -> frozenset[Arithmetic]:
    """Return every arithmetic that a pass may need; which one it is depends on the size of the images."""
    resizes = (step for step in steps if isinstance(step, Resize))
    return frozenset({'PICK', *(name for step in resizes for name in resize_arithmetics(step))})


def choose_tile(resampling: Resampling, *, where: str) -> Size:
    """Return height and width of a tile whose work fits the shared memory of a block, as large as can be.

    Raises:
        ImageError: Not even one pixel fits (`resize_too_strong`).
    """
    if resampling.arithmetic == 'PICK':
        return _TILES[0]
    for tile in _TILES:
        rows, columns = (
            _reach(taps, lines)
            for taps, lines in zip((resampling.rows, resampling.columns), tile, strict=True)
        )
        partial_words = rows * tile[1] * PARTIAL_WORDS[resampling.arithmetic]
        if partial_words + columns <= SHARED_WORDS:  # and one source row
            return tile
    raise ImageError(
        where,
        got=f'a resize in which a pixel is made of {rows} x {columns} pixels',
        expected=f'at most {SHARED_WORDS} words of shared memory for them',
        next_step='Shrink less, or in two steps in bundle.yaml.',
        code='resize_too_strong',
    )


def _reach(taps: Taps, tile: int) -> int:
    """Return the largest number of source lines that a tile of so many output lines needs."""
    first = taps.first[::tile]
    last = np.minimum(np.arange(len(first)) * tile + tile, len(taps.first)) - 1
    return int((taps.first[last] + taps.count[last] - first).max())


def _copy(size: Size) -> Pass:
    rows, columns = (pick(np.arange(edge)) for edge in size)
    return Pass(Resampling('PICK', rows, columns))
