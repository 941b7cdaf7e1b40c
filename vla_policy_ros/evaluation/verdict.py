# SPDX-License-Identifier: Apache-2.0
"""Tolerances, the checks made of them, and whether a run passed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field

from vla_policy_ros.bundle.strict import StrictModel, parse
from vla_policy_ros.core.errors import ConfigurationError
from vla_policy_ros.evaluation.metrics import Comparison
from vla_policy_ros.evaluation.motion_metrics import MotionFigures
from vla_policy_ros.evaluation.timing import Timing

Limit = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]


class Tolerances(StrictModel):
    """Limits of a run; what is left out is not checked. Errors are those of open loop, see `JointComparison`."""

    max_mae: Limit | None = None
    """Mean absolute error over all columns."""
    max_mse: Limit | None = None
    """Mean squared error over all columns."""
    max_joint_mae: Limit | None = None
    """Mean absolute error of the worst column."""
    max_error: Limit | None = None
    """Largest single error."""
    min_compared_share: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of the policy's chunks that have a recorded chunk to be compared with."""
    max_left_out: Count | None = None
    """Columns of the policy that could not be compared; 0 when any limit on an error is given."""
    max_boundary_jump: Limit | None = None
    """Largest jump from one executed chunk to the next (L2 over all columns)."""
    max_p99_ms: Limit | None = None
    """99th percentile of the time from capture to chunk, in milliseconds."""
    min_rate_hz: Limit | None = None
    """Chunks per second."""
    min_chunk_share: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of the reference samples that were answered with a chunk."""
    max_refused: Count | None = None
    """Reference samples refused, whatever the cause."""
    max_missing: Count | None = None
    """Reference samples that were neither answered nor refused."""
    max_sequence_gaps: Count | None = None
    """Chunks published that never arrived."""
    max_command_mae: Limit | None = None
    """Mean absolute distance of the executor's commands to the recorded actions of the same moments, while it follows."""
    max_lag: Limit | None = None
    """Mean absolute distance of the robot to the commands, on the robot's topic of joint states."""
    max_starvations: Count | None = None
    """How often the executor had no row left; the end of a recording is one time."""
    max_command_jump: Limit | None = None
    """Largest step of the commands at a seam, from one tick to the next, beyond the motion before it."""
    max_chunk_age_ms: Limit | None = None
    """Age of the oldest observation that a command was based on, in milliseconds."""
    max_lateness_p99_ms: Limit | None = None
    """99th percentile of how late the executor's ticks came, in milliseconds."""

    @classmethod
    def from_dict(cls, document: Mapping[str, Any], where: str = 'tolerances') -> Tolerances:
        """Check a mapping of limits.

        Raises:
            ConfigurationError: A key is unknown or a limit is no finite number of at least 0.
        """
        return parse(cls, dict(document), where, ConfigurationError)


