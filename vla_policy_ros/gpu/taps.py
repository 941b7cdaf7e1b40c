# SPDX-License-Identifier: Apache-2.0
"""Which lines of an image make a line of its resized form, and with what weights: numbers as the libraries make them.

| arithmetic | passes                                              | used for                                     |
|------------|-----------------------------------------------------|----------------------------------------------|
| `PICK`     | none: every pixel is one of the source              | nearest, no resize                           |
| `ROUNDED`  | columns, then rows, each rounded to uint8           | Pillow (22 bits), torchvision bicubic (11)   |
| `LINEAR`   | columns in 11 bits, four of them dropped, then rows | OpenCV bilinear, and area where it enlarges  |
| `CUBIC`    | columns in 11 bits, then rows, rounded once         | OpenCV bicubic                               |
| `AREA`     | columns, then rows, in float32, rounded once        | OpenCV area, and bilinear that halves        |

The formulas are those of Pillow's `Resample.c`, of OpenCV's `resize.cpp`, and of `preprocess/resize.py`, which says
which library stands for torchvision.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from vla_policy_ros.bundle.geometry import Resize
from vla_policy_ros.core.specs import Array
from vla_policy_ros.preprocess.resize import Size, torch_nearest_indices

Arithmetic = Literal['PICK', 'ROUNDED', 'LINEAR', 'CUBIC', 'AREA']

_PIL_BITS = 22
_OPENCV_BITS = 11
_PIL_SUPPORT = {'bilinear': 1.0, 'bicubic': 2.0}
_WORST_ROUNDING = 1e-3  # OpenCV drops a tap of INTER_AREA that covers less of a pixel


@dataclass(frozen=True, slots=True, eq=False)
class Taps:
    """One axis of a resize: every output line is a weighted sum of lines that follow each other in `lines`."""

    first: Array
    """(n,) int32: index in `lines` of the first tap; does not fall."""
    count: Array
    """(n,) int32: number of taps; 0 in a border, which is made of none."""
    weights: Array
    """(most taps, n) int32, or float32 for `AREA`; 0 behind the last tap."""
    lines: Array
    """(m,) int32: the lines of the source that are needed, in order; lines beyond its edge stand as the edge."""

    def cut(self, start: int, length: int) -> Taps:
        """Keep some of the output lines."""
        kept = slice(start, start + length)
        return replace(
            self, first=self.first[kept], count=self.count[kept], weights=self.weights[:, kept]
        )

    def pad(self, before: int, length: int) -> Taps:
        """Put a border around the output lines, so that there are `length` of them."""
        around = (before, length - before - len(self.first))
        first = np.pad(self.first, around, mode='edge')
        first[before + len(self.first) :] = self.first[-1] + self.count[-1]
        weights = np.pad(self.weights, ((0, 0), around))
        return replace(self, first=first, count=np.pad(self.count, around), weights=weights)

    def after(self, earlier: Taps) -> Taps:
        """Take the lines from an earlier `PICK` instead of from its source."""
        return replace(self, lines=earlier.lines[earlier.first][self.lines])


@dataclass(frozen=True, slots=True, eq=False)
class Resampling:
    """A resize between two sizes."""

    arithmetic: Arithmetic
    rows: Taps
    columns: Taps
    shift: int = 0
    """`ROUNDED`: bits of the weights behind the point."""
    bias: float = 0.0
    """`AREA`: added to the sum."""
    scale: float = 1.0
    """`AREA`: factor on the sum, after the bias."""


def make_resampling(rule: Resize, source: Size, target: Size) -> Resampling:
    """Return taps and arithmetic of a resize from one size (height, width) in pixels to another one."""
    if rule.filter == 'nearest':
        rows, columns = (
            pick(_nearest(rule, *edges)) for edges in zip(source, target, strict=True)
        )
        return Resampling('PICK', rows, columns)
    if rule.library == 'pil' or (rule.library == 'torchvision' and rule.antialias):
        rows, columns = (
            _pil_taps(_PIL_SUPPORT[rule.filter], *edges)
            for edges in zip(source, target, strict=True)
        )
        return Resampling('ROUNDED', rows, columns, shift=_PIL_BITS)
    if rule.filter == 'bicubic':
        rows, columns = (_cubic_taps(*edges) for edges in zip(source, target, strict=True))
        if rule.library == 'opencv':
            return Resampling('CUBIC', rows, columns)
        return Resampling('ROUNDED', rows, columns, shift=_OPENCV_BITS)
    return _opencv_linear_or_area(rule.filter == 'area', source, target)


def resize_arithmetics(rule: Resize) -> tuple[Arithmetic, ...]:
    """Return every arithmetic that a resize may come to, whatever the sizes."""
    if rule.filter == 'nearest':
        return ('PICK',)
    if rule.library == 'pil' or (rule.library == 'torchvision' and rule.antialias):
        return 'PICK', 'ROUNDED'
    if rule.filter == 'bicubic':
        return 'PICK', 'CUBIC' if rule.library == 'opencv' else 'ROUNDED'
    return 'PICK', 'LINEAR', 'AREA'


def pick(lines: Array) -> Taps:
    """Return taps that take the given source lines as they are."""
    count = np.ones(len(lines), np.int32)
    first = np.arange(len(lines), dtype=np.int32)
    return Taps(first, count, count[None], lines.astype(np.int32))


def _nearest(rule: Resize, old: int, new: int) -> Array:
    if rule.library == 'torchvision':
        return torch_nearest_indices(old, new)
    if rule.library == 'opencv':
        lines = np.floor(np.arange(new) * (1 / (new / old)))
    else:  # Pillow adds the step up, so its rounding errors add up too
        steps = np.full(new, old / new)
        steps[0] *= 0.5
        lines = np.floor(np.cumsum(steps))
    return np.asarray(np.minimum(lines, old - 1))


def _pil_taps(support: float, old: int, new: int) -> Taps:
    scale = old / new
    stretch = max(scale, 1.0)
    centers = (np.arange(new) + 0.5) * scale
    begin = np.maximum((centers - support * stretch + 0.5).astype(np.int64), 0)
    end = np.minimum((centers + support * stretch + 0.5).astype(np.int64), old)
    tap = np.arange(int((end - begin).max()))[:, None]
    distance = np.abs((tap + begin - centers + 0.5) * (1.0 / stretch))
    weights = _triangle(distance) if support == 1.0 else _pil_cubic(distance)
    weights[tap >= end - begin] = 0
    sums = np.cumsum(weights, axis=0)[-1]  # one after another, as Pillow adds them
    weights = weights / np.where(sums == 0, 1, sums) * (1 << _PIL_BITS)
    whole = np.trunc(weights + np.copysign(0.5, weights)).astype(np.int32)
    return _gather(begin, end - begin, whole, old)


def _triangle(distance: Array) -> Array:
    return np.where(distance < 1, 1 - distance, 0)


def _pil_cubic(distance: Array) -> Array:
    a, x = -0.5, distance
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def _cubic_taps(old: int, new: int) -> Taps:
    position, begin = _half_pixel(old, new)
    a, x = np.float32(-0.75), position
    one = np.float32(1)
    weights = np.empty((4, new), np.float32)
    weights[0] = ((a * (x + 1) - 5 * a) * (x + 1) + 8 * a) * (x + 1) - 4 * a
    weights[1] = ((a + 2) * x - (a + 3)) * x * x + 1
    weights[2] = ((a + 2) * (one - x) - (a + 3)) * (one - x) * (one - x) + 1
    weights[3] = one - weights[0] - weights[1] - weights[2]
    return _gather(begin - 1, np.full(new, 4), _fixed(weights), old)


def _opencv_linear_or_area(is_area: bool, source: Size, target: Size) -> Resampling:  # noqa: FBT001
    edges = tuple(zip(source, target, strict=True))
    scales = [1 / (new / old) for old, new in edges]
    whole = [round(scale) for scale in scales]
    is_whole = all(abs(s - w) < np.finfo(float).eps for s, w in zip(scales, whole, strict=True))
    is_half = is_whole and whole == [2, 2]
    if is_whole and (is_half or (is_area and min(scales) >= 1)):
        rows, columns = (_block_taps(size, *edge) for size, edge in zip(whole, edges, strict=True))
        scale = float(np.float32(1) / np.float32(whole[0] * whole[1]))
        # Halving both edges OpenCV rounds halves up, elsewhere to even: half a level in 4 makes the difference.
        return Resampling('AREA', rows, columns, bias=0.5 if is_half else 0.0, scale=scale)
    if is_area and min(scales) >= 1:
        rows, columns = (_area_taps(*edge) for edge in edges)
        return Resampling('AREA', rows, columns)
    place = _enlarging_area if is_area else _half_pixel
    (rows_at, row), (columns_at, column) = (place(*edge) for edge in edges)
    beyond = (column < 0) | (
        column >= source[1] - 1
    )  # columns end at the edge, rows are repeated there
    columns_at, column = (
        np.where(beyond, np.float32(0), columns_at),
        np.clip(column, 0, source[1] - 1),
    )
    return Resampling(
        'LINEAR',
        _linear_taps(rows_at, row, source[0]),
        _linear_taps(columns_at, column, source[1]),
    )


def _half_pixel(old: int, new: int) -> tuple[Array, Array]:
    """Return how far each output line lies behind its source line, in float32, and that line; it may lie outside."""
    position = ((np.arange(new) + 0.5) * (1 / (new / old)) - 0.5).astype(np.float32)
    line = np.floor(position)
    return position - line, line.astype(np.int64)


def _enlarging_area(old: int, new: int) -> tuple[Array, Array]:
    inverse = new / old
    line = np.floor(np.arange(new) * (1 / inverse)).astype(np.int64)
    part = (np.arange(new) + 1 - (line + 1) * inverse).astype(np.float32)
    return np.where(part <= 0, np.float32(0), part - np.floor(part)), line


def _linear_taps(position: Array, begin: Array, old: int) -> Taps:
    weights = _fixed(np.stack([np.float32(1) - position, position]))
    return _gather(begin, np.full(len(begin), 2), weights, old)


def _fixed(weights: Array) -> Array:
    return np.asarray(np.rint(weights * np.float32(1 << _OPENCV_BITS)), np.int32)


def _block_taps(size: int, old: int, new: int) -> Taps:
    weights = np.ones((size, new), np.float32)
    return _gather(np.arange(new) * size, np.full(new, size), weights, old)


def _area_taps(old: int, new: int) -> Taps:
    scale = 1 / (new / old)
    begin = np.arange(new) * scale
    end = begin + scale
    width = np.minimum(scale, old - begin)
    last = np.minimum(np.floor(end), old - 1).astype(
        np.int64
    )  # first line that is not covered whole
    whole = np.minimum(np.ceil(begin), last).astype(np.int64)  # first line that is
    head = (whole - begin > _WORST_ROUNDING).astype(np.int64)
    tail = (end - last > _WORST_ROUNDING).astype(np.int64)
    count = head + last - whole + tail
    tap = np.arange(count.max())[:, None]
    weights = np.broadcast_to(1 / width, (len(tap), new)).copy()
    weights[0] = np.where(head, (whole - begin) / width, weights[0])
    covered = np.minimum(np.minimum(end - last, 1), width) / width
    weights = np.where(tail & (tap == count - 1), covered, weights)
    weights[tap >= count] = 0
    return _gather(whole - head, count, weights.astype(np.float32), old)


def _gather(begin: Array, count: Array, weights: Array, old: int) -> Taps:
    """Number the source lines that any tap needs, and count taps by those numbers."""
    low, high = int(begin.min()), int((begin + count).max())
    changes = np.zeros(high - low + 1, np.int64)
    np.add.at(changes, begin - low, 1)
    np.add.at(changes, begin + count - low, -1)
    needed = np.flatnonzero(np.cumsum(changes)[:-1]) + low
    return Taps(
        np.searchsorted(needed, begin).astype(np.int32),
        count.astype(np.int32),
        weights,
        np.clip(needed, 0, old - 1).astype(np.int32),
    )
