# SPDX-License-Identifier: Apache-2.0
"""The sections of the report that show what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vla_policy_ros.core.latency import LatencySummary
from vla_policy_ros.evaluation.html_parts import (
    DIMENSIONLESS,
    Cell,
    Markup,
    format_number,
    legend,
    meter,
    section,
    table,
    to_markup,
)
from vla_policy_ros.evaluation.metrics import Comparison, ErrorSummary, JointComparison
from vla_policy_ros.evaluation.plots import plot_joints, plot_latency, plot_row_errors
from vla_policy_ros.evaluation.recording import ChunkRecording
from vla_policy_ros.evaluation.timing import Timing
from vla_policy_ros.evaluation.verdict import Verdict

_SHOWN_ROWS = 12


def common_unit(comparison: Comparison) -> str:
    """Return the unit of all compared columns, or nothing when they differ or have none."""
    units = {joint.unit for joint in comparison.joints}
    return units.pop() if len(units) == 1 and DIMENSIONLESS not in units else ''


def show_motion(comparison: Comparison, policy: ChunkRecording, *, truth: ChunkRecording) -> str:
    """Return the joints over time, policy over truth."""
    plots = plot_joints(policy, truth, comparison=comparison)
    if not plots:
        return ''
    errors = {joint.name: joint.open_loop for joint in comparison.joints}
    charts = ''.join(
        f'<div><h3>{to_markup(plot.name)}<span>{_error_label(errors.get(plot.name), plot.unit)}'
        f'</span></h3>{plot.chart}</div>'
        for plot in plots
    )
    keys = legend(
        (
            ('line truth', 'recorded'),
            ('line policy', 'policy, rows executed'),
            ('line tail', 'policy, rest of the chunk'),
            ('seam', 'a chunk takes over'),
        )
    )
    return section(
        'Motion',
        f'{keys}<div class="joints">{charts}</div>',
        note=_motion_note(policy, len(plots)),
    )


def show_errors(comparison: Comparison) -> str:
    """Return the error per joint and over the rows of a chunk."""
    if comparison.overall is None:
        return section('Error', '', note='Not compared: no recorded chunk has a stamp in common.')
    joints = sorted(comparison.joints, key=lambda joint: -_mae(joint))
    scale = max(map(_mae, joints), default=0.0) or 1.0
    rows = [_joint_row(comparison.overall, None), *(_joint_row(j, scale) for j in joints)]
    body = _joint_table(rows[: _SHOWN_ROWS + 1])
    hidden = rows[_SHOWN_ROWS + 1 :]
    if hidden:
        body += f'<details><summary>{len(hidden)} more joints</summary>{_joint_table(hidden)}</details>'
    chart = plot_row_errors(comparison)
    side = (
        '<h3>Mean absolute error by row of the chunk</h3>'
        f'{chart}<p class="note">Shaded: the {comparison.execution_horizon} rows that are executed '
        f'before the next chunk takes over.</p>{_baseline(comparison)}'
    )
    return section(
        'Error per joint',
        f'<div class="columns uneven"><div>{body}</div><div>{side}</div></div>',
        note='Open loop: the executed rows put end to end against the recorded actions. '
        'Whole chunk: every predicted row.',
    )


def show_smoothness(comparison: Comparison) -> str:
    """Return the figures of smoothness, policy beside truth; nothing without chunks."""
    if not comparison.num_policy_chunks:
        return ''
    policy, truth = comparison.policy_smoothness, comparison.truth_smoothness
    figures = (
        ('Mean acceleration within a chunk (1/s²)', 'mean_acceleration'),
        ('Mean position jump at a seam', 'mean_boundary_jump'),
        ('Largest position jump at a seam', 'max_boundary_jump'),
        ('Mean cosine of the directions at a seam', 'mean_direction_cosine'),
        ('Seams', 'num_boundaries'),
    )
    rows = [
        (
            title,
            format_number(getattr(policy, key)),
            format_number(getattr(truth, key) if truth else None),
        )
        for title, key in figures
    ]
    figures_table = table(('', 'Policy', 'Recorded'), rows, right=(1, 2))
    return section(
        'Smoothness',
        f'<div class="narrow">{figures_table}</div>',
        note='At a seam one chunk takes over from another. Over all compared columns, each in its own '
        'unit; a cosine of 1 goes straight on, -1 turns round.',
    )


def show_timing(verdict: Verdict, policy: ChunkRecording) -> str:
    """Return latencies over the run, their histogram and the stages."""
    timing = verdict.timing
    limits = [check.limit for check in verdict.checks if check.name == 'max_p99_ms']
    over_run = histogram = ''
    if timing.capture_to_chunk.count:
        over_run, histogram = plot_latency(policy, limit_ms=limits[0] if limits else None)
    charts = (
        '<div class="columns uneven"><div><h3>Capture to chunk (ms), chunk by chunk</h3>'
        f'{over_run}</div><div><h3>How often (chunks)</h3>{histogram}</div></div>'
        if over_run
        else ''
    )
    measured = {
        'capture to chunk': timing.capture_to_chunk,
        'publication to receipt': timing.delivery,
        **timing.stages,
    }
    rows = [_latency_row(name, summary) for name, summary in measured.items() if summary.count]
    head = ('Stage', 'Samples', 'p50 ms', 'p95 ms', 'p99 ms', 'max ms')
    rate = format_number(timing.rate_hz, 'chunks per second') if timing.rate_hz else ''
    return section('Timing', charts + table(head, rows, right=range(1, 6)), note=rate)


def show_counts(timing: Timing) -> str:
    """Return what became of the observations, and why some were refused."""
    counts = timing.counts
    sent = counts.reference_samples
    rows: list[tuple[Cell, ...]] = [
        ('Reference samples sent', 'not counted' if sent is None else str(sent)),
        ('Chunks received', str(timing.num_chunks)),
        ('Reference samples refused', str(sum(counts.refusals.values()))),
        ('Reference samples without an answer', str(counts.missing)),
        ('Chunks lost on the way (gaps in the sequence)', str(timing.sequence_gaps)),
    ]
    body = (
        f'<div class="columns"><div>{table(("", "Count"), rows, right=(1,))}</div>'
        f'<div>{_bars("Refused by stream and cause", counts.refusals, "Nothing was refused.")}'
        f'{_bars("Messages lost by stream", counts.drops, "No message was lost.")}</div></div>'
    )
    return section('What became of the observations', body)


def _motion_note(policy: ChunkRecording, shown: int) -> str:
    total = len(policy.columns)
    note = f'The {shown} of {total} joints with the largest error. ' if total > shown else ''
    epochs = len(set(policy.epochs.tolist()))
    return note + (
        f'The first of {epochs} epochs; a reset or a new episode starts one.' if epochs > 1 else ''
    )


def _error_label(error: ErrorSummary | None, unit: str) -> str:
    return to_markup(f'MAE {format_number(error.mae, unit)}' if error else unit)


def _mae(joint: JointComparison) -> float:
    return joint.open_loop.mae if joint.open_loop else 0.0


def _joint_table(rows: Sequence[Sequence[Cell]]) -> str:
    head = ('Joint', 'Unit', 'MAE', '', 'RMSE', 'Largest', 'MAE, whole chunk')
    return table(head, rows, right=(2, 4, 5, 6))


def _joint_row(joint: JointComparison, scale: float | None) -> tuple[Cell, ...]:
    near, whole = joint.open_loop, joint.whole
    return (
        Markup('<b>All&nbsp;joints</b>') if scale is None else joint.name,
        '' if joint.unit == DIMENSIONLESS else joint.unit,
        format_number(near.mae if near else None),
        '' if scale is None else meter(_mae(joint) / scale),
        format_number(near.mse**0.5 if near else None),
        format_number(near.max_error if near else None),
        format_number(whole.mae if whole else None),
    )


def _baseline(comparison: Comparison) -> str:
    rows = [('Policy', comparison.overall.open_loop if comparison.overall else None)]
    rows.append(('A robot that stands still', comparison.hold_last))
    body = table(
        ('Open loop', 'MAE', 'MSE'),
        [
            (name, format_number(error.mae), format_number(error.mse))
            for name, error in rows
            if error
        ],
        right=(1, 2),
    )
    left_out = ', '.join(comparison.left_out)
    note = f'<p class="note">Not compared: {to_markup(left_out)}.</p>' if left_out else ''
    return f'{body}{note}'


def _latency_row(name: str, summary: LatencySummary) -> tuple[Cell, ...]:
    values = (summary.p50_ms, summary.p95_ms, summary.p99_ms, summary.max_ms)
    shown = [f'{value:.2f}' if summary.count else '' for value in values]
    return (name, str(summary.count), *shown)


def _bars(title: str, counts: Mapping[str, int], otherwise: str) -> str:
    if not counts:
        return f'<h3>{title}</h3><p class="note">{otherwise}</p>'
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    scale = max(ordered[0][1], 1)
    rows = [(name, str(count), meter(count / scale, is_bad=True)) for name, count in ordered]
    return f'<h3>{title}</h3>{table(("", "Count", ""), rows, right=(1,))}'
