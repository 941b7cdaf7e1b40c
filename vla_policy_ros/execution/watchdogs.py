# SPDX-License-Identifier: Apache-2.0
"""Watches ages and durations against timeouts, each with the action it asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class Watch(str, Enum):
    """What is watched."""

    CHUNK = 'chunk'
    """Age of the newest observation that has become a chunk: the policy is lost."""
    INFERENCE = 'inference'
    """Time from the newest chunk's observation to its arrival: the policy is too slow."""
    MEASURED = 'measured'
    """Age of the newest measured state."""
    SUBSCRIBER = 'subscriber'
    """Time since a controller stopped listening."""
    TICK = 'tick'
    """How much later than a period after the last one the present tick came."""


class Action(str, Enum):
    """What is done about an alarm or about starvation, mildest first."""

    REPORT = 'report'
    """Nothing but a report."""
    HOLD = 'hold'
    """The rows at hand are executed to their end, then the pose is held; no new chunk is taken meanwhile."""
    DECELERATE = 'decelerate'
    """The rows at hand are dropped; decelerate within the limits, then hold."""
    STOP = 'stop'
    """Decelerate within the limits and latch the stop."""


_SEVERITY = {action: rank for rank, action in enumerate(Action)}


@dataclass(frozen=True, slots=True)
class WatchRule:
    """When one watch raises its alarm, and what is done then."""

    timeout_ns: int
    action: Action


@dataclass(frozen=True, slots=True)
class Alarm:
    """One watch above its timeout; `cause` is `<watch>_timeout`."""

    watch: Watch
    action: Action
    duration_ns: int
    timeout_ns: int

    @property
    def cause(self) -> str:
        """Name of the alarm in snake_case."""
        return f'{self.watch.value}_timeout'

    @property
    def detail(self) -> str:
        """One sentence for a person."""
        return (
            f'{self.watch.value}: {self.duration_ns / 1e6:.1f} ms, '
            f'at most {self.timeout_ns / 1e6:.1f} ms.'
        )


class Watchdogs:
    """Holds one age or one duration per watch. Pure: times are arguments.

    Args:
        rules: The watches that are on; the others never raise an alarm.
    """

    def __init__(self, rules: Mapping[Watch, WatchRule]) -> None:
        self._rules = tuple(rules.items())
        self._since_ns: dict[Watch, int] = {}
        self._durations_ns: dict[Watch, int] = {}

    def begin(self, watch: Watch, since_ns: int) -> None:
        """Let an age count from this time on."""
        self._since_ns[watch] = since_ns

    def is_counting(self, watch: Watch) -> bool:
        """Whether an age counts."""
        return watch in self._since_ns

    def measure(self, watch: Watch, duration_ns: int) -> None:
        """Take a duration that stays as it is until the next one."""
        self._durations_ns[watch] = duration_ns

    def forget(self, *watches: Watch) -> None:
        """Watch nothing until the next `begin` or `measure`; with no arguments for all watches."""
        for watch in watches or tuple(Watch):
            self._since_ns.pop(watch, None)
            self._durations_ns.pop(watch, None)

    def check(self, now_ns: int) -> list[Alarm]:
        """Return every watch that is above its timeout now."""
        alarms = []
        for watch, rule in self._rules:
            since_ns = self._since_ns.get(watch, now_ns)
            duration_ns = self._durations_ns.get(watch, now_ns - since_ns)
            if duration_ns > rule.timeout_ns:
                alarms.append(Alarm(watch, rule.action, duration_ns, rule.timeout_ns))
        return alarms


def worst(alarms: list[Alarm]) -> Alarm | None:
    """Return the alarm with the most severe action, the first of several; None where there is none."""
    return max(alarms, key=lambda alarm: _SEVERITY[alarm.action], default=None)
