# SPDX-License-Identifier: Apache-2.0
"""A chart as inline SVG: axes, grid and lines; colours come from the page, so that light and dark both work."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from vla_policy_ros.core.specs import Array

_MAX_POINTS = 1200


@dataclass(frozen=True, slots=True)
class Range:
    """An interval of data values."""

    low: float
    high: float

    @classmethod
    def around(cls, values: Array, *, margin: float = 0.08) -> Range:
        """Return the range of some values with a margin; a flat or empty range gets a width."""
        known = values[np.isfinite(values)]
        low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
        width = high - low
        if width < 1e-9 * max(abs(low), abs(high), 1.0):
            width = max(abs(low), 1e-3)
        return cls(low - margin * width, high + margin * width)


@dataclass(frozen=True, slots=True, kw_only=True)
class Axes:
    """A chart's plot area in pixels and the data it shows."""

    x: Range
    y: Range
    width: int
    height: int
    left: int = 46
    right: int = 10
    top: int = 10
    bottom: int = 22

    @property
    def inner_width(self) -> int:
        """Width of the plot area in pixels."""
        return self.width - self.left - self.right

    @property
    def inner_height(self) -> int:
        """Height of the plot area in pixels."""
        return self.height - self.top - self.bottom

    def to_x(self, values: Array | float) -> Array:
        """Return pixels from the left of the plot area."""
        scale = self.inner_width / (self.x.high - self.x.low)
        return np.atleast_1d((np.asarray(values, np.float64) - self.x.low) * scale)

    def to_y(self, values: Array | float) -> Array:
        """Return pixels from the top of the plot area."""
        scale = self.inner_height / (self.y.high - self.y.low)
        return np.atleast_1d((self.y.high - np.asarray(values, np.float64)) * scale)

    def line(self, x: Array, y: Array, *, style: str) -> str:
        """Return one line through (P,) points; long ones keep the extremes of every stretch."""
        return self.lines([(x, y)], style=style)

    def lines(self, pieces: Iterable[tuple[Array, Array]], *, style: str) -> str:
        """Return several lines as one path."""
        path = ''.join(_trace(self.to_x(x), self.to_y(y)) for x, y in pieces if len(x))
        return f'<path class="{style}" d="{path}"/>' if path else ''

    def dots(self, x: Array, y: Array, *, style: str) -> str:
        """Return (P,) points as round dots (lines without length, with round ends)."""
        points = zip(self.to_x(x).tolist(), self.to_y(y).tolist(), strict=True)
        path = ''.join(f'M{px:.1f} {py:.1f}h0' for px, py in points)
        return f'<path class="{style}" d="{path}"/>' if path else ''

    def ticks_up(self, x: Array, *, height_px: float, style: str) -> str:
        """Return marks that stand on the lower edge of the plot area."""
        path = ''.join(f'M{p:.1f} {self.inner_height}v-{height_px:g}' for p in self.to_x(x))
        return f'<path class="{style}" d="{path}"/>' if path else ''

    def ticks_down(self, x: Array, *, height_px: float, style: str) -> str:
        """Return marks that hang from the upper edge of the plot area; of those on one pixel only one is drawn."""
        places = np.unique(np.round(self.to_x(x))) if len(x) else np.zeros(0)
        path = ''.join(f'M{p:.0f} 0v{height_px:g}' for p in places)
        return f'<path class="{style}" d="{path}"/>' if path else ''

    def bars(self, edges: Array, counts: Array, *, style: str) -> str:
        """Return (B,) bars between (B + 1,) edges, a pixel apart."""
        edges_px, tops = self.to_x(edges), self.to_y(counts)
        shapes = zip(edges_px[:-1], np.diff(edges_px), tops, strict=True)
        return ''.join(
            f'<rect class="{style}" x="{left:.1f}" y="{top:.1f}" '
            f'width="{max(width - 1, 1):.1f}" height="{max(self.inner_height - top, 0):.1f}"/>'
            for left, width, top in shapes
        )

    def bands(self, spans: Iterable[tuple[float, float]], *, style: str) -> str:
        """Return stretches of x over the whole height, to lie under everything else."""
        shapes = ((float(self.to_x(low)[0]), float(self.to_x(high)[0])) for low, high in spans)
        return ''.join(
            f'<rect class="{style}" x="{left:.1f}" y="0" width="{max(right - left, 0.5):.1f}" '
            f'height="{self.inner_height}"/>'
            for left, right in shapes
        )

    def rule(self, value: float, label: str, *, style: str, is_vertical: bool = False) -> str:
        """Return a line across the plot area with a label at its end."""
        if is_vertical:
            at = float(self.to_x(value)[0])
            shape = f'M{at:.1f} 0V{self.inner_height}'
            place = f'x="{at - 4:.1f}" y="10" text-anchor="end"'
        else:
            at = float(self.to_y(value)[0])
            shape = f'M0 {at:.1f}H{self.inner_width}'
            place = f'x="{self.inner_width - 4}" y="{at - 4:.1f}" text-anchor="end"'
        return f'<path class="{style}" d="{shape}"/><text {place}>{escape(label)}</text>'

    def render(self, marks: Sequence[str], *, label: str, x_unit: str = '') -> str:
        """Return the SVG element with grid, tick labels and marks; `label` is what a screen reader says."""
        return (
            f'<svg class="chart" viewBox="0 0 {self.width} {self.height}" role="img" '
            f'aria-label="{escape(label)}">{self._grid(x_unit)}'
            f'<svg x="{self.left}" y="{self.top}" width="{self.inner_width}" '
            f'height="{self.inner_height}">{"".join(marks)}</svg></svg>'
        )

    def _grid(self, x_unit: str) -> str:
        parts = []
        for value in ticks(self.y, count=max(self.inner_height // 28, 2)):
            at = self.top + float(self.to_y(value)[0])
            parts.append(f'<path class="grid" d="M{self.left} {at:.1f}h{self.inner_width}"/>')
            parts.append(
                f'<text x="{self.left - 6}" y="{at + 3.5:.1f}" text-anchor="end">{value:g}</text>'
            )
        base = self.height - self.bottom
        for value in ticks(self.x, count=max(self.inner_width // 64, 2)):
            at = self.left + float(self.to_x(value)[0])
            parts.append(
                f'<text x="{at:.1f}" y="{base + 15}" text-anchor="middle">'
                f'{value:g}{escape(x_unit)}</text>'
            )
        parts.append(f'<path class="axis" d="M{self.left} {base}h{self.inner_width}"/>')
        return ''.join(parts)


def ticks(span: Range, *, count: int) -> list[float]:
    """Return about `count` round values (1, 2 or 5 times a power of ten) within a range."""
    rough = (span.high - span.low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= 0.7 * rough)
    first, last = math.ceil(span.low / step), math.floor(span.high / step)
    decimals = max(0, -math.floor(math.log10(step)))
    return [round(index * step, decimals) + 0.0 for index in range(first, last + 1)]


def _trace(x: Array, y: Array) -> str:
    x, y = _thin(x, y)
    points = [f'{px:.1f} {py:.1f}' for px, py in zip(x.tolist(), y.tolist(), strict=True)]
    return 'M' + 'L'.join(points)


def _thin(x: Array, y: Array) -> tuple[Array, Array]:
    """Keep the lowest and the highest point of each stretch, in their order."""
    if len(x) <= _MAX_POINTS:
        return x, y
    kept = set()
    for stretch in np.array_split(np.arange(len(x)), _MAX_POINTS // 2):
        kept |= {stretch[int(y[stretch].argmin())], stretch[int(y[stretch].argmax())]}
    places = np.array(sorted(kept))
    return x[places], y[places]
