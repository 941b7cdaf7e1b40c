# SPDX-License-Identifier: Apache-2.0
"""What a robot was told, what it did and what it may do, joint by joint, with the seams between chunks marked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape

import numpy as np

from vla_policy_ros.core.specs import Array, Column, ColumnKind
from vla_policy_ros.evaluation.html_parts import DIMENSIONLESS, legend
from vla_policy_ros.evaluation.svg import Axes, Range
from vla_policy_ros.execution.limits import JointLimits

_NS_PER_S = 1e9
_WIDTH_PX = 380
_MAX_BLANK = 0.7  # a limit further away than this many heights of the curve would press it flat
# Robot, command, truth: the first one lies on top.
_CURVES = ('line robot', 'line policy', 'line truth')
_BANDS = {
    'soft_start': 'soft start',
    'starved': 'no row left',
    'stopping': 'stopping',
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MotionMarks:
    """What else is known of N commands.

    Attributes:
        states: (N,) text, state of the executor; all but idle and tracking are told by the ground of the charts.
        is_limited: (N, D) bool: a limit has changed the command; told by ticks at the upper edge.
        robot: (N, D) where the robot was, NaN where it is not known.
    """

    states: Array
    is_limited: Array
    robot: Array


@dataclass(frozen=True, slots=True, eq=False)
class _Timeline:
    """What all charts share: times in seconds from the first command."""

    times_s: Array
    seams_s: Array
    bands: Sequence[tuple[str, list[tuple[float, float]]]]

    @property
    def span(self) -> Range:
        return Range(0.0, float(self.times_s[-1]) or 1.0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Chart:
    """One chart: curves with their styles over x, bounds, and the times at which a limit acted."""

    x: Array
    curves: Sequence[tuple[str, Array]]
    bounds: tuple[float, float]
    acted_s: Array
    height: int
    label: str


def motion_figure(
    times_ns: Array,
    command: Array,
    truth: Array | None,
    limits: JointLimits | None,
    seams_ns: Array,
    columns: Sequence[Column],
    *,
    marks: MotionMarks | None = None,
) -> str:
    """Return the HTML of a legend and, per column, the position and below it the velocity over time.

    The velocity is the difference of neighbouring positions over the time between them, so a jump at a seam shows as
    a spike. The limits stand beside the name; one that lies far outside of the motion is not drawn.

    Args:
        times_ns: (N,) int64, strictly increasing.
        command: (N, D) what the robot was told.
        truth: (N, D) what the recording did; NaN where it is not known; None without any.
        limits: Limits of the D columns; None for none.
        seams_ns: (S,) int64 times at which a chunk took over from another.
        columns: The D columns.
        marks: What else is known of the commands.
    """
    if not len(times_ns):
        return ''
    times_s = (times_ns - times_ns[0]) / _NS_PER_S
    seams_s = (np.asarray(seams_ns, np.int64) - times_ns[0]) / _NS_PER_S
    timeline = _Timeline(times_s, seams_s, _find_bands(times_s, marks))
    robot = None if marks is None or not np.isfinite(marks.robot).any() else marks.robot
    given = list(zip(_CURVES, (robot, command, truth), strict=True))
    charts = ''.join(
        _joint(
            timeline,
            [
                (style, _count_on(values[:, index], column))
                for style, values in given
                if values is not None
            ],
            column=column,
            bounds=_bounds(limits, index),
            acted_s=times_s[marks.is_limited[:, index]] if marks is not None else np.zeros(0),
        )
        for index, column in enumerate(columns)
    )
    shown = [style for style, values in given if values is not None]
    entries = _legend_entries(shown, timeline, has_limits=limits is not None, marks=marks)
    return f'{legend(entries)}<div class="joints">{charts}</div>'


def _legend_entries(
    curves: Sequence[str], timeline: _Timeline, *, has_limits: bool, marks: MotionMarks | None
) -> list[tuple[str, str]]:
    names = dict(zip(_CURVES, ('robot', 'command', 'truth'), strict=True))
    return [
        *((style, names[style]) for style in reversed(curves)),
        *([('limit', 'limit')] if has_limits else []),
        ('seam', 'a chunk takes over'),
        *([('acted', 'a limit acts')] if marks is not None and marks.is_limited.any() else []),
        *((f'band {state}', _BANDS[state]) for state, _ in timeline.bands),
    ]


def _find_bands(
    times_s: Array, marks: MotionMarks | None
) -> list[tuple[str, list[tuple[float, float]]]]:
    """Return the stretches of time per state that is told; each ends where the next command begins another."""
    if marks is None:
        return []
    changes = np.flatnonzero(marks.states[1:] != marks.states[:-1]) + 1
    begins = [0, *changes.tolist()]
    ends = [*changes.tolist(), len(times_s) - 1]
    spans = [
        (str(marks.states[begin]), (float(times_s[begin]), float(times_s[end])))
        for begin, end in zip(begins, ends, strict=True)
    ]
    found = ((name, [span for state, span in spans if state == name]) for name in _BANDS)
    return [(name, own) for name, own in found if own]


def _joint(
    timeline: _Timeline,
    curves: Sequence[tuple[str, Array]],
    *,
    column: Column,
    bounds: tuple[tuple[float, float], tuple[float, float]],
    acted_s: Array,
) -> str:
    times_s = timeline.times_s
    spans_s = np.diff(times_s)
    position = _Chart(
        x=times_s,
        curves=curves,
        bounds=bounds[0],
        acted_s=acted_s,
        height=150,
        label=f'{column.name} over time: position',
    )
    velocity = replace(
        position,
        x=(times_s[1:] + times_s[:-1]) / 2,
        curves=[(style, np.diff(curve) / spans_s) for style, curve in curves],
        bounds=bounds[1],
        acted_s=np.zeros(0),
        height=110,
        label=f'{column.name} over time: velocity',
    )
    remark = escape(_describe(column.unit, bounds))
    charts = ''.join(_draw(chart, timeline) for chart in (position, velocity))
    return f'<div><h3>{escape(column.name)}<span>{remark}</span></h3>{charts}</div>'


def _describe(unit: str, bounds: tuple[tuple[float, float], tuple[float, float]]) -> str:
    """Return the units of both charts with the limits in front of them, which may lie outside of the charts."""
    (low, high), (_, speed) = bounds
    place = f'{low:.4g} to {high:.4g}' if np.isfinite([low, high]).any() else ''
    pace = f'{speed:.4g}' if np.isfinite(speed) else ''
    units = ('', 'per s') if unit in ('', DIMENSIONLESS) else (unit, f'{unit}/s')
    parts = (f'{limit} {name}'.strip() for limit, name in zip((place, pace), units, strict=True))
    return ', '.join(part for part in parts if part)


def _draw(chart: _Chart, timeline: _Timeline) -> str:
    """Draw the first curve over the others, between the bounds that are near enough."""
    values = np.concatenate([curve for _, curve in chart.curves])
    known = Range.around(values)
    reach = _MAX_BLANK * (known.high - known.low)
    shown = [
        bound
        for bound in chart.bounds
        if np.isfinite(bound) and known.low - reach <= bound <= known.high + reach
    ]
    axes = Axes(
        x=timeline.span,
        y=Range.around(np.concatenate([values, np.array(shown)])),
        width=_WIDTH_PX,
        height=chart.height,
    )
    marks = [axes.bands(spans, style=f'band {state}') for state, spans in timeline.bands]
    marks.append(axes.ticks_up(timeline.seams_s, height_px=axes.inner_height, style='seam faint'))
    marks.append(axes.ticks_up(timeline.seams_s, height_px=6, style='seam'))
    marks.append(axes.ticks_down(chart.acted_s, height_px=5, style='acted'))
    marks += [axes.rule(bound, '', style='limit') for bound in shown]
    for style, curve in reversed(chart.curves):
        is_known = np.isfinite(curve)
        marks.append(axes.line(chart.x[is_known], curve[is_known], style=style))
    return axes.render(marks, label=chart.label, x_unit=' s')


def _count_on(values: Array, column: Column) -> Array:
    """Return a (N,) column as float64; an angle goes on beyond a turn, so that no wrap shows as a jump."""
    counted = np.array(values, np.float64)
    if column.turn:
        is_known = np.isfinite(counted)
        counted[is_known] = np.unwrap(counted[is_known], period=column.turn)
    return counted


def _bounds(
    limits: JointLimits | None, index: int
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return lowest and highest position, lowest and highest velocity; of a value that is a motion one order lower."""
    if limits is None:
        return (-np.inf, np.inf), (-np.inf, np.inf)
    low, high, first, _, _ = limits.orders()
    if limits.columns[index].kind is ColumnKind.QUATERNION:
        return (-np.inf, np.inf), (
            -np.inf,
            np.inf,
        )  # its limit is one of the turn, not of a component
    speed = float(first[index])
    return (float(low[index]), float(high[index])), (-speed, speed)
