# SPDX-License-Identifier: Apache-2.0
"""From the executor's commands to the messages of the robot's controllers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from builtin_interfaces.msg import Duration
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from vla_policy_ros.core.specs import Array, Column
from vla_policy_ros.deployment import controllers
from vla_policy_ros.deployment.config import to_ns
from vla_policy_ros.deployment.executor import ExecutorSettings
from vla_policy_ros.execution.limits import JointLimits, choose_limits
from vla_policy_ros.execution.report import Command
from vla_policy_ros.execution.window import (
    CommandWindow,
    DelayLine,
    TrajectoryPoints,
)
from vla_policy_ros.ros.convert import to_time
from vla_policy_ros.ros.tick_outputs import (
    ForwardCommandOutput,
    GripperOutput,
    JointJogOutput,
    JointStateOutput,
    PoseOutput,
    TickOutput,
    TopicOutput,
    TwistOutput,
    view_doubles,
)

_NS_PER_S = 1_000_000_000


class ControllerOutputs:
    """Sends commands to every controller of a robot.

    Commands come `lead_ns` ahead of their time. A joint_trajectory_controller gets them ahead, all others each when it
    is due. One thread at a time. Its publishers are plain ones: it is made when the first chunk tells the columns, and
    a lifecycle publisher that is made while its node is active stays silent. So it must be closed on the way out of
    that state.

    Args:
        node: An rclpy node.
        settings: The executor's settings; they fit the columns (`check_executor`).
        columns: The D columns of the action.
        limits: Limits of the commanded columns.

    Raises:
        ConfigurationError: `missing_dependency`: a controller needs control_msgs, and it is not there.
    """

    def __init__(
        self,
        node: Any,
        settings: ExecutorSettings,
        columns: Sequence[Column],
        limits: JointLimits,
    ) -> None:
        period_ns = settings.period_ns
        leads_ns = [
            to_ns(controller.lead_ms)
            for controller in settings.controllers
            if isinstance(controller, controllers.JointTrajectory)
        ]
        num_ticks = -(-max(leads_ns, default=0) // period_ns)
        self.lead_ns = num_ticks * period_ns
        """How far ahead of their time commands come: the largest lead of a controller, in whole periods."""
        self._delay = DelayLine(num_ticks=num_ticks, num_columns=len(columns))
        self._ticked: list[TickOutput | GripperOutput] = []
        self._trajectories: list[_TrajectoryOutput] = []
        names = [column.name for column in columns]
        try:
            for controller in settings.controllers:
                places = [names.index(name) for name in controller.columns]
                self._open(node, controller, places, limits, period_ns)
        except BaseException:
            self.close()
            raise

    def begin(self) -> None:
        """Begin a run from rest: forget what has not gone out yet."""
        self._delay.clear()
        for output in (*self._ticked, *self._trajectories):
            output.begin()

    def put(self, command: Command | None, due_ns: int) -> None:
        """Take the command of this tick, and send what is due.

        Args:
            command: The command for `lead_ns` later; None for nothing new: what is still on its way goes out.
            due_ns: Time of the tick: what is meant for it goes out.
        """
        due = self._delay.shift(None if command is None else (command.position, command.velocity))
        if due is not None:
            for output in self._ticked:
                output.send(due, due_ns)
        for trajectory in self._trajectories:
            trajectory.put(command, due_ns)

    def missing(self) -> tuple[str, ...]:
        """Return the names of the controllers that nobody listens for."""
        outputs = (*self._ticked, *self._trajectories)
        return tuple(output.name for output in outputs if not output.is_heard())

    def close(self) -> None:
        """Remove every publisher and client."""
        for output in (*self._ticked, *self._trajectories):
            output.close()
        self._ticked, self._trajectories = [], []

    def _open(
        self,
        node: Any,
        controller: controllers.Controller,
        places: Sequence[int],
        limits: JointLimits,
        period_ns: int,
    ) -> None:
        if isinstance(controller, controllers.JointTrajectory):
            window = CommandWindow(choose_limits(limits, places), period_ns=period_ns)
            self._trajectories.append(
                _TrajectoryOutput(node, controller, places, window, period_ns=period_ns)
            )
        else:
            self._ticked.append(_open_ticked(node, controller, places, period_ns))


def _open_ticked(
    node: Any, controller: controllers.Controller, places: Sequence[int], period_ns: int
) -> TickOutput | GripperOutput:
    if isinstance(controller, controllers.ForwardCommand):
        return ForwardCommandOutput(node, controller, places)
    if isinstance(controller, controllers.JointState):
        return JointStateOutput(node, controller, places)
    if isinstance(controller, controllers.JointJog):
        return JointJogOutput(node, controller, places, period_ns=period_ns)
    if isinstance(controller, controllers.Twist):
        return TwistOutput(node, controller, places)
    if isinstance(controller, controllers.Pose):
        return PoseOutput(node, controller, places)
    assert isinstance(controller, controllers.Gripper)
    return GripperOutput(node, controller, places)


class _TrajectoryOutput(TopicOutput):
    """JointTrajectory with the motion from now on; the points of the message are made once."""

    def __init__(
        self,
        node: Any,
        controller: controllers.JointTrajectory,
        places: Sequence[int],
        window: CommandWindow,
        *,
        period_ns: int,
    ) -> None:
        super().__init__(node, controller, places, JointTrajectory)
        self._message.joint_names = list(controller.joints)
        self._window = window
        # A tick is never exactly on time.
        self._every_ns = to_ns(controller.every_ms) - period_ns // 2
        self._sent_ns: int | None = None
        self._pool: list[_Point] = []

    def begin(self) -> None:
        """Forget what has not gone out yet."""
        self._window.clear()
        self._sent_ns = None

    def put(self, command: Command | None, now_ns: int) -> None:
        """Take the command of this tick, and publish when it is time to."""
        if command is not None:
            position, velocity = command.position[self._places], command.velocity[self._places]
            self._window.put(position, velocity, command.time_ns, now_ns=now_ns)
        if self._sent_ns is not None and 0 <= now_ns - self._sent_ns < self._every_ns:
            return
        points = self._window.points(now_ns)
        if points is not None:
            self._sent_ns = now_ns
            self._fill(points)
            self._publisher.publish(self._message)

    def _fill(self, points: TrajectoryPoints) -> None:
        self._message.header.stamp = to_time(points.stamp_ns)
        after_ns = points.after_ns.tolist()
        while len(self._pool) < len(after_ns):
            self._pool.append(_Point(len(self._places)))
        used = self._pool[: len(after_ns)]
        rows = zip(used, after_ns, points.positions, points.velocities, strict=True)
        for point, time_ns, position, velocity in rows:
            point.fill(time_ns, position, velocity)
        self._message.points = [point.message for point in used]


class _Point:
    """One point of a message, and views to write it by."""

    def __init__(self, num_joints: int) -> None:
        self.message = JointTrajectoryPoint()
        self._positions = view_doubles(self.message, 'positions', num_joints)
        self._velocities = view_doubles(self.message, 'velocities', num_joints)

    def fill(self, after_ns: int, position: Array, velocity: Array) -> None:
        """Write the point."""
        self.message.time_from_start = Duration(
            sec=after_ns // _NS_PER_S, nanosec=after_ns % _NS_PER_S
        )
        self._positions[:] = position
        self._velocities[:] = velocity
