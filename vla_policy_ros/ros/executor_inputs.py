# SPDX-License-Identifier: Apache-2.0
"""Subscriptions of the executor node: chunks, the measured state and the stop, handed to its loop."""

from __future__ import annotations

from typing import Any

from rclpy.node import SubscriptionEventCallbacks  # it lives in another module on Humble
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool

from vla_policy_ros.core.clock import Clock
from vla_policy_ros.core.errors import ChunkRejectedError
from vla_policy_ros.deployment.executor import ExecutorSettings
from vla_policy_ros.msg import ActionChunk
from vla_policy_ros.ros.convert import chunk_from_message, to_ns
from vla_policy_ros.ros.qos import LATCHED, RELIABLE
from vla_policy_ros.runtime.executor_loop import ExecutorLoop
from vla_policy_ros.runtime.measured_joints import MeasuredJoints

# A chunk that had to wait for so many newer ones is of no use any more.
_CHUNKS = QoSProfile(depth=8, reliability=ReliabilityPolicy.RELIABLE)
# Best effort matches every publisher. Deep enough for several drivers on one topic.
_NEWEST = QoSProfile(
    depth=16, history=HistoryPolicy.KEEP_LAST, reliability=ReliabilityPolicy.BEST_EFFORT
)


class ExecutorInputs:
    """Subscribes to everything that an executor listens to.

    Args:
        node: An rclpy node.
        settings: The executor file.
        loop: Where everything goes.
        clock: The robot's time.
    """

    def __init__(
        self, node: Any, *, settings: ExecutorSettings, loop: ExecutorLoop, clock: Clock
    ) -> None:
        self._node, self._loop, self._clock = node, loop, clock
        self._logger = node.get_logger()
        self._joints = MeasuredJoints(settings.measured.rename)
        self._names: tuple[str, ...] = ()
        subscribe = node.create_subscription
        self._subscriptions = [
            # The stop twice: what was latched before this node came, and what a publisher that latches
            # nothing says, reliably, as a stop must not get lost; that the first does not match such a
            # publisher is no news.
            subscribe(
                Bool,
                'stop',
                self._on_stop,
                LATCHED,
                event_callbacks=SubscriptionEventCallbacks(use_default_callbacks=False),
            ),
            subscribe(Bool, 'stop', self._on_stop, RELIABLE),
            subscribe(ActionChunk, settings.chunk_topic, self._on_chunk, _CHUNKS),
        ]
        if settings.measured.topic:
            self._subscriptions.append(
                subscribe(JointState, settings.measured.topic, self._on_joints, _NEWEST)
            )

    def close(self) -> None:
        """Unsubscribe from everything."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions = []

    def _on_stop(self, message: Bool) -> None:
        if message.data:
            self._loop.stop('stop_topic')

    def _on_chunk(self, message: ActionChunk) -> None:
        try:
            chunk = chunk_from_message(message)
        except ChunkRejectedError as error:
            self._loop.refuse(error)
            return
        self._loop.offer(chunk)
        if not self._names and self._loop.columns:
            self._names = tuple(column.name for column in self._loop.columns)
            self._note_measured()

    def _on_joints(self, message: JointState) -> None:
        self._joints.update(
            message.name,
            message.position,
            stamp_ns=to_ns(message.header.stamp),
            now_ns=self._clock.now_ns(),
        )
        self._note_measured()

    def _note_measured(self) -> None:
        measured = self._joints.select(self._names)
        if measured is not None:
            self._loop.note_measured(*measured)
