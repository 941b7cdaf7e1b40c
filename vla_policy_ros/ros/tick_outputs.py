# SPDX-License-Identifier: Apache-2.0
"""Controllers that take one command at a time: each kind's message, prepared once and filled at every tick."""

from __future__ import annotations

import importlib
from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped, TwistStamped
from rclpy.action import ActionClient
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray

from vla_policy_ros.core.errors import ConfigurationError
from vla_policy_ros.core.specs import Array
from vla_policy_ros.deployment import controllers
from vla_policy_ros.ros.convert import to_time
from vla_policy_ros.ros.qos import hand_over

# A command is replaced by the next one; a controller that was held up needs no older ones.
COMMANDS = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)


def import_control_msgs(where: str, module: str, name: str) -> Any:
    """Return a type of control_msgs.

    Args:
        where: What needs it, for the error.
        module: `msg` or `action`.
        name: Name of the type.

    Raises:
        ConfigurationError: `missing_dependency`: the package, or this type in it, is not installed.
    """
    try:
        return getattr(importlib.import_module(f'control_msgs.{module}'), name)
    except (ImportError, AttributeError) as fault:
        raise ConfigurationError(
            where,
            got=f'no control_msgs/{name} ({fault})',
            expected='the package control_msgs, in a version that has this type',
            next_step='Install it (ros-<distro>-control-msgs), or use another kind of controller.',
            code='missing_dependency',
        ) from fault


def view_doubles(message: Any, field: str, count: int) -> Array:
    """Give a float64[] field of a message a size, and return the view to write it by."""
    setattr(message, field, array('d', bytes(8 * count)))
    # Some releases keep a copy of what was set.
    return np.frombuffer(getattr(message, field))


class TopicOutput:
    """A message of a controller's topic, made once, and its publisher.

    Args:
        node: An rclpy node.
        controller: The controller's settings.
        places: Places of its columns in the action.
        message_class: Type of the messages.
    """

    def __init__(
        self, node: Any, controller: Any, places: Sequence[int], message_class: Any
    ) -> None:
        self.name: str = controller.name
        self._node = node
        self._places = np.array(places, np.intp)
        self._message = message_class()
        self._publisher = node.create_publisher(message_class, controller.topic, COMMANDS)

    def begin(self) -> None:
        """Begin a run from rest."""

    def is_heard(self) -> bool:
        """Whether somebody listens."""
        return int(self._publisher.get_subscription_count()) > 0

    def close(self) -> None:
        """Remove the publisher; the last command is the one of rest, and must not go with it."""
        hand_over(self._publisher)
        self._node.destroy_publisher(self._publisher)


class TickOutput(TopicOutput):
    """Publishes one message per tick."""

    def send(self, command: Array, stamp_ns: int) -> None:
        """Publish the (2, D) position and velocity that are due at a time."""
        self._fill(command, stamp_ns)
        self._publisher.publish(self._message)

    def _fill(self, command: Array, stamp_ns: int) -> None:
        raise NotImplementedError


class ForwardCommandOutput(TickOutput):
    """Float64MultiArray with one number per joint."""

    def __init__(
        self, node: Any, controller: controllers.ForwardCommand, places: Sequence[int]
    ) -> None:
        super().__init__(node, controller, places, Float64MultiArray)
        self._row = 0 if controller.value == 'position' else 1
        self._data = view_doubles(self._message, 'data', len(places))

    def _fill(self, command: Array, stamp_ns: int) -> None:  # noqa: ARG002 - has no stamp
        np.take(command[self._row], self._places, out=self._data)


class JointStateOutput(TickOutput):
    """JointState with positions and velocities."""

    def __init__(
        self, node: Any, controller: controllers.JointState, places: Sequence[int]
    ) -> None:
        super().__init__(node, controller, places, JointState)
        self._message.name = list(controller.joints)
        self._positions = view_doubles(self._message, 'position', len(places))
        self._velocities = view_doubles(self._message, 'velocity', len(places))

    def _fill(self, command: Array, stamp_ns: int) -> None:
        self._message.header.stamp = to_time(stamp_ns)
        np.take(command[0], self._places, out=self._positions)
        np.take(command[1], self._places, out=self._velocities)


