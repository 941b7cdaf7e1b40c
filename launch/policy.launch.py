# SPDX-License-Identifier: Apache-2.0
"""Starts the policy node. Every deployment fact is an argument: `ros2 launch vla_policy_ros policy.launch.py -s`."""

from __future__ import annotations

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode
from launch_ros.parameter_descriptions import ParameterValue

# name, default, description
TEXTS = (
    ('config', '', 'Deployment file for robot and policy; empty: the usual topics'),
    ('bundle', '', 'Folder of the policy bundle, or sample; wins over the deployment file'),
    ('engine', '', 'Engine that runs the stages'),
    ('preprocess', '', 'Where images are preprocessed'),
    ('image_transport', '', 'raw or compressed, for every camera'),
    ('chunk_topic', '', 'Topic of the action chunks'),
    ('trajectory_topic', '', 'Topic of joint trajectories; empty: none'),
    ('instruction', '', 'What the robot is told to do'),
)


def generate_launch_description() -> LaunchDescription:
    texts = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, default, description in TEXTS
    ]
    node = LifecycleNode(
        package='vla_policy_ros',
        executable='policy_node',
        name='policy_node',
        namespace=LaunchConfiguration('namespace'),
        output='screen',
        parameters=[
            {
                name: ParameterValue(LaunchConfiguration(name), value_type=str)
                for name, _, _ in TEXTS
            },
            {
                'use_sim_time': ParameterValue(
                    LaunchConfiguration('use_sim_time'), value_type=bool
                ),
                'autostart': ParameterValue(LaunchConfiguration('autostart'), value_type=bool),
                'status_period_s': ParameterValue(
                    LaunchConfiguration('status_period_s'), value_type=float
                ),
            },
        ],
    )
    return LaunchDescription(
        [
            *texts,
            DeclareLaunchArgument('namespace', default_value='', description='Node namespace'),
            DeclareLaunchArgument(
                'use_sim_time', default_value='false', description='Follow /clock'
            ),
            DeclareLaunchArgument(
                'autostart',
                default_value='true',
                description='Configure and activate at once; false: by ros2 lifecycle',
            ),
            DeclareLaunchArgument(
                'status_period_s', default_value='1.0', description='Seconds between two statuses'
            ),
            node,
        ]
    )
