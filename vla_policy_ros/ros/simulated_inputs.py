# SPDX-License-Identifier: Apache-2.0
"""What a simulated robot listens to: a subscription or an action server for every controller of an executor file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped, TwistStamped
from rclpy.action import ActionServer
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory

from vla_policy_ros.deployment import controllers
from vla_policy_ros.evaluation.controller_model import Goal
from vla_policy_ros.evaluation.simulated_robot import SimulatedRobot
from vla_policy_ros.ros.convert import to_ns
from vla_policy_ros.ros.tick_outputs import COMMANDS, import_control_msgs


class SimulatedInputs:
    """Hands every message to the robot.

    Args:
        node: An rclpy node.
        settings: The robot's controllers.
        robot: The robot.
        now_ns: Time of the node.

    Raises:
        ConfigurationError: `missing_dependency`: a controller needs control_msgs, and it is not there.
    """

    def __init__(
        self,
        node: Any,
        settings: Sequence[controllers.Controller],
        robot: SimulatedRobot,
        *,
        now_ns: Callable[[], int],
    ) -> None:
        self._node, self._robot, self._now_ns = node, robot, now_ns
        self._subscriptions: list[Any] = []
        self._servers: list[Any] = []
        try:
            for controller in settings:
                self._listen(controller)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Listen to nothing any more."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        for server in self._servers:
            server.destroy()
        self._subscriptions, self._servers = [], []

    def _listen(self, controller: controllers.Controller) -> None:
        if isinstance(controller, controllers.Gripper):
            self._servers.append(self._serve(controller))
            return
        message_class, handle = self._joint_handler(controller) or self._other_handler(controller)
        self._subscriptions.append(
            self._node.create_subscription(message_class, controller.topic, handle, COMMANDS)
        )

    def _joint_handler(
        self, controller: controllers.Controller
    ) -> tuple[Any, Callable[[Any], None]] | None:
        robot, name = self._robot, controller.name
        if isinstance(controller, controllers.JointTrajectory):
            return JointTrajectory, lambda m: robot.accept(name, to_goal(m), self._now_ns())
        if isinstance(controller, controllers.ForwardCommand):
            if controller.value == 'velocity':
                return Float64MultiArray, lambda m: robot.move(name, m.data, self._now_ns())
            return Float64MultiArray, lambda m: robot.follow(name, m.data)
        if isinstance(controller, controllers.JointState):
            order = _Order(controller.joints)
            return JointState, lambda m: robot.follow(name, order(m.name, m.position))
        return None

    def _other_handler(
        self, controller: controllers.Controller
    ) -> tuple[Any, Callable[[Any], None]]:
        robot, name = self._robot, controller.name
        if isinstance(controller, controllers.JointJog):
            order = _Order(controller.joints)
            jog = import_control_msgs(f'controller {name}', 'msg', 'JointJog')
            return jog, lambda m: robot.move(
                name, order(m.joint_names, m.velocities), self._now_ns()
            )
        if isinstance(controller, controllers.Twist):
            axes = [axis.split('_') for axis in controllers.AXES if axis in controller.axes]
            return TwistStamped, lambda m: robot.move(
                name,
                [getattr(getattr(m.twist, part), axis) for part, axis in axes],
                self._now_ns(),
            )
        return PoseStamped, lambda m: robot.follow(name, _pose_values(m.pose))

    def _serve(self, controller: controllers.Gripper) -> Any:
        is_parallel = controller.action == 'parallel_gripper_command'
        name = 'ParallelGripperCommand' if is_parallel else 'GripperCommand'
        action = import_control_msgs(f'controller {controller.name}', 'action', name)

        def execute(handle: Any) -> Any:
            command = handle.request.command
            position = command.position if is_parallel else [command.position]
            self._robot.follow(controller.name, position)
            handle.succeed()
            return action.Result(reached_goal=True)

        return ActionServer(self._node, action, controller.topic, execute)


def to_goal(message: JointTrajectory) -> Goal:
    """Return a trajectory message as the controller model takes it; one with rows of different sizes has none."""
    points, num_joints = message.points, len(message.joint_names)

    def rows(name: str) -> Any:
        values = [getattr(point, name) for point in points]
        if not any(len(row) for row in values):
            return None
        is_even = all(len(row) == num_joints for row in values)
        return np.array(values, np.float64) if is_even else np.empty((0, num_joints))

    positions = rows('positions')
    return Goal(
        names=tuple(message.joint_names),
        after_ns=np.array([to_ns(point.time_from_start) for point in points], np.int64),
        positions=np.empty((0, num_joints)) if positions is None else positions,
        velocities=rows('velocities'),
        accelerations=rows('accelerations'),
        stamp_ns=to_ns(message.header.stamp),
    )


class _Order:
    """Brings values by name into the order of a controller; nothing where a joint is not named."""

    def __init__(self, joints: Sequence[str]) -> None:
        self._joints = joints

    def __call__(self, names: Sequence[str], values: Sequence[float]) -> list[float]:
        given = dict(zip(names, values, strict=False))
        return [given[joint] for joint in self._joints if joint in given]


def _pose_values(pose: Any) -> list[float]:
    place, turn = pose.position, pose.orientation
    return [place.x, place.y, place.z, turn.x, turn.y, turn.z, turn.w]
