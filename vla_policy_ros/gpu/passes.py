# SPDX-License-Identifier: Apache-2.0
"""A camera's geometry as passes over the image, each with one resize at most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from vla_policy_ros.bundle.geometry import GeometryStep, Pad, Resize
from vla_policy_ros.core.errors import ImageError
from vla_policy_ros.gpu.quads import QUAD, in_quads
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

SHARED_WORDS = 8192
"""Shared memory of a block in words of four bytes: 32 KiB, of which every GPU has room for several blocks."""
PARTIAL_WORDS: Mapping[Arithmetic, int] = MappingProxyType(
    {'ROUNDED': 1, 'LINEAR': 4, 'CUBIC': 4, 'AREA': 4}
)
"""Arithmetic to the words between its two passes: for one channel, one column and a quad of rows."""
WEIGHT_WORDS: Mapping[Arithmetic, tuple[int, int]] = MappingProxyType(
    {'PICK': (0, 0), 'ROUNDED': (3, 3), 'LINEAR': (4, 2), 'CUBIC': (4, 2), 'AREA': (4, 4)}
)
"""Arithmetic to the words of a quad of weights, of rows and of columns; see `quads.pack_weights`."""
PICK_WORDS = 128
"""Shared memory for `PICK`, which keeps nothing but its tables there."""
_LINE_WORDS = 3  # of an output line, beside its weights
_CHANNELS = 3
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


@dataclass(frozen=True, slots=True)
class Tiling:
    """How the work on an output is cut, and where a block keeps its things in shared memory, in quads of words."""

    tile: Size
    """Height and width of a tile in pixels."""
    columns_at: int = 0
    """Tables of the columns, behind those of the rows."""
    partials_at: int = 0
    """What is summed up along the columns."""
    levels_at: int = 0
    """Decoded pixels."""
    chunk: int = 0
    """How many quads of source rows are decoded at a time."""


def choose_tiling(resampling: Resampling, *, where: str) -> Tiling:
    """Return the largest tiles whose work fits the shared memory of a block.

    Raises:
        ImageError: Not even one pixel fits (`resize_too_strong`).
    """
    arithmetic = resampling.arithmetic
    axes = in_quads(resampling.rows), in_quads(resampling.columns)
    for tile in _TILES:
        row_table, column_table = (
            -(-lines * (_LINE_WORDS + words * len(quads.weights)) // QUAD)
            for lines, words, quads in zip(tile, WEIGHT_WORDS[arithmetic], axes, strict=True)
        )
        if arithmetic == 'PICK':
            return Tiling(tile, columns_at=row_table)
        rows, columns = (
            int(quads.windows(lines)[:, 1].max()) for quads, lines in zip(axes, tile, strict=True)
        )
        partials_at = row_table + column_table
        partial_words = rows * _CHANNELS * tile[1] * PARTIAL_WORDS[arithmetic]
        levels_at = partials_at - (-partial_words // QUAD)
        chunk = (SHARED_WORDS // QUAD - levels_at) // max(_CHANNELS * columns, 1)
        if chunk > 0:
            return Tiling(tile, row_table, partials_at, levels_at, min(chunk, max(rows, 1)))
    raise ImageError(
        where,
        got=f'a resize in which a pixel is made of {QUAD * rows} x {QUAD * columns} pixels',
        expected=f'at most {SHARED_WORDS} words of shared memory for them',
        next_step='Shrink less, or in two steps in bundle.yaml.',
        code='resize_too_strong',
    )


def _copy(size: Size) -> Pass:
    rows, columns = (pick(np.arange(edge)) for edge in size)
    return Pass(Resampling('PICK', rows, columns))
