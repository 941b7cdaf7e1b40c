# SPDX-License-Identifier: Apache-2.0
"""Commands that are computed ahead: held back until they are due, or given ahead as points with a way to rest.

The executor computes every command a lead ahead of its time. Most controllers take one command at a time: `DelayLine`
gives each when it is due. A joint_trajectory_controller (JTC) takes them ahead: `CommandWindow` gives all that are
known, and after them the fastest stop within the limits, so that a robot whose executor dies comes to rest.

Between the points the JTC moves along cubics through positions and velocities. A command is a position p[k], and the
limits hold for the differences of such positions: v[k] = (p[k] - p[k-1]) / T, a[k] = (v[k] - v[k-1]) / T. Points at the
commands themselves would make cubics that overshoot both. So the points lie half-way between two commands, in place
and in time, where the velocity is v[k]: the way from one to the next is T (v[k] + v[k+1]) / 2, so the cubic is the
parabola of constant acceleration a[k+1], and has no velocity or acceleration that the commands do not have. The
curve is the quadratic B-spline of the commands (C. de Boor, "A Practical Guide to Splines", chapter IX): it lies
within their range, and passes a command at a distance of a T^2 / 8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vla_policy_ros.core.specs import Array
from vla_policy_ros.execution.braking import stop_acceleration
from vla_policy_ros.execution.kinds import ColumnMath
from vla_policy_ros.execution.limiter import STILL, MotionLimiter
from vla_policy_ros.execution.limits import JointLimits

# Stands for no limit on the change of a speed per tick.
_FREE = 1e30
# Two accelerations this near, in the unit of the column, are one parabola; far above rounding.
_SAME_ACCELERATION = 1e-8
# A command this near to what is sent is met.
_MET = 1e-9


class DelayLine:
    """Gives every command some ticks later; what went in as nothing comes out as nothing.

    Args:
        num_ticks: Ticks between in and out; 0 gives each command back at once.
        num_columns: D.
    """

    def __init__(self, *, num_ticks: int, num_columns: int) -> None:
        self._slots = np.zeros((num_ticks + 1, 2, num_columns))
        self._is_filled = [False] * (num_ticks + 1)
        self._newest = 0

    def clear(self) -> None:
        """Forget all commands."""
        self._is_filled = [False] * len(self._is_filled)

    def shift(self, command: tuple[Array, Array] | None) -> Array | None:
        """Take the command of this tick and return the one that is due.

        Args:
            command: (D,) position and (D,) velocity, which are copied; None for nothing.

        Returns:
            (2, D) position and velocity, valid until the next call; None for nothing.
        """
        size = len(self._slots)
        self._newest = (self._newest + 1) % size
        self._is_filled[self._newest] = command is not None
        if command is not None:
            self._slots[self._newest] = command
        oldest = (self._newest + 1) % size
        return self._slots[oldest] if self._is_filled[oldest] else None


@dataclass(frozen=True, slots=True, eq=False)
class TrajectoryPoints:
    """N points for a controller with J joints.

    Attributes:
        times_ns: (N,) int64, strictly increasing, above 0; the header's stamp is the first of them.
        positions: (N, J) float64; angles go on beyond a full turn.
        velocities: (N, J) float64, per second; 0 in the last row.
    """

    times_ns: Array
    positions: Array
    velocities: Array

    @property
    def stamp_ns(self) -> int:
        """Stamp of the message's header; never 0, which would mean the time of arrival."""
        return int(self.times_ns[0])

    @property
    def after_ns(self) -> Array:
        """(N,) `time_from_start` of the points."""
        after: Array = self.times_ns - self.times_ns[0]
        return after


