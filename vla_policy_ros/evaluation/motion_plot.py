# SPDX-License-Identifier: Apache-2.0
"""What a robot was told, what it did and what it may do, joint by joint, with the seams between chunks marked."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from vla_policy_ros.core.specs import Array, Column, ColumnKind
from vla_policy_ros.evaluation.html_parts import legend
from vla_policy_ros.evaluation.svg import Axes, Range
from vla_policy_ros.execution.limits import JointLimits

_NS_PER_S = 1e9
_WIDTH_PX = 380
_MAX_BLANK = 0.7  # a limit further away than this many heights of the curve would press it flat


def motion_figure(
    times_ns: Array,
    command: Array,
    truth: Array | None,
    limits: JointLimits | None,
    seams_ns: Array,
    columns: Sequence[Column],
) -> str:
    """Return the HTML of a legend and, per column, the position and below it the velocity over time.

    The velocity is the difference of neighbouring positions over the time between them, so a jump at a seam shows as
    a spike. The limits stand beside the name; one that lies far outside of the motion is not drawn.

    Args:
        times_ns: (N,) int64, strictly increasing.
        command: (N, D) what the robot was told.
        truth: (N, D) what it did, or what the recording did; NaN where it is not known; None without any.
        limits: Limits of the D columns; None for none.
        seams_ns: (S,) int64 times at which a chunk took over from another.
        columns: The D columns.
    """
    if not len(times_ns):
        return ''
    times_s = (times_ns - times_ns[0]) / _NS_PER_S
    seams_s = (np.asarray(seams_ns, np.int64) - times_ns[0]) / _NS_PER_S
    charts = ''.join(
        _joint(
            times_s,
            _count_on(command[:, index], column),
            None if truth is None else _count_on(truth[:, index], column),
            seams_s=seams_s,
            column=column,
            bounds=_bounds(limits, index),
        )
        for index, column in enumerate(columns)
    )
    entries = [
        *([] if truth is None else [('line truth', 'truth')]),
        ('line policy', 'command'),
        *([] if limits is None else [('limit', 'limit')]),
        ('seam', 'a chunk takes over'),
    ]
    return f'{legend(entries)}<div class="joints">{charts}</div>'


def _joint(
    times_s: Array,
    command: Array,
    truth: Array | None,
    *,
    seams_s: Array,
    column: Column,
    bounds: tuple[tuple[float, float], tuple[float, float]],
) -> str:
    span = Range(0.0, float(times_s[-1]) or 1.0)
    curves = [command] if truth is None else [command, truth]
    middles_s = (times_s[1:] + times_s[:-1]) / 2
    speeds = [np.diff(curve) / np.diff(times_s) for curve in curves]
    position = _chart(
        times_s,
        curves,
        span=span,
        seams_s=seams_s,
        bounds=bounds[0],
        height=150,
        label=f'{column.name} over time: position',
    )
    velocity = _chart(
        middles_s,
        speeds,
        span=span,
        seams_s=seams_s,
        bounds=bounds[1],
        height=110,
        label=f'{column.name} over time: velocity',
    )
    remark = escape(_describe(column.unit, bounds))
    return f'<div><h3>{escape(column.name)}<span>{remark}</span></h3>{position}{velocity}</div>'


def _describe(unit: str, bounds: tuple[tuple[float, float], tuple[float, float]]) -> str:
    """Return the units of both charts with the limits in front of them, which may lie outside of the charts."""
    (low, high), (_, speed) = bounds
    place = f'{low:.4g} to {high:.4g}' if np.isfinite([low, high]).any() else ''
    pace = f'{speed:.4g}' if np.isfinite(speed) else ''
    units = (unit, f'{unit}/s') if unit else ('', 'per s')
    parts = (f'{limit} {name}'.strip() for limit, name in zip((place, pace), units, strict=True))
    return ', '.join(part for part in parts if part)


def _chart(
    x: Array,
    curves: Sequence[Array],
    *,
    span: Range,
    seams_s: Array,
    bounds: tuple[float, float],
    height: int,
    label: str,
) -> str:
    """Draw the command (first) over the truth, between the bounds that are near enough."""
    known = Range.around(np.concatenate(curves))
    reach = _MAX_BLANK * (known.high - known.low)
    shown = [
        bound
        for bound in bounds
        if np.isfinite(bound) and known.low - reach <= bound <= known.high + reach
    ]
    axes = Axes(
        x=span,
        y=Range.around(np.concatenate([*curves, np.array(shown)])),
        width=_WIDTH_PX,
        height=height,
    )
    marks = [axes.ticks_up(seams_s, height_px=axes.inner_height, style='grid')]
    marks.append(axes.ticks_up(seams_s, height_px=6, style='seam'))
    marks += [axes.rule(bound, '', style='limit') for bound in shown]
    for curve, style in reversed(list(zip(curves, ('line policy', 'line truth'), strict=False))):
        is_known = np.isfinite(curve)
        marks.append(axes.line(x[is_known], curve[is_known], style=style))
    return axes.render(marks, label=label, x_unit=' s')


def _count_on(values: Array, column: Column) -> Array:
    """Return a (N,) column as float64; an angle goes on beyond a turn, so that no wrap shows as a jump."""
    counted = np.array(values, np.float64)
    if column.kind is ColumnKind.ANGLE:
        is_known = np.isfinite(counted)
        counted[is_known] = np.unwrap(counted[is_known])
    return counted


def _bounds(
    limits: JointLimits | None, index: int
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return lowest and highest position, lowest and highest velocity."""
    if limits is None:
        return (-np.inf, np.inf), (-np.inf, np.inf)
    speed = float(limits.velocity[index])
    return (float(limits.position_min[index]), float(limits.position_max[index])), (-speed, speed)
