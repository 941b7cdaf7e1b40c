# SPDX-License-Identifier: Apache-2.0
"""The next speeds of columns that have a jerk limit: which are safe, and which one leads to the target."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vla_policy_ros.core.specs import Array
from vla_policy_ros.execution.braking import brake_speed, find_stop, stop_acceleration

# Next accelerations that are looked at; where their stops lead grows with them, so the right one lies between two.
_WEIGHTS = np.linspace(0.0, 1.0, 9)[:, None]
_LAST = len(_WEIGHTS) - 1
# A column that meets its target and could stop beside it this near (in jerks per tick) stays on it.
_NEAR = 1.0
_HALVINGS = 30
# Rounding of a position, in its unit.
_ROUNDING = 1e-14


@dataclass(frozen=True, slots=True, kw_only=True)
class Approach:
    """Where columns are and what they want, per tick; (J,) arrays.

    Attributes:
        speed: Last speed.
        change: Last change of the speed.
        way: Way to the target at the next tick.
        target_speed: Speed of the target.
        low: Way to the lower end of the range, <= 0 inside.
        high: Way to the upper end, >= 0 inside.
        top_speed: Largest speed.
    """

    speed: Array
    change: Array
    way: Array
    target_speed: Array
    low: Array
    high: Array
    top_speed: Array


class JerkLimiter:
    """Finds next speeds from which the columns can stop within all limits; speeds are in units per tick.

    Args:
        places: (J,) index of the columns among all.
        top_change: (J,) largest change of the speed per tick.
        jerk: (J,) largest change of that change per tick.
    """

    def __init__(self, places: Array, top_change: Array, jerk: Array) -> None:
        self.places = places
        self._unit = jerk
        self._limit = np.minimum(top_change / jerk, 1e30)
        self._columns = np.arange(len(places))
        self._target_speed: Array | None = None

    def restart(self) -> None:
        """Forget the last target."""
        self._target_speed = None

    def slow_down(self, speed: Array, low: Array, high: Array) -> Array:
        """Return (J,) speeds, halved until one can stop from them between (J,) `low` and `high`."""
        speed = speed / self._unit
        for _ in range(_HALVINGS):
            stop = find_stop(speed, np.zeros_like(speed), self._limit)
            is_safe = ((speed + stop.high) * self._unit <= high) & (
                (speed + stop.low) * self._unit >= low
            )
            if is_safe.all():
                break
            speed = np.where(is_safe, speed, 0.5 * speed)
        result: Array = np.where(is_safe, speed, 0.0) * self._unit
        return result

    def stop(self, now: Approach) -> Array:
        """Return the next speeds of the fastest stop."""
        speed = now.speed / self._unit
        change = stop_acceleration(speed, now.change / self._unit, self._limit)
        result: Array = (speed + change) * self._unit
        return result

    def narrow(self, now: Approach) -> tuple[Array, Array, Array]:
        """Return smallest and largest safe next speed, and the one that leads to the target."""
        unit = self._unit
        speed = now.speed / unit
        safe, low, high = self._bounds(now, speed)
        exact = now.way / unit - speed
        rows = np.vstack([low + _WEIGHTS * (high - low), np.clip(exact, low, high)])
        target_speed, target_change = self._follow(now.target_speed)
        stops = find_stop(
            np.stack([speed + rows, speed + rows - target_speed]),
            np.stack([rows, rows - target_change]),
            self._limit,
        )
        step = speed + rows
        is_low = (step + stops.high[0]) * unit <= now.high + _ROUNDING
        is_high = (step + stops.low[0]) * unit >= now.low - _ROUNDING
        high = np.where(is_low, rows, safe).max(axis=0)
        low = np.where(is_high, rows, safe).min(axis=0)
        wish = self._solve(rows, step + stops.end[1] - now.way / unit, exact)
        return (speed + low) * unit, (speed + high) * unit, (speed + wish) * unit

    def _bounds(self, now: Approach, speed: Array) -> tuple[Array, Array, Array]:
        """Return the next change that stops, which is always safe, and those that keep speed, change and jerk."""
        change = now.change / self._unit
        safe = stop_acceleration(speed, change, self._limit)
        top = now.top_speed / self._unit
        up = brake_speed(np.maximum(top - speed, 0.0), 1.0)
        down = brake_speed(np.maximum(top + speed, 0.0), 1.0)
        high = np.minimum(np.minimum(change + 1.0, self._limit), up)
        low = np.maximum(np.maximum(change - 1.0, -self._limit), -down)
        return safe, np.minimum(low, safe), np.maximum(high, safe)

    def _follow(self, speed: Array) -> tuple[Array, Array]:
        """Return speed and change of the target as differences at the next tick."""
        speed = speed / self._unit
        before = speed if self._target_speed is None else self._target_speed
        self._target_speed = speed
        change = np.clip(speed - before, -self._limit, self._limit)
        return speed - 0.5 * change, change

    def _solve(self, rows: Array, gaps: Array, exact: Array) -> Array:
        """Return the next change whose stop beside the target ends on it: between two rows, or exactly now."""
        first = np.clip((gaps[: _LAST + 1] <= 0.0).sum(axis=0) - 1, 0, _LAST - 1)
        here, there = gaps[first, self._columns], gaps[first + 1, self._columns]
        weight = np.clip(-here / np.maximum(there - here, 1e-100), 0.0, 1.0)
        start = rows[first, self._columns]
        wish = start + weight * (rows[first + 1, self._columns] - start)
        is_met = (np.abs(gaps[-1]) <= _NEAR) & (np.abs(exact - rows[-1]) <= 1e-9)
        result: Array = np.where(is_met, rows[-1], wish)
        return result
