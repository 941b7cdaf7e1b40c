# SPDX-License-Identifier: Apache-2.0
"""One status for /diagnostics, which every node of the package publishes in the same form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

from vla_policy_ros.ros.qos import RELIABLE


class Diagnostics:
    """The publisher of one part of a node.

    Args:
        node: An rclpy node.
        part: What the status is about; it follows the name of the node.
    """

    def __init__(self, node: Any, part: str) -> None:
        self._node = node
        self._name = f'{node.get_fully_qualified_name()[1:]}: {part}'
        self._publisher = node.create_publisher(DiagnosticArray, '/diagnostics', RELIABLE)

    def publish(
        self,
        level: bytes,
        message: str,
        values: Mapping[str, object],
        *,
        stamp: Time,
        hardware_id: str = '',
    ) -> None:
        """Publish a status.

        Args:
            level: One of `DiagnosticStatus`.
            message: What to read first.
            values: What else there is to know, by name.
            stamp: When it was so.
            hardware_id: What the status is of.
        """
        status = DiagnosticStatus(
            level=level,
            name=self._name,
            message=message,
            hardware_id=hardware_id,
            values=[KeyValue(key=key, value=str(value)) for key, value in values.items()],
        )
        array = DiagnosticArray(status=[status])
        array.header.stamp = stamp
        self._publisher.publish(array)

    def close(self) -> None:
        """Remove the publisher."""
        self._node.destroy_publisher(self._publisher)
