# SPDX-License-Identifier: Apache-2.0
"""Subscriptions of the policy node: each turns a message into plain data and hands it to the pipeline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from rclpy.qos import DurabilityPolicy, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import String

from vla_policy_ros.core.errors import VlaPolicyError
from vla_policy_ros.core.frame import Frame
from vla_policy_ros.deployment.config import Deployment
from vla_policy_ros.preprocess.decode import ENCODINGS, compressed_encoding
from vla_policy_ros.ros.cdr import read_compressed_image, read_image
from vla_policy_ros.ros.clock import NodeClock
from vla_policy_ros.ros.convert import to_ns
from vla_policy_ros.ros.cv_bridge_fallback import load_cv_bridge
from vla_policy_ros.ros.qos import PublisherMatch, match_publishers
from vla_policy_ros.runtime.pipeline import PolicyPipeline


@dataclass(frozen=True, slots=True)
class InputState:
    """What discovery says of one input."""

    name: str
    topic: str
    num_publishers: int
    problems: tuple[str, ...]


class _Input:
    """One subscription that is made anew when the publishers' QoS changes."""

    def __init__(
        self,
        node: Any,
        *,
        name: str,
        message_class: Any,
        topic: str,
        callback: Callable[[Any], None],
        depth: int,
        raw: bool,
    ) -> None:
        self._node = node
        self._class = message_class
        self._callback = callback
        self._depth = depth
        self._raw = raw
        self._type = f'{message_class.__module__.split(".")[0]}/msg/{message_class.__name__}'
        self._key: tuple[ReliabilityPolicy, DurabilityPolicy] | None = None
        self._subscription: Any = None
        self._given = (
            topic  # rclpy applies remapping rules itself, in every call that names a topic
        )
        self.name = name
        self.topic = node.resolve_topic_name(topic)

    def follow(self) -> InputState:
        """Look at the publishers, subscribe anew when their QoS asks for it, and say what was found."""
        match = match_publishers(self._node, self._given, self._type, depth=self._depth)
        if match.key != self._key and (match.num_publishers or self._subscription is None):
            self._subscribe(match)
        return InputState(self.name, self.topic, match.num_publishers, match.problems)

    def _subscribe(self, match: PublisherMatch) -> None:
        self.close()
        self._subscription = self._node.create_subscription(
            self._class, self._given, self._callback, match.profile, raw=self._raw
        )
        self._key = match.key

    def close(self) -> None:
        """Unsubscribe."""
        if self._subscription is not None:
            self._node.destroy_subscription(self._subscription)
            self._subscription = None


class PolicyInputs:
    """All subscriptions of one policy; every callback returns at once.

    Args:
        node: An rclpy node.
        deployment: Which topics feed the policy.
        pipeline: Where samples go.
        depth: Messages that wait per topic while this process is busy.
        on_instruction: Called after the pipeline has taken a new instruction.
    """

    def __init__(
        self,
        node: Any,
        *,
        deployment: Deployment,
        pipeline: PolicyPipeline,
        depth: int,
        on_instruction: Callable[[], None],
    ) -> None:
        self._on_instruction_taken = on_instruction
        self._pipeline = pipeline
        self._clock = NodeClock(node)
        self._uses_receive_time = deployment.matching.time_source == 'receive'
        self._cv_bridge = load_cv_bridge()
        self._inputs: list[_Input] = []

        def add(
            name: str, message_class: Any, topic: str, callback: Any, *, raw: bool = False
        ) -> None:
            self._inputs.append(
                _Input(
                    node,
                    name=name,
                    message_class=message_class,
                    topic=topic,
                    callback=callback,
                    depth=depth,
                    raw=raw,
                )
            )

        for name, camera in deployment.cameras.items():
            if camera.transport == 'compressed':
                add(name, CompressedImage, camera.topic, self._on_compressed(name), raw=True)
            else:
                add(name, Image, camera.topic, self._on_image(name), raw=True)
        for index, source in enumerate(deployment.joint_states):
            add(f'joint_states[{index}]', JointState, source.topic, self._on_joints(index))
        if deployment.instruction.topic:
            add('instruction', String, deployment.instruction.topic, self._on_instruction)

    def follow(self) -> list[InputState]:
        """Match every subscription to its publishers; call at the start and now and then."""
        return [item.follow() for item in self._inputs]

    def close(self) -> None:
        """Unsubscribe from everything."""
        for item in self._inputs:
            item.close()

    def _stamp(self, stamp_ns: int) -> int:
        return self._clock.now_ns() if self._uses_receive_time else stamp_ns

    def _on_image(self, camera: str) -> Callable[[bytes], None]:
        def on_image(message: bytes) -> None:
            stamp_ns: int | None = None
            try:
                frame = read_image(message, camera)
                stamp_ns = self._stamp(frame.stamp_ns)
                frame = self._view(frame, stamp_ns)
            except VlaPolicyError as error:
                self._refuse(camera, stamp_ns, error)
            else:
                self._pipeline.offer_frame(frame)

        return on_image

    def _on_compressed(self, camera: str) -> Callable[[bytes], None]:
        def on_compressed(message: bytes) -> None:
            stamp_ns: int | None = None
            try:
                stamp_ns, image_format, data = read_compressed_image(message, camera)
                stamp_ns = self._stamp(stamp_ns)
                encoding = compressed_encoding(image_format)
            except VlaPolicyError as error:
                self._refuse(camera, stamp_ns, error)
            else:
                self._pipeline.offer_frame(Frame(camera, stamp_ns, encoding, 0, 0, 0, data))

        return on_compressed

    def _view(self, frame: Frame, stamp_ns: int) -> Frame:
        if self._uses_receive_time:
            frame = replace(frame, stamp_ns=stamp_ns)
        if frame.encoding not in ENCODINGS and self._cv_bridge:
            return self._cv_bridge(frame)
        return frame

    def _refuse(self, camera: str, stamp_ns: int | None, error: VlaPolicyError) -> None:
        """Refuse a message; the time of receipt stands in for a stamp that could not be read."""
        self._pipeline.refuse(
            camera, self._clock.now_ns() if stamp_ns is None else stamp_ns, error
        )

    def _on_joints(self, index: int) -> Callable[[JointState], None]:
        def on_joints(message: JointState) -> None:
            self._pipeline.offer_joints(
                index,
                self._stamp(to_ns(message.header.stamp)),
                message.name,
                np.asarray(message.position, dtype=np.float64),
            )

        return on_joints

    def _on_instruction(self, message: String) -> None:
        self._pipeline.set_instruction(message.data)
        self._on_instruction_taken()
