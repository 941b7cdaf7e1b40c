# SPDX-License-Identifier: Apache-2.0
"""Starts the executor node: action chunks in, limited commands for the robot's controllers out."""

from __future__ import annotations

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode
from launch_ros.parameter_descriptions import ParameterValue

# name, type, default, description
ARGUMENTS = (
    ('config', str, '', 'Executor file (YAML): rate, strategy, limits, watchdogs, controllers'),
    ('dry_run', bool, 'false', 'Tell commands on motion_command, send none'),
    ('armed_at_start', bool, 'false', 'Arm as soon as the node is active'),
    ('use_sim_time', bool, 'false', 'Tick with /clock'),
    ('autostart', bool, 'true', 'Configure and activate at once; false: by ros2 lifecycle'),
    ('status_period_s', float, '1.0', 'Seconds between two statuses'),
    ('stop_timeout_s', float, '4.0', 'Longest way to rest before the node falls silent'),
    ('realtime_priority', int, '60', 'SCHED_FIFO priority of the ticks, if permitted; 0: none'),
    ('lock_memory', bool, 'true', 'Keep the memory of the process from being paged out'),
    ('core', int, '-1', 'Core of the thread that ticks; -1: any'),
)


def generate_launch_description() -> LaunchDescription:
    node = LifecycleNode(
        package='vla_policy_ros',
        executable='executor_node',
        name='executor_node',
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
