# SPDX-License-Identifier: Apache-2.0
"""What makes the executor node tick: a thread in real time, the node's own clock in simulated time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from vla_policy_ros.core.clock import Clock
from vla_policy_ros.core.latency import LatencySummary
from vla_policy_ros.runtime.realtime import RealTimeScheduling
from vla_policy_ros.runtime.ticker import ClockTicks, Ticker

_NO_LATENESS = LatencySummary(0, 0.0, 0.0, 0.0, 0.0)


class Ticks(Protocol):
    """Calls a function with the time of every tick."""

    @property
    def failure(self) -> Exception | None:
        """The error that ended the ticks; None while all is well."""

    @property
    def missed(self) -> int:
        """Ticks that were skipped."""

    def lateness(self) -> LatencySummary:
        """Return how late the last ticks began."""

    def start(self) -> None:
        """Begin."""

    def wait(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Go on ticking until a condition holds; return whether that came true in time. Blocks."""

    def stop(self) -> None:
        """End."""


def make_ticks(
    node: Any,
    clock: Clock,
    *,
    period_ns: int,
    on_tick: Callable[[int], object],
    scheduling: RealTimeScheduling,
) -> Ticks:
    """Return the ticks of a node: in real time, or under `use_sim_time` those of /clock.

    Args:
        node: An rclpy node.
        clock: The node's clock.
        period_ns: Time between two ticks.
        on_tick: Called with the time of the tick on that clock.
        scheduling: Set up on the thread that ticks.
    """
    if node.get_parameter('use_sim_time').value:
        return _SimulatedTicks(node, clock, period_ns, on_tick)
    return _SteadyTicks(clock, period_ns, on_tick, scheduling)


class _SteadyTicks:
    """Ticks on a thread; the time of a tick is that of its deadline, however late it comes."""

    def __init__(
        self,
        clock: Clock,
        period_ns: int,
        on_tick: Callable[[int], object],
        scheduling: RealTimeScheduling,
    ) -> None:
        def tick(since_deadline_ns: int) -> None:
            on_tick(clock.now_ns() - since_deadline_ns)

        self._period_s = period_ns / 1e9
        self._ticker = Ticker(period_ns, tick, on_start=scheduling.prepare_thread)
        self.lateness, self.start, self.stop = (
            self._ticker.lateness,
            self._ticker.start,
            self._ticker.stop,
        )

    @property
    def failure(self) -> Exception | None:
        """See `Ticks`."""
        return self._ticker.failure

    @property
    def missed(self) -> int:
        """See `Ticks`."""
        return self._ticker.missed

    def wait(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """See `Ticks`."""
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            if self.failure is not None or time.monotonic() > deadline_s:
                return False
            time.sleep(self._period_s)
        return True


class _SimulatedTicks:
    """Ticks whenever the clock of the node has gone on; whoever spins the node runs them."""

    missed = 0
    failure = None

    def __init__(
        self, node: Any, clock: Clock, period_ns: int, on_tick: Callable[[int], object]
    ) -> None:
        self._node, self._clock = node, clock
        self._period_ns, self._on_tick = period_ns, on_tick
        self._ticks = ClockTicks(period_ns)
        self._timer: Any = None

    def lateness(self) -> LatencySummary:
        """See `Ticks`: nothing is late in simulated time."""
        return _NO_LATENESS

    def start(self) -> None:
        """See `Ticks`."""
        self._timer = self._node.create_timer(self._period_ns / 1e9, self._run)

    def wait(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """See `Ticks`: no clock comes in meanwhile, so time goes on by itself, at the pace of real time."""
        now_ns = self._clock.now_ns()
        for _ in range(round(timeout_s * 1e9 / self._period_ns)):
            if condition():
                return True
            now_ns += self._period_ns
            time.sleep(self._period_ns / 1e9)
            self._on_tick(now_ns)
        return condition()

    def stop(self) -> None:
        """See `Ticks`."""
        if self._timer is not None:
            self._node.destroy_timer(self._timer)
            self._timer = None

    def _run(self) -> None:
        for now_ns in self._ticks.due(self._clock.now_ns()):
            self._on_tick(now_ns)