class JointJogOutput(TickOutput):
    """JointJog with velocities, each meant for one period."""

    def __init__(
        self,
        node: Any,
        controller: controllers.JointJog,
        places: Sequence[int],
        *,
        period_ns: int,
    ) -> None:
        where = f'controller {controller.name}'
        super().__init__(node, controller, places, import_control_msgs(where, 'msg', 'JointJog'))
        self._message.header.frame_id = controller.frame_id
        self._message.joint_names = list(controller.joints)
        self._velocities = view_doubles(self._message, 'velocities', len(places))
        self._message.duration = 1e-9 * period_ns

    def _fill(self, command: Array, stamp_ns: int) -> None:
        self._message.header.stamp = to_time(stamp_ns)
        np.take(command[1], self._places, out=self._velocities)


class TwistOutput(TickOutput):
    """TwistStamped; the value of a twist column is its speed."""

    def __init__(self, node: Any, controller: controllers.Twist, places: Sequence[int]) -> None:
        super().__init__(node, controller, places, TwistStamped)
        self._message.header.frame_id = controller.frame_id
        columns = dict(zip(controller.columns, places, strict=True))
        self._axes = [
            (getattr(self._message.twist, part), axis, columns[column])
            for name, column in controller.axes.items()
            for part, axis in [name.split('_')]
        ]

    def _fill(self, command: Array, stamp_ns: int) -> None:
        self._message.header.stamp = to_time(stamp_ns)
        for vector, axis, place in self._axes:
            setattr(vector, axis, float(command[0, place]))


class PoseOutput(TickOutput):
    """PoseStamped."""

    def __init__(self, node: Any, controller: controllers.Pose, places: Sequence[int]) -> None:
        super().__init__(node, controller, places, PoseStamped)
        self._message.header.frame_id = controller.frame_id

    def _fill(self, command: Array, stamp_ns: int) -> None:
        self._message.header.stamp = to_time(stamp_ns)
        place, turn = self._message.pose.position, self._message.pose.orientation
        place.x, place.y, place.z, turn.x, turn.y, turn.z, turn.w = command[
            0, self._places
        ].tolist()


class GripperOutput:
    """Sends a goal when the command of a gripper changes.

    Args:
        node: An rclpy node.
        controller: The controller's settings.
        places: Place of its column in the action.
    """

    def __init__(self, node: Any, controller: controllers.Gripper, places: Sequence[int]) -> None:
        self.name = controller.name
        self._settings = controller
        self._place = places[0]
        is_parallel = controller.action == 'parallel_gripper_command'
        name = 'ParallelGripperCommand' if is_parallel else 'GripperCommand'
        action = import_control_msgs(f'controller {controller.name}', 'action', name)
        self._goal = action.Goal()
        if is_parallel:
            self._goal.command.name = [controller.joint or controller.column]
            self._goal.command.effort = [controller.max_effort] if controller.max_effort else []
        else:
            self._goal.command.max_effort = controller.max_effort
        self._is_parallel = is_parallel
        self._client = ActionClient(node, action, controller.topic)
        self._last: float | None = None

    def begin(self) -> None:
        """Begin a run: its first command is sent whatever was sent before."""
        self._last = None

    def send(self, command: Array, stamp_ns: int) -> None:  # noqa: ARG002 - a goal has no stamp
        """Send the position in a (2, D) command when it has changed and somebody listens."""
        value = float(command[0, self._place])
        is_known = self._last is not None and abs(value - self._last) <= self._settings.deadband
        if is_known or not self.is_heard():
            return
        self._last = value
        self._goal.command.position = [value] if self._is_parallel else value
        self._client.send_goal_async(self._goal)

    def is_heard(self) -> bool:
        """Whether the action has a server."""
        return bool(self._client.server_is_ready())

    def close(self) -> None:
        """Remove the client."""
        self._client.destroy()