class CommandWindow:
    """The commands of one JTC from now to the newest, as points.

    All points that were given stay as they are in later calls, but for the stop at the end, which later commands
    replace. So it does not matter when, or whether, the controller gets one of the messages, as long as another comes
    before the stop begins. One command follows the other by one period: late ticks take from the lead, and give it back
    at rest. When ticks stay away so long that the stop has begun, the joints come to rest, and then catch up with the
    commands within the limits.

    Args:
        limits: Limits of the J columns of the controller, which are joints: linear, angle or gripper.
        period_ns: Time between two commands.
    """

    def __init__(self, limits: JointLimits, *, period_ns: int) -> None:
        self._period_ns = period_ns
        self._stop = _Stop(limits, 1e-9 * period_ns)
        self._follower = MotionLimiter(limits, ColumnMath(limits.columns), period_ns=period_ns)
        self._is_following = False
        self._times_ns: list[int] = []
        self._rows: list[Array] = []
        self._num_sent = 0

    def clear(self) -> None:
        """Forget all commands; the next one starts from rest."""
        self._times_ns, self._rows, self._num_sent = [], [], 0
        self._is_following = False

    def put(self, position: Array, velocity: Array, due_ns: int, *, now_ns: int) -> None:
        """Take the next command.

        Args:
            position: (J,) position.
            velocity: (J,) last difference of positions, per second.
            due_ns: When it is due.
            now_ns: Time of the tick.
        """
        if not self._rows:
            start = position - velocity * (1e-9 * self._period_ns)
            self._stand(start, due_ns)
        elif not self._is_following and (due_ns < self._times_ns[0] or self._has_stopped(now_ns)):
            self._leave(due_ns)
        if not self._is_following:
            self._append(np.array(position, np.float64), due_ns)
        elif due_ns >= self._times_ns[-1] + self._period_ns // 2:
            self._follow(position, velocity, due_ns)

    def points(self, now_ns: int) -> TrajectoryPoints | None:
        """Return the motion from now on, the first point not after now unless all begins later; None when all is over."""
        if not self._rows:
            return None
        self._forget_before(now_ns)
        self._num_sent = len(self._rows)
        stop = self._stop.rows(self._rows[-3:])
        rows = np.concatenate([self._rows, stop])
        after_ns = self._period_ns * np.arange(1, len(stop) + 1)
        ends_ns = np.concatenate([self._times_ns, self._times_ns[-1] + after_ns])
        times_ns = ends_ns[1:] - self._period_ns // 2
        if now_ns >= times_ns[-1]:
            return None
        positions = 0.5 * (rows[1:] + rows[:-1])
        velocities = np.diff(rows, axis=0) / (1e-9 * self._period_ns)
        kept = _find_knots(times_ns, velocities)
        return TrajectoryPoints(times_ns[kept], positions[kept], velocities[kept])

    def _stand(self, position: Array, due_ns: int) -> None:
        """Begin at rest, one period before a time."""
        self._times_ns = [due_ns - 2 * self._period_ns, due_ns - self._period_ns]
        self._rows = [position, position]

    def _append(self, position: Array, due_ns: int) -> None:
        time_ns = self._times_ns[-1] + self._period_ns
        if due_ns - time_ns > self._period_ns // 2 and self._is_resting():
            self._times_ns.append(due_ns - self._period_ns)
            self._rows.append(self._rows[-1])
            time_ns = due_ns
        self._times_ns.append(time_ns)
        self._rows.append(position)

    def _is_resting(self) -> bool:
        return bool(np.abs(self._rows[-1] - self._rows[-2]).max() <= STILL)

    def _has_stopped(self, now_ns: int) -> bool:
        """Whether the controller has left the commands: on the stop after the last one it knows, while in motion."""
        if (
            not self._num_sent
            or now_ns <= self._times_ns[self._num_sent - 1] - self._period_ns // 2
        ):
            return False
        return self._num_sent < len(self._rows) or not self._is_resting()

    def _leave(self, due_ns: int) -> None:
        """Take the stop that the controller is on for what happens, and follow the commands from its end."""
        times_ns, rows = self._times_ns[: self._num_sent], self._rows[: self._num_sent]
        stop = self._stop.rows(rows[-3:])
        times_ns += [times_ns[-1] + self._period_ns * after for after in range(1, len(stop) + 1)]
        self._times_ns, self._rows = times_ns, [*rows, *stop]
        self._num_sent = len(rows)
        if due_ns < times_ns[0]:
            self._stand(self._rows[-1], due_ns)
            self._num_sent = 0
        self._follower.start(self._rows[-1])
        self._is_following = True

    def _follow(self, position: Array, velocity: Array, due_ns: int) -> None:
        limited = self._follower.step(_Wanted(position, velocity))
        away = np.abs(limited.position - position)
        slower = np.abs(limited.velocity - velocity) * (1e-9 * self._period_ns)
        self._is_following = bool(max(away.max(), slower.max()) > _MET)
        self._append(limited.position.copy(), due_ns)

    def _forget_before(self, now_ns: int) -> None:
        """Drop the commands before the two that the motion lies between now; three are needed to stop."""
        first_ns = now_ns + self._period_ns // 2
        passed = sum(1 for time_ns in self._times_ns if time_ns <= first_ns)
        dropped = min(max(passed - 2, 0), len(self._rows) - 3)
        del self._times_ns[:dropped], self._rows[:dropped]


class _Wanted(NamedTuple):
    """A command as a target."""

    position: Array
    velocity: Array


class _Stop:
    """The fastest stop, as `MotionLimiter.stop_step` makes it, in rows of positions."""

    def __init__(self, limits: JointLimits, period_s: float) -> None:
        self._change = np.minimum(limits.acceleration * period_s**2, _FREE)
        self._jerky = np.flatnonzero(np.isfinite(limits.jerk))
        self._unit = limits.jerk[self._jerky] * period_s**3
        self._limit = np.minimum(self._change[self._jerky] / self._unit, _FREE)

    def rows(self, last: Sequence[Array]) -> Array:
        """Return the (M, J) positions after the last three up to rest, which is reached twice."""
        before, speed = np.diff(last, axis=0)
        num_ticks = int(np.ceil(np.abs(speed / self._change).max())) + 1
        left = np.abs(speed) - self._change * np.arange(1, num_ticks + 1)[:, None]
        speeds = np.copysign(np.maximum(left, 0.0), speed)
        if self._jerky.size:
            gentle = self._gentle_speeds(speed[self._jerky], (speed - before)[self._jerky])
            missing = max(len(gentle) - num_ticks, 0)
            speeds = np.pad(speeds, ((0, missing), (0, 0)))
            speeds[:, self._jerky] = 0.0
            speeds[: len(gentle), self._jerky] = gentle
        rows: Array = last[-1] + np.cumsum(speeds, axis=0)
        return rows

    def _gentle_speeds(self, speed: Array, change: Array) -> Array:
        """Return the speeds up to rest of the columns with a jerk limit."""
        speed, change = speed / self._unit, change / self._unit
        still = STILL / self._unit
        speeds = []
        while (np.abs(speed) > still).any() or (np.abs(change) > still).any():
            change = stop_acceleration(speed, change, self._limit)
            speed = speed + change
            speeds.append(speed * self._unit)
        return np.array([*speeds, np.zeros_like(speed)])


def _find_knots(times_ns: Array, velocities: Array) -> Array:
    """Return the places of the points between which the acceleration changes; ends and points after 0 ns only."""
    accelerations = np.diff(velocities, axis=0) / (1e-9 * np.diff(times_ns))[:, None]
    is_knot = np.ones(len(times_ns), bool)
    bends = np.abs(np.diff(accelerations, axis=0)).max(axis=1)
    is_knot[1:-1] = bends > _SAME_ACCELERATION
    return np.flatnonzero(is_knot & (times_ns > 0))
