# SPDX-License-Identifier: Apache-2.0
"""The section of the report that shows what the robot was told: within limits or not, how smoothly, how late."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vla_policy_ros.evaluation.html_parts import Cell, format_number, section, table
from vla_policy_ros.evaluation.motion_metrics import MotionFigures, truth_at
from vla_policy_ros.evaluation.motion_plot import MotionMarks, motion_figure
from vla_policy_ros.evaluation.motion_recording import MotionRecording
from vla_policy_ros.evaluation.recording import ChunkRecording
from vla_policy_ros.evaluation.verdict import Verdict
from vla_policy_ros.execution.limits import choose_limits

_MAX_JOINTS = 12
_SMOOTHNESS = (
    ('Mean acceleration (1/s²)', 'mean_acceleration'),
    ('Mean jump at a seam', 'mean_boundary_jump'),
    ('Largest jump at a seam', 'max_boundary_jump'),
    ('Mean cosine of the directions at a seam', 'mean_direction_cosine'),
    ('Seams', 'num_boundaries'),
)


def show_executed(
    verdict: Verdict, motion: MotionRecording | None, *, truth: ChunkRecording
) -> str:
    """Return the commands joint by joint with truth and limits, and their figures; nothing without an executor."""
    figures = verdict.motion
    if figures is None or motion is None:
        return ''
    title = 'What the robot was told'
    if not len(motion):
        return section(title, '', note='The executor sent no command.')
    body = f'{_charts(motion, truth)}{_tables(verdict, figures)}'
    return section(title, body, note=_note(figures, len(motion.columns)))


def _charts(motion: MotionRecording, truth: ChunkRecording) -> str:
    recorded = truth_at(truth, motion, motion.times_ns)
    places = _most_moved(motion)
    marks = MotionMarks(
        states=motion.states,
        is_limited=motion.is_limited[:, places],
        robot=motion.robot_at(motion.times_ns)[:, places],
    )
    return motion_figure(
        motion.times_ns,
        motion.positions[:, places],
        recorded[:, places] if np.isfinite(recorded).any() else None,
        choose_limits(motion.limits, places) if motion.limits else None,
        motion.seams_ns,
        [motion.columns[place] for place in places],
        marks=marks,
    )


def _most_moved(motion: MotionRecording) -> list[int]:
    """Return the columns to show, in their order: at most twelve, those that moved the longest way for their limits."""
    ways = np.abs(np.diff(motion.positions, axis=0)).sum(axis=0)
    if motion.limits is not None:
        ways = ways / np.where(np.isfinite(motion.limits.velocity), motion.limits.velocity, 1.0)
    chosen: list[int] = np.argsort(-ways, kind='stable')[:_MAX_JOINTS].tolist()
    return sorted(chosen)


def _note(figures: MotionFigures, total: int) -> str:
    executor = figures.executor
    shown = (
        f'The {_MAX_JOINTS} of {total} columns that moved most. ' if total > _MAX_JOINTS else ''
    )
    dry = 'A dry run: the commands were told and not sent. ' if executor.is_dry_run else ''
    topic = (
        f'The robot follows the commands and reports on {executor.robot_topic}, where only the executor listens: '
        'the policy goes on seeing the recorded joint states, so that its chunks can be compared with the recording.'
        if executor.robot_topic
        else ''
    )
    return f'{shown}{dry}{topic}'


def _tables(verdict: Verdict, figures: MotionFigures) -> str:
    left = f'<h3>Smoothness</h3>{_smoothness(verdict, figures)}'
    right = f'<h3>The executor</h3>{_facts(figures)}'
    return f'<div class="columns after"><div>{left}</div><div>{right}</div></div>'


def _smoothness(verdict: Verdict, figures: MotionFigures) -> str:
    sides = (verdict.comparison.policy_smoothness, figures.smoothness, figures.truth_smoothness)
    rows = [
        (title, *(format_number(getattr(side, key)) for side in sides))
        for title, key in _SMOOTHNESS
    ]
    rows += [
        (
            'Mean distance to the recording',
            format_number(_mae(verdict)),
            format_number(figures.error.mae if figures.error else None),
            format_number(None),
        )
    ]
    body = table(('', 'Chunks', 'Commands', 'Recorded'), rows, right=(1, 2, 3))
    note = (
        'Chunks: from the end of one to the beginning of the next. Commands and recording: at the moments of the '
        'seams, a jump is what one tick adds to the motion before it. Accelerations are measured over one step of the '
        'policy each.'
    )
    return f'{body}<p class="note">{note}</p>'


def _mae(verdict: Verdict) -> float | None:
    overall = verdict.comparison.overall
    return overall.open_loop.mae if overall and overall.open_loop else None


def _facts(figures: MotionFigures) -> str:
    executor = figures.executor
    age, lag = figures.chunk_age, figures.lag
    facts: dict[str, str] = {
        'Commands': f'{figures.num_commands} in {figures.duration_s:.2f} s',
        'Outside of a limit': _counts(figures.outside)
        if figures.outside is not None
        else 'unknown',
        'A limit acted': _counts(figures.acted),
        'Time in state': ', '.join(f'{n} {s:.2f} s' for n, s in figures.state_s.items()),
        'Strategy': executor.strategy,
        'Chunks': _counts(executor.chunks),
        'Refused': _counts(executor.refusals),
        'Never used': _counts(executor.discards),
        'Delay (steps)': _numbers(executor.delay_steps),
        'Violations': _counts(executor.violations),
        'Starvations': str(executor.starvations),
        'Age of the observation': (
            f'p50 {age.p50_ms:.0f} ms, p99 {age.p99_ms:.0f} ms, max {age.max_ms:.0f} ms'
            if age
            else ''
        ),
        'Robot to command': (
            f'mean {format_number(lag.mae)}, max {format_number(lag.max_error)}' if lag else ''
        ),
        'Lateness of ticks (ms)': _numbers(executor.lateness_ms),
        'Scheduling': executor.scheduling,
    }
    rows: list[tuple[Cell, ...]] = [(name, text) for name, text in facts.items() if text]
    return f'<div class="facts">{table(("", ""), rows)}</div>'


def _counts(counts: Mapping[str, int]) -> str:
    return ', '.join(f'{name} {count}' for name, count in counts.items()) or 'none'


def _numbers(values: Mapping[str, float]) -> str:
    return ', '.join(f'{name} {value:.3g}' for name, value in values.items())
