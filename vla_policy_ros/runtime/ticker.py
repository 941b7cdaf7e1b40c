# SPDX-License-Identifier: Apache-2.0
"""Ticks at a fixed rate: a thread with absolute deadlines, and the ticks of a clock that others move."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from vla_policy_ros.core.clock import Clock, MonotonicClock
from vla_policy_ros.core.latency import LatencySummary, LatencyWindow

# Twenty seconds at 200 Hz.
_WINDOW = 4096
# A clock that leaps further than this has been set, not run: its ticks have no use any more.
_MAX_CATCH_UP_NS = 2_000_000_000


class TickSchedule:
    """Deadlines on a grid that never moves; what is missed is skipped. Pure, one thread at a time.

    Args:
        period_ns: Time between two deadlines.
        start_ns: The first deadline comes a period later.
    """

    def __init__(self, period_ns: int, *, start_ns: int) -> None:
        self._period_ns = period_ns
        self.next_ns = start_ns + period_ns
        """The next deadline."""
        self.missed = 0
        """Deadlines that were skipped because a later one had passed as well."""

    def take(self, now_ns: int) -> tuple[int, int]:
        """Take the tick that is due, and go on to the first deadline after now.

        Returns:
            How late it is: the time since the deadline that was waited for, and since the newest one that has passed;
            the same unless ticks were missed.
        """
        late_ns = now_ns - self.next_ns
        missed = late_ns // self._period_ns
        self.missed += missed
        self.next_ns += (missed + 1) * self._period_ns
        return late_ns, late_ns - missed * self._period_ns


class ClockTicks:
    """The ticks of a clock that is moved in leaps, such as simulated time. Pure.

    Args:
        period_ns: Time between two ticks.
    """

    def __init__(self, period_ns: int) -> None:
        self._period_ns = period_ns
        self._last_ns: int | None = None

    def due(self, now_ns: int) -> range:
        """Return the times of all ticks since the last call, in order; at the start and after a leap back, now alone."""
        last_ns, period_ns = self._last_ns, self._period_ns
        if last_ns is None or now_ns < last_ns:
            self._last_ns = now_ns
            return range(now_ns, now_ns + 1)
        first_ns = last_ns + period_ns
        behind_ns = now_ns - first_ns - _MAX_CATCH_UP_NS
        if behind_ns > 0:
            first_ns += -(-behind_ns // period_ns) * period_ns
        ticks = range(first_ns, now_ns + 1, period_ns)
        if ticks:
            self._last_ns = ticks[-1]
        return ticks


class Ticker:
    """Calls a function at a fixed rate on a thread of its own.

    Args:
        period_ns: Time between two ticks.
        on_tick: Called on the thread with the time since the tick's deadline. An error of it ends the thread, and is
            kept as `failure`.
        on_start: Called on the thread before the first tick, to set its scheduling.
        clock: Monotonic; deadlines lie on it.
        sleep: Waits for some seconds.
    """

    def __init__(
        self,
        period_ns: int,
        on_tick: Callable[[int], object],
        *,
        on_start: Callable[[], object] = lambda: None,
        clock: Clock | None = None,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._period_ns = period_ns
        self._on_tick = on_tick
        self._on_start = on_start
        self._clock = clock or MonotonicClock()
        self._sleep = sleep
        self._lateness = LatencyWindow(_WINDOW)
        self._is_stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._schedule = TickSchedule(period_ns, start_ns=0)
        self.failure: Exception | None = None
        """The error that ended the ticks; None while all is well."""

    @property
    def missed(self) -> int:
        """Ticks that were skipped since the start."""
        return self._schedule.missed

    def lateness(self) -> LatencySummary:
        """Return how late the last ticks began."""
        return self._lateness.summary()

    def start(self) -> None:
        """Start the thread."""
        self._is_stopping.clear()
        self._thread = threading.Thread(target=self._run, name='vla-ticker', daemon=True)
        self._thread.start()

    def request_stop(self) -> None:
        """Let the tick that runs be the last one; may be called by the tick itself."""
        self._is_stopping.set()

    def join(self) -> None:
        """Wait for the end of the thread."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def stop(self) -> None:
        """End the thread; the tick that runs is finished."""
        self.request_stop()
        self.join()

    def _run(self) -> None:
        try:
            self._on_start()
            self._tick()
        except Exception as error:  # noqa: BLE001 - the border of the thread: its owner looks at `failure`
            self.failure = error

    def _tick(self) -> None:
        schedule = TickSchedule(self._period_ns, start_ns=self._clock.now_ns())
        self._schedule = schedule
        while not self._is_stopping.is_set():
            wait_ns = schedule.next_ns - self._clock.now_ns()
            if wait_ns > 0:
                self._sleep(wait_ns / 1e9)
                continue
            late_ns, offset_ns = schedule.take(schedule.next_ns - wait_ns)
            self._lateness.add(late_ns)
            self._on_tick(offset_ns)
