# SPDX-License-Identifier: Apache-2.0
"""A simulated joint_trajectory_controller: which trajectories it refuses, and how it moves through the others.

It is a model written from the controller's documentation, not the controller: ros2_controllers,
joint_trajectory_controller, branches humble (2.54), jazzy (4.42) and master of 2026-08-18 (Lyrical). Where the rules come
from:

- interpolation and what is refused: `doc/trajectory.rst` ("Trajectory Representation"), `doc/userdoc.rst` and the
  descriptions in `src/joint_trajectory_controller_parameters.yaml`; the causes themselves from the controller's
  error messages;
- replacement on Humble and Jazzy: `doc/trajectory.rst`, "Trajectory Replacement": the old trajectory is forgotten;
- replacement on Lyrical: the same chapter on master, and pull requests #2419 and #2401: the new one is spliced in at its
  stamp. The chapter also says that a start in the past drops the points that have passed; the implementation
  moves such a trajectory to now instead, and so does the model, because that is the harder case;
- Humble repeats its last command when a trajectory arrives and it starts from the desired state: pull request #780,
  which changed that from Jazzy on.

Left out: tolerances, actions, partial goals, speed scaling, effort, wrapping of continuous joints, upsampling of
positions, and that Jazzy and Lyrical sample one period ahead.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from vla_policy_ros.core.errors import ConfigurationError
from vla_policy_ros.core.specs import Array

Interpolation = Literal['splines', 'none']

_NS_PER_S = 1_000_000_000
_NO_VELOCITY = float(np.finfo(np.float32).eps)  # the controller's own bound for "zero"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What differs between releases.

    Attributes:
        may_end_moving: Default of `allow_nonzero_velocity_at_trajectory_end`.
        splices: Default of `allow_trajectory_replacement`; None where the parameter does not exist.
        repeats_command: Starting from the desired state puts the last command at the time of arrival (#780).
    """

    may_end_moving: bool
    splices: bool | None
    repeats_command: bool


RULES = {
    'humble': Rules(may_end_moving=True, splices=None, repeats_command=True),
    'jazzy': Rules(may_end_moving=False, splices=None, repeats_command=False),
    'lyrical': Rules(may_end_moving=False, splices=True, repeats_command=False),
}


