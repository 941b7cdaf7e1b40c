# SPDX-License-Identifier: Apache-2.0
"""Starts a whole robot from a folder: policy node, executor node, and if asked a simulated robot under its controllers.

The folder holds `deployment.yaml` and `executor.yaml`, as those in examples/.
"""

from __future__ import annotations

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.conditions import IfCondition
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.substitutions import FindPackageShare

# name, type, default, description
ARGUMENTS = (
    ('folder', str, '', 'Folder with deployment.yaml and executor.yaml'),
    ('bundle', str, '', 'Folder of the policy bundle; wins over the deployment file'),
    ('instruction', str, '', 'What the robot is told to do'),
    ('image_transport', str, '', 'raw or compressed, for every camera'),
    ('dry_run', bool, 'false', 'Tell commands on motion_command, send none'),
    ('armed_at_start', bool, 'false', 'Arm the executor as soon as it is active'),
    ('simulate', bool, 'false', 'Start a simulated robot that follows the commands'),
    ('use_sim_time', bool, 'false', 'Follow /clock'),
)


def generate_launch_description() -> LaunchDescription:
    def argument(name: str) -> LaunchConfiguration:
        return LaunchConfiguration(name)

    def include(
        name: str, config: str, *passed: str, condition: IfCondition | None = None
    ) -> IncludeLaunchDescription:
        path = PathJoinSubstitution([FindPackageShare('vla_policy_ros'), 'launch', name])
        arguments = {
            'config': PathJoinSubstitution([argument('folder'), config]),
            **{name: argument(name) for name in (*passed, 'use_sim_time')},
        }
        return IncludeLaunchDescription(
            PythonLaunchDescriptionSource(path),
            launch_arguments=arguments.items(),
            condition=condition,
        )

    return LaunchDescription(
        [
            *(
                DeclareLaunchArgument(name, default_value=default, description=description)
                for name, _, default, description in ARGUMENTS
            ),
            include(
                'policy.launch.py', 'deployment.yaml', 'bundle', 'instruction', 'image_transport'
            ),
            include('executor.launch.py', 'executor.yaml', 'dry_run', 'armed_at_start'),
            include(
                'simulated_robot.launch.py',
                'executor.yaml',
                condition=IfCondition(argument('simulate')),
            ),
        ]
    )
