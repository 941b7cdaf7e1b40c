# SPDX-License-Identifier: Apache-2.0
"""From the chunks at hand to one limited command per tick: start, follow, starve, come to rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from vla_policy_ros.core.chunk import ActionChunk
from vla_policy_ros.core.errors import ChunkRejectedError, ConfigurationError
from vla_policy_ros.core.specs import Array, Column, Representation
from vla_policy_ros.execution.chunk_check import check_chunk
from vla_policy_ros.execution.curve import ActionCurve
from vla_policy_ros.execution.delay import DelayTracker, ExecutionClock
from vla_policy_ros.execution.intake import Intake, Ticket
from vla_policy_ros.execution.kinds import ColumnMath
from vla_policy_ros.execution.limiter import LimitedCommand, MotionLimiter
from vla_policy_ros.execution.limits import JointLimits
from vla_policy_ros.execution.settings import SchedulerSettings
from vla_policy_ros.execution.soft_start import FirstActionGate, SpeedRamp, make_approach
from vla_policy_ros.execution.states import (
    RUNNING,
    SENDING,
    EventKind,
    Journal,
    State,
    StateMachine,
)
from vla_policy_ros.execution.strategies import Strategy, Target, make_strategy
from vla_policy_ros.execution.watchdogs import Action


def commanded_columns(columns: Sequence[Column]) -> tuple[Column, ...]:
    """Return the columns of a command: those of the action, with steps added up to absolute values."""
    return tuple(replace(column, representation=Representation.ABSOLUTE) for column in columns)


class Motion:
    """Moves the state machine while the executor is armed; every position it returns comes from the limiter.

    Args:
        columns: The D columns of the action.
        settings: Period, strategy, gate, starvation.
        limits: Limits of the commanded columns.
        machine: The state.
        intake: Account of the chunks.
        journal: Where it tells what happens.

    Raises:
        ConfigurationError: Columns, limits or the strategy's parameters do not fit.
    """

    def __init__(
        self,
        columns: Sequence[Column],
        settings: SchedulerSettings,
        limits: JointLimits,
        *,
        machine: StateMachine,
        intake: Intake,
        journal: Journal,
    ) -> None:
        _check_columns(limits, columns)
        math = ColumnMath(columns, grippers=settings.grippers)
        self._settings, self._math = settings, math
        self._machine, self._intake, self._journal = machine, intake, journal
        self._limits = limits
        self._smallest, self._largest = limits.orders()[:2]
        self._is_way = ~limits.is_value
        self._strategy = _make_strategy(settings, math)
        commanded = ColumnMath(limits.columns, grippers=settings.grippers)
        self._follower = MotionLimiter(
            limits, commanded, period_ns=settings.period_ns, mode=settings.limit_mode
        )
        self._approach = make_approach(limits, commanded, settings)
        self._limiter = self._follower  # the one in force
        self._ramp = SpeedRamp(
            limits, share=settings.soft_start_share, period_ns=settings.period_ns
        )
        self._gate = FirstActionGate(columns, math, settings)
        self._clock = ExecutionClock()
        self.delay = DelayTracker()
        self._hold = Target(np.zeros(len(columns)), np.zeros(len(columns)), 0, seam=False)
        self._position = np.full(len(columns), np.nan)
        self._held: ActionCurve | None = None
        self._is_finishing = False
        self._end, self._end_cause = State.UNARMED, ''
        self._ending = Action.HOLD
        self._gate_fault: tuple[int, str] | None = None
        self._rows_end_ns = 0
        self.current: Ticket | None = None
        self.time_scale = 1.0
        self.seams = self.starvations = 0

    @property
    def _is_approaching(self) -> bool:
        return self._limiter is self._approach

    @property
    def is_still(self) -> bool:
        """Whether the last command was one of rest."""
        return bool(self._limiter.is_still)

    def restart(self, now_ns: int) -> None:
        """Begin anew at a time, with no chunk at hand."""
        self._strategy.reset()
        self._held, self._is_finishing, self._gate_fault = None, False, None
        if self._machine.state not in SENDING:
            self._position.fill(np.nan)
        self.time_scale = 1.0
        self._clock.restart(now_ns)
        self.delay.restart()

    def end_ns(self, chunk: ActionChunk) -> int:
        """Return the motion time of a chunk's last row."""
        return self._clock.motion_ns(chunk.start_ns) + (chunk.horizon - 1) * chunk.step_ns

    def delay_steps(self, chunk: ActionChunk, now_ns: int) -> float:
        """Return the steps executed since a chunk's observation."""
        observed_ns = self._clock.executed_ns(chunk.observation_stamp_ns)
        return (self._clock.executed_ns(now_ns) - observed_ns) / chunk.step_ns

    def remaining_ns(self, now_ns: int) -> int:
        """Return how long the rows at hand last."""
        return max(int(self._strategy.remaining_ns(self._clock.motion_ns(now_ns))), 0)

    def put(self, chunk: ActionChunk, number: int, now_ns: int) -> None:
        """Hand a chunk to the strategy under a number; hold it back while old rows are finished.

        Raises:
            ChunkRejectedError: It makes no curve, needs a measured state that is not there, or the strategy refuses it.
        """
        # Between two ticks motion time stands: it may run slower than the clock, and must not go back at the next tick.
        at_ns = min(now_ns, self._clock.now_ns)
        start_ns, motion_ns = self._clock.motion_ns(chunk.start_ns), self._clock.motion_ns(at_ns)
        if not np.isfinite(self._position[self._math.is_delta]).all():
            raise ChunkRejectedError(
                f'chunk {chunk.sequence}',
                got='delta columns and no measured state',
                expected='a measured state to start the steps from',
                next_step='Check the topic of the measured state, and its names.',
                code='no_measured_state',
            )
        curve = ActionCurve.anchored(
            replace(chunk, sequence=number, start_ns=start_ns),
            self._math,
            command=self._position,
            now_ns=motion_ns,
        )
        if self._settings.limit_mode == 'reject':
            rows = curve.rows.astype(np.float32)
            check_chunk(replace(chunk, actions=rows, columns=self._limits.columns), self._limits)
        if not self._is_finishing:
            self._strategy.offer(curve, motion_ns)
            return
        if self._held is not None:
            self._intake.discard(self._held.chunk.sequence, 'overtaken', now_ns)
        self._held = curve

    def finish_rows(self) -> None:
        """Execute the rows at hand to their end before any chunk that comes now."""
        self._is_finishing = self._is_finishing or self._machine.state in RUNNING

    def drop(self, cause: str, now_ns: int) -> None:
        """Drop all chunks; decelerate and hold where one is being executed."""
        self._strategy.reset()
        self._held, self._is_finishing = None, False
        self._intake.discard_all(cause, now_ns)
        self._ending = Action.DECELERATE
        if self._machine.state in RUNNING:
            self._machine.go(State.STARVED, cause, now_ns=now_ns)

    def finish(self, end: State, cause: str, now_ns: int) -> None:
        """Drop all chunks, decelerate to rest, and end in a state that is not armed; a stop outranks a disarm."""
        self.drop(cause, now_ns)
        if self._machine.state in (State.UNARMED, State.IDLE):
            self._machine.go(end, cause, now_ns=now_ns)
            return
        if self._machine.state is not State.STOPPING:
            self._machine.go(State.STOPPING, cause, now_ns=now_ns)
        elif self._end is State.STOPPED:
            return
        self._end, self._end_cause = end, cause

    def tick(
        self, now_ns: int, measured: Array | None, *, may_start: bool
    ) -> LimitedCommand | None:
        """Return the command of this tick; None when nothing goes out.

        Args:
            now_ns: Time of the tick, not before the last one.
            measured: (D,) measured state, NaN where nothing is measured; None when there is none.
            may_start: Whether motion may begin or go on after starvation.
        """
        if self._machine.state in (State.UNARMED, State.STOPPED):
            return None
        self._clock.advance(now_ns)
        if self._machine.state is State.IDLE and measured is not None:
            np.copyto(self._position, measured)
        limited = self._move(now_ns, measured, may_start=may_start)
        is_executing = self._machine.state in RUNNING
        self.time_scale = 1.0
        if limited is not None:
            np.copyto(self._position, limited.position)
            if is_executing:
                self.time_scale = self._ramp.pace * limited.rate
        self._clock.set_rate(self.time_scale, is_executing=is_executing)
        return limited

    def _move(
        self, now_ns: int, measured: Array | None, *, may_start: bool
    ) -> LimitedCommand | None:
        state = self._machine.state
        if state is State.STOPPING:
            return self._stop(now_ns)
        target = self._find_target(now_ns) if may_start or state in RUNNING else None
        if state is State.IDLE:
            return None if target is None else self._start(target, measured, now_ns)
        if target is None:
            return self._starve(now_ns)
        if state is State.STARVED:
            if self._settings.limit_mode == 'reject' and not self._limiter.is_still:
                return self._starve(now_ns)
            self._set_out(self._position, target, 'resumed', now_ns)
        return self._follow(target, now_ns)

    def _find_target(self, now_ns: int) -> Target | None:
        motion_ns = self._clock.motion_ns(now_ns)
        target = self._strategy.target(motion_ns)
        if target is not None:
            self._rows_end_ns = motion_ns + self._strategy.remaining_ns(motion_ns)
            return target
        self._intake.expire(motion_ns, now_ns)
        if self._machine.state in RUNNING:
            return None
        self._is_finishing = False
        curve, self._held = self._held, None
        if curve is not None and self._intake.is_waiting(curve.chunk.sequence):
            self._strategy.reset()
            try:
                self._strategy.offer(curve, motion_ns)
            except ChunkRejectedError as error:
                self._intake.discard(curve.chunk.sequence, error.code, now_ns)
            return self._find_target(now_ns)
        return None

    def _start(self, target: Target, measured: Array | None, now_ns: int) -> LimitedCommand | None:
        fault = self._gate.find_fault(measured, target.position)
        if fault is not None:
            cause, detail = fault
            if self._gate_fault != (target.sequence, cause):
                self._journal.note(EventKind.GATE, cause, detail, now_ns=now_ns)
            self._gate_fault = target.sequence, cause
            return None
        start = self._gate.start(measured, target.position)
        self._set_out(start, target, 'first_chunk', now_ns)
        return self._follow(target, now_ns)

    def _set_out(self, start: Array, target: Target, cause: str, now_ns: int) -> None:
        """Begin the way to the first target from a (D,) position; one that still moves goes on as it is."""
        np.copyto(self._position, start)
        self._aim_at_rest(target)
        self._machine.go(State.SOFT_START, cause, now_ns=now_ns)
        if cause == 'first_chunk' or self._limiter.is_still:
            self._limiter = self._approach
            self._limiter.start(start)
        if self._is_approaching:
            self._ramp.hold()
        else:
            self._ramp.skip()

    def _follow(self, target: Target, now_ns: int) -> LimitedCommand:
        self.seams += target.seam
        ticket = self._intake.use(target.sequence, now_ns)
        if ticket is not None:
            self._take_over(ticket, now_ns)
        limited = self._limiter.step(self._aim(target))
        if limited.cause:
            detail = f'{limited.column} of chunk {target.sequence}'
            self._journal.note(EventKind.VIOLATION, limited.cause, detail, now_ns=now_ns)
            self.drop(limited.cause, now_ns)
        elif self._machine.state is State.TRACKING:
            self._ramp.advance()
        elif not self._is_approaching:
            self._track(target, 'resumed', now_ns)
        elif self._limiter.is_still and not limited.is_limited.any():
            self._limiter = self._follower
            self._limiter.start(limited.position)
            self._track(target, 'reached', now_ns)
        return limited

    def _track(self, target: Target, cause: str, now_ns: int) -> None:
        self._ramp.release(target)
        self._machine.go(State.TRACKING, cause, now_ns=now_ns)

    def _aim(self, target: Target) -> Target:
        """Return what to go for; before motion starts, the first target, or a later one that is not farther away.

        A policy that sees the robot on its way gives nearer ones; one that does not must not be chased.
        """
        if self._is_approaching:
            if self._time_to(target) <= self._time_to(self._hold):
                self._aim_at_rest(target)
            return self._hold
        self._aim_at_rest(target)
        return self._ramp.slow(target)

    def _time_to(self, target: Target) -> float:
        """Return the time that the slowest column needs at its velocity limit."""
        way = np.abs(self._math.difference(target.position, self._position))
        return float((way / self._limits.velocity).max(initial=0.0, where=self._is_way))

    def _take_over(self, ticket: Ticket, now_ns: int) -> None:
        self.current = ticket
        violation = self.delay.use(
            observed_ns=self._clock.executed_ns(ticket.stamp_ns),
            used_ns=self._clock.executed_ns(now_ns),
            step_ns=self._settings.step_ns,
            horizon=ticket.horizon,
        )
        if violation is not None:
            cause, detail = violation
            told = f'chunk {ticket.sequence} of epoch {ticket.epoch}: {detail}'
            self._journal.note(EventKind.VIOLATION, cause, told, now_ns=now_ns)

    def _starve(self, now_ns: int) -> LimitedCommand | None:
        if self._machine.state in RUNNING:
            self.starvations += 1
            if self._settings.starvation is Action.STOP:
                self.finish(State.STOPPED, 'starved', now_ns)
                return self._stop(now_ns)
            self._ending = self._settings.starvation
            self._aim_at_rest(self._last_row(now_ns))
            self._machine.go(State.STARVED, 'out_of_rows', now_ns=now_ns)
        if self._ending is Action.DECELERATE or self._settings.limit_mode == 'reject':
            return self._limiter.stop_step()
        return self._limiter.step(self._hold)

    def _last_row(self, now_ns: int) -> Target | None:
        """Return the target at the end of the rows, which lies between the last tick and this one."""
        if self._machine.state is not State.TRACKING or self._rows_end_ns > self._clock.motion_ns(
            now_ns
        ):
            return None
        return self._strategy.target(self._rows_end_ns)

    def _aim_at_rest(self, target: Target | None) -> None:
        """Let the position that is held without rows be that of a target, within reach, with twists at 0."""
        if target is not None:
            np.maximum(target.position, self._smallest, out=self._hold.position)
            np.minimum(self._hold.position, self._largest, out=self._hold.position)
            self._math.rest(self._hold.position, self._hold.velocity)

    def _stop(self, now_ns: int) -> LimitedCommand:
        limited = self._limiter.stop_step()
        if self._limiter.is_still:
            self._machine.go(self._end, self._end_cause, now_ns=now_ns)
        return limited


def _check_columns(limits: JointLimits, columns: Sequence[Column]) -> None:
    if limits.columns != commanded_columns(columns):
        raise ConfigurationError(
            'limits',
            got=f'limits of {", ".join(column.name for column in limits.columns)}',
            expected=f'of the commanded columns {", ".join(column.name for column in columns)}',
            next_step='Make them for commanded_columns(columns).',
            code='wrong_columns',
        )


def _make_strategy(settings: SchedulerSettings, math: ColumnMath) -> Strategy:
    return make_strategy(
        settings.strategy,
        math,
        step_ns=settings.step_ns,
        horizon=settings.horizon,
        **settings.parameters,
    )
