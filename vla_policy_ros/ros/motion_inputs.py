# SPDX-License-Identifier: Apache-2.0
"""Listens to an executor and to the robot that it moves, for the recorder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from sensor_msgs.msg import JointState

from vla_policy_ros.core.specs import Column
from vla_policy_ros.deployment.executor import ExecutorSettings, load_executor
from vla_policy_ros.deployment.limits import load_limits
from vla_policy_ros.evaluation.motion_metrics import ExecutorFacts
from vla_policy_ros.evaluation.motion_recording import MotionCollector, MotionRecording
from vla_policy_ros.execution.motion import commanded_columns
from vla_policy_ros.msg import ExecutorStatus, MotionCommand
from vla_policy_ros.ros.convert import to_ns
from vla_policy_ros.ros.motion_messages import executor_facts, motion_sample
from vla_policy_ros.ros.qos import LATCHED, RELIABLE
from vla_policy_ros.ros.robot_description import find_robot_description

_RUNNING = ('soft_start', 'tracking', 'stopping')


class ExecutorFile:
    """An executor file and the URDF that its limits need.

    Args:
        node: The node that waits for the URDF.
        path: The executor file.
        timeout_s: Longest wait for the URDF.

    Raises:
        ConfigurationError: The file is wrong, or the URDF does not come.
    """

    def __init__(self, node: Any, path: str, *, timeout_s: float) -> None:
        self.settings: ExecutorSettings = load_executor(path)
        self._urdf = find_robot_description(node, self.settings.limits, timeout_s)

    def finish(
        self,
        collector: MotionCollector,
        columns: Sequence[Column],
        status: ExecutorStatus | None,
        *,
        robot_topic: str,
    ) -> tuple[MotionRecording, ExecutorFacts]:
        """Return what was collected with the limits of the policy's columns, and what the executor said last.

        Raises:
            ConfigurationError: The limits do not fit the columns.
        """
        commanded = commanded_columns(columns)
        limits = None
        if commanded:
            limits = load_limits(self.settings.limits, commanded, robot_description=self._urdf)
        return collector.finish(commanded, limits), executor_facts(
            status, self.settings, robot_topic=robot_topic
        )


class MotionInputs:
    """The subscriptions; the collector fills until `close`.

    Args:
        node: The node that listens.
        settings: The executor file.
        collector: Where commands and poses go.
        robot_topic: Topic of the joint states of the robot that is moved; empty: none.
    """

    def __init__(
        self,
        node: Any,
        settings: ExecutorSettings,
        collector: MotionCollector,
        *,
        robot_topic: str,
    ) -> None:
        self._node, self._collector = node, collector
        self._rename = settings.measured.rename
        self.status: ExecutorStatus | None = None
        """What the executor said last."""
        subscribe = node.create_subscription
        self._subscriptions = [
            subscribe(MotionCommand, 'motion_command', self._on_command, RELIABLE),
            subscribe(ExecutorStatus, 'executor_status', self._on_status, LATCHED),
        ]
        if robot_topic:
            self._subscriptions.append(
                subscribe(JointState, robot_topic, self._on_robot, RELIABLE)
            )

    @property
    def is_ready(self) -> bool:
        """Whether the executor is armed, and all of its controllers listen."""
        status = self.status
        return (
            status is not None
            and status.state not in ('inactive', 'unarmed')
            and not status.missing
        )

    @property
    def is_over(self) -> bool:
        """Whether the executor has used up its chunks and the robot is still."""
        status = self.status
        return status is not None and status.is_still and status.state not in _RUNNING

    def close(self) -> None:
        """Unsubscribe; the last status stays."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions = []

    def _on_command(self, message: MotionCommand) -> None:
        self._collector.add_command(motion_sample(message))

    def _on_status(self, message: ExecutorStatus) -> None:
        self.status = message

    def _on_robot(self, message: JointState) -> None:
        positions = {
            self._rename.get(name, name): position
            for name, position in zip(message.name, message.position, strict=False)
            if math.isfinite(position)
        }
        self._collector.add_pose(to_ns(message.header.stamp), positions)
