# SPDX-License-Identifier: Apache-2.0
"""Bounded windows of durations with percentiles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vla_policy_ros.core.specs import Array


@dataclass(frozen=True, slots=True)
class LatencySummary:
    """Percentiles of a window in milliseconds; all zero when it is empty."""

    count: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float


class Window:
    """The last `size` numbers, in a buffer that is made once. One thread at a time."""

    def __init__(self, size: int) -> None:
        self._values = np.zeros(size)
        self.count = 0
        """Numbers added since the last clear."""

    def add(self, value: float) -> None:
        """Add one number; the oldest one is dropped when the window is full."""
        self._values[self.count % len(self._values)] = value
        self.count += 1

    def clear(self) -> None:
        """Forget all numbers."""
        self.count = 0

    def held(self) -> Array:
        """Return a view of the numbers that the window holds, in no order."""
        return self._values[: min(self.count, len(self._values))]


class LatencyWindow(Window):
    """The last `size` durations in nanoseconds."""

    def __init__(self, size: int = 1024) -> None:
        super().__init__(size)

    def summary(self) -> LatencySummary:
        """Return the percentiles of what the window holds; `count` counts all durations since the last clear."""
        if not self.count:
            return LatencySummary(0, 0.0, 0.0, 0.0, 0.0)
        held = self.held() / 1e6
        p50, p95, p99 = (float(value) for value in np.percentile(held, (50, 95, 99)))
        return LatencySummary(self.count, p50, p95, p99, float(held.max()))
