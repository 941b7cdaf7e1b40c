# SPDX-License-Identifier: Apache-2.0
"""The executor beside threads: a lock around the scheduler, its time, and the first chunk that tells the columns."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from vla_policy_ros.core.chunk import ActionChunk
from vla_policy_ros.core.clock import Clock
from vla_policy_ros.core.errors import ChunkRejectedError, VlaPolicyError
from vla_policy_ros.core.latency import LatencySummary
from vla_policy_ros.core.specs import Array, Column
from vla_policy_ros.deployment.executor import ExecutorSettings, check_executor
from vla_policy_ros.execution.executor import ChunkScheduler
from vla_policy_ros.execution.intake import Offer
from vla_policy_ros.execution.limits import JointLimits, check_limits
from vla_policy_ros.execution.motion import commanded_columns
from vla_policy_ros.execution.report import Answer, Command, Snapshot
from vla_policy_ros.execution.settings import SchedulerSettings
from vla_policy_ros.execution.states import SENDING, Event, EventKind, Journal, State
from vla_policy_ros.execution.watchdogs import Watch

# What these watch is as old at the time of a command as it is now, plus the lead.
_AGES = (Watch.CHUNK, Watch.INFERENCE, Watch.MEASURED)


class CommandOutputs(Protocol):
    """Where commands go (`ros.controllers.ControllerOutputs`)."""

    @property
    def lead_ns(self) -> int:
        """How far ahead of their time commands are made."""

    def begin(self) -> None:
        """Forget the commands of an earlier run."""

    def put(self, command: Command | None, due_ns: int) -> None:
        """Take the command of a tick, None when there is none, and send what is due."""

    def missing(self) -> tuple[str, ...]:
        """Return the names of the controllers that nobody listens for."""

    def close(self) -> None:
        """Send nothing any more."""


class ExecutorLoop:
    """Holds one scheduler for the threads that feed it and the one that ticks.

    The scheduler is made when the first chunk tells columns, step and rows; until then one without columns stands in,
    which can be armed and stopped as well. Commands are made `lead_ns` ahead of their time: the scheduler lives in that
    time, and nothing else knows of it. Everything is safe to call from any thread; `offer` from one at a time.

    Args:
        settings: The executor file.
        clock: The robot's time. Between two ticks it goes on by one period at most, so that it never overtakes the
            tick to come.
        make_limits: Makes the limits of the commanded columns; may raise a VlaPolicyError.
        make_outputs: Makes the outputs of the columns of the action; may raise a VlaPolicyError.
    """

    def __init__(
        self,
        settings: ExecutorSettings,
        *,
        clock: Clock,
        make_limits: Callable[[Sequence[Column]], JointLimits],
        make_outputs: Callable[[Sequence[Column], JointLimits], CommandOutputs],
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._make_limits, self._make_outputs = make_limits, make_outputs
        self._lock = threading.Lock()
        self._needs_listeners = (
            not settings.dry_run and Watch.SUBSCRIBER in settings.watchdogs.rules()
        )
        self._journal = Journal()
        self._early: list[Event] = []
        self._refused = 0
        self._scheduler = _make_stand_in(settings)
        self._outputs: CommandOutputs | None = None
        self._columns: tuple[Column, ...] = ()
        self._misfit: tuple[tuple[object, ...], VlaPolicyError] | None = None
        self._measured: tuple[Array, int] | None = None
        self._missing: tuple[str, ...] = ()
        self._last_ns: int | None = None
        self._sent_ns: int | None = None

    @property
    def columns(self) -> tuple[Column, ...]:
        """The D columns of the action; none before the first chunk that fits."""
        return self._columns

    @property
    def lead_ns(self) -> int:
        """How far ahead of their time commands are made; 0 before the first chunk."""
        return 0 if self._outputs is None else self._outputs.lead_ns

    @property
    def missing(self) -> tuple[str, ...]:
        """Controllers that nobody listens for."""
        return self._missing

    @property
    def fault(self) -> str:
        """Why the executor file does not fit the policy; empty when it does, or is not known to."""
        return '' if self._misfit is None else str(self._misfit[1])

    @property
    def is_quiet(self) -> bool:
        """Whether no command is to come, and the last one has been due."""
        with self._lock:
            return self._scheduler.state not in SENDING and self._has_been_due()

    def arm(self, instruction: str = '') -> Answer:
        """Let commands go out from the next chunk on, or from the first one that follows an instruction."""
        with self._lock:
            if self._misfit is not None:
                return Answer('does_not_fit', str(self._misfit[1]))
            if not self._has_been_due():
                return Answer('not_still', 'the last commands are still on their way')
            answer = self._scheduler.arm(self._now_ns(), instruction=instruction)
            if answer.is_done and self._outputs is not None:
                self._outputs.begin()
            return answer

    def disarm(self) -> Answer:
        """Decelerate within the limits; nothing goes out once the robot is still."""
        with self._lock:
            return self._scheduler.disarm(self._now_ns())

    def stop(self, cause: str) -> None:
        """Decelerate within the limits and latch the stop."""
        with self._lock:
            self._scheduler.stop(cause, self._now_ns())

    def release(self) -> Answer:
        """Release a latched stop after its cool-down."""
        with self._lock:
            return self._scheduler.release(self._now_ns())

    def offer(self, chunk: ActionChunk) -> Offer:
        """Take a chunk, or refuse it for a cause; the first one makes the scheduler."""
        with self._lock:
            if not self._columns:
                self._fit(chunk)
            refusal = self._find_refusal()
            if refusal is None:
                return self._scheduler.offer(chunk, self._now_ns())
            told = f'chunk {chunk.sequence} of epoch {chunk.epoch}: {refusal.detail}'
            self._refuse(refusal.cause, told)
            return refusal

    def refuse(self, error: ChunkRejectedError) -> None:
        """Count a chunk whose message could not be read."""
        with self._lock:
            self._refuse(error.code, str(error))

    def note_measured(self, position: Array, stamp_ns: int) -> None:
        """Take the measured state.

        Args:
            position: (D,) float64, NaN where nothing is measured. It must not be written to any more.
            stamp_ns: When it was measured.
        """
        with self._lock:
            self._measured = position, stamp_ns

    def note_subscribers(self, missing: Sequence[str]) -> None:
        """Take which controllers have nobody listening now."""
        with self._lock:
            self._note_subscribers(missing)

    def snapshot(self, *, lateness: LatencySummary | None = None) -> Snapshot:
        """Return how the executor is; `lateness` is that of the ticks."""
        with self._lock:
            snapshot = self._scheduler.snapshot(self._now_ns(), lateness=lateness)
            refused = Counter(snapshot.refused) + Counter(self._journal.counts(EventKind.REFUSED))
            age_ms, lead_ms = snapshot.chunk_age_ms, self.lead_ns / 1e6
        return replace(
            snapshot,
            strategy=self._settings.strategy.name,
            chunk_age_ms=None if age_ms is None else age_ms - lead_ms,
            offered=snapshot.offered + self._refused,
            refused=dict(refused),
        )

    def events(self) -> list[Event]:
        """Return what has happened since the last call."""
        with self._lock:
            early, self._early = self._early, []
            return early + self._journal.drain() + self._scheduler.events()

    def tick(self, now_ns: int) -> Command | None:
        """Make the command of a tick and hand it to the outputs.

        Args:
            now_ns: Time of the tick.

        Returns:
            The command, in a dry run too, where it is not sent; None when there was none. Its arrays hold until the
            next tick.
        """
        with self._lock:
            self._last_ns = now_ns
            measured, stamp_ns = self._measured or (None, None)
            command = self._scheduler.command(
                now_ns + self.lead_ns, measured, measured_stamp_ns=stamp_ns
            )
            if command is not None:
                self._sent_ns = command.time_ns
            if self._outputs is not None:
                self._outputs.put(command, now_ns)
            return self._scheduler.last_command

    def close(self) -> None:
        """Close the outputs; nothing may tick any more."""
        with self._lock:
            if self._outputs is not None:
                self._outputs.close()

    def _now_ns(self) -> int:
        """Return the time of the scheduler, which lies ahead by the lead."""
        now_ns = self._clock.now_ns()
        if self._last_ns is not None:
            now_ns = min(now_ns, self._last_ns + self._settings.period_ns)
        return now_ns + self.lead_ns

    def _has_been_due(self) -> bool:
        """Whether the last command has been due: with a lead, controllers are told of it before."""
        return self._sent_ns is None or self._last_ns is None or self._last_ns >= self._sent_ns

    def _refuse(self, cause: str, told: str) -> None:
        self._refused += 1
        self._journal.note(EventKind.REFUSED, cause, told, now_ns=self._now_ns())

    def _find_refusal(self) -> Offer | None:
        if self._misfit is not None:
            return Offer(self._misfit[1].code, str(self._misfit[1]))
        if self._needs_listeners and self._missing and self._scheduler.state is State.IDLE:
            return Offer('no_subscriber', f'nobody listens for {", ".join(self._missing)}')
        return None

    def _fit(self, chunk: ActionChunk) -> None:
        """Make scheduler and outputs for the columns of a chunk, or keep why the file does not fit them."""
        kind = chunk.columns, chunk.step_ns
        if self._misfit is not None and self._misfit[0] == kind:
            return
        try:
            self._make(chunk)
        except VlaPolicyError as error:
            self._misfit = kind, error
        else:
            self._misfit = None

    def _make(self, chunk: ActionChunk) -> None:
        faults = check_executor(self._settings, chunk.columns)
        if faults:
            raise faults[0]
        limits = self._make_limits(commanded_columns(chunk.columns))
        outputs = self._make_outputs(chunk.columns, limits)
        settings = self._settings.scheduler(step_ns=chunk.step_ns, horizon=chunk.horizon)
        try:
            scheduler = ChunkScheduler(
                chunk.columns, _with_lead(settings, outputs.lead_ns), limits
            )
        except VlaPolicyError:
            outputs.close()
            raise
        self._take_over(scheduler, outputs)
        self._columns = chunk.columns
        self._note_subscribers(outputs.missing())

    def _take_over(self, scheduler: ChunkScheduler, outputs: CommandOutputs) -> None:
        """Bring a new scheduler to the state of the one that stood in for it."""
        self._outputs = outputs
        state, cause = self._scheduler.state, self._scheduler.snapshot(0).cause
        self._early += self._scheduler.events()
        if state is State.IDLE:
            scheduler.arm(self._now_ns(), instruction=self._scheduler.awaited_instruction)
            outputs.begin()
        elif state is State.STOPPED:
            scheduler.stop(cause, self._now_ns())
        scheduler.events()
        self._scheduler = scheduler

    def _note_subscribers(self, missing: Sequence[str]) -> None:
        self._missing = tuple(missing)
        if self._needs_listeners:
            self._scheduler.note_subscribers(missing, self._now_ns())


def _with_lead(settings: SchedulerSettings, lead_ns: int) -> SchedulerSettings:
    """Let ages be older by the lead before they raise an alarm."""
    rules = {
        watch: replace(rule, timeout_ns=rule.timeout_ns + lead_ns) if watch in _AGES else rule
        for watch, rule in settings.watchdogs.items()
    }
    return replace(settings, watchdogs=rules)


def _make_stand_in(settings: ExecutorSettings) -> ChunkScheduler:
    """Return a scheduler of no columns: it can be armed and stopped, and takes no chunk."""
    period_ns = settings.period_ns
    bare = SchedulerSettings(
        period_ns=period_ns,
        step_ns=period_ns,
        horizon=1,
        cool_down_ns=settings.scheduler(step_ns=period_ns, horizon=1).cool_down_ns,
        is_dry_run=settings.dry_run,
    )
    return ChunkScheduler((), bare, check_limits((), {}))
