# SPDX-License-Identifier: Apache-2.0
"""A robot that does what its controllers are told: no dynamics but a lag, so that a whole system can be proven without one."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from vla_policy_ros.core.errors import ConfigurationError
from vla_policy_ros.core.specs import Array
from vla_policy_ros.deployment.controllers import Controller, JointTrajectory, Pose
from vla_policy_ros.evaluation.controller_model import JointTrajectoryController, TrajectoryMessage

# Base controllers stop when nothing comes for this long (`cmd_vel_timeout` of diff_drive_controller).
_TIMEOUT_NS = 500_000_000
# A speed that changes by more than the limit and this share of it is a step.
_TOLERANCE = 0.01
_NS_PER_S = 1_000_000_000


class SimulatedRobot:
    """Columns and the controllers that move them. Pure: times are arguments; one thread at a time.

    Args:
        controllers: The robot's controllers.
        rules: Release whose joint_trajectory_controller is simulated, see `evaluation.controller_model`.
        lag_ns: Time constant with which positions follow the controllers; 0: at once.
        start: Column to position at the start; the others are at 0, orientations at the unit quaternion.
        accelerations: Column to largest acceleration, to tell steps of the velocity; those not named are not watched.

    Attributes:
        columns: The D columns, controller by controller.
        positions: (D,) where the robot is; of twists how far it has moved.
        velocities: (D,) how fast it is.
        refused: Messages that a controller has refused, by `<controller> <cause>`.
        velocity_steps: Updates of joint_trajectory_controllers in which a velocity changed faster than the limit.

    Raises:
        ConfigurationError: `unknown_column` or `not_finite`: a start of a column that no controller has, or none.
    """

    def __init__(
        self,
        controllers: Sequence[Controller],
        *,
        rules: str = 'jazzy',
        lag_ns: int = 0,
        start: Mapping[str, float] | None = None,
        accelerations: Mapping[str, float] | None = None,
    ) -> None:
        self._controllers = tuple(controllers)
        self._rules, self._lag_ns = rules, lag_ns
        self.columns = tuple(column for c in controllers for column in c.columns)
        self._places = {name: place for place, name in enumerate(self.columns)}
        self._parts = {
            c.name: np.array([self._places[column] for column in c.columns], np.intp)
            for c in controllers
        }
        largest = accelerations or {}
        self._accelerations = np.array([largest.get(name, math.inf) for name in self.columns])
        self.positions = np.zeros(len(self.columns))
        self.velocities = np.zeros(len(self.columns))
        self._wanted = np.zeros(len(self.columns))
        self._rates = np.zeros(len(self.columns))
        self._told_ns = np.zeros(len(self.columns), np.int64)
        self._has_rate = np.zeros(len(self.columns), bool)
        self._speeds: dict[str, tuple[Array, Array, float]] = {}
        self._trajectories: dict[str, JointTrajectoryController] = {}
        self._last_ns: int | None = None
        self._accepted = 0
        self.refused: Counter[str] = Counter()
        self.velocity_steps = 0
        for controller in controllers:
            if isinstance(controller, Pose):
                self.positions[self._places[controller.orientation[3]]] = 1.0
        self.stand(start or {})

    @property
    def accepted(self) -> int:
        """Trajectories that were taken."""
        return self._accepted

    def stand(self, start: Mapping[str, float]) -> None:
        """Put the robot at rest at the positions of some columns; the others stay where they are."""
        for name, position in start.items():
            if name not in self._places or not math.isfinite(position):
                raise ConfigurationError(
                    f'start of {name}',
                    got=f'{position}',
                    expected=f'a finite position of one of {", ".join(self.columns)}',
                    next_step='Name columns of the executor file, with numbers.',
                    code='not_finite' if name in self._places else 'unknown_column',
                )
            self.positions[self._places[name]] = position
        self._begin()

    def follow(self, controller: str, positions: Sequence[float]) -> None:
        """Take positions for the columns of a controller, in its order."""
        if self._fits(controller, positions):
            part = self._parts[controller]
            self._wanted[part], self._has_rate[part] = positions, False

    def move(self, controller: str, velocities: Sequence[float], now_ns: int) -> None:
        """Take velocities for the columns of a controller, in its order; they end when no others come for a while."""
        if self._fits(controller, velocities):
            part = self._parts[controller]
            self._rates[part], self._told_ns[part] = velocities, now_ns
            self._has_rate[part] = True

    def accept(self, controller: str, message: TrajectoryMessage, now_ns: int) -> None:
        """Take a trajectory, or refuse it as the controller would."""
        cause = self._trajectories[controller].accept(message, now_ns)
        if cause is None:
            self._accepted += 1
        else:
            self.refused[f'{controller} {cause}'] += 1

    def step(self, now_ns: int) -> None:
        """Go on to a time; when it goes back, the robot stands still where it is."""
        last_ns, self._last_ns = self._last_ns, now_ns
        if last_ns is None or now_ns == last_ns:
            return
        if now_ns < last_ns:
            self._begin()
            return
        span_s = (now_ns - last_ns) / _NS_PER_S
        for name, model in self._trajectories.items():
            part = self._parts[name]
            model.measure(self.positions[part], self.velocities[part])
            self._wanted[part], _ = model.update(now_ns)
            self._watch(name, span_s)
        self._rates[now_ns - self._told_ns > _TIMEOUT_NS] = 0.0
        self._wanted += np.where(self._has_rate, self._rates * span_s, 0.0)
        share = 1.0 - math.exp(-span_s * _NS_PER_S / self._lag_ns) if self._lag_ns else 1.0
        moved = share * (self._wanted - self.positions)
        np.divide(moved, span_s, out=self.velocities)
        self.positions += moved

    def _begin(self) -> None:
        """Let every controller hold where the robot is."""
        np.copyto(self._wanted, self.positions)
        self.velocities.fill(0.0)
        self._has_rate.fill(False)  # noqa: FBT003 - takes no name
        self._speeds.clear()
        for controller in self._controllers:
            if isinstance(controller, JointTrajectory):
                self._trajectories[controller.name] = JointTrajectoryController(
                    controller.joints,
                    self.positions[self._parts[controller.name]],
                    rules=self._rules,
                    # As the settings of a joint_trajectory controller say.
                    allow_trajectory_replacement=False if self._rules == 'lyrical' else None,
                )

    def _fits(self, controller: str, values: Sequence[float]) -> bool:
        cause = ''
        if len(values) != len(self._parts[controller]):
            cause = 'wrong_size'
        elif not np.isfinite(values).all():
            cause = 'not_finite'
        if cause:
            self.refused[f'{controller} {cause}'] += 1
        return not cause

    def _watch(self, controller: str, span_s: float) -> None:
        """Count a step of the velocity: what changes between two spans lies half of each apart."""
        part = self._parts[controller]
        position = self._wanted[part].copy()
        before = self._speeds.get(controller)
        speed = np.zeros_like(position)
        if before is not None:
            speed = (position - before[0]) / span_s
            allowed = self._accelerations[part] * (0.5 + 0.5 * _TOLERANCE) * (span_s + before[2])
            self.velocity_steps += bool((np.abs(speed - before[1]) > allowed).any())
        self._speeds[controller] = position, speed, span_s
