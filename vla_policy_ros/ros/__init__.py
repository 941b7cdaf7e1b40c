# SPDX-License-Identifier: Apache-2.0
"""Everything that knows ROS 2: messages, QoS, parameters, lifecycle, diagnostics and the nodes."""

from vla_policy_ros.core.errors import MissingDependencyError

try:
    import rclpy as _rclpy  # noqa: F401

    import vla_policy_ros.msg as _messages  # noqa: F401
except ImportError as fault:
    raise MissingDependencyError(
        'vla_policy_ros.ros',
        got=str(fault),
        expected='a ROS 2 environment with the messages of this package',
        next_step='Source the workspace (install/setup.bash), or run it through scripts/shell.',
    ) from fault
