# SPDX-License-Identifier: Apache-2.0
"""Gripper columns: how they go from one value to the next, and thresholds that make two values of many."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from vla_policy_ros.core.errors import ConfigurationError
from vla_policy_ros.core.specs import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class GripperRule:
    """How a gripper column goes from one value to the next.

    Attributes:
        motion: `snap`: a row's value holds until the next row, and nothing in between is ever given. `linear`:
            straight from row to row, and blended like other columns.
        closed_above: Above this value the command is `closed_value`; None: no threshold, the value is the command.
        open_below: Below this value the command is `open_value`; between the two it stays as it was.
        closed_value: Command for closed.
        open_value: Command for open.

    Raises:
        ConfigurationError: `bad_gripper`: thresholds that are not a pair in order, or with linear motion.
    """

    motion: Literal['snap', 'linear'] = 'snap'
    closed_above: float | None = None
    open_below: float | None = None
    closed_value: float = 1.0
    open_value: float = 0.0

    def __post_init__(self) -> None:
        closed_above, open_below = self.closed_above, self.open_below
        if closed_above is None and open_below is None:
            return
        is_pair = (
            closed_above is not None and open_below is not None and open_below <= closed_above
        )
        if not is_pair or self.motion != 'snap':
            raise ConfigurationError(
                'gripper rule',
                got=f'motion {self.motion}, closed above {closed_above}, open below {open_below}',
                expected='no threshold, or with motion snap two: open_below <= closed_above',
                next_step='Give both thresholds of a gripper that snaps, or none.',
                code='bad_gripper',
            )


class GripperLatch:
    """Turns gripper values into open and closed, with hysteresis; columns without thresholds stay as they are.

    Args:
        grippers: Place of the column to its rule.
    """

    def __init__(self, grippers: Mapping[int, GripperRule]) -> None:
        self._latches = [
            _Latch(place, rule.closed_above, rule.open_below, rule.closed_value, rule.open_value)
            for place, rule in grippers.items()
            if rule.closed_above is not None and rule.open_below is not None
        ]

    def apply(self, position: Array) -> None:
        """Replace the gripper values of a (D,) position in place."""
        for latch in self._latches:
            position[latch.place] = latch.follow(float(position[latch.place]))

    def reset(self) -> None:
        """Forget what is open and what is closed."""
        for latch in self._latches:
            latch.is_closed = None


@dataclass(slots=True)
class _Latch:
    place: int
    closed_above: float
    open_below: float
    closed_value: float
    open_value: float
    is_closed: bool | None = None

    def follow(self, value: float) -> float:
        """Return the command; a first value between the thresholds goes to the nearer one."""
        if value > self.closed_above:
            self.is_closed = True
        elif value < self.open_below:
            self.is_closed = False
        elif self.is_closed is None:
            self.is_closed = value - self.open_below >= self.closed_above - value
        return self.closed_value if self.is_closed else self.open_value
