# SPDX-License-Identifier: Apache-2.0
"""Starts a whole robot from a folder: policy node, executor node, and if asked a simulated robot under its controllers.

The folder holds `deployment.yaml` and `executor.yaml`, as those in examples/.
"""

from __future__ import annotations

from launch import LaunchDescription
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution

from vla_policy_ros.ros.launch_files import declare, include

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
    """Return what `ros2 launch` starts."""

    def passed(config: str, *names: str) -> dict[str, object]:
        path = PathJoinSubstitution([LaunchConfiguration('folder'), config])
        return {
            'config': path,
            **{name: LaunchConfiguration(name) for name in (*names, 'use_sim_time')},
        }

    return LaunchDescription(
        [
            *declare(ARGUMENTS),
            include(
                'policy.launch.py',
                **passed('deployment.yaml', 'bundle', 'instruction', 'image_transport'),
            ),
            include('executor.launch.py', **passed('executor.yaml', 'dry_run', 'armed_at_start')),
            include(
                'simulated_robot.launch.py',
                condition=IfCondition(LaunchConfiguration('simulate')),
                **passed('executor.yaml'),
            ),
        ]
    )
