# SPDX-License-Identifier: Apache-2.0
"""Replays a recorded episode into a policy, lets an executor move a simulated robot, and writes the verdict."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import GroupAction, OpaqueFunction, RegisterEventHandler, Shutdown
from launch.event_handlers import OnProcessExit
from launch.events.process import ProcessExited
from launch.substitutions import LaunchConfiguration, PythonExpression
from launch_ros.actions import SetRemap
from launch_ros.parameter_descriptions import ParameterValue

from vla_policy_ros.deployment.executor import load_executor
from vla_policy_ros.ros.launch_files import declare, include, make_node
from vla_policy_ros.sample import sample_executor_path
from vla_policy_ros.tools.arguments import open_named_dataset
from vla_policy_ros.tools.motion_plan import ROBOT_TOPIC

# name, type, default, description
ARGUMENTS = (
    ('dataset', str, 'sample', 'LeRobot dataset or rosbag2, or sample'),
    ('bundle', str, 'sample', 'Folder of the policy bundle, or sample'),
    ('config', str, '', 'Deployment file; empty: the usual topics'),
    ('executor', str, '', 'Executor file, or sample; none; empty: sample with that bundle'),
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


def _find_executor(values: dict[str, str]) -> Path | None:
    """Return the executor file; None when chunks are only recorded, as at another pace than the recorded one."""
    given = values['executor']
    keeps_pace = values['mode'] == 'timed' and float(values['rate']) == 1.0
    if given == 'sample' or (not given and values['bundle'] == 'sample' and keeps_pace):
        return sample_executor_path()
    return None if given in ('', 'none') else Path(given)


def _first_pose(values: dict[str, str], columns: set[str]) -> dict[str, float]:
    """Return where the recording begins, of those columns that the robot has."""
    with closing(open_named_dataset(values['dataset'])) as dataset:
        names = [column.name for column in dataset.info.state]
        first = int(values['episodes']) if values['episodes'].isdigit() else 0
        with closing(dataset.episode(first)) as episode:
            pose = zip(names, episode.state[0].tolist(), strict=True)
            return {name: float(position) for name, position in pose if name in columns}


def _start(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """Start the recorder, and the executor with its robot when there is an executor file."""
    values = {name: LaunchConfiguration(name).perform(context) for name, *_ in ARGUMENTS}
    executor = _find_executor(values)
    texts = {name: values[name] for name in ('out', 'dataset', 'tolerances')}
    texts['executor'] = str(executor or '')
    recorder = make_node(
        'recorder_node',
        {
            **{name: ParameterValue(text, value_type=str) for name, text in texts.items()},
            'robot_topic': ROBOT_TOPIC,
            'autostart': True,
            'use_sim_time': values['mode'] == 'lockstep',
        },
        on_exit=Shutdown(),
    )
    return [recorder] if executor is None else [recorder, _move(executor, values)]


def _move(executor: Path, values: dict[str, str]) -> GroupAction:
    """Return the executor and its robot, both with the robot's own topic of joint states."""
    settings = load_executor(executor)
    topic = settings.measured.topic or 'joint_states'
    pose = _first_pose(values, {name for one in settings.controllers for name in one.columns})
    return GroupAction(
        [
            SetRemap(topic, ROBOT_TOPIC),
            include(
                'executor.launch.py',
                config=str(executor),
                armed_at_start='true',
            ),
            include(
                'simulated_robot.launch.py',
                config=str(executor),
                # ROS knows no type for an empty list.
                initial_names=str(list(pose) or ['']),
                initial_positions=str(list(pose.values()) or [0.0]),
            ),
        ]
    )


def generate_launch_description() -> LaunchDescription:
    """Return what `ros2 launch` starts."""

    def argument(name: str) -> LaunchConfiguration:
        return LaunchConfiguration(name)

    is_lockstep = PythonExpression(["'", argument('mode'), "' == 'lockstep'"])
    return LaunchDescription(
        [
            *declare(ARGUMENTS),
            # The recorder would wait for ever for a node that could not start.
            RegisterEventHandler(OnProcessExit(on_exit=_shut_down_after_failure)),
            OpaqueFunction(function=_start),
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
