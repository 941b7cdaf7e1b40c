# SPDX-License-Identifier: Apache-2.0
"""Clocks that can be injected: no room below the ROS layer asks the machine for the time by itself."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """A source of time in nanoseconds."""

    def now_ns(self) -> int:
        """Return the time in nanoseconds."""


class MonotonicClock:
    """The machine's monotonic clock, for durations."""

    def now_ns(self) -> int:
        """Return nanoseconds since an arbitrary start."""
        return time.monotonic_ns()


class ManualClock:
    """A clock that moves when it is told to, for tests and for replay without waiting."""

    def __init__(self, start_ns: int = 0) -> None:
        self._now_ns = start_ns

    def now_ns(self) -> int:
        """Return the time it was last set to."""
        return self._now_ns

    def advance(self, duration_ns: int) -> None:
        """Move forward (or back, with a negative duration)."""
        self._now_ns += duration_ns
