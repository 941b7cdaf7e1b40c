# SPDX-License-Identifier: Apache-2.0
"""The action `run_policy` of a launched executor, from the command line and from a client."""

import os
import re
import signal

import pytest
from action_msgs.msg import GoalStatus
from rclpy.action import ActionClient
from std_msgs.msg import Bool, String
from support.executor_runs import (
    Robot,
    assert_at_rest,
    assert_within_limits,
    write_executor_file,
)

from vla_policy_ros.action import RunPolicy
from vla_policy_ros.core.observation import Instruction

pytestmark = [pytest.mark.ros, pytest.mark.launch]

TYPE = 'vla_policy_ros/action/RunPolicy'


class ToldRobot(Robot):
    """A robot whose policy follows the topic `instruction`."""

    def __init__(self, graph):
        super().__init__(graph)
        self.instruction = Instruction('wait')
        graph.node.create_subscription(String, 'instruction', self._on_instruction, 10)

    def _on_instruction(self, message):
        if message.data != self.instruction.text:
            self.instruction = Instruction(message.data, self.instruction.instruction_id + 1)

    def send_chunk(self, **changes):
        super().send_chunk(instruction=self.instruction, **changes)

    def send_goal(self, instruction='', time_limit_s=0.0):
        """Send a goal as a client; return its handle and the future of its result."""
        client = ActionClient(self.graph.node, RunPolicy, 'run_policy')
        self.spin_until(client.server_is_ready, 'the action')
        goal = RunPolicy.Goal(instruction=instruction, time_limit_s=time_limit_s)
        sent = client.send_goal_async(goal)
        self.spin_until(sent.done, 'an answer to the goal')
        self.client = client
        return sent.result(), sent.result().get_result_async()

    def result(self, future):
        """Play until the goal has ended; return its status and its result."""
        self.spin_until(future.done, 'the result')
        return future.result().status, future.result().result


@pytest.fixture
def robot(graph):
    return ToldRobot(graph)


@pytest.fixture
def path(tmp_path):
    return write_executor_file(tmp_path)


@pytest.fixture
def executor(processes, robot, path):
    """The launched executor, unarmed."""
    command = ('ros2', 'launch', 'vla_policy_ros', 'executor.launch.py', f'config:={path}')
    process = processes.start(*command, 'status_period_s:=0.1')
    robot.spin_until(lambda: robot.state == 'unarmed', 'an active executor')
    return process


@pytest.mark.usefixtures('executor')
def test_send_goal_runs_and_ends_with_the_time_limit(processes, robot, path):
    goal = '{instruction: pick the cube, time_limit_s: 2.0}'
    client = processes.start(
        'ros2', 'action', 'send_goal', '/run_policy', TYPE, goal, '--feedback'
    )
    robot.spin_until(lambda: not client.is_running, 'the end of the command')
    assert client.wait() == 0, client.log
    assert robot.instruction.text == 'pick the cube'
    for told in ('state: tracking', 'outcome: done', 'Goal finished with status: SUCCEEDED'):
        assert told in client.log, client.log
    elapsed = [float(text) for text in re.findall(r'elapsed_s: ([\d.]+)', client.log)]
    assert elapsed == sorted(elapsed)
    assert len(elapsed) > 1
    robot.wait_for_quiet()
    assert_within_limits(robot.motion, path)
    assert_at_rest(robot.motion)


@pytest.mark.usefixtures('executor')
def test_ctrl_c_of_send_goal_cancels(processes, robot, path):
    client = processes.start(
        'ros2', 'action', 'send_goal', '/run_policy', TYPE, '{instruction: pick the cube}', '-f'
    )
    robot.wait_for_state('tracking')
    robot.move()
    client.send(signal.SIGINT)
    robot.spin_until(lambda: not client.is_running, 'the end of the command')
    robot.wait_for_state('unarmed')
    assert robot.status.cause == 'disarmed'
    assert_within_limits(robot.motion, path)
    assert_at_rest(robot.motion)
    _, future = robot.send_goal(time_limit_s=0.5)
    assert robot.result(future)[1].outcome == 'done'


@pytest.mark.usefixtures('executor')
def test_a_new_instruction_takes_over_and_the_stop_topic_ends_the_goal(robot, path):
    _, future = robot.send_goal('pick the cube')
    robot.wait_for_state('tracking')
    wanted = robot.instruction.instruction_id + 1
    publisher = robot.graph.node.create_publisher(String, 'instruction', 10)
    robot.spin_until(publisher.get_subscription_count, 'the policy')
    publisher.publish(String(data='drop the cube'))
    robot.spin_until(lambda: robot.motion[-1].instruction_id == wanted, 'the new instruction')
    ids = [message.instruction_id for message in robot.motion]
    assert ids == sorted(ids)
    robot.stops.publish(Bool(data=True))
    status, result = robot.result(future)
    assert (status, result.outcome) == (GoalStatus.STATUS_ABORTED, 'stopped')
    assert result.chunks > 1
    robot.wait_for_quiet()
    assert_within_limits(robot.motion, path)
    assert_at_rest(robot.motion)
    _, future = robot.send_goal()
    _, result = robot.result(future)
    assert (result.outcome, result.detail[:11]) == ('refused', 'not_unarmed')


@pytest.mark.parametrize('how', ['deactivate', 'SIGTERM', 'SIGINT'])
def test_a_node_that_ends_aborts_the_goal_and_the_robot_is_still(executor, robot, path, how):
    _, future = robot.send_goal('pick the cube')
    robot.wait_for_state('tracking')
    robot.move()
    if how == 'deactivate':
        assert robot.graph.transition('executor_node', 'deactivate')
    else:
        pid = int(re.search(r'process started with pid \[(\d+)\]', executor.log)[1])
        os.kill(pid, getattr(signal, how))
    status, result = robot.result(future)
    assert (status, result.outcome) == (GoalStatus.STATUS_ABORTED, 'stopped')
    robot.wait_for_quiet()
    assert_within_limits(robot.motion, path)
    assert_at_rest(robot.motion)
