# SPDX-License-Identifier: Apache-2.0
"""From where the robot is to what the policy wants: the first-action gate, a slow approach, and a pace that grows."""

from __future__ import annotations

import math as numbers
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from vla_policy_ros.core.errors import ConfigurationError
from vla_policy_ros.core.specs import Array, Column, ColumnKind
from vla_policy_ros.execution.kinds import ColumnMath
from vla_policy_ros.execution.limiter import MotionLimiter
from vla_policy_ros.execution.limits import JointLimits
from vla_policy_ros.execution.settings import SchedulerSettings
from vla_policy_ros.execution.strategies import Target


class FirstActionGate:
    """Says where a start begins, or why the robot may not start.

    Args:
        columns: The D columns.
        math: Their arithmetic.
        settings: The tolerances; of a quaternion its turn (rad) is compared with those of its first three columns.

    Raises:
        ConfigurationError: A tolerance is for a column that does not exist.
    """

    def __init__(
        self, columns: Sequence[Column], math: ColumnMath, settings: SchedulerSettings
    ) -> None:
        tolerance, tolerances = settings.gate_tolerance, settings.gate_tolerances
        self._names = tuple(column.name for column in columns)
        unknown = [name for name in tolerances if name not in self._names]
        if unknown:
            raise ConfigurationError(
                'first_action.columns',
                got=', '.join(unknown),
                expected=f'columns among {", ".join(self._names)}',
                next_step='Use the names of the action.',
                code='unknown_column',
            )
        self._math = math
        self._is_on = tolerance is not None
        usual = numbers.inf if tolerance is None else tolerance
        self._tolerances = np.array([tolerances.get(name, usual) for name in self._names])
        self._tolerances[[column.kind is ColumnKind.TWIST for column in columns]] = numbers.inf

    def find_fault(self, measured: Array | None, target: Array) -> tuple[str, str] | None:
        """Return cause and sentence when the robot may not start.

        Args:
            measured: (D,) measured state, not finite where nothing is measured; None where there is none.
            target: (D,) first target.
        """
        if not self._is_on:
            return None
        needed = np.isfinite(self._tolerances)
        if measured is None:
            return ('no_measured_state', 'no measured state yet') if needed.any() else None
        missing = needed & ~np.isfinite(measured)
        if missing.any():
            return 'no_measured_state', f'nothing is measured for {self._tell(missing)}'
        distance = np.abs(self._math.difference(target, self.start(measured, target)))
        far = distance > self._tolerances
        if not far.any():
            return None
        column = int(np.argmax(np.where(far, distance / self._tolerances, 0.0)))
        return 'too_far', (
            f'{self._names[column]} is {distance[column]:.4g} away from the first action '
            f'({measured[column]:.4g} to {target[column]:.4g}), at most {self._tolerances[column]:.4g}'
        )

    def start(self, measured: Array | None, target: Array) -> Array:
        """Return the (D,) position a start begins at: what is measured, the target where nothing is; twists are 0."""
        start = np.array(target, np.float64)
        if measured is not None:
            is_known = np.isfinite(measured)
            start[is_known] = measured[is_known]
        self._math.rest(start, np.empty_like(start))
        return start

    def _tell(self, chosen: Array) -> str:
        return ', '.join(
            name for name, is_chosen in zip(self._names, chosen, strict=True) if is_chosen
        )


def make_approach(
    limits: JointLimits, math: ColumnMath, settings: SchedulerSettings
) -> MotionLimiter:
    """Return the limiter of the way to the first action: it takes a share of the velocity limits, and bends every target."""
    slow = replace(limits, velocity=settings.soft_start_share * limits.velocity)
    return MotionLimiter(slow, math, period_ns=settings.period_ns)


class SpeedRamp:
    """Brings the clock of the motion from rest to its pace, so that no column needs more than a share of its limits.

    At pace r a target moves at r times its velocity, and a twist is r times its value.

    Args:
        limits: Limits per column.
        share: Share of the acceleration limits, above 0 and at most 1.
        period_ns: Time between two ticks.
    """

    def __init__(self, limits: JointLimits, *, share: float, period_ns: int) -> None:
        self._is_value, self._top_speed = limits.is_value, limits.velocity
        acceleration = np.where(self._is_value, limits.orders()[2], limits.acceleration)
        self._ticks_per_speed = 1.0 / (share * acceleration * 1e-9 * period_ns)
        size = len(self._is_value)
        self._target = Target(np.zeros(size), np.zeros(size), 0, seam=False)
        self._step = 1.0
        self.pace = 1.0

    def hold(self) -> None:
        """Let motion stand still."""
        self.pace = 0.0

    def skip(self) -> None:
        """Let motion run at its full pace."""
        self.pace = 1.0

    def release(self, target: Target) -> None:
        """Let the pace rise, from the next `advance` on, as fast as the motion of a target allows."""
        wanted = np.abs(np.where(self._is_value, target.position, target.velocity))
        speed = np.minimum(wanted, self._top_speed)
        ticks = float((speed * self._ticks_per_speed).max(initial=0.0))
        self._step = 1.0 / max(ticks, 1.0)

    def advance(self) -> None:
        """Go on by one tick."""
        self.pace = min(self.pace + self._step, 1.0)

    def slow(self, target: Target) -> Target:
        """Return a target as it is at this pace."""
        pace = self.pace
        if pace == 1.0:
            return target
        slowed = self._target
        slowed.sequence, slowed.seam = target.sequence, target.seam
        np.copyto(slowed.position, target.position)
        np.multiply(slowed.position, pace, out=slowed.position, where=self._is_value)
        np.multiply(target.velocity, pace, out=slowed.velocity)
        return slowed
