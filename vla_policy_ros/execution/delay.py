# SPDX-License-Identifier: Apache-2.0
"""Delay as what was really executed, not as an estimate: a clock of the executed motion, and its statistics."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from vla_policy_ros.core.latency import Window

_MAX_SEGMENTS = 1024
_WINDOW = 256
_ROUNDING = 0.01  # steps; times are rounded to ticks and nanoseconds


@dataclass(frozen=True, slots=True)
class _Segment:
    """A stretch of time with one rate; times in nanoseconds."""

    begin_ns: int
    motion_ns: int
    executed_ns: int
    rate: float
    is_executing: bool

    def motion_at(self, time_ns: int) -> int:
        return self.motion_ns + round((time_ns - self.begin_ns) * self.rate)

    def executed_at(self, time_ns: int) -> int:
        advance_ns = self.motion_at(time_ns) - self.motion_ns
        return self.executed_ns + (advance_ns if self.is_executing else 0)


class ExecutionClock:
    """Tells motion time and executed time for any moment of the recent past.

    *Motion time* runs with the clock, or slower while motion is stretched to fit the limits; chunks are laid on it by
    the time of their observation, so that no row is skipped because the robot was slowed down. *Executed time* runs
    with motion time, and only while chunks are executed: its difference between two moments, in steps, is the delay.
    """

    def __init__(self) -> None:
        self._segments: deque[_Segment] = deque(maxlen=_MAX_SEGMENTS)
        self.restart(0)

    @property
    def now_ns(self) -> int:
        """Time of the last tick."""
        return self._now_ns

    def restart(self, now_ns: int) -> None:
        """Begin anew: motion time is the time of the clock, and nothing has been executed."""
        self._segments.clear()
        self._segments.append(_Segment(now_ns, now_ns, 0, 1.0, is_executing=False))
        self._now_ns = now_ns

    def advance(self, now_ns: int) -> None:
        """Move on to a time that is not before the last one."""
        self._now_ns = now_ns

    def set_rate(self, rate: float, *, is_executing: bool) -> None:
        """Say how fast motion time runs from now on (0..1), and whether chunks are executed."""
        last = self._segments[-1]
        if last.rate == rate and last.is_executing == is_executing:
            return
        now_ns = self._now_ns
        motion_ns, executed_ns = last.motion_at(now_ns), last.executed_at(now_ns)
        self._segments.append(_Segment(now_ns, motion_ns, executed_ns, rate, is_executing))

    def motion_ns(self, time_ns: int) -> int:
        """Motion time at a time; before the kept past, and after now, it runs with the clock."""
        segment = self._find(time_ns)
        if segment is None:
            return self._segments[0].motion_ns + time_ns - self._segments[0].begin_ns
        return segment.motion_at(min(time_ns, self._now_ns)) + max(time_ns - self._now_ns, 0)

    def executed_ns(self, time_ns: int) -> int:
        """Executed time at a time; before the kept past that of its begin, after now that of now."""
        segment = self._find(time_ns)
        if segment is None:
            return self._segments[0].executed_ns
        return segment.executed_at(min(time_ns, self._now_ns))

    def _find(self, time_ns: int) -> _Segment | None:
        return next((s for s in reversed(self._segments) if s.begin_ns <= time_ns), None)


@dataclass(frozen=True, slots=True)
class DelaySummary:
    """Delays in steps over the last chunks; all zero before the first one."""

    count: int
    mean_steps: float
    p50_steps: float
    p95_steps: float
    max_steps: float


class DelayTracker:
    """Takes the delay d and the execution horizon s of every chunk that takes over, in steps.

    The first chunk after a start or a reset is left out: its delay holds the warm-up of whatever is warm now.
    Asynchronous execution needs d <= s <= K - d (real-time chunking, arXiv 2506.07339, section 3): a later chunk could
    not be ready, or the one before it has run out of rows.
    """

    def __init__(self) -> None:
        self._steps = Window(_WINDOW)
        self._last_use_ns: int | None = None

    def restart(self) -> None:
        """Leave the next chunk out of the statistics; what they hold stays."""
        self._last_use_ns = None

    def use(
        self, *, observed_ns: int, used_ns: int, step_ns: int, horizon: int
    ) -> tuple[str, str] | None:
        """Take the first use of a chunk; return cause and sentence when d <= s <= K - d does not hold.

        Args:
            observed_ns: Executed time at its observation.
            used_ns: Executed time at its first use.
            step_ns: Time between its rows.
            horizon: K, its rows.
        """
        last_ns, self._last_use_ns = self._last_use_ns, used_ns
        if last_ns is None:
            return None
        delay = (used_ns - observed_ns) / step_ns
        executed = (used_ns - last_ns) / step_ns
        self._steps.add(delay)
        told = f'delay d = {delay:.1f}, execution horizon s = {executed:.1f}, rows K = {horizon}'
        if delay > executed + _ROUNDING:
            return 'delay_above_horizon', f'{told}: expected d <= s.'
        if executed > horizon - delay:
            return 'horizon_above_rest', f'{told}: expected s <= K - d.'
        return None

    def summary(self) -> DelaySummary:
        """Return the delays of the last 256 chunks; `count` counts all of them."""
        held = self._steps.held()
        if not held.size:
            return DelaySummary(0, 0.0, 0.0, 0.0, 0.0)
        p50, p95 = (float(value) for value in np.percentile(held, (50, 95)))
        return DelaySummary(self._steps.count, float(held.mean()), p50, p95, float(held.max()))