@dataclass(frozen=True, slots=True)
class Check:
    """One tolerance held against one figure.

    Attributes:
        name: The tolerance; or `chunks`, which every run must meet, `commands` and `commands_outside_limits`, which
            every run with an executor must meet.
        got: The figure; None when it could not be measured, and then the check has not passed.
        limit: What it was held against.
        passed: Whether it was kept.
        detail: One sentence for people.
    """

    name: str
    got: float | None
    limit: float
    passed: bool
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What was run, for people who want to run it again.

    Attributes:
        name: Headline of the report.
        command: Command line that repeats the run.
        versions: Software and its version.
        details: Anything else worth knowing: dataset, episode, mode, engine, machine.
    """

    name: str
    command: str = ''
    versions: Mapping[str, str] = field(default_factory=dict)
    details: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a run was, what was measured, and whether it kept its tolerances; `motion` is None without an executor."""

    run: RunFacts
    comparison: Comparison
    timing: Timing
    checks: tuple[Check, ...]
    motion: MotionFigures | None = None

    @property
    def passed(self) -> bool:
        """True when there are checks and every one passed."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    @property
    def exit_status(self) -> int:
        """0 when passed, else 1."""
        return 0 if self.passed else 1


def judge(
    run: RunFacts,
    comparison: Comparison,
    *,
    timing: Timing,
    tolerances: Tolerances,
    motion: MotionFigures | None = None,
) -> Verdict:
    """Hold a run against its tolerances.

    A run without a chunk fails whatever they are; so does one with an executor that sends no command, or one command
    outside of a limit.
    """
    num_chunks = comparison.num_policy_chunks
    checks = [_check('chunks', num_chunks, 1, 'chunks published', is_upper=False)]
    if motion is not None:
        outside = motion.num_outside
        checks.append(_check('commands', motion.num_commands, 1, 'commands sent', is_upper=False))
        checks.append(
            _check(
                'commands_outside_limits', outside, 0, 'commands outside of limits', is_upper=True
            )
        )
    limits = tolerances.model_dump(exclude_none=True)
    if any(name in limits for name in _ERRORS):
        # An error that is small on the columns that were compared says nothing of the others.
        limits.setdefault('max_left_out', 0)
    for name, (what, measure) in _FIGURES.items():
        limit = limits.get(name)
        if limit is not None:
            got = measure(comparison, timing)
            checks.append(_check(name, got, limit, what, is_upper=name.startswith('max_')))
    for name, (what, measure_motion) in _MOTION_FIGURES.items():
        limit = limits.get(name)
        if limit is not None:
            got = None if motion is None else measure_motion(motion)
            checks.append(_check(name, got, limit, what, is_upper=True))
    return Verdict(
        run=run, comparison=comparison, timing=timing, checks=tuple(checks), motion=motion
    )


def _check(name: str, got: float | None, limit: float, what: str, *, is_upper: bool) -> Check:
    bound = 'at most' if is_upper else 'at least'
    if got is None or not math.isfinite(got):
        detail = f'{what}: not compared, nothing to measure it on; {bound} {limit:g} asked'
        return Check(name, None, limit, passed=False, detail=detail)
    passed = got <= limit if is_upper else got >= limit
    return Check(name, got, limit, passed=passed, detail=f'{what}: {got:.4g}, {bound} {limit:g}')


def _error(key: str) -> Callable[[Comparison, Timing], float | None]:
    def measure(comparison: Comparison, _: Timing) -> float | None:
        overall = comparison.overall
        return getattr(overall.open_loop, key) if overall and overall.open_loop else None

    return measure


def _worst_joint(comparison: Comparison, _: Timing) -> float | None:
    """None as soon as one joint could not be compared: the worst of the rest proves nothing."""
    errors = [joint.open_loop.mae if joint.open_loop else None for joint in comparison.joints]
    known = [mae for mae in errors if mae is not None]
    return max(known) if known and len(known) == len(errors) else None


def _compared_share(comparison: Comparison, _: Timing) -> float | None:
    num_chunks = comparison.num_policy_chunks
    return comparison.num_compared / num_chunks if num_chunks else None


def _p99(_: Comparison, timing: Timing) -> float | None:
    summary = timing.capture_to_chunk
    return summary.p99_ms if summary.count else None


_ERRORS = ('max_mae', 'max_mse', 'max_joint_mae', 'max_error')
_FIGURES: Mapping[str, tuple[str, Callable[[Comparison, Timing], float | None]]] = {
    'max_mae': ('mean absolute error', _error('mae')),
    'max_mse': ('mean squared error', _error('mse')),
    'max_joint_mae': ('mean absolute error of the worst joint', _worst_joint),
    'max_error': ('largest error', _error('max_error')),
    'min_compared_share': ('chunks with a recorded chunk', _compared_share),
    'max_left_out': (
        'columns that were not compared',
        lambda comparison, _: len(comparison.left_out) if comparison.num_compared else None,
    ),
    'max_boundary_jump': (
        'largest jump between chunks',
        lambda comparison, _: comparison.policy_smoothness.max_boundary_jump,
    ),
    'max_p99_ms': ('capture to chunk, 99th percentile, ms', _p99),
    'min_rate_hz': ('chunks per second', lambda _, timing: timing.rate_hz),
    'min_chunk_share': ('chunks per reference sample', lambda _, timing: timing.chunk_share),
    'max_refused': (
        'refused reference samples',
        lambda _, timing: sum(timing.counts.refusals.values()),
    ),
    'max_missing': ('unanswered reference samples', lambda _, timing: timing.counts.missing),
    'max_sequence_gaps': ('lost chunks', lambda _, timing: timing.sequence_gaps),
}
_MOTION_FIGURES: Mapping[str, tuple[str, Callable[[MotionFigures], float | None]]] = {
    'max_command_mae': (
        'mean distance of commands to the recording',
        lambda motion: motion.error.mae if motion.error else None,
    ),
    'max_lag': (
        'mean distance of the robot to the commands',
        lambda motion: motion.lag.mae if motion.lag else None,
    ),
    'max_starvations': ('starvations', lambda motion: motion.executor.starvations),
    'max_command_jump': (
        'largest step of the commands at a seam',
        lambda motion: motion.smoothness.max_boundary_jump,
    ),
    'max_chunk_age_ms': (
        'age of the oldest observation in use, ms',
        lambda motion: motion.chunk_age.max_ms if motion.chunk_age else None,
    ),
    'max_lateness_p99_ms': (
        'lateness of ticks, 99th percentile, ms',
        lambda motion: motion.executor.lateness_ms.get('p99'),
    ),
}