class TrajectoryMessage(Protocol):
    """What the controller reads of a `trajectory_msgs/JointTrajectory`."""

    @property
    def names(self) -> tuple[str, ...]:
        """The J joints of the message."""

    @property
    def stamp_ns(self) -> int:
        """Stamp of the header; 0 is the time of arrival."""

    @property
    def after_ns(self) -> Array:
        """(N,) `time_from_start`."""

    @property
    def positions(self) -> Array:
        """(N, J) positions."""

    @property
    def velocities(self) -> Array | None:
        """(N, J) velocities, or None when the message has none."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Goal:
    """Any message, also a bad one; `accelerations` (N, J) make the interpolation quintic."""

    names: tuple[str, ...]
    after_ns: Array
    positions: Array
    velocities: Array | None = None
    accelerations: Array | None = None
    stamp_ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Knot:
    """A point at an absolute time; (J,) each."""

    time_ns: int
    position: Array
    velocity: Array | None = None
    acceleration: Array | None = None


class JointTrajectoryController:
    """The model.

    Args:
        joints: The J joints.
        position: (J,) position it holds at the start.
        rules: `humble`, `jazzy` (also Kilted) or `lyrical`.
        interpolation: Parameter `interpolation_method`.
        interpolate_from_desired_state: On Humble the parameter is called `open_loop_control`.
        allow_nonzero_velocity_at_trajectory_end: None for the release's default.
        allow_trajectory_replacement: Lyrical only; None for the release's default.
        cmd_timeout_ns: Time after the last point at which it holds the measured position; 0 for never.

    Attributes:
        accepted: Number of trajectories taken.
        refused: Number of trajectories by cause: `wrong_joints`, `no_points`, `wrong_size`, `ends_moving`, `all_past`,
            `not_increasing`.
        timeouts: How often `cmd_timeout` struck.
        largest_velocity: (J,) largest speed of the commanded positions between two updates.
        largest_velocity_step: (J,) largest change of that speed from one update to the next.
        largest_acceleration: (J,) the same per second.

    Raises:
        ConfigurationError: Unknown rules, or a parameter that the release does not have.
    """

    def __init__(
        self,
        joints: Sequence[str],
        position: Array,
        *,
        rules: str,
        interpolation: Interpolation = 'splines',
        interpolate_from_desired_state: bool = False,
        allow_nonzero_velocity_at_trajectory_end: bool | None = None,
        allow_trajectory_replacement: bool | None = None,
        cmd_timeout_ns: int = 0,
    ) -> None:
        self._rules = _choose_rules(rules, splices=allow_trajectory_replacement)
        self._joints = tuple(joints)
        self._is_spline = interpolation == 'splines'
        self._starts_from_desired = interpolate_from_desired_state
        self._may_end_moving = (
            self._rules.may_end_moving
            if allow_nonzero_velocity_at_trajectory_end is None
            else allow_nonzero_velocity_at_trajectory_end
        )
        self._splices = bool(
            self._rules.splices
            if allow_trajectory_replacement is None
            else allow_trajectory_replacement
        )
        self._cmd_timeout_ns = cmd_timeout_ns
        start = np.array(position, np.float64)
        still = np.zeros_like(start)
        self._command = _Knot(time_ns=0, position=start, velocity=still, acceleration=still)
        self._before = self._command
        self._knots: tuple[_Knot, ...] = (self._command,)
        self._pending: TrajectoryMessage | None = None
        self._measured: tuple[Array, Array | None] | None = None
        self._is_holding = True
        self._num_updates = 0
        self._speed = still
        self.accepted = 0
        self.refused: Counter[str] = Counter()
        self.timeouts = 0
        self.largest_velocity = np.zeros_like(start)
        self.largest_velocity_step = np.zeros_like(start)
        self.largest_acceleration = np.zeros_like(start)

    def accept(self, message: TrajectoryMessage, now_ns: int) -> str | None:
        """Check a message as it arrives; it is taken over in the next update.

        Returns:
            None when it is accepted, or the cause it is refused for.
        """
        cause = self._find_fault(message, now_ns)
        if cause is not None:
            self.refused[cause] += 1
            return cause
        self.accepted += 1
        self._pending = message
        return None

    def measure(self, position: Array, velocity: Array | None = None) -> None:
        """Say what the joints' state interfaces read, (J,) each; None without a velocity interface.

        Without a call the robot stands where it was commanded to.
        """
        self._measured = (np.array(position, np.float64), velocity)

    def update(self, now_ns: int) -> tuple[Array, Array]:
        """Return the (J,) position and velocity commanded at `now_ns`; times must increase."""
        if self._pending is not None:
            self._replace(self._pending, now_ns)
            self._pending = None
        late_ns = now_ns - self._knots[-1].time_ns
        if not self._is_holding and 0 < self._cmd_timeout_ns < late_ns:
            self.timeouts += 1
            self._is_holding = True
            self._knots = (_Knot(time_ns=now_ns, position=self._state(now_ns).position),)
        command = self._sample(now_ns)
        self._observe(command)
        self._command = command
        return command.position, _or_zero(command.velocity, command.position)

    def _find_fault(self, message: TrajectoryMessage, now_ns: int) -> str | None:
        names, after_ns = message.names, message.after_ns
        fields = (message.positions, message.velocities, getattr(message, 'accelerations', None))
        if len(names) != len(self._joints) or set(names) != set(self._joints):
            return 'wrong_joints'
        if not len(after_ns):
            return 'no_points'
        if any(f is not None and f.shape != (len(after_ns), len(names)) for f in fields):
            return 'wrong_size'
        velocities = message.velocities
        ends_moving = velocities is not None and (np.abs(velocities[-1]) > _NO_VELOCITY).any()
        if ends_moving and not self._may_end_moving:
            return 'ends_moving'
        if message.stamp_ns and message.stamp_ns + int(after_ns[-1]) < now_ns:
            return 'all_past'
        return 'not_increasing' if (np.diff(after_ns) <= 0).any() else None

    def _replace(self, message: TrajectoryMessage, now_ns: int) -> None:
        """Go over to a new trajectory: forget the old one, or keep it up to the start of the new one."""
        is_spliced = self._splices and not self._is_holding and len(self._knots) > 1
        start_ns = message.stamp_ns or now_ns
        kept: tuple[_Knot, ...] = ()
        if is_spliced:
            start_ns = max(start_ns, now_ns)
            kept = tuple(knot for knot in self._knots if now_ns < knot.time_ns < start_ns)
            bridge = self._sample(start_ns)
            if message.after_ns[0] > 0:
                kept += (bridge,)
        self._before = self._state(now_ns)
        self._knots = kept + self._to_knots(message, start_ns)
        self._is_holding = False

    def _to_knots(self, message: TrajectoryMessage, start_ns: int) -> tuple[_Knot, ...]:
        order = [message.names.index(joint) for joint in self._joints]
        velocities = message.velocities
        accelerations: Array | None = getattr(message, 'accelerations', None)
        return tuple(
            _Knot(
                time_ns=start_ns + int(after_ns),
                position=message.positions[row, order],
                velocity=None if velocities is None else velocities[row, order],
                acceleration=None if accelerations is None else accelerations[row, order],
            )
            for row, after_ns in enumerate(message.after_ns)
        )

    def _state(self, now_ns: int) -> _Knot:
        """Return where a new trajectory starts from: what was commanded last, or what is measured."""
        if not self._num_updates:
            return _Knot(time_ns=now_ns, position=self._command.position)
        if self._starts_from_desired:
            repeats = self._rules.repeats_command
            time_ns = now_ns if repeats else self._command.time_ns
            return _at(self._command, time_ns)
        if self._measured is None:
            return _at(self._command, now_ns)
        position, velocity = self._measured
        return _Knot(time_ns=now_ns, position=position, velocity=velocity)

    def _sample(self, time_ns: int) -> _Knot:
        knots = self._knots
        after = bisect_right([knot.time_ns for knot in knots], time_ns)
        if after == len(knots):
            return _at(knots[-1], time_ns)
        before = self._before if after == 0 else knots[after - 1]
        if self._is_spline:
            return _interpolate(before, knots[after], time_ns)
        return _at(before if after == 0 else knots[after], time_ns)

    def _observe(self, command: _Knot) -> None:
        period_s = (command.time_ns - self._command.time_ns) / _NS_PER_S
        self._num_updates += 1
        if self._num_updates == 1:
            return
        speed = (command.position - self._command.position) / period_s
        step = np.abs(speed - self._speed)
        self._speed = speed
        for largest, value in (
            (self.largest_velocity, np.abs(speed)),
            (self.largest_velocity_step, step),
            (self.largest_acceleration, step / period_s),
        ):
            np.maximum(largest, value, out=largest)


def _choose_rules(name: str, *, splices: bool | None) -> Rules:
    rules = RULES.get(name)
    if rules is None:
        raise ConfigurationError(
            'controller model',
            got=f'rules {name!r}',
            expected=' or '.join(RULES),
            next_step='Name the release whose controller is meant.',
            code='unknown_rules',
        )
    if splices is not None and rules.splices is None:
        raise ConfigurationError(
            'controller model',
            got=f'allow_trajectory_replacement on {name}',
            expected='the parameter on lyrical only',
            next_step='Leave it out.',
            code='unknown_parameter',
        )
    return rules


def _at(knot: _Knot, time_ns: int) -> _Knot:
    return _Knot(
        time_ns=time_ns,
        position=knot.position,
        velocity=knot.velocity,
        acceleration=knot.acceleration,
    )


def _or_zero(value: Array | None, like: Array) -> Array:
    return np.zeros_like(like) if value is None else value


def _interpolate(before: _Knot, after: _Knot, time_ns: int) -> _Knot:
    """Linear between positions, cubic with velocities at both points, quintic with accelerations too.

    A state that lacks what the point after it has counts as zero. The polynomials run in the share of the
    segment, their coefficients follow from the values at both ends.
    """
    span_s = (after.time_ns - before.time_ns) / _NS_PER_S
    way = after.position - before.position
    if after.velocity is None:
        higher = [way]
    else:
        first = _or_zero(before.velocity, way) * span_s
        last = after.velocity * span_s
        if after.acceleration is None:
            higher = [first, 3 * way - 2 * first - last, first + last - 2 * way]
        else:
            bend = _or_zero(before.acceleration, way) * span_s**2
            rest, turn = way - first - bend / 2, last - first - bend
            change = after.acceleration * span_s**2 - bend
            higher = [
                first,
                bend / 2,
                10 * rest - 4 * turn + change / 2,
                7 * turn - 15 * rest - change,
                6 * rest - 3 * turn + change / 2,
            ]
    share = min(max((time_ns - before.time_ns) / _NS_PER_S / span_s, 0.0), 1.0)
    factors = np.stack([before.position, *higher])
    order = np.arange(len(factors))
    velocity = (order[1:] * share ** order[:-1]) @ factors[1:] / span_s
    acceleration = (order[2:] * order[1:-1] * share ** order[:-2]) @ factors[2:] / span_s**2
    return _Knot(
        time_ns=time_ns,
        position=share**order @ factors,
        velocity=velocity,
        acceleration=acceleration,
    )
