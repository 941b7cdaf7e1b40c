# SPDX-License-Identifier: Apache-2.0
"""Which chunks the executor takes, and what becomes of each one: used, or discarded for a cause."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vla_policy_ros.core.chunk import ActionChunk
from vla_policy_ros.core.specs import Column
from vla_policy_ros.execution.settings import SchedulerSettings
from vla_policy_ros.execution.states import EventKind, Journal


@dataclass(frozen=True, slots=True)
class Offer:
    """What became of an offered chunk.

    Attributes:
        cause: Why it is refused, in snake_case; empty when it is taken.
        detail: One sentence for a person.
        delay_steps: Steps executed between its observation and now; 0 when it is refused.
    """

    cause: str = ''
    detail: str = ''
    delay_steps: float = 0.0

    @property
    def is_accepted(self) -> bool:
        """Whether the chunk is taken."""
        return not self.cause


@dataclass(frozen=True, slots=True)
class Ticket:
    """One chunk that was taken.

    Attributes:
        number: Counts the chunks taken, whatever the policy counts; the sequence that the strategy sees.
        sequence: The policy's number of the chunk.
        epoch: The policy's epoch.
        instruction_id: The instruction it follows.
        stamp_ns: Time of its observation.
        end_ns: Motion time of its last row.
        horizon: Its rows.
    """

    number: int
    sequence: int
    epoch: int
    instruction_id: int
    stamp_ns: int
    end_ns: int
    horizon: int


class Intake:
    """Checks chunks against what came before, and keeps account of every one that was taken.

    A chunk is *waiting* from when it is taken until its first use. One that waits ends in the journal with its cause
    when a newer one is used first (`overtaken`), when it has run out (`expired`), or when it is dropped.

    Args:
        columns: The D columns of the robot's action.
        settings: Step, horizon and rules.
        journal: Where refusals and discards are told.
    """

    def __init__(
        self, columns: Sequence[Column], settings: SchedulerSettings, journal: Journal
    ) -> None:
        self._columns = tuple(columns)
        self._settings = settings
        self._journal = journal
        self._waiting: dict[int, Ticket] = {}
        self._number = 0
        self._used = 0
        self._epoch: int | None = None
        self._policy_id: str | None = None
        self._newest_ns: int | None = None
        self.instruction_id: int | None = None
        self.awaited_instruction = ''

    @property
    def accepted(self) -> int:
        """Chunks taken so far, and the number of the next one."""
        return self._number

    @property
    def used(self) -> int:
        """Chunks of which at least one target was executed."""
        return self._used

    @property
    def waiting(self) -> int:
        """Chunks taken and not yet used."""
        return len(self._waiting)

    @property
    def epoch(self) -> int | None:
        """The policy's epoch; None until the next chunk tells it."""
        return self._epoch

    @property
    def newest_ns(self) -> int | None:
        """Time of the newest observation that became a chunk taken; None before the first."""
        return self._newest_ns

    def find_fault(self, chunk: ActionChunk, now_ns: int) -> tuple[str, str] | None:
        """Return cause and sentence when a chunk must not be taken."""
        return (
            self._find_misfit(chunk)
            or self._find_wrong_instruction(chunk)
            or self._find_stale(chunk, now_ns)
        )

    def take(self, chunk: ActionChunk, end_ns: int) -> Ticket:
        """Take a chunk that has no fault; the first one tells epoch, policy and instruction."""
        ticket = Ticket(
            self._number,
            chunk.sequence,
            chunk.epoch,
            chunk.instruction.instruction_id,
            chunk.observation_stamp_ns,
            end_ns,
            chunk.horizon,
        )
        self._number += 1
        self._waiting[ticket.number] = ticket
        self._epoch, self._policy_id = chunk.epoch, chunk.policy_id
        self._newest_ns, self.instruction_id = ticket.stamp_ns, ticket.instruction_id
        self.awaited_instruction = ''
        return ticket

    def use(self, number: int, now_ns: int) -> Ticket | None:
        """Note the first use of a chunk, with which those before it are overtaken; None when it did not wait."""
        ticket = self._waiting.pop(number, None)
        if ticket is None:
            return None
        self._used += 1
        for older in [waiting for waiting in self._waiting if waiting < number]:
            self._discard(older, 'overtaken', 'a newer chunk was used first', now_ns)
        return ticket

    def expire(self, motion_ns: int, now_ns: int) -> None:
        """Discard what waits and has its last row before this motion time."""
        for number in [n for n, t in self._waiting.items() if t.end_ns <= motion_ns]:
            self._discard(number, 'expired', 'its last row has passed', now_ns)

    def discard_all(self, cause: str, now_ns: int) -> None:
        """Discard everything that waits."""
        for number in list(self._waiting):
            self._discard(number, cause, 'dropped before its first use', now_ns)

    def discard(self, number: int, cause: str, now_ns: int) -> None:
        """Discard one chunk if it waits."""
        if number in self._waiting:
            self._discard(number, cause, 'dropped before its first use', now_ns)

    def is_waiting(self, number: int) -> bool:
        """Whether a chunk is taken and not yet used."""
        return number in self._waiting

    def begin_epoch(self, epoch: int | None) -> None:
        """Take chunks of this epoch and later ones only, whenever they were observed; None: of any."""
        self._epoch = epoch
        self._newest_ns = None

    def forget_epoch(self) -> None:
        """Take chunks of any epoch and instruction: a policy that starts anew counts from 0, on newer observations."""
        self._epoch = self.instruction_id = None

    def forget_policy(self, instruction: str) -> None:
        """Let the next chunk tell policy, epoch and instruction, or the next one that follows an instruction."""
        self._policy_id = self.instruction_id = self._epoch = None
        self.awaited_instruction = instruction

    def _find_misfit(self, chunk: ActionChunk) -> tuple[str, str] | None:
        if chunk.columns != self._columns:
            return 'wrong_columns', f'got {_tell(chunk.columns)}; expected {_tell(self._columns)}'
        step_ns, horizon = self._settings.step_ns, self._settings.horizon
        if chunk.step_ns != step_ns:
            return 'wrong_step', f'got a step of {chunk.step_ns} ns, expected {step_ns} ns'
        if chunk.horizon > horizon:
            return 'wrong_horizon', f'got {chunk.horizon} rows, expected at most {horizon}'
        known = self._policy_id
        if known not in (None, chunk.policy_id) and self._settings.policy_change == 'refuse':
            return 'policy_changed', f'got policy {chunk.policy_id!r}, armed with {known!r}'
        return None

    def _find_wrong_instruction(self, chunk: ActionChunk) -> tuple[str, str] | None:
        awaited, given, now = self.awaited_instruction, chunk.instruction, self.instruction_id
        if awaited and given.text != awaited:
            return 'other_instruction', f'got {given.text!r}, armed for {awaited!r}'
        is_old_epoch = self._epoch is not None and chunk.epoch < self._epoch
        if now is not None and given.instruction_id < now and not is_old_epoch:
            return 'old_instruction', f'got {given.instruction_id}, now it is {now}'
        return None

    def _find_stale(self, chunk: ActionChunk, now_ns: int) -> tuple[str, str] | None:
        if self._epoch is not None and chunk.epoch < self._epoch:
            return 'stale_epoch', f'got epoch {chunk.epoch}, now it is {self._epoch}'
        stamp_ns = chunk.observation_stamp_ns
        if stamp_ns > now_ns + self._settings.time_jump_ns:
            return 'future_stamp', f'observed {_tell_ms(stamp_ns - now_ns)} after now'
        is_new_epoch = self._epoch is not None and chunk.epoch > self._epoch
        if self._newest_ns is None or is_new_epoch or stamp_ns > self._newest_ns:
            return None
        if stamp_ns == self._newest_ns:
            return 'duplicate', 'a chunk of the same observation has been taken'
        age = _tell_ms(self._newest_ns - stamp_ns)
        return 'older_observation', f'observed {age} before a chunk that has been taken'

    def _discard(self, number: int, cause: str, why: str, now_ns: int) -> None:
        ticket = self._waiting.pop(number)
        detail = f'chunk {ticket.sequence} of epoch {ticket.epoch}: {why}'
        self._journal.note(EventKind.DISCARDED, cause, detail, now_ns=now_ns)


def _tell(columns: Sequence[Column]) -> str:
    return ', '.join(
        f'{column.name} ({column.kind.value}, {column.representation.value})' for column in columns
    )


def _tell_ms(duration_ns: int) -> str:
    return f'{duration_ns / 1e6:.1f} ms'
