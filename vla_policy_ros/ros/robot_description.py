# SPDX-License-Identifier: Apache-2.0
"""The URDF of the robot, as robot_state_publisher latches it."""

from __future__ import annotations

import time
from typing import Any

from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from std_msgs.msg import String

from vla_policy_ros.core.errors import ConfigurationError
from vla_policy_ros.deployment.config import LimitSettings
from vla_policy_ros.ros.qos import match_publishers

_TYPE = 'std_msgs/msg/String'
_LOOK_AGAIN_S = 0.05


def find_robot_description(node: Any, limits: LimitSettings, timeout_s: float) -> str | None:
    """Return the robot description that limits ask for, None when they ask for none.

    Args:
        node: See `wait_for_robot_description`.
        limits: Settings of the limits.
        timeout_s: Longest wait, in seconds of real time.

    Raises:
        ConfigurationError: `no_robot_description`: nothing came in time.
    """
    if not limits.needs_robot_description:
        return None
    return wait_for_robot_description(node, limits.urdf_topic, timeout_s)


def wait_for_robot_description(node: Any, topic: str, timeout_s: float) -> str:
    """Return the text that is latched on a topic; blocks until it is there.

    It listens with a short-lived node of its own, so that it may be called from a callback of `node`.

    Args:
        node: Its name, context and remapping rules count.
        topic: Topic of std_msgs/String, transient local.
        timeout_s: Longest wait, in seconds of real time.

    Raises:
        ConfigurationError: `no_robot_description`: nothing came in time; it says who publishes there.
    """
    listener = Node(
        f'{node.get_name()}_robot_description',
        context=node.context,
        use_global_arguments=False,
        enable_rosout=False,
        start_parameter_services=False,
    )
    executor = SingleThreadedExecutor(context=node.context)
    executor.add_node(listener)
    resolved = node.resolve_topic_name(topic)
    deadline_s = time.monotonic() + timeout_s
    try:
        return _listen(listener, executor, resolved, deadline_s)
    except TimeoutError:
        raise _nothing_came(listener, resolved, timeout_s) from None
    finally:
        executor.shutdown()
        listener.destroy_node()


def _listen(listener: Any, executor: Any, topic: str, deadline_s: float) -> str:
    """Subscribe as soon as the publishers and their QoS are known; wait for a text until a time.monotonic()."""
    texts: list[str] = []
    key: object = None
    while not texts:
        if time.monotonic() > deadline_s:
            raise TimeoutError
        match = match_publishers(listener, topic, _TYPE, depth=1)
        if match.num_publishers and not match.problems and match.key != key:
            key = match.key
            listener.create_subscription(
                String, topic, lambda message: texts.append(message.data), match.profile
            )
        executor.spin_once(timeout_sec=_LOOK_AGAIN_S)
    return texts[-1]


def _nothing_came(listener: Any, topic: str, timeout_s: float) -> ConfigurationError:
    match = match_publishers(listener, topic, _TYPE, depth=1)
    found = (
        f'{match.num_publishers} publishers, {match.profile.durability.name.lower()}'
        if match.num_publishers
        else 'no publisher'
    )
    return ConfigurationError(
        topic,
        got=f'no text within {timeout_s:g} s ({"; ".join((found, *match.problems))})',
        expected='the URDF as std_msgs/String, transient local',
        next_step='Start robot_state_publisher, or name a urdf_file in the limits, or leave urdf_topic empty.',
        code='no_robot_description',
    )
