# SPDX-License-Identifier: Apache-2.0
"""Lets through what limits allow: one command per tick, from which one can always still stop within the limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from vla_policy_ros.core.errors import ChunkRejectedError, ConfigurationError, StateError
from vla_policy_ros.core.specs import Array, ColumnKind
from vla_policy_ros.execution.braking import brake_speed
from vla_policy_ros.execution.jerk import Approach, JerkLimiter
from vla_policy_ros.execution.kinds import ColumnMath
from vla_policy_ros.execution.limits import JointLimits

ON_TARGET = 1e-6
"""A column this near to its target, in its unit, counts as on it."""
STILL = 1e-12
"""Motion of less than this per tick, in the column's unit, counts as none."""
SMALLEST_RATE = 1e-3
"""The clock of the path never stands still, so that a path that cannot be followed ends some day."""
# Stands for no limit: large enough never to bind, small enough that its square is a number.
_FREE = 1e30


class Wanted(Protocol):
    """What a strategy wants at a tick (`strategies.Target`); (D,) arrays, velocities per second."""

    @property
    def position(self) -> Array:
        """(D,) positions, or values of twists."""

    @property
    def velocity(self) -> Array:
        """(D,) their rates; of a quaternion the angular velocity in the first three."""


@dataclass(slots=True, kw_only=True)
class LimitedCommand:
    """What may be published at a tick. The limiter's own, and written anew at the next tick.

    Attributes:
        position: (D,) float64.
        velocity: (D,) last difference of the positions, per second.
        acceleration: (D,) last difference of the velocities, per second.
        is_limited: (D,) bool: the limits keep the column from its target.
        rate: Share of a period, in (0, 1], by which the clock of the path advances after this tick; 1 but in `stretch`.
        cause: Why a target was refused (`reject`): position_limit, velocity_limit, acceleration_limit (or jerk) or
            cannot_stop; empty when none was.
        column: Name of the column at fault; empty when there is none.
    """

    position: Array
    velocity: Array
    acceleration: Array
    is_limited: Array
    rate: float = 1.0
    cause: str = ''
    column: str = ''


