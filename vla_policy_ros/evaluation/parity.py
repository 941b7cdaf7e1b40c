# SPDX-License-Identifier: Apache-2.0
"""How near one computation of a network comes to another, and whether that is near enough."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import numpy as np

from vla_policy_ros.bundle.limits import AccuracyLimit, Grade
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

    def grade(self, limit: AccuracyLimit) -> Grade:
        """Judge both figures; a NaN fails."""
        return limit.grade(self.max_error, cosine=self.cosine)

    def is_within(self, limit: AccuracyLimit) -> bool:
        """Tell whether both limits are kept; a NaN keeps none."""
        return self.grade(limit) != 'FAIL'

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
    return _measure(output, reference, unit=_unit(reference))


def measure_columns(output: Array, reference: Array) -> list[Parity]:
    """Compare the last dimension's columns one by one; errors are in the unit of the whole arrays."""
    unit = _unit(reference)
    return [
        _measure(output[..., column], reference[..., column], unit=unit)
        for column in range(reference.shape[-1])
    ]


def join_parities(parities: Iterable[Parity]) -> Parity:
    """Return the comparison of all sets of tensors, of which there is at least one."""
    return reduce(Parity.joined, parities)


def _unit(reference: Array) -> float:
    return max(1.0, float(np.abs(reference.astype(np.float64)).max()))


def _measure(output: Array, reference: Array, *, unit: float) -> Parity:
    result = compare_outputs(output, reference)
    mean = float(np.abs(output.astype(np.float64) - reference.astype(np.float64)).mean())
    return Parity(result.cosine, result.max_error / unit, mean / unit, output.size)
