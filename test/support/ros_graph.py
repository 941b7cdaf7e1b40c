# SPDX-License-Identifier: Apache-2.0
"""A test's own place in the ROS graph: a node in a private context, spun by the test's thread."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import rclpy
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.signals import SignalHandlerOptions
from support.ros_processes import PATIENCE_S
from typing_extensions import Self

_SPIN_S = 0.05
_ASK_AGAIN_S = 0.5


class RosGraph:
    """A node that hears and says what a test wants; a context manager."""

    def __init__(self, domain_id: int) -> None:
        self.context = Context()
        rclpy.init(
            context=self.context,
            domain_id=domain_id,
            signal_handler_options=SignalHandlerOptions.NO,
        )
        self.node = Node('test_node', context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.executor.shutdown()
        self.node.destroy_node()
        self.context.try_shutdown()

    def spin_until(
        self, condition: Callable[[], Any], what: str, *, timeout_s: float = PATIENCE_S
    ) -> None:
        """Handle what comes until a condition holds; fail with `what` after the timeout."""
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline_s, f'waited in vain for {what}'
            self.executor.spin_once(timeout_sec=_SPIN_S)

    def collect(self, message_class: Any, topic: str, qos: QoSProfile | int = 100) -> list[Any]:
        """Subscribe, and return the list that messages will be appended to."""
        messages: list[Any] = []
        self.node.create_subscription(message_class, topic, messages.append, qos)
        return messages

    def call(self, service_class: Any, name: str, request: Any = None) -> Any:
        """Call a service of a managed node when it is there and return its response."""
        client = self.node.create_client(service_class, name)
        self.spin_until(client.service_is_ready, f'service {name}')
        self._wait_until_known_to(name.rpartition('/')[0])
        future = client.call_async(request or service_class.Request())
        self.spin_until(future.done, f'an answer of {name}')
        self.node.destroy_client(client)
        return future.result()

    def _wait_until_known_to(self, node: str) -> None:
        """Ask a managed node for its state until it answers: then it knows all clients that were made before.

        A service drops the answer to a client whose subscription it has not discovered yet, which is no harm here.
        """
        client = self.node.create_client(GetState, f'{node}/get_state')
        self.spin_until(client.service_is_ready, f'the state of {node}')
        asked_s, futures = 0.0, []

        def is_answered() -> bool:
            nonlocal asked_s
            if time.monotonic() - asked_s > _ASK_AGAIN_S:
                asked_s = time.monotonic()
                futures.append(client.call_async(GetState.Request()))
            return any(future.done() for future in futures)

        self.spin_until(is_answered, f'the state of {node}')
        self.node.destroy_client(client)

    def transition(self, node: str, name: str) -> bool:
        """Ask a managed node for a transition (`configure`, `activate`, ...); return whether it succeeded."""
        request = ChangeState.Request(transition=Transition(label=name))
        return bool(self.call(ChangeState, f'/{node}/change_state', request).success)

    def state(self, node: str) -> str:
        """Return the lifecycle state of a node."""
        return str(self.call(GetState, f'/{node}/get_state').current_state.label)
