# SPDX-License-Identifier: Apache-2.0
"""Replays a recorded episode into a policy and writes the verdict; ends by itself."""

from __future__ import annotations

from launch import LaunchContext, LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    IncludeLaunchDescription,
    RegisterEventHandler,
    Shutdown,
)
from launch.event_handlers import OnProcessExit
from launch.events.process import ProcessExited
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution, PythonExpression
from launch_ros.actions import LifecycleNode
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

# name, type, default, description
ARGUMENTS = (
    ('dataset', str, 'sample', 'LeRobot dataset or rosbag2, or sample'),
    ('bundle', str, 'sample', 'Folder of the policy bundle, or sample'),
    ('config', str, '', 'Deployment file; empty: the usual topics'),
    ('episodes', str, '0', 'Episode to play'),
    ('mode', str, 'timed', 'timed, fast or lockstep'),
    ('rate', float, '1.0', 'Factor on the recorded pace'),
    ('image_transport', str, 'raw', 'raw or compressed'),
    ('horizon', int, '16', 'Rows of a true chunk'),
    ('faults', str, '', 'Faults to inject'),
    ('tolerances', str, '', 'Limits of the verdict as YAML'),
    ('out', str, 'runs/demo', 'Folder of the report'),
)


def _shut_down_after_failure(event: ProcessExited, _context: LaunchContext) -> list[Shutdown]:
    if not event.returncode:
        return []
    return [Shutdown(reason=f'{event.process_name} ended with status {event.returncode}')]


def generate_launch_description() -> LaunchDescription:
    def include(name: str, **arguments: object) -> IncludeLaunchDescription:
        path = PathJoinSubstitution([FindPackageShare('vla_policy_ros'), 'launch', name])
        return IncludeLaunchDescription(
            PythonLaunchDescriptionSource(path), launch_arguments=arguments.items()
        )

    def argument(name: str) -> LaunchConfiguration:
        return LaunchConfiguration(name)

    is_lockstep = PythonExpression(["'", argument('mode'), "' == 'lockstep'"])
    recorder = LifecycleNode(
        package='vla_policy_ros',
        executable='recorder_node',
        name='recorder_node',
        namespace='',
        output='screen',
        parameters=[
            {
                name: ParameterValue(argument(name), value_type=str)
                for name in ('out', 'dataset', 'tolerances')
            },
            {
                'autostart': True,
                'use_sim_time': ParameterValue(is_lockstep, value_type=bool),
            },
        ],
        on_exit=Shutdown(),
    )
    return LaunchDescription(
        [
            *(
                DeclareLaunchArgument(name, default_value=default, description=description)
                for name, _, default, description in ARGUMENTS
            ),
            recorder,
            # The recorder would wait for ever for a node that could not start.
            RegisterEventHandler(OnProcessExit(on_exit=_shut_down_after_failure)),
            include(
                'policy.launch.py',
                bundle=argument('bundle'),
                config=argument('config'),
                image_transport=argument('image_transport'),
                use_sim_time=is_lockstep,
            ),
            include(
                'replay.launch.py',
                dataset=argument('dataset'),
                episodes=argument('episodes'),
                mode=argument('mode'),
                rate=argument('rate'),
                image_transport=argument('image_transport'),
                horizon=argument('horizon'),
                faults=argument('faults'),
                wait_for_recorder='true',
            ),
        ]
    )
