# SPDX-License-Identifier: Apache-2.0
"""The executor's launch file, started for real."""

import re

import pytest
from support.executor_runs import Robot, assert_at_rest, assert_within_limits, write_executor_file

pytestmark = [pytest.mark.ros, pytest.mark.launch]


def launch(processes, **arguments):
    texts = [f'{key}:={value}' for key, value in arguments.items()]
    return processes.start('ros2', 'launch', 'vla_policy_ros', 'executor.launch.py', *texts)


def test_every_argument_is_listed_with_a_description(processes):
    text = processes.run('ros2', 'launch', 'vla_policy_ros', 'executor.launch.py', '-s')
    listed = dict(re.findall(r"^ {4}'(\w+)':\n {8}(\S.*)$", text, re.MULTILINE))
    wanted = {'config', 'dry_run', 'armed_at_start', 'autostart', 'realtime_priority', 'core'}
    assert wanted <= set(listed)
    assert 'no description given' not in listed.values()


def test_ctrl_c_while_the_robot_moves_ends_at_rest(processes, graph, tmp_path):
    path = write_executor_file(tmp_path)
    robot = Robot(graph)
    process = launch(processes, config=path, status_period_s='0.1')
    robot.start()
    process.interrupt_group()
    robot.spin_until(lambda: not process.is_running, 'the end of the launch')
    assert process.wait() == 0, process.log
    assert re.search(r'\[executor_node-\d\]: process has finished cleanly', process.log)
    robot.wait_for_quiet()
    assert_within_limits(robot.motion, path)
    assert_at_rest(robot.motion)
    assert process.group_is_empty()


def test_a_file_that_is_missing_ends_the_node_with_1(processes):
    process = launch(processes, config='/nowhere.yaml')
    process.wait()
    assert re.search(r'\[executor_node-\d\]: process has died .*exit code 1,', process.log)
    assert 'cannot configure: /nowhere.yaml' in process.log
