# SPDX-License-Identifier: Apache-2.0
"""Starts the executor node: action chunks in, limited commands for the robot's controllers out."""

from __future__ import annotations

from launch import LaunchDescription

from vla_policy_ros.ros.launch_files import describe_node

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
    """Return what `ros2 launch` starts."""
    return describe_node('executor_node', ARGUMENTS)
