# SPDX-License-Identifier: Apache-2.0
"""Looks at the topics of a deployment for a moment and says what is there, as JSON: `vla-policy doctor` starts it.

    python -m vla_policy_ros.ros.inspect_topics --config FILE [--seconds S]

It joins the ROS domain of its environment and only listens.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import rclpy
from rclpy.executors import SingleThreadedExecutor
from sensor_msgs.msg import CompressedImage, Image, JointState

from vla_policy_ros.core.errors import VlaPolicyError
from vla_policy_ros.deployment.config import Deployment, load_deployment
from vla_policy_ros.ros.cdr import read_compressed_image, read_image
from vla_policy_ros.ros.convert import to_ns
from vla_policy_ros.ros.process import use_shipped_middleware_profile
from vla_policy_ros.ros.qos import match_publishers

_DEFAULT_SECONDS = 3.0
_SPIN_S = 0.05
_ENOUGH_MESSAGES = 20
_DEPTH = 10


@dataclass(slots=True)
class TopicFacts:
    """What was seen of one topic.

    Attributes:
        stream: The policy's name for it.
        topic: Its full name.
        expected_type: Message type that the deployment asks for.
        publishers: One per publisher: node, type, reliability, durability.
        num_messages: Messages received.
        rate_hz: Messages per second between the first and the last; None for fewer than two.
        encodings: Encodings of the images, or formats of compressed ones.
        sizes: Sizes of raw images, `width x height`.
        joints: Names in the joint states.
        zero_stamps: Messages without a stamp.
        faults: What was wrong with messages that could not be read.
    """

    stream: str
    topic: str
    expected_type: str
    publishers: list[dict[str, str]] = field(default_factory=list)
    num_messages: int = 0
    rate_hz: float | None = None
    encodings: list[str] = field(default_factory=list)
    sizes: list[str] = field(default_factory=list)
    joints: list[str] = field(default_factory=list)
    zero_stamps: int = 0
    faults: list[str] = field(default_factory=list)


class _Watch:
    """Follows one topic: subscribes when there is a publisher, and counts."""

    def __init__(self, node: Any, stream: str, topic: str, message_class: Any) -> None:
        package = message_class.__module__.split('.')[0]
        self.facts = TopicFacts(
            stream, node.resolve_topic_name(topic), f'{package}/msg/{message_class.__name__}'
        )
        self._node = node
        self._given = topic
        self._class = message_class
        self._is_subscribed = False
        self._first_s = self._last_s = 0.0

    def follow(self) -> None:
        """Note the publishers, and subscribe as they ask for."""
        found = self._node.get_publishers_info_by_topic(self._given)
        self.facts.publishers = [
            {
                'node': f'{info.node_namespace.rstrip("/")}/{info.node_name}',
                'type': info.topic_type,
                'reliability': info.qos_profile.reliability.name.lower(),
                'durability': info.qos_profile.durability.name.lower(),
            }
            for info in found
        ]
        if self._is_subscribed or not found:
            return
        match = match_publishers(self._node, self._given, self.facts.expected_type, depth=_DEPTH)
        if match.problems:  # a subscription of another type than the publisher's hears nothing
            return
        readers: dict[Any, Callable[[Any], None]] = {
            Image: self._read_image,
            CompressedImage: self._read_compressed,
            JointState: self._read_joints,
        }
        self._node.create_subscription(
            self._class,
            self._given,
            self._count(readers[self._class]),
            match.profile,
            raw=self._class is not JointState,
        )
        self._is_subscribed = True

    @property
    def has_enough(self) -> bool:
        """Whether more messages would tell nothing new."""
        return self.facts.num_messages >= _ENOUGH_MESSAGES

    def _count(self, read: Callable[[Any], None]) -> Callable[[Any], None]:
        def on_message(message: Any) -> None:
            self._last_s = time.monotonic()
            self._first_s = self._first_s or self._last_s
            self.facts.num_messages += 1
            span_s = self._last_s - self._first_s
            self.facts.rate_hz = (self.facts.num_messages - 1) / span_s if span_s else None
            try:
                read(message)
            except VlaPolicyError as fault:
                _add(self.facts.faults, f'{fault.got}, expected {fault.expected}')

        return on_message

    def _read_image(self, message: bytes) -> None:
        frame = read_image(message, self.facts.stream)
        self.facts.zero_stamps += frame.stamp_ns == 0
        _add(self.facts.encodings, frame.encoding)
        _add(self.facts.sizes, f'{frame.width} x {frame.height}')

    def _read_compressed(self, message: bytes) -> None:
        stamp_ns, image_format, _ = read_compressed_image(message, self.facts.stream)
        self.facts.zero_stamps += stamp_ns == 0
        _add(self.facts.encodings, image_format)

    def _read_joints(self, message: JointState) -> None:
        self.facts.zero_stamps += to_ns(message.header.stamp) == 0
        for name in message.name:
            _add(self.facts.joints, name)


def inspect_topics(
    node: Any, executor: Any, deployment: Deployment, seconds: float
) -> list[TopicFacts]:
    """Listen to every camera and joint topic of a deployment.

    Args:
        node: An rclpy node.
        executor: Its executor.
        deployment: Which topics.
        seconds: How long to listen at most; shorter when every topic has told enough.
    """
    watches = [
        _Watch(
            node,
            name,
            camera.topic,
            CompressedImage if camera.transport == 'compressed' else Image,
        )
        for name, camera in deployment.cameras.items()
    ]
    watches += [
        _Watch(node, stream, source.topic, JointState)
        for stream, source in zip(deployment.joint_streams, deployment.joint_states, strict=True)
    ]
    deadline_s = time.monotonic() + seconds
    while time.monotonic() < deadline_s and not all(watch.has_enough for watch in watches):
        for watch in watches:
            watch.follow()
        executor.spin_once(timeout_sec=_SPIN_S)
    return [watch.facts for watch in watches]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one JSON document; returns 0, or 1 with the reason in it.

    Args:
        arguments: Words after the program's name; those of the process when None.
    """
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0] if __doc__ else None)
    parser.add_argument('--config', type=Path, required=True, help='deployment file')
    parser.add_argument('--seconds', type=float, default=_DEFAULT_SECONDS, help='time to listen')
    args = parser.parse_args(arguments)
    try:
        deployment = load_deployment(args.config)
    except VlaPolicyError as fault:
        _write({'error': fault.as_dict()})
        return 1
    use_shipped_middleware_profile()
    rclpy.init(args=[])
    try:
        node = rclpy.create_node('vla_policy_doctor')
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        topics = inspect_topics(node, executor, deployment, args.seconds)
    finally:
        rclpy.try_shutdown()
    _write({'topics': [asdict(facts) for facts in topics]})
    return 0


def _write(document: dict[str, Any]) -> None:
    sys.stdout.write(f'{json.dumps(document)}\n')


def _add(seen: list[str], value: str) -> None:
    if value not in seen:
        seen.append(value)


if __name__ == '__main__':
    sys.exit(main())
