# SPDX-License-Identifier: Apache-2.0
"""Bounded windows of durations with percentiles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class LatencySummary:
    """Percentiles of a window in milliseconds; all zero when it is empty."""

    count: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float


class LatencyWindow:
    """The last `size` durations, in a buffer that is made once. One thread at a time."""

    def __init__(self, size: int = 1024) -> None:
        self._values = np.zeros(size, np.int64)
        self._count = 0

    def add(self, duration_ns: int) -> None:
        """Add one duration; the oldest one is dropped when the window is full."""
        self._values[self._count % len(self._values)] = duration_ns
        self._count += 1

    def clear(self) -> None:
        """Forget all durations."""
        self._count = 0

    def summary(self) -> LatencySummary:
        """Return the percentiles of what the window holds; `count` counts all durations since the last clear."""
        if not self._count:
            return LatencySummary(0, 0.0, 0.0, 0.0, 0.0)
        held = self._values[: min(self._count, len(self._values))] / 1e6
        p50, p95, p99 = (float(value) for value in np.percentile(held, (50, 95, 99)))
        return LatencySummary(self._count, p50, p95, p99, float(held.max()))