class MotionLimiter:
    """Follows targets as near as position, velocity, acceleration and jerk limits allow.

    The limits hold for the finite differences of what it returns, up to rounding of the positions, and from every
    command one can stop within them. A target that respects them itself, and could stop, is followed without lag.
    A start outside of a range moves inwards only. Pure: no clock, no threads.

    Args:
        limits: Limits of the D columns.
        math: Arithmetic of the same columns.
        period_ns: Time between two ticks.
        mode: `clamp` limits each column for itself. `reject` stops at the first target that breaks a limit, and stays
            stopped until the next start. `stretch` moves all columns by the same share of their way, which keeps the
            path, and says by which share of a period its clock advances; a column leaves the path where its limits
            allow no common share.

    Raises:
        ConfigurationError: The period is not positive, or limits and arithmetic are of different columns.
    """

    def __init__(
        self,
        limits: JointLimits,
        math: ColumnMath,
        *,
        period_ns: int,
        mode: Literal['clamp', 'reject', 'stretch'] = 'clamp',
    ) -> None:
        if period_ns <= 0 or math.columns != limits.columns:
            raise ConfigurationError(
                'motion limiter',
                got=f'{len(math.columns)} columns every {period_ns} ns',
                expected=f'the {len(limits.columns)} columns of the limits, and a period above 0 ns',
                next_step='Make both from the columns of the action.',
            )
        self._math, self._mode = math, mode
        self._names = tuple(column.name for column in limits.columns)
        self._is_value = limits.is_value
        self._rotations = np.array(
            [range(first, first + 3) for first in math.quaternions], np.intp
        ).reshape(-1, 3)
        self._set_limits(limits, 1e-9 * period_ns)
        self._position, self._speed, self._change = np.zeros((3, len(self._names)))
        self._cause, self._column = '', ''
        self._command = LimitedCommand(
            position=self._position,
            velocity=np.zeros(len(self._names)),
            acceleration=np.zeros(len(self._names)),
            is_limited=np.zeros(len(self._names), bool),
        )

    def _set_limits(self, limits: JointLimits, period_s: float) -> None:
        """Keep the limits per tick: ways, changes of ways, and changes of those."""
        low, high, *rates = (np.clip(values, -_FREE, _FREE) for values in limits.orders())
        speed, change, jerk = (
            np.minimum(rate * period_s**order, _FREE) for order, rate in enumerate(rates, 1)
        )
        self._period_s = period_s
        self._low, self._high = low, high
        self._top_speed = speed
        self._top_change = change
        is_angle = np.array([column.kind is ColumnKind.ANGLE for column in limits.columns], bool)
        self._straight = np.flatnonzero(is_angle & (high < _FREE))
        jerky = np.flatnonzero(rates[2] < _FREE)
        self._jerk = JerkLimiter(jerky, change[jerky], jerk[jerky]) if jerky.size else None
        # A twist may first have to turn round; every phase is rounded up to whole ticks.
        turn = np.where(rates[0] < _FREE, speed / change, 0.0)
        way = np.where(self._is_value, high / speed + turn, 0.0)
        swing = np.where(rates[2] < _FREE, 2.0 * change / jerk, 0.0)
        self._stop_ticks = np.ceil(way + turn + swing) + 4

    @property
    def position(self) -> Array:
        """(D,) last command."""
        return self._position

    @property
    def is_still(self) -> bool:
        """Whether the last command was one of rest: no speed, no acceleration, twists at 0."""
        motion = np.maximum(np.abs(self._speed), np.abs(self._change))
        np.maximum(motion, np.abs(self._position), out=motion, where=self._is_value)
        return bool(motion.max(initial=0.0) <= STILL)

    @property
    def stop_time_ns(self) -> int:
        """Longest time that `stop_step` takes to come to rest, whatever the motion."""
        return round(1e9 * self._period_s * float(self._stop_ticks.max(initial=0.0)))

    def start(self, position: Array, *, velocity: Array | None = None) -> None:
        """Begin without a command.

        Args:
            position: (D,) where the robot is; twists, which begin at 0 unless they have a velocity, count as measured
                too.
            velocity: (D,) how it moves, cut to what one can stop from; None: it is at rest.

        Raises:
            StateError: A position is not finite.
        """
        if not np.isfinite(position).all():
            raise StateError(
                'start of the motion limiter',
                got=f'{position}',
                expected=f'{len(self._names)} finite positions',
                next_step='Start when every column is measured.',
                code='not_finite',
            )
        np.copyto(self._position, position)
        self._speed[:] = self._change[:] = 0.0
        self._command.rate = 1.0
        self._cause, self._column = '', ''
        if self._jerk is not None:
            self._jerk.restart()
        if velocity is not None:
            np.copyto(self._speed, self._find_start_speed(velocity * self._period_s))

    def step(self, target: Wanted) -> LimitedCommand:
        """Return the command of the next tick.

        Args:
            target: What is wanted at that tick.

        Raises:
            ChunkRejectedError: `not_finite`; nothing has moved.
        """
        if not (np.isfinite(target.position).all() and np.isfinite(target.velocity).all()):
            raise self._not_finite(target)
        if self._cause:
            return self.stop_step()
        way = self._find_way(target.position)
        low, high = self._low - self._position, self._high - self._position
        reach = np.minimum(np.maximum(way, low), high)
        speed_wanted = target.velocity * (self._period_s * self._command.rate)
        floor, ceiling, wish = self._find_bounds(reach, speed_wanted, low, high)
        speed = self._limit(wish, floor, ceiling)
        miss = np.abs(speed - way) > ON_TARGET
        if self._mode == 'reject' and miss.any():
            self._cause, self._column = self._find_cause(way, low, high, int(miss.argmax()))
            return self.stop_step(is_limited=miss)
        if self._mode == 'stretch':
            share, wish = self._find_share(speed, np.where(self._is_value, way, reach))
            if share < 1.0:
                speed = self._limit(wish, floor, ceiling)
            return self._move(speed, is_limited=miss, rate=max(share, SMALLEST_RATE))
        return self._move(speed, is_limited=miss)

    def stop_step(self, *, is_limited: Array | None = None) -> LimitedCommand:
        """Return the next command on the fastest way to rest: positions stop, twists go to 0.

        Args:
            is_limited: What to report; None: no column.
        """
        way = np.where(self._is_value, -self._position, 0.0)
        low, high = self._low - self._position, self._high - self._position
        floor, ceiling, wish = self._find_bounds(way, np.zeros_like(way), low, high)
        wish[~self._is_value] = 0.0
        if self._jerk is not None:
            places = self._jerk.places
            now = self._approach(way, way, low, high)
            floor[places] = ceiling[places] = self._jerk.stop(now)
        none = np.zeros(len(way), bool)
        speed = self._limit(wish, floor, ceiling)
        return self._move(speed, is_limited=none if is_limited is None else is_limited)

    def _find_start_speed(self, wanted: Array) -> Array:
        """Return the speed per tick next to a wanted one from which a stop is possible."""
        low = np.minimum(self._low - self._position, 0.0)
        high = np.maximum(self._high - self._position, 0.0)
        most, least = brake_speed(np.stack([high, -low]), self._top_change)
        ceiling, floor = np.minimum(most, self._top_speed), -np.minimum(least, self._top_speed)
        speed = self._limit_size(np.minimum(np.maximum(wanted, floor), ceiling))
        if self._jerk is not None:
            places = self._jerk.places
            speed[places] = self._jerk.slow_down(speed[places], low[places], high[places])
        return speed

    def _limit_size(self, speed: Array) -> Array:
        """Shorten the turns of rotations to their largest speed, in place."""
        if self._rotations.size:
            top = self._top_speed[self._rotations[:, :1]]
            speed[self._rotations] = _shorten(speed[self._rotations], top)
            speed[self._rotations[:, 2] + 1] = 0.0
        return speed

    def _find_way(self, position: Array) -> Array:
        """Return the way to a position; within a range an angle has only one."""
        way = self._math.difference(position, self._position)
        if self._straight.size:
            way[self._straight] = (position - self._position)[self._straight]
        return way

    def _find_bounds(
        self, way: Array, speed_wanted: Array, low: Array, high: Array
    ) -> tuple[Array, Array, Array]:
        """Return smallest and largest next speed from which a stop is possible, and the one towards the target.

        The target is approached in its own frame, as fast as one can brake beside it; within reach of one tick that is
        exactly the way to it.
        """
        top, speed = self._top_speed, self._speed
        frame = np.minimum(np.maximum(speed_wanted, -top), top)
        gap = way - frame
        room = np.stack([np.abs(gap), np.maximum(high, 0.0), np.maximum(-low, 0.0)])
        brake = brake_speed(room, self._top_change)
        wish = frame + np.copysign(brake[0], gap)
        ceiling = np.minimum(np.minimum(speed + self._top_change, top), brake[1])
        floor = np.maximum(np.maximum(speed - self._top_change, -top), -brake[2])
        if self._jerk is not None:
            places = self._jerk.places
            now = self._approach(way, frame, low, high)
            floor[places], ceiling[places], wish[places] = self._jerk.narrow(now)
        if self._rotations.size:
            wish[self._rotations] = self._turn_wish(way, frame)
        return floor, ceiling, wish

    def _approach(self, way: Array, frame: Array, low: Array, high: Array) -> Approach:
        assert self._jerk is not None
        places = self._jerk.places
        return Approach(
            speed=self._speed[places],
            change=self._change[places],
            way=way[places],
            target_speed=frame[places],
            low=low[places],
            high=high[places],
            top_speed=self._top_speed[places],
        )

    def _turn_wish(self, way: Array, frame: Array) -> Array:
        """Return the (G, 3) next turns towards the target, as `_find_bounds` for one column."""
        gap = (way - frame)[self._rotations]
        angle = np.maximum(_norm(gap), 1e-300)
        brake = brake_speed(angle, self._top_change[self._rotations[:, :1]])
        result: Array = frame[self._rotations] + gap * (brake / angle)
        return result

    def _limit(self, wish: Array, floor: Array, ceiling: Array) -> Array:
        """Return the allowed speed next to a wish; of a rotation the length counts, of its speed and its change."""
        speed = np.minimum(np.maximum(wish, floor), ceiling)
        if self._rotations.size:
            first = self._rotations[:, :1]
            last = self._speed[self._rotations]
            turn = last + _shorten(wish[self._rotations] - last, self._top_change[first])
            speed[self._rotations] = turn
        return self._limit_size(speed)

    def _find_share(self, speed: Array, way: Array) -> tuple[float, Array]:
        """Return the share of the motion that every column can go, and the speeds it makes.

        The motion of a position is its way, that of a twist its value: in slower time it is smaller.
        """
        rest = np.where(self._is_value, -self._position, 0.0)
        motion = way - rest
        along, whole = (speed - rest) * motion, motion * motion
        if self._rotations.size:
            for values in (along, whole):
                values[self._rotations] = values[self._rotations].sum(axis=1, keepdims=True)
        shares = np.divide(along, whole, out=np.ones(len(way)), where=whole > ON_TARGET**2)
        share = float(min(max(shares.min(initial=1.0), 0.0), 1.0))
        return share, rest + share * motion

    def _move(self, speed: Array, *, is_limited: Array, rate: float = 1.0) -> LimitedCommand:
        command, last = self._command, self._position
        moved = self._math.add(last, speed)
        # Rounding must not lead out of the range; a start outside leads inwards.
        np.maximum(moved, np.minimum(self._low, last), out=moved)
        np.minimum(moved, np.maximum(self._high, last), out=last)
        np.subtract(speed, self._speed, out=self._change)
        np.copyto(self._speed, speed)
        np.divide(speed, self._period_s, out=command.velocity)
        np.divide(self._change, self._period_s**2, out=command.acceleration)
        np.copyto(command.is_limited, is_limited)
        command.rate, command.cause, command.column = rate, self._cause, self._column
        return command

    def _find_cause(self, way: Array, low: Array, high: Array, column: int) -> tuple[str, str]:
        """Return which limit a target breaks, and the name of the column."""
        places: Array | int = column
        for rotation in self._rotations:
            if rotation[0] <= column <= rotation[2]:
                places = rotation
        size = float(np.linalg.norm(way[places]))
        change = float(np.linalg.norm(way[places] - self._speed[places]))
        causes = {
            'position_limit': not low[column] <= way[column] <= high[column],
            'velocity_limit': size > self._top_speed[column],
            'acceleration_limit': change > self._top_change[column],
        }
        cause = next((name for name, is_so in causes.items() if is_so), 'cannot_stop')
        return cause, self._names[column]

    def _not_finite(self, target: Wanted) -> ChunkRejectedError:
        bad = ~(np.isfinite(target.position) & np.isfinite(target.velocity))
        column = int(bad.argmax())
        return ChunkRejectedError(
            f'target of {self._names[column]}',
            got=f'position {target.position[column]}, velocity {target.velocity[column]}',
            expected='finite numbers',
            next_step='Check the chunk before it is offered.',
            code='not_finite',
        )


def _norm(vectors: Array) -> Array:
    result: Array = np.sqrt((vectors * vectors).sum(axis=-1, keepdims=True))
    return result


def _shorten(vectors: Array, limit: Array) -> Array:
    """Return (G, 3) vectors no longer than a limit."""
    result: Array = vectors * np.minimum(1.0, limit / np.maximum(_norm(vectors), 1e-300))
    return result
