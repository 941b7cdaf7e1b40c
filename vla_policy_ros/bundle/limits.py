# SPDX-License-Identifier: Apache-2.0
"""How far a policy's output may lie from its stored reference: the one table, for every tool and node."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vla_policy_ros.bundle.manifest import Precision


@dataclass(frozen=True, slots=True)
class AccuracyLimit:
    """Least cosine similarity and greatest absolute error of the action tensor, in normalised units."""

    min_cosine: float
    max_error: float


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
