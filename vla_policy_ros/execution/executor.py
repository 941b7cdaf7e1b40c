# SPDX-License-Identifier: Apache-2.0
"""From chunks to commands: the executor's whole behaviour, without a clock, a thread or ROS."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vla_policy_ros.core.chunk import ActionChunk
from vla_policy_ros.core.errors import ChunkRejectedError
from vla_policy_ros.core.latency import LatencySummary
from vla_policy_ros.core.specs import Array, Column
from vla_policy_ros.execution.intake import Intake, Offer
from vla_policy_ros.execution.limiter import LimitedCommand
from vla_policy_ros.execution.limits import JointLimits
from vla_policy_ros.execution.motion import Motion
from vla_policy_ros.execution.report import Answer, Command, Snapshot
from vla_policy_ros.execution.settings import SchedulerSettings
from vla_policy_ros.execution.states import (
    RUNNING,
    SENDING,
    Event,
    EventKind,
    Journal,
    State,
    StateMachine,
)
from vla_policy_ros.execution.watchdogs import Action, Alarm, Watch, Watchdogs, worst


class ChunkScheduler:
    """Takes chunks whenever they come, and gives one limited command per tick.

    Pure: every time is an argument, in nanoseconds of the robot's clock. One thread at a time. Nothing goes out before
    `arm`, nor once a stop or a disarm has come to rest; whatever happens in between, the command is one that the
    limiter has let through.

    Args:
        columns: The D columns of the action.
        settings: Period, strategy, gate, starvation, watchdogs.
        limits: Limits of `commanded_columns(columns)`.

    Raises:
        ConfigurationError: Columns, limits or the strategy's parameters do not fit.
    """

    def __init__(
        self, columns: Sequence[Column], settings: SchedulerSettings, limits: JointLimits
    ) -> None:
        self._names = tuple(column.name for column in columns)
        self._settings = settings
        self._journal = Journal()
        self._machine = StateMachine(self._journal)
        self._intake = Intake(columns, settings, self._journal)
        self._motion = Motion(
            columns,
            settings,
            limits,
            machine=self._machine,
            intake=self._intake,
            journal=self._journal,
        )
        self._watchdogs = Watchdogs(settings.watchdogs)
        self._alarms: dict[Watch, Alarm] = {}
        self._limited_counts = np.zeros(len(columns), np.int64)
        self._last: Command | None = None
        self._last_tick_ns: int | None = None
        self._requested_ns: int | None = None
        self._offered = 0

    @property
    def state(self) -> State:
        """What the executor does now."""
        return self._machine.state

    @property
    def last_command(self) -> Command | None:
        """The command of the last tick, in a dry run too; None when there was none."""
        return self._last

    def events(self) -> list[Event]:
        """Return what has happened since the last call, oldest first."""
        return self._journal.drain()

    @property
    def awaited_instruction(self) -> str:
        """The instruction that the first chunk must follow; empty: any."""
        return self._intake.awaited_instruction

    def arm(self, now_ns: int, *, instruction: str = '') -> Answer:
        """Let commands go out from the next chunk on; that chunk tells policy, epoch and instruction.

        Args:
            now_ns: The time.
            instruction: Text that the first chunk must follow, so that the robot does not set out towards what it was
                told before; empty: any.
        """
        if self.state is not State.UNARMED:
            return Answer('not_unarmed', f'the executor is {self.state.value}')
        self._last_tick_ns = self._requested_ns = None
        self._motion.restart(now_ns)
        self._intake.forget_policy(instruction)
        self._watchdogs.forget(Watch.CHUNK, Watch.INFERENCE, Watch.TICK)
        self._machine.go(State.IDLE, 'armed', now_ns=now_ns)
        return Answer()

    def disarm(self, now_ns: int) -> Answer:
        """Decelerate within the limits; nothing goes out once the robot is still."""
        if self.state in (State.UNARMED, State.STOPPING, State.STOPPED):
            return Answer('not_armed', f'the executor is {self.state.value}')
        self._motion.finish(State.UNARMED, 'disarmed', now_ns)
        return Answer()

    def stop(self, cause: str, now_ns: int) -> None:
        """Decelerate within the limits and latch the stop; also while unarmed, so that nothing can be armed."""
        if self.state is not State.STOPPED:
            self._motion.finish(State.STOPPED, cause, now_ns)

    def release(self, now_ns: int) -> Answer:
        """Release a latched stop after its cool-down; the executor is unarmed then."""
        if self.state is not State.STOPPED:
            return Answer('not_stopped', f'the executor is {self.state.value}')
        left_ns = self._machine.since_ns + self._settings.cool_down_ns - now_ns
        if left_ns > 0:
            return Answer('cooling_down', f'{left_ns / 1e6:.0f} ms left')
        self._machine.go(State.UNARMED, 'released', now_ns=now_ns)
        return Answer()

    def reset(self, epoch: int, now_ns: int) -> None:
        """Begin an epoch: drop all chunks, decelerate and hold until a chunk of it comes; older ones are refused."""
        self._begin_epoch(epoch, 'reset', now_ns)

    def change_instruction(self, instruction_id: int, now_ns: int) -> None:
        """Follow a new instruction, in the way that `prompt_change` says; chunks of older ones are refused."""
        known = self._intake.instruction_id
        if known is None or instruction_id <= known:
            return
        self._intake.instruction_id = instruction_id
        if self._settings.prompt_change == 'flush':
            self._motion.drop('new_instruction', now_ns)
        elif self._settings.prompt_change == 'finish':
            self._motion.finish_rows()

    def note_subscribers(self, missing: Sequence[str], now_ns: int) -> None:
        """Take which controllers have nobody listening now; none ends the watch."""
        if not missing:
            self._watchdogs.forget(Watch.SUBSCRIBER)
        elif not self._watchdogs.is_counting(Watch.SUBSCRIBER):
            self._watchdogs.begin(Watch.SUBSCRIBER, now_ns)

    def offer(self, chunk: ActionChunk, now_ns: int) -> Offer:
        """Take a chunk, or refuse it for a cause."""
        self._offered += 1
        self._requested_ns = None
        fault = self._find_fault(chunk, now_ns)
        if fault is None:
            try:
                return self._take(chunk, now_ns)
            except ChunkRejectedError as error:
                fault = error.code, str(error)
        cause, detail = fault
        told = f'chunk {chunk.sequence} of epoch {chunk.epoch}: {detail}'
        self._journal.note(EventKind.REFUSED, cause, told, now_ns=now_ns)
        return Offer(cause, detail)

    def should_request(self, now_ns: int) -> bool:
        """Whether a policy that infers on demand should be asked for a chunk now."""
        if self.state not in RUNNING | {State.IDLE, State.STARVED} or self._find_blocking():
            return False
        asked_ns = self._requested_ns
        if asked_ns is not None and 0 <= now_ns - asked_ns < self._settings.request_timeout_ns:
            return False
        chunk_ns = self._settings.horizon * self._settings.step_ns
        return self._motion.remaining_ns(now_ns) <= self._settings.refill_share * chunk_ns

    def note_request(self, now_ns: int) -> None:
        """Take note that a chunk was asked for; any offer answers it."""
        self._requested_ns = now_ns

    def command(
        self, now_ns: int, measured: Array | None = None, *, measured_stamp_ns: int | None = None
    ) -> Command | None:
        """Return the command of this tick; None when nothing may be sent.

        Args:
            now_ns: Time of the tick.
            measured: (D,) measured state, NaN where nothing is measured; None when there is none.
            measured_stamp_ns: Its stamp; None when it is of now.
        """
        now_ns = self._advance(now_ns)
        if measured is not None:
            stamp_ns = now_ns if measured_stamp_ns is None else measured_stamp_ns
            self._watchdogs.begin(Watch.MEASURED, stamp_ns)
        self._watch(now_ns)
        seams = self._motion.seams
        limited = self._motion.tick(now_ns, measured, may_start=not self._find_blocking())
        self._last = None
        if limited is not None:
            self._limited_counts += limited.is_limited
            self._last = self._stamp(limited, now_ns, is_seam=self._motion.seams > seams)
        return None if self._settings.is_dry_run else self._last

    def snapshot(self, now_ns: int, *, lateness: LatencySummary | None = None) -> Snapshot:
        """Return how the executor is; `lateness` is the node's own measurement."""
        newest_ns = self._intake.newest_ns
        counts = zip(self._names, self._limited_counts, strict=True)
        return Snapshot(
            state=self.state,
            cause=self._machine.cause,
            is_still=self.state not in SENDING or self._motion.is_still,
            is_dry_run=self._settings.is_dry_run,
            strategy=self._settings.strategy,
            epoch=self._intake.epoch,
            instruction_id=self._intake.instruction_id,
            delay=self._motion.delay.summary(),
            chunk_age_ms=None if newest_ns is None else (now_ns - newest_ns) / 1e6,
            remaining_ms=self._motion.remaining_ns(now_ns) / 1e6,
            time_scale=self._motion.time_scale,
            seams=self._motion.seams,
            starvations=self._motion.starvations,
            violations=self._journal.counts(EventKind.VIOLATION),
            limited={name: int(count) for name, count in counts if count},
            offered=self._offered,
            used=self._intake.used,
            waiting=self._intake.waiting,
            refused=self._journal.counts(EventKind.REFUSED),
            discarded=self._journal.counts(EventKind.DISCARDED),
            alarms=tuple(alarm.cause for alarm in self._alarms.values()),
            lateness=lateness,
        )

    def _find_fault(self, chunk: ActionChunk, now_ns: int) -> tuple[str, str] | None:
        if self.state not in RUNNING | {State.IDLE, State.STARVED}:
            return 'not_armed', f'the executor is {self.state.value}'
        fault = self._intake.find_fault(chunk, now_ns)
        if fault is not None:
            return fault
        self._watchdogs.measure(Watch.INFERENCE, now_ns - chunk.observation_stamp_ns)
        alarm = _find_blocking(self._watchdogs.check(now_ns))
        if alarm is not None:
            return alarm.cause, alarm.detail
        return None

    def _take(self, chunk: ActionChunk, now_ns: int) -> Offer:
        if self._intake.epoch is not None and chunk.epoch > self._intake.epoch:
            self._begin_epoch(chunk.epoch, 'new_epoch', now_ns)
        self.change_instruction(chunk.instruction.instruction_id, now_ns)
        self._motion.put(chunk, self._intake.accepted, now_ns)
        self._intake.take(chunk, self._motion.end_ns(chunk))
        self._watchdogs.begin(Watch.CHUNK, chunk.observation_stamp_ns)
        return Offer(delay_steps=self._motion.delay_steps(chunk, now_ns))

    def _stamp(self, limited: LimitedCommand, now_ns: int, *, is_seam: bool) -> Command:
        ticket = self._motion.current
        assert ticket is not None
        return Command(
            now_ns,
            limited.position,
            limited.velocity,
            limited.acceleration,
            limited.is_limited,
            self.state,
            ticket.sequence,
            ticket.epoch,
            ticket.instruction_id,
            is_seam,
        )

    def _advance(self, now_ns: int) -> int:
        last_ns, self._last_tick_ns = self._last_tick_ns, now_ns
        if last_ns is None:
            return now_ns
        if now_ns < last_ns - self._settings.time_jump_ns:
            self._jump(now_ns)
        elif now_ns < last_ns:
            self._last_tick_ns = last_ns
            return last_ns
        if self.state in SENDING:
            lateness_ns = now_ns - last_ns - self._settings.period_ns
            self._watchdogs.measure(Watch.TICK, max(lateness_ns, 0))
        return now_ns

    def _jump(self, now_ns: int) -> None:
        """Begin a new time: every stamp known so far means nothing in it."""
        self._begin_epoch(None, 'time_jump', now_ns)
        self._motion.restart(now_ns)
        self._machine.since_ns = now_ns
        self._requested_ns = None
        if self._settings.time_jump == 'stop' and self.state in SENDING | {State.IDLE}:
            self.stop('time_jump', now_ns)

    def _begin_epoch(self, epoch: int | None, cause: str, now_ns: int) -> None:
        self._motion.drop(cause, now_ns)
        self._motion.delay.restart()
        self._intake.begin_epoch(epoch)
        self._watchdogs.forget(Watch.CHUNK, Watch.INFERENCE)

    def _watch(self, now_ns: int) -> None:
        alarms = self._watchdogs.check(now_ns)
        if not alarms and not self._alarms:
            return
        found = {alarm.watch: alarm for alarm in alarms}
        for alarm in (found[watch] for watch in found.keys() - self._alarms.keys()):
            self._journal.note(EventKind.ALARM, alarm.cause, alarm.detail, now_ns=now_ns)
        for alarm in (self._alarms[watch] for watch in self._alarms.keys() - found.keys()):
            self._journal.note(EventKind.CLEARED, alarm.cause, 'it is over', now_ns=now_ns)
        if Watch.CHUNK in found and Watch.CHUNK not in self._alarms:
            self._intake.forget_epoch()
        self._alarms = found
        severest = worst(alarms)
        if severest is not None:
            self._act(severest, now_ns)

    def _act(self, alarm: Alarm, now_ns: int) -> None:
        if alarm.action is Action.STOP and self.state in SENDING:
            self._motion.finish(State.STOPPED, alarm.cause, now_ns)
        elif alarm.action is Action.DECELERATE and (self.state in RUNNING or self._intake.waiting):
            self._motion.drop(alarm.cause, now_ns)

    def _find_blocking(self) -> Alarm | None:
        return _find_blocking(list(self._alarms.values()))


def _find_blocking(alarms: Sequence[Alarm]) -> Alarm | None:
    """Return an alarm that keeps chunks out; a lost policy does not, as only a chunk can end it."""
    keeps_out = (a for a in alarms if a.watch is not Watch.CHUNK and a.action is not Action.REPORT)
    return next(keeps_out, None)
