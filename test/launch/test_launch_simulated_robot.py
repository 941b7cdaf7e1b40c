# SPDX-License-Identifier: Apache-2.0
import pytest
import yaml
from support.ros_processes import echoed_message

pytestmark = [pytest.mark.ros, pytest.mark.launch]


def test_the_simulated_robot_is_started_with_lists_and_ended_with_ctrl_c(processes, tmp_path):
    hand = {'name': 'hand', 'kind': 'forward_command', 'topic': 'hand', 'columns': ['hand', 'arm']}
    path = tmp_path / 'executor.yaml'
    path.write_text(yaml.safe_dump({'controllers': [hand]}))
    arguments = (f'config:={path}', 'initial_names:=[arm]', 'initial_positions:=[0.25]')
    process = processes.start(
        'ros2', 'launch', 'vla_policy_ros', 'simulated_robot.launch.py', *arguments
    )
    echo = ('ros2', 'topic', 'echo', '--once', '--no-daemon', '/joint_states')
    text = processes.run(*echo, 'sensor_msgs/msg/JointState')
    message = echoed_message(text)
    assert (message['name'], message['position']) == (['hand', 'arm'], [0.0, 0.25])
    process.interrupt_group()
    assert process.wait() == 0
    assert 'accepted trajectories 0' in process.log
