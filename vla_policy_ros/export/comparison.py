# SPDX-License-Identifier: Apache-2.0
"""What came of a comparison: verdicts on stages, on the policy and on the columns of its action."""

from __future__ import annotations

from dataclasses import dataclass

from vla_policy_ros.bundle.limits import AccuracyLimit, Grade
from vla_policy_ros.bundle.manifest import Precision
from vla_policy_ros.evaluation.parity import Parity


@dataclass(frozen=True, slots=True)
class PartVerdict:
    """One stage, or the whole policy.

    Attributes:
        name: Name of the stage; `policy` for the whole.
        precision: Precision it runs in.
        runs: Number of runs that were compared.
        parity: How near it came, over all runs.
        limit: What was allowed.
    """

    name: str
    precision: Precision
    runs: int
    parity: Parity
    limit: AccuracyLimit

    @property
    def grade(self) -> Grade:
        """How it compares with the limit."""
        return self.parity.grade(self.limit)


@dataclass(frozen=True, slots=True)
class ColumnVerdict:
    """One column of the action, over all rows and observations.

    Attributes:
        name: Name of the column.
        unit: Its unit; empty where nobody says it.
        parity: How near its numbers came before they are denormalised, as `Parity` of the whole tensor.
        mean_error: Mean absolute error in the unit; None where it depends on a state that is not known.
        max_error: Greatest absolute error in the unit, likewise.
        limit: What was allowed.
    """

    name: str
    unit: str
    parity: Parity
    mean_error: float | None
    max_error: float | None
    limit: AccuracyLimit

    @property
    def grade(self) -> Grade:
        """How the error compares with the limit: a column that stays near 0 has no direction to judge."""
        return self.limit.grade(self.parity.max_error)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One contender against the reference.

    Attributes:
        title: The contender.
        reference: What it is held against.
        stages: Verdicts of all stages in their order.
        policy: Verdict of the whole policy.
        columns: Verdicts of the columns of its action.
        relative_error: Length of the difference of the action tensors, over all observations, in parts of the reference's.
    """

    title: str
    reference: str
    stages: tuple[PartVerdict, ...]
    policy: PartVerdict
    columns: tuple[ColumnVerdict, ...]
    relative_error: float

    @property
    def passed(self) -> bool:
        """Whether nothing lies outside of its limit."""
        return self.grade != 'FAIL'

    @property
    def grade(self) -> Grade:
        """The worst one."""
        grades = {part.grade for part in (*self.stages, self.policy)}
        grades |= {column.grade for column in self.columns}
        return 'FAIL' if 'FAIL' in grades else 'WARN' if 'WARN' in grades else 'PASS'

    @property
    def first_outside(self) -> str:
        """Name of the first stage outside of its limit; empty when there is none."""
        return next((part.name for part in self.stages if part.grade == 'FAIL'), '')
