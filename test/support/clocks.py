# SPDX-License-Identifier: Apache-2.0
"""Clocks for tests; `core.clock.ManualClock` is the other one."""

from __future__ import annotations


class TickClock:
    """Moves by one step at every look, so that every duration is known and above zero."""

    def __init__(self, step_ns: int = 1) -> None:
        self._now_ns = 0
        self._step_ns = step_ns

    def now_ns(self) -> int:
        """Return the time after one more step."""
        self._now_ns += self._step_ns
        return self._now_ns

    def advance(self, duration_ns: int) -> None:
        """Let time pass."""
        self._now_ns += duration_ns
