# SPDX-License-Identifier: Apache-2.0
"""Starts the simulated robot: it listens to what the controllers of an executor file do, and tells its joint states."""

from __future__ import annotations

from launch import LaunchDescription

from vla_policy_ros.ros.launch_files import describe_node

# name, type, default, description
ARGUMENTS = (
    ('config', str, '', 'Executor file (YAML) whose controllers are simulated'),
    ('rate_hz', float, '200.0', 'Updates per second'),
    ('lag_ms', float, '0.0', 'Time constant with which joints follow their controllers'),
    ('release', str, 'jazzy', 'Distribution of the controllers: humble, jazzy or lyrical'),
    ('initial_names', list[str], "['']", 'Columns that do not start at 0'),
    ('initial_positions', list[float], '[0.0]', 'Where they start'),
    ('start_from', str, '', 'Topic of joint states whose first message tells where to start'),
    ('use_sim_time', bool, 'false', 'Follow /clock'),
    ('autostart', bool, 'true', 'Configure and activate at once; false: by ros2 lifecycle'),
)


def generate_launch_description() -> LaunchDescription:
    """Return what `ros2 launch` starts."""
    return describe_node('simulated_robot_node', ARGUMENTS)
