# SPDX-License-Identifier: Apache-2.0
"""The deployment checklist: what is looked at before a robot moves by a policy, the limits, and the verdict of each item."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from vla_policy_ros.core.errors import VlaPolicyError

if TYPE_CHECKING:
    from vla_policy_ros.bundle.limits import Grade

Status = Literal['PASS', 'WARN', 'FAIL', 'NOT CHECKED']
"""A `Grade`, or nothing was looked at: which is never shown as good."""
STATUSES: tuple[Status, ...] = get_args(Status)

BUNDLE, OPERATORS, ACCURACY, LOSS, LATENCY, MEMORY, EDGE_INPUTS, LIMITS = ITEMS = (
    'bundle',
    'operators',
    'accuracy',
    'quantisation loss',
    'latency',
    'memory',
    'edge inputs',
    'limits',
)
"""Names of the items in their order."""

MAX_LOSS: Final = 0.02
"""Growth of the mean squared error against recorded actions by lower precision. A choice of this project."""
MAX_ERROR: Final = 0.01
"""Difference from the reference in parts of its actions. A choice of this project."""
MAX_PERIOD_SHARE: Final = 1.0
"""99th percentile of an inference in parts of the control period: a later chunk leaves the robot without one."""
MAX_GROWTH_BYTES: Final = 16 << 20
"""Growth of the memory over the counted runs. A choice of this project: an image kept of each of 100 runs is more, and what
an allocator moves about is less. Slower leaks take longer to see than a checklist runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One item and what came of it.

    Attributes:
        name: One of `ITEMS`.
        status: The verdict.
        found: What was found; where nothing was looked at, why.
        wanted: What would have been right.
        next_step: What to do; empty where nothing is to be done.
        details: Figures, as what JSON can hold.
        table: Titles and cells that show them; empty where `found` says it all.
    """

    name: str
    status: Status
    found: str
    wanted: str = ''
    next_step: str = ''
    details: Mapping[str, Any] = field(default_factory=dict)
    table: Sequence[Sequence[str]] = ()


def judge(value: float, limit: float) -> Grade:
    """Return the verdict on a figure that must stay below a limit, and should below `WARN_SHARE` of it; a NaN fails."""
    # Help texts need the limits above, and none of the libraries behind this.
    from vla_policy_ros.bundle.limits import WARN_SHARE

    if not value < limit:
        return 'FAIL'
    return 'WARN' if value > WARN_SHARE * limit else 'PASS'


def worst(grades: Sequence[Grade]) -> Grade:
    """Return the worst verdict; PASS when there is none."""
    return 'FAIL' if 'FAIL' in grades else 'WARN' if 'WARN' in grades else 'PASS'


def not_checked(name: str, reason: str) -> Item:
    """Return an item that nobody looked at, and why."""
    return Item(name=name, status='NOT CHECKED', found=reason)


def failed(name: str, fault: VlaPolicyError) -> Item:
    """Return an item that a fault decided."""
    return Item(
        name=name,
        status='FAIL',
        found=f'{fault.where}: {fault.got}',
        wanted=fault.expected,
        next_step=fault.next_step,
        details={'error': fault.as_dict()},
    )


def is_passed(items: Sequence[Item]) -> bool:
    """Tell whether no item failed."""
    return all(item.status != 'FAIL' for item in items)
