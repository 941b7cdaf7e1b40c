# SPDX-License-Identifier: Apache-2.0
"""How far a policy's output may lie from its stored reference: the one table, for every tool and node."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from vla_policy_ros.bundle.manifest import Precision

Grade = Literal['PASS', 'WARN', 'FAIL']
"""Within a limit, within it and beyond `WARN_SHARE` of it, outside."""
WARN_SHARE = 0.5
"""Share of a limit; what uses up more may lie outside on the next observation."""


@dataclass(frozen=True, slots=True)
class AccuracyLimit:
    """Least cosine similarity and greatest absolute error of the action tensor, in normalised units."""

    min_cosine: float
    max_error: float

    def grade(self, max_error: float, *, cosine: float = 1.0) -> Grade:
        """Judge one comparison; a NaN fails.

        Args:
            max_error: Greatest absolute error.
            cosine: Cosine similarity; 1 where a direction means nothing.
        """
        if not (cosine >= self.min_cosine and max_error <= self.max_error):
            return 'FAIL'
        most_error = WARN_SHARE * self.max_error
        least_cosine = 1 - WARN_SHARE * (1 - self.min_cosine)
        return 'WARN' if max_error > most_error or cosine < least_cosine else 'PASS'


ACCURACY_LIMITS: dict[Precision, AccuracyLimit] = {
    'fp32': AccuracyLimit(min_cosine=0.999, max_error=1e-3),
    'fp16': AccuracyLimit(min_cosine=0.999, max_error=2e-2),
    'bf16': AccuracyLimit(min_cosine=0.999, max_error=5e-2),
    'fp8': AccuracyLimit(min_cosine=0.999, max_error=1e-1),
    'int8': AccuracyLimit(min_cosine=0.999, max_error=1e-1),
}
"""Choices of this project, not measurements: what a robot can bear in a span of [-1, 1], wider with fewer bits."""


def limit_for(precisions: Iterable[Precision]) -> AccuracyLimit:
    """Return the limit of a chain of stages: that of its least exact one."""
    return max((ACCURACY_LIMITS[name] for name in precisions), key=lambda limit: limit.max_error)
