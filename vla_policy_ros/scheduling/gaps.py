# SPDX-License-Identifier: Apache-2.0
"""Counts the samples that the stamps of a stream say were sent and never arrived."""

from __future__ import annotations

from collections import deque
from statistics import median

_LEARN_COUNT = 5
_WINDOW = 32


class GapCounter:
    """Counts missing samples from stamps.

    A difference of n and a bit periods means n - 1 missing samples, rounded, so jitter below half a period is
    forgiven. Without an expected period it is learnt as the median of the recent differences; the first ones are
    judged as soon as there are enough of them.

    Args:
        expected_period_ns: Nominal time between two samples; None to learn it.
    """

    def __init__(self, expected_period_ns: int | None = None) -> None:
        self._expected_ns = expected_period_ns
        self._last_ns: int | None = None
        self._differences_ns: deque[int] = deque(maxlen=_WINDOW)
        self._missing = 0
        self._is_learning = expected_period_ns is None

    @property
    def missing(self) -> int:
        """Missing samples so far."""
        return self._missing

    @property
    def period_ns(self) -> float | None:
        """Period the differences are judged by; None while it is being learnt."""
        if self._expected_ns is not None:
            return float(self._expected_ns)
        return None if self._is_learning else float(median(self._differences_ns))

    @property
    def rate_hz(self) -> float:
        """Mean rate of the recent samples; 0 before the second one."""
        if not self._differences_ns:
            return 0.0
        return len(self._differences_ns) * 1e9 / sum(self._differences_ns)

    def add(self, stamp_ns: int) -> None:
        """Take the stamp of one sample; stamps that do not grow are left out."""
        last_ns = self._last_ns
        if last_ns is not None and stamp_ns <= last_ns:
            return
        self._last_ns = stamp_ns
        if last_ns is not None:
            self._differences_ns.append(stamp_ns - last_ns)
            self._judge()

    def restart(self) -> None:
        """Forget the last stamp, not the period: time has jumped."""
        self._last_ns = None

    def _judge(self) -> None:
        to_judge = [self._differences_ns[-1]]
        if self._is_learning:
            if len(self._differences_ns) < _LEARN_COUNT:
                return
            self._is_learning = False
            to_judge = list(self._differences_ns)
        period_ns = self.period_ns
        assert period_ns is not None
        self._missing += sum(max(round(gap / period_ns) - 1, 0) for gap in to_judge)
