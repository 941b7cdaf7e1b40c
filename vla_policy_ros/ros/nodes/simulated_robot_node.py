# SPDX-License-Identifier: Apache-2.0
"""A robot for want of one: listens to what the controllers of an executor file do, and tells where its joints are."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Mapping
from typing import Any, Literal

from diagnostic_msgs.msg import DiagnosticStatus
from pydantic import Field
from rclpy.clock import Clock, ClockType
from sensor_msgs.msg import JointState

from vla_policy_ros.bundle.strict import StrictModel
from vla_policy_ros.core.errors import ConfigurationError
from vla_policy_ros.deployment.config import OptionalTopic, to_ns
from vla_policy_ros.deployment.executor import ExecutorSettings, load_executor
from vla_policy_ros.deployment.limits import read_limits_file
from vla_policy_ros.evaluation.simulated_robot import SimulatedRobot
from vla_policy_ros.ros.clock import NodeClock
from vla_policy_ros.ros.diagnostics import Diagnostics
from vla_policy_ros.ros.lifecycle import ManagedNode
from vla_policy_ros.ros.parameters import NodeParameters, require_file
from vla_policy_ros.ros.process import run_node
from vla_policy_ros.ros.qos import RELIABLE
from vla_policy_ros.ros.simulated_inputs import SimulatedInputs

_JOINT_STATES = 'joint_states'
_REPORT_PERIOD_S = 1.0


class SimulatedRobotParameters(StrictModel):
    """Parameters of the simulated robot node."""

    config: str = ''
    """Executor file (YAML): its controllers are simulated, and their columns are the joints. The joint states go to its
    `measured.topic`, under the names that it expects there."""
    rate_hz: float = Field(default=200.0, ge=1.0, le=1000.0)
    """Updates per second, each with a joint state."""
    lag_ms: float = Field(default=0.0, ge=0.0, le=10000.0)
    """Time constant with which joints follow their controllers, in milliseconds; 0: at once."""
    release: Literal['humble', 'jazzy', 'lyrical'] = 'jazzy'
    """ROS distribution whose joint_trajectory_controller is simulated."""
    # A list without elements has no type in ROS.
    initial_names: tuple[str, ...] = ('',)
    """Columns that do not start at 0; an empty name stands for none."""
    initial_positions: tuple[float, ...] = (0.0,)
    """Where they start."""
    start_from: OptionalTopic = ''
    """Topic of sensor_msgs/JointState whose first message tells where to start; the robot waits for it. Empty: none."""
    autostart: bool = False
    """Configure and activate at once."""


class SimulatedRobotNode(ManagedNode):
    """Managed node around a SimulatedRobot."""

    def __init__(self) -> None:
        super().__init__('simulated_robot_node')
        self._time = NodeClock(self)
        self._settings = NodeParameters(self, SimulatedRobotParameters, lambda _: None).current
        self._executor_file: ExecutorSettings | None = None
        self._robot: SimulatedRobot | None = None
        self._inputs: SimulatedInputs | None = None
        self._start_input: Any = None
        self._work_timers: list[Any] = []
        self._states: Any = None
        self._diagnostics: Diagnostics | None = None
        self._message = JointState()
        self._message_names: dict[str, str] = {}
        if self._settings.autostart:
            self.autostart()

    def configure(self) -> None:
        """Read the executor file and put the robot where it starts."""
        parameters = self._settings
        path = require_file('config', parameters.config, 'executor file')
        self._executor_file = settings = load_executor(path)
        self._robot = robot = SimulatedRobot(
            settings.controllers,
            rules=parameters.release,
            lag_ns=to_ns(parameters.lag_ms),
            start=_read_start(parameters),
            accelerations=_read_accelerations(settings),
        )
        self._message_names = {ours: theirs for theirs, ours in settings.measured.rename.items()}
        names = [self._message_names.get(name, name) for name in robot.columns]
        self._message = JointState(name=names)
        topic = settings.measured.topic or _JOINT_STATES
        self._states = self.create_lifecycle_publisher(JointState, topic, RELIABLE)
        self._diagnostics = Diagnostics(self, 'robot')

    def activate(self) -> None:
        """Begin, or wait for the state to start from."""
        if self._settings.start_from:
            self._start_input = self.create_subscription(
                JointState, self._settings.start_from, self._on_start, RELIABLE
            )
            self.get_logger().info(f'waiting for {self._settings.start_from}')
        else:
            self._begin()

    def deactivate(self) -> None:
        """Listen to nothing, move nothing."""
        for timer in self._work_timers:
            self.destroy_timer(timer)
        self._work_timers = []
        self._end_start()
        if self._inputs is not None:
            self._inputs.close()
            self._inputs = None
            self._report()
            self.get_logger().info(
                ', '.join(f'{key} {value}' for key, value in self._counts().items())
            )

    def release(self) -> None:
        """Stop, and remove the publishers."""
        self.deactivate()
        if self._states is not None:
            self.destroy_lifecycle_publisher(self._states)
            self._states = None
        if self._diagnostics is not None:
            self._diagnostics.close()
            self._diagnostics = None
        self._robot = self._executor_file = None

    def _begin(self) -> None:
        assert self._executor_file is not None
        assert self._robot is not None
        controllers = self._executor_file.controllers
        self._inputs = SimulatedInputs(self, controllers, self._robot, now_ns=self._time.now_ns)
        wall = Clock(clock_type=ClockType.STEADY_TIME)
        self._work_timers = [
            self.create_timer(1.0 / self._settings.rate_hz, self._step),
            self.create_timer(_REPORT_PERIOD_S, self._report, clock=wall),
        ]

    def _on_start(self, message: JointState) -> None:
        if self._robot is None or self._start_input is None:
            return
        ours = {theirs: name for name, theirs in self._message_names.items()}
        positions = zip(message.name, message.position, strict=False)
        given = {ours.get(name, name): position for name, position in positions}
        known = {name: given[name] for name in self._robot.columns if name in given}
        self._robot.stand(known)
        self.get_logger().info(f'{len(known)} of {len(self._robot.columns)} columns start there')
        self._end_start()
        self._begin()

    def _end_start(self) -> None:
        if self._start_input is not None:
            self.destroy_subscription(self._start_input)
            self._start_input = None

    def _step(self) -> None:
        if self._robot is None:
            return
        now = self.get_clock().now()
        self._robot.step(int(now.nanoseconds))
        self._message.header.stamp = now.to_msg()
        self._message.position = array('d', self._robot.positions.tobytes())
        self._message.velocity = array('d', self._robot.velocities.tobytes())
        self._states.publish(self._message)

    def _counts(self) -> dict[str, int]:
        """Return what came of the trajectories, and every refusal."""
        assert self._robot is not None
        counts = {
            'accepted trajectories': self._robot.accepted,
            'refused messages': self._robot.refused.total(),
            'velocity steps': self._robot.velocity_steps,
        }
        return counts | {f'refused {why}': count for why, count in self._robot.refused.items()}

    def _report(self) -> None:
        assert self._diagnostics is not None
        counts = self._counts()
        faults = counts['refused messages'] + counts['velocity steps']
        self._diagnostics.publish(
            DiagnosticStatus.WARN if faults else DiagnosticStatus.OK,
            'some commands were bad' if faults else 'all commands were good',
            counts,
            stamp=self.get_clock().now().to_msg(),
            hardware_id='simulated',
        )


def _read_start(parameters: SimulatedRobotParameters) -> Mapping[str, float]:
    names, positions = parameters.initial_names, parameters.initial_positions
    if len(names) != len(positions):
        raise ConfigurationError(
            'parameters initial_names, initial_positions',
            got=f'{len(names)} names, {len(positions)} positions',
            expected='one position per name',
            next_step='Give both lists in the same order.',
            code='wrong_size',
        )
    return {name: value for name, value in zip(names, positions, strict=True) if name}


def _read_accelerations(settings: ExecutorSettings) -> Mapping[str, float]:
    """Return the acceleration limits that can be told without the policy: those of the limits file."""
    if not settings.limits.file:
        return {}
    file = read_limits_file(settings.limits.file)
    return {
        name: limits.acceleration * file.acceleration_scale
        for name, limits in file.joints.items()
        if limits.acceleration is not None
    }


def main() -> int:
    """Run the simulated robot node."""
    return run_node(SimulatedRobotNode)


if __name__ == '__main__':
    sys.exit(main())
