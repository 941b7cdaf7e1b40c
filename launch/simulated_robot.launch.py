# SPDX-License-Identifier: Apache-2.0
"""Starts the simulated robot: it listens to what the controllers of an executor file do, and tells its joint states."""

from __future__ import annotations

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode
from launch_ros.parameter_descriptions import ParameterValue

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
    node = LifecycleNode(
        package='vla_policy_ros',
        executable='simulated_robot_node',
        name='simulated_robot_node',
        namespace=LaunchConfiguration('namespace'),
        output='screen',
        parameters=[
            {
                name: ParameterValue(LaunchConfiguration(name), value_type=kind)
                for name, kind, _, _ in ARGUMENTS
            }
        ],
    )
    return LaunchDescription(
        [
            *(
                DeclareLaunchArgument(name, default_value=default, description=description)
                for name, _, default, description in ARGUMENTS
            ),
            DeclareLaunchArgument('namespace', default_value='', description='Node namespace'),
            node,
        ]
    )
