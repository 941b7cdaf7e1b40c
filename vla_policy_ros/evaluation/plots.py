# SPDX-License-Identifier: Apache-2.0
"""The charts of a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vla_policy_ros.core.specs import Array, Column
from vla_policy_ros.evaluation.alignment import match_stamps, select_executed
from vla_policy_ros.evaluation.metrics import Comparison
from vla_policy_ros.evaluation.recording import ChunkRecording
from vla_policy_ros.evaluation.svg import Axes, Range

_MAX_JOINTS = 12
_MAX_TAILS = 150


@dataclass(frozen=True, slots=True)
class JointPlot:
    """One joint over time: its name and unit, and the chart."""

    name: str
    unit: str
    chart: str


@dataclass(frozen=True, slots=True, eq=False)
class _Motion:
    """The first epoch of a run: (C, K) times and (C, K, D) values of the executed chunks, (S,) and (S, D) of the truth."""

    times_s: Array
    values: Array
    truth_times_s: Array
    truth_values: Array
    rows: int


def plot_joints(
    policy: ChunkRecording, truth: ChunkRecording, *, comparison: Comparison
) -> tuple[JointPlot, ...]:
    """Plot the joints with the largest error, at most twelve, over the first epoch."""
    if not len(policy):
        return ()
    motion = _read_motion(policy, truth, comparison.execution_horizon)
    span = Range(
        0.0, float(motion.times_s[:, : motion.rows].max(initial=policy.step_ns / 1e9)) or 1.0
    )
    truth_names = [column.name for column in truth.columns]
    return tuple(
        JointPlot(
            column.name,
            column.unit,
            _joint_chart(
                motion,
                index,
                truth_names.index(column.name) if column.name in truth_names else None,
                span=span,
                name=column.name,
            ),
        )
        for index, column in _choose_joints(policy, comparison)
    )


def plot_row_errors(comparison: Comparison) -> str:
    """Plot the mean absolute error over the row of the chunk; empty when nothing could be compared."""
    known = [(row, mae) for row, mae in enumerate(comparison.row_mae) if mae is not None]
    if not known:
        return ''
    rows, errors = np.array(known).T
    axes = Axes(
        x=Range(0, max(len(comparison.row_mae) - 1, 1)),
        y=Range(0, float(errors.max()) * 1.15 or 1.0),
        width=480,
        height=220,
    )
    executed = np.array([0, comparison.execution_horizon - 1])
    ceiling = np.array([axes.y.high])
    marks = [
        axes.bars(executed, ceiling, style='span'),
        axes.line(rows, errors, style='line policy'),
        axes.dots(rows, errors, style='dots policy'),
    ]
    return axes.render(marks, label='mean absolute error over the row of the chunk')


def plot_latency(policy: ChunkRecording, *, limit_ms: float | None) -> tuple[str, str]:
    """Plot the time from capture to chunk over the run, and its histogram; empty without chunks.

    The limit is drawn unless it lies far above all values.
    """
    if not len(policy):
        return '', ''
    latency_ms = (policy.publish_stamps_ns - policy.observation_stamps_ns) / 1e6
    order = np.arange(len(latency_ms), dtype=np.float64)
    if limit_ms and limit_ms > 3 * latency_ms.max():
        limit_ms = None  # so far away that it would press the curve flat
    top = max(float(latency_ms.max()), limit_ms or 0.0)
    span = Range(min(float(latency_ms.min()), 0.0), top * 1.15 or 1.0)
    over_run = Axes(x=Range(0, max(len(order) - 1, 1)), y=span, width=700, height=220)
    marks = [
        over_run.line(order, latency_ms, style='line policy thin'),
        over_run.rule(limit_ms, f'limit {limit_ms:g} ms', style='limit') if limit_ms else '',
    ]
    edges = np.histogram_bin_edges(latency_ms, bins=min(30, max(len(latency_ms) // 4, 5)))
    counts, edges = np.histogram(latency_ms, edges)
    spread = Axes(
        x=Range(min(float(edges[0]), 0.0), max(span.high, float(edges[-1]))),
        y=Range(0, float(counts.max()) * 1.1),
        width=440,
        height=220,
    )
    bars = [
        spread.bars(edges, counts, style='bar'),
        spread.rule(limit_ms, 'limit', style='limit', is_vertical=True) if limit_ms else '',
    ]
    return (
        over_run.render(marks, label='capture to chunk in milliseconds, chunk by chunk'),
        spread.render(bars, label='histogram of capture to chunk', x_unit=' ms'),
    )


def _choose_joints(policy: ChunkRecording, comparison: Comparison) -> Sequence[tuple[int, Column]]:
    errors = {joint.name: joint.open_loop.mae for joint in comparison.joints if joint.open_loop}
    places = sorted(enumerate(policy.columns), key=lambda place: -errors.get(place[1].name, -1.0))
    return places[:_MAX_JOINTS]


def _read_motion(policy: ChunkRecording, truth: ChunkRecording, rows: int) -> _Motion:
    chosen = select_executed(policy, execution_horizon=rows)
    chosen = chosen[policy.epochs[chosen] == policy.epochs[0]]
    starts_ns = policy.starts_ns[chosen]
    origin_ns = int(starts_ns[0])
    rows_ns = np.arange(policy.horizon, dtype=np.int64) * policy.step_ns
    truth_times_s, truth_values = _read_truth(policy, truth, origin_ns)
    return _Motion(
        times_s=(starts_ns[:, None] + rows_ns - origin_ns) / 1e9,
        values=policy.actions[chosen],
        truth_times_s=truth_times_s,
        truth_values=truth_values,
        rows=rows,
    )


def _read_truth(
    policy: ChunkRecording, truth: ChunkRecording, origin_ns: int
) -> tuple[Array, Array]:
    """Return the rows 0 of the truth's epoch that holds the policy's first matched chunk."""
    if not len(truth):
        return np.zeros(0), np.zeros((0, 0))
    _, matched = match_stamps(policy.observation_stamps_ns, truth.observation_stamps_ns)
    first = int(matched[0]) if len(matched) else 0
    is_shown = truth.epochs == truth.epochs[first]
    return (truth.starts_ns[is_shown] - origin_ns) / 1e9, truth.actions[is_shown, 0]


def _joint_chart(
    motion: _Motion, index: int, truth_index: int | None, *, span: Range, name: str
) -> str:
    rows = motion.rows
    values = motion.values[:, :, index]
    truth_values = motion.truth_values[:, truth_index] if truth_index is not None else None
    shown = [values[:, :rows].ravel(), *([] if truth_values is None else [truth_values])]
    axes = Axes(x=span, y=Range.around(np.concatenate(shown)), width=380, height=150)
    marks = [axes.ticks_up(motion.times_s[:, 0], height_px=6, style='seam')]
    if truth_values is not None:
        marks.append(axes.line(motion.truth_times_s, truth_values, style='line truth'))
    if len(values) <= _MAX_TAILS:
        tails = zip(motion.times_s[:, rows - 1 :], values[:, rows - 1 :], strict=True)
        marks.append(axes.lines(tails, style='line tail'))
    marks.append(axes.lines(_executed_pieces(motion, values), style='line policy'))
    return axes.render(marks, label=f'{name} over time, policy and recorded', x_unit=' s')


def _executed_pieces(motion: _Motion, values: Array) -> list[tuple[Array, Array]]:
    """Return what is executed: a line per chunk, or one line when only single rows are executed."""
    rows = motion.rows
    if rows == 1:
        return [(motion.times_s[:, 0], values[:, 0])]
    return list(zip(motion.times_s[:, :rows], values[:, :rows], strict=True))
