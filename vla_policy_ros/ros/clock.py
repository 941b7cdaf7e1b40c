# SPDX-License-Identifier: Apache-2.0
"""The time of a node, for rooms below that know no ROS."""

from __future__ import annotations

from typing import Any


class NodeClock:
    """A node's clock, which follows /clock under `use_sim_time`.

    Args:
        node: An rclpy node.
    """

    def __init__(self, node: Any) -> None:
        self._clock = node.get_clock()

    def now_ns(self) -> int:
        """Return the time of the node in nanoseconds."""
        return int(self._clock.now().nanoseconds)
