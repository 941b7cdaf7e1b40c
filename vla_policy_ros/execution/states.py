# SPDX-License-Identifier: Apache-2.0
"""The states of the executor, the one table of what may follow what, and the journal that every change enters."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

_MAX_EVENTS = 1024


class State(str, Enum):
    """What the executor does now."""

    UNARMED = 'unarmed'
    """Nothing goes out."""
    IDLE = 'idle'
    """Armed, and no chunk has started yet: nothing goes out."""
    SOFT_START = 'soft_start'
    """On the way from where the robot is to what the policy wants."""
    TRACKING = 'tracking'
    """Following the chunks."""
    STARVED = 'starved'
    """No row is left: coming to rest, or holding still, until a chunk comes."""
    STOPPING = 'stopping'
    """Decelerating within the limits to a stop or to a disarm."""
    STOPPED = 'stopped'
    """Latched: nothing goes out until the stop is released."""


TRANSITIONS: Mapping[State, frozenset[State]] = MappingProxyType(
    {
        State.UNARMED: frozenset({State.IDLE, State.STOPPED}),
        State.IDLE: frozenset({State.SOFT_START, State.UNARMED, State.STOPPED}),
        State.SOFT_START: frozenset({State.TRACKING, State.STARVED, State.STOPPING}),
        State.TRACKING: frozenset({State.STARVED, State.STOPPING}),
        State.STARVED: frozenset({State.SOFT_START, State.STOPPING}),
        State.STOPPING: frozenset({State.UNARMED, State.STOPPED}),
        State.STOPPED: frozenset({State.UNARMED}),
    }
)
RUNNING = frozenset({State.SOFT_START, State.TRACKING})
"""States in which chunks are executed."""
SENDING = frozenset({State.SOFT_START, State.TRACKING, State.STARVED, State.STOPPING})
"""States in which a command goes out at every tick."""


class EventKind(str, Enum):
    """What an event tells."""

    TRANSITION = 'transition'
    REFUSED = 'refused'
    """A chunk was not taken."""
    DISCARDED = 'discarded'
    """A chunk was taken and never used."""
    GATE = 'gate'
    """The robot may not start: it is too far from the first action."""
    VIOLATION = 'violation'
    """The delay does not fit the execution horizon, or (mode `reject`) a target breaks a limit."""
    ALARM = 'alarm'
    CLEARED = 'cleared'
    """An alarm is over."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something worth telling: kind, cause in snake_case, one sentence for a person."""

    time_ns: int
    kind: EventKind
    cause: str
    detail: str


class Journal:
    """Counts every event, and keeps the newest ones until somebody drains them."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque(maxlen=_MAX_EVENTS)
        self._counts: Counter[tuple[EventKind, str]] = Counter()

    def note(self, kind: EventKind, cause: str, detail: str, *, now_ns: int) -> None:
        """Enter one event."""
        self._events.append(Event(now_ns, kind, cause, detail))
        self._counts[kind, cause] += 1

    def drain(self) -> list[Event]:
        """Return the events since the last call, oldest first; of very many only the newest 1024."""
        events = list(self._events)
        self._events.clear()
        return events

    def counts(self, kind: EventKind) -> dict[str, int]:
        """Return cause to number of events of one kind, drained or not."""
        return {cause: count for (k, cause), count in self._counts.items() if k is kind}


class StateMachine:
    """Holds the state; refuses what the table does not allow; enters every change in the journal."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.state = State.UNARMED
        self.cause = 'start'
        self.since_ns = 0

    def go(self, state: State, cause: str, detail: str = '', *, now_ns: int) -> None:
        """Change the state for a cause."""
        assert state in TRANSITIONS[self.state], f'{self.state.value} -> {state.value}'
        told = f'{self.state.value} -> {state.value}'
        self.state, self.cause, self.since_ns = state, cause, now_ns
        text = f'{told}: {detail}' if detail else told
        self._journal.note(EventKind.TRANSITION, cause, text, now_ns=now_ns)
