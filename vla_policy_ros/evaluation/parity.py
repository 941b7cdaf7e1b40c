# SPDX-License-Identifier: Apache-2.0
"""How near one computation of a network comes to another, and whether that is near enough."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vla_policy_ros.bundle.limits import AccuracyLimit
from vla_policy_ros.bundle.probe import compare_outputs
from vla_policy_ros.core.specs import Array


@dataclass(frozen=True, slots=True)
class Parity:
    """The comparison of one or several tensors with their references.

    Errors are in units of the reference's greatest magnitude where that is above 1: limits are made for actions in
    [-1, 1], and features between two stages may be larger.

    Attributes:
        cosine: Least cosine similarity.
        max_error: Greatest absolute error.
        mean_error: Mean absolute error.
        count: Number of values.
    """

    cosine: float
    max_error: float
    mean_error: float
    count: int

    def is_within(self, limit: AccuracyLimit) -> bool:
        """Tell whether both limits are kept; a NaN keeps none."""
        return self.cosine >= limit.min_cosine and self.max_error <= limit.max_error

    def joined(self, other: Parity) -> Parity:
        """Return the comparison of both sets of tensors; a NaN in one is in the result."""
        count = self.count + other.count
        return Parity(
            cosine=float(np.minimum(self.cosine, other.cosine)),
            max_error=float(np.maximum(self.max_error, other.max_error)),
            mean_error=(self.mean_error * self.count + other.mean_error * other.count) / count,
            count=count,
        )


def measure_parity(output: Array, reference: Array) -> Parity:
    """Compare two arrays of one shape that hold at least one value, in double precision."""
    result = compare_outputs(output, reference)
    wanted = reference.astype(np.float64)
    unit = max(1.0, float(np.abs(wanted).max()))
    mean = float(np.abs(output.astype(np.float64) - wanted).mean())
    return Parity(result.cosine, result.max_error / unit, mean / unit, output.size)
