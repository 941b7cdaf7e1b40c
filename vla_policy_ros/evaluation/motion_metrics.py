# SPDX-License-Identifier: Apache-2.0
"""How a robot was moved: within its limits or not, how near the recording, how smoothly, how late."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vla_policy_ros.core.latency import LatencySummary, LatencyWindow
from vla_policy_ros.core.specs import Array, ColumnKind, Representation
from vla_policy_ros.evaluation.alignment import wrap
from vla_policy_ros.evaluation.metrics import ErrorSummary, summarize_errors
from vla_policy_ros.evaluation.motion_recording import MotionRecording, sample_series
from vla_policy_ros.evaluation.recording import ChunkRecording
from vla_policy_ros.evaluation.smoothness import Smoothness
from vla_policy_ros.execution.kinds import ColumnMath

_ROUNDING = 1e-6  # share of a limit by which rounding may exceed it
_TINY = 1e-9
_STILL = 1e-9  # a motion below this has no direction
_FOLLOWS = 1.5  # commands further apart than this many periods do not follow one another


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorFacts:
    """What the executor itself says at the end of a run, see `ExecutorStatus.msg`.

    Attributes:
        strategy: Name of the strategy.
        period_ns: Time between two ticks.
        is_dry_run: Whether commands were only told.
        seams: Changes of the chunk while it ran.
        starvations: How often no row was left.
        chunks: Chunks by what became of them: offered, used, waiting.
        refusals: Chunks that were not taken, by cause.
        discards: Chunks that were taken and never used, by cause.
        violations: Delays that did not fit and targets that were refused, by cause.
        delay_steps: Delay in executed steps: mean, p95, max.
        lateness_ms: How late ticks came: p50, p95, p99, max over the last window.
        scheduling: What the process was permitted to do about it.
        robot_topic: Where a robot that follows the commands tells its joint states; empty when the policy sees that robot.
    """

    strategy: str = ''
    period_ns: int = 0
    is_dry_run: bool = False
    seams: int = 0
    starvations: int = 0
    chunks: Mapping[str, int] = field(default_factory=dict)
    refusals: Mapping[str, int] = field(default_factory=dict)
    discards: Mapping[str, int] = field(default_factory=dict)
    violations: Mapping[str, int] = field(default_factory=dict)
    delay_steps: Mapping[str, float] = field(default_factory=dict)
    lateness_ms: Mapping[str, float] = field(default_factory=dict)
    scheduling: str = ''
    robot_topic: str = ''


@dataclass(frozen=True, slots=True, kw_only=True)
class MotionFigures:
    """What was measured of the commands of a run.

    Attributes:
        num_commands: Commands received.
        duration_s: From the first to the last.
        state_s: Seconds in each state of the executor.
        outside: Commands outside of a limit, by limit and column such as `velocity elbow_flex`; None when no limits
            are known.
        acted: Commands that a limit has changed, by column.
        error: Command against the recorded action of that moment, while chunks were followed; None without any.
        joint_errors: The same by column.
        lag: Command against the robot that followed it; None when it was not measured.
        smoothness: Of the commands: acceleration over steps as long as those of the chunks, the jump at a seam from
            one tick to the next, the directions one step before and after it.
        truth_smoothness: The same of the recorded actions at the same moments.
        chunk_age: Age of the observation behind each command.
        executor: What the executor says.
    """

    num_commands: int
    duration_s: float = 0.0
    state_s: Mapping[str, float] = field(default_factory=dict)
    outside: Mapping[str, int] | None = None
    acted: Mapping[str, int] = field(default_factory=dict)
    error: ErrorSummary | None = None
    joint_errors: Mapping[str, ErrorSummary] = field(default_factory=dict)
    lag: ErrorSummary | None = None
    smoothness: Smoothness = field(default_factory=Smoothness)
    truth_smoothness: Smoothness = field(default_factory=Smoothness)
    chunk_age: LatencySummary | None = None
    executor: ExecutorFacts = field(default_factory=ExecutorFacts)

    @property
    def num_outside(self) -> int | None:
        """Commands outside of a limit, counted once per limit and column; None when no limits are known."""
        return None if self.outside is None else sum(self.outside.values())


def measure_motion(
    motion: MotionRecording,
    policy: ChunkRecording,
    truth: ChunkRecording,
    *,
    executor: ExecutorFacts,
) -> MotionFigures:
    """Measure the commands of a run.

    Args:
        motion: The commands.
        policy: The chunks that they were made of.
        truth: The recorded chunks; empty when nothing was recorded.
        executor: What the executor says of itself.
    """
    if not len(motion):
        return MotionFigures(num_commands=0, executor=executor)
    recorded = truth_at(truth, motion, motion.times_ns)
    errors = wrap(motion.positions - recorded, motion.columns)
    errors[motion.states != 'tracking'] = np.nan
    lags = wrap(motion.positions - motion.robot_at(motion.times_ns), motion.columns)
    joint_errors = {
        column.name: summary
        for index, column in enumerate(motion.columns)
        if (summary := summarize_errors(errors[:, index])) is not None
    }
    steps = motion.is_limited.sum(axis=0).tolist()
    return MotionFigures(
        num_commands=len(motion),
        duration_s=float(motion.times_ns[-1] - motion.times_ns[0]) / 1e9,
        state_s=_state_times(motion, executor.period_ns),
        outside=find_outside(motion, period_ns=executor.period_ns),
        acted={c.name: int(n) for c, n in zip(motion.columns, steps, strict=True) if n},
        error=summarize_errors(errors),
        joint_errors=joint_errors,
        lag=summarize_errors(lags),
        smoothness=measure_command_smoothness(motion, motion.positions, step_ns=policy.step_ns),
        truth_smoothness=measure_command_smoothness(motion, recorded, step_ns=policy.step_ns),
        chunk_age=_chunk_age(motion, policy),
        executor=executor,
    )


def truth_at(truth: ChunkRecording, motion: MotionRecording, times_ns: Array) -> Array:
    """Return the (P, D) recorded actions at (P,) times, linear in between; NaN where nothing comparable is recorded.

    Of the recorded chunks the rows 0 count, while time runs forwards. Only absolute columns can be compared.
    """
    recorded = np.full((len(times_ns), len(motion.columns)), np.nan)
    if not len(truth):
        return recorded
    is_later = np.diff(truth.starts_ns, prepend=truth.starts_ns[0] - 1) > 0
    end = len(is_later) if is_later.all() else int(is_later.argmin())
    rows = sample_series(truth.starts_ns[:end], truth.actions[:end, 0], times_ns)
    places = {
        column.name: index
        for index, column in enumerate(truth.columns)
        if column.representation is Representation.ABSOLUTE
    }
    for index, column in enumerate(motion.columns):
        if column.name in places:
            recorded[:, index] = rows[:, places[column.name]]
    return recorded


def find_outside(motion: MotionRecording, *, period_ns: int) -> dict[str, int] | None:
    """Count the commands outside of a limit, by limit and column; None when no limits are known.

    Held against the limits are the positions, the velocities and accelerations that go with them, and once more the way
    from each position to the next one.
    """
    if motion.limits is None:
        return None
    low, high, first, second, _ = motion.limits.orders()
    math = ColumnMath(motion.columns)
    speeds, changes = (
        math.magnitudes(values) for values in (motion.velocities, motion.accelerations)
    )
    is_position: Array = np.array(
        [column.kind is not ColumnKind.QUATERNION for column in motion.columns]
    )
    slack = np.abs(np.stack([low, high])).max(axis=0, where=np.isfinite([low, high]), initial=1.0)
    broken: Mapping[str, Any] = {
        'position': is_position
        & (
            (motion.positions < low - slack * _ROUNDING)
            | (motion.positions > high + slack * _ROUNDING)
        ),
        'velocity': (speeds > first * (1 + _ROUNDING) + _TINY)
        | _too_far(motion, first, is_position, period_ns),
        'acceleration': changes > second * (1 + _ROUNDING) + _TINY,
    }
    return {
        f'{name} {column.name}': int(count)
        for name, is_broken in broken.items()
        for column, count in zip(motion.columns, np.count_nonzero(is_broken, axis=0), strict=True)
        if count
    }


def measure_command_smoothness(
    motion: MotionRecording, positions: Array, *, step_ns: int
) -> Smoothness:
    """Measure (N, D) positions at the times of the commands, with the three figures of a chunk stream.

    Args:
        motion: The commands, for times, seams and columns.
        positions: (N, D) what is measured, NaN where it is not known.
        step_ns: Time between two rows of a chunk: over such steps acceleration and direction are measured.
    """
    known = [bool(np.isfinite(column).any()) for column in positions.T]
    columns = [column for column, is_known in zip(motion.columns, known, strict=True) if is_known]
    if not columns or not step_ns:
        return Smoothness()
    values = positions[:, known]

    def ways(at_ns: Array) -> tuple[Array, Array]:
        """Return the ways in the step before and in the step after some times."""
        before, now, after = (
            sample_series(motion.times_ns, values, at_ns + shift)
            for shift in (-step_ns, 0, step_ns)
        )
        return wrap(now - before, columns), wrap(after - now, columns)

    grid_ns = np.arange(motion.times_ns[0], motion.times_ns[-1], step_ns, dtype=np.int64)
    before, after = ways(grid_ns)
    accelerations = np.linalg.norm(after - before, axis=1) / (step_ns / 1e9) ** 2
    places = np.flatnonzero(motion.is_seam)
    places = places[places > 1]
    steps = wrap(np.diff(values, axis=0), columns)
    jumps = np.linalg.norm(steps[places - 1] - steps[places - 2], axis=1)
    return Smoothness(
        mean_acceleration=_mean(accelerations),
        mean_boundary_jump=_mean(jumps),
        max_boundary_jump=float(np.nanmax(jumps)) if np.isfinite(jumps).any() else None,
        mean_direction_cosine=_mean_cosine(*ways(motion.times_ns[places])),
        num_boundaries=int(np.isfinite(jumps).sum()),
    )


def _mean(values: Array) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else None


def _mean_cosine(before: Array, after: Array) -> float | None:
    lengths = np.linalg.norm(before, axis=1), np.linalg.norm(after, axis=1)
    is_moving = (lengths[0] > _STILL) & (lengths[1] > _STILL)
    products = (before * after).sum(axis=1)[is_moving]
    return _mean(products / (lengths[0] * lengths[1])[is_moving])


def _too_far(motion: MotionRecording, speed: Array, is_position: Array, period_ns: int) -> Array:
    """Return (N, D) bool: further from the command before than the speed allows; a later tick may go as far as one."""
    too_far = np.zeros(motion.positions.shape, bool)
    gaps_ns = np.diff(motion.times_ns)
    follows = gaps_ns < _FOLLOWS * period_ns
    spans_s = np.maximum(gaps_ns, period_ns)[:, None] / 1e9
    ways = np.abs(np.diff(motion.positions, axis=0))
    too_far[1:] = (ways > speed * spans_s * (1 + _ROUNDING) + _TINY) & follows[:, None]
    return too_far & is_position


def _state_times(motion: MotionRecording, period_ns: int) -> dict[str, float]:
    names, counts = np.unique(motion.states, return_counts=True)
    return {
        str(name): float(count * period_ns / 1e9)
        for name, count in zip(names, counts, strict=True)
    }


def _chunk_age(motion: MotionRecording, policy: ChunkRecording) -> LatencySummary | None:
    """Return how old the observations behind the commands were while chunks were followed."""
    stamps_ns = {(c.epoch, c.sequence): c.observation_stamp_ns for c in policy}
    numbers = zip(motion.epochs.tolist(), motion.sequences.tolist(), strict=True)
    window = LatencyWindow(len(motion))
    moments = zip(numbers, motion.times_ns.tolist(), motion.states.tolist(), strict=True)
    for number, time_ns, state in moments:
        if number in stamps_ns and state == 'tracking':
            window.add(time_ns - stamps_ns[number])
    summary = window.summary()
    return summary if summary.count else None
