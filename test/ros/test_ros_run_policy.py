# SPDX-License-Identifier: Apache-2.0
"""The action `run_policy` around a real scheduler, with a policy played by the test; both of rclpy's executors."""

import math
import threading

import numpy as np
import pytest
import rclpy
from action_msgs.msg import GoalStatus
from rclpy.action import ActionClient
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from std_msgs.msg import String
from support.executors import ARM, HORIZON, PERIOD_NS, START_NS, STEP_NS, make_limits

from vla_policy_ros.action import RunPolicy
from vla_policy_ros.core.chunk import ActionChunk
from vla_policy_ros.core.observation import Instruction
from vla_policy_ros.deployment.executor import ExecutorSettings
from vla_policy_ros.ros.qos import LATCHED
from vla_policy_ros.ros.run_policy import RunPolicyServer
from vla_policy_ros.runtime.executor_loop import ExecutorLoop

pytestmark = pytest.mark.ros

SETTINGS = {
    'controllers': [
        {
            'name': 'arm',
            'kind': 'forward_command',
            'topic': 'arm',
            'columns': ['shoulder', 'elbow'],
        }
    ],
    'watchdogs': {watch: {'timeout_ms': None} for watch in ('chunk', 'measured', 'tick')},
    'cool_down_ms': 0.0,
    'refill': {'timeout_ms': 100.0},
}
PERIODS_PER_TURN = 4
OBSERVE_EVERY = 20  # ticks


class Sent:
    """Outputs that keep the commands of the last run."""

    lead_ns = 0

    def __init__(self):
        self.begin()

    def begin(self):
        self.commands = []

    def put(self, command, due_ns):
        if command is not None:
            kept = command.position.copy(), command.velocity.copy(), command.instruction_id
            self.commands.append(kept)

    def missing(self):
        return ()

    def close(self):
        """Nothing is held."""


class Robot:
    """A node with the action around a real loop; a clock that goes on a few ticks per turn; a policy that waves."""

    def __init__(self, graph, *, domain_id, executor, **settings):
        self.graph = graph
        self.now = START_NS
        self.sent = Sent()
        self.context = Context()
        rclpy.init(
            context=self.context,
            domain_id=domain_id,
            signal_handler_options=SignalHandlerOptions.NO,
        )
        self.node = Node('executor_node', context=self.context)
        self.executor = executor(self.context)
        self.executor.add_node(self.node)
        self.loop = ExecutorLoop(
            ExecutorSettings.model_validate({**SETTINGS, **settings}),
            clock=self,
            make_limits=make_limits,
            make_outputs=lambda *_: self.sent,
        )
        self.server = RunPolicyServer(self.node, self.loop)
        self.has_policy = True
        self.sequence = self.ticks = 0
        self.instruction = Instruction('wait')
        graph.node.create_subscription(String, 'instruction', self._on_instruction, 10)
        self.client = ActionClient(graph.node, RunPolicy, 'run_policy')
        self.feedback = []
        self.spin_until(self.client.server_is_ready, 'the action')

    def now_ns(self):
        return self.now

    def _on_instruction(self, message):
        if message.data != self.instruction.text:
            self.instruction = Instruction(message.data, self.instruction.instruction_id + 1)

    def close(self):
        if self.server is not None:
            self.server.close()
        self.executor.shutdown()
        self.node.destroy_node()
        self.context.try_shutdown()

    def turn(self):
        """Let some time pass, and the node handle what came."""
        self.pass_time()
        self.executor.spin_once(timeout_sec=0)
        if self.server is not None:
            self.server.tick()

    def pass_time(self):
        """Tick a few times, with the policy's chunks in between."""
        for _ in range(PERIODS_PER_TURN):
            self.now += PERIOD_NS
            self.ticks += 1
            if self.has_policy and self.ticks % OBSERVE_EVERY == 0:
                self.loop.offer(self.chunk())
            if self.loop.columns:
                position = self.sent.commands[-1][0] if self.sent.commands else np.zeros(len(ARM))
                self.loop.note_measured(position, self.now)
            self.loop.tick(self.now)

    def chunk(self):
        """Return what the policy makes of now: waves that follow its instruction's number."""
        seconds = (self.now - START_NS + np.arange(HORIZON) * STEP_NS) * 1e-9
        wave = 0.5 * np.sin(seconds + self.instruction.instruction_id)
        self.sequence += 1
        return ActionChunk(
            actions=np.repeat(wave[:, None], len(ARM), axis=1).astype(np.float32),
            columns=ARM,
            step_ns=STEP_NS,
            start_ns=self.now,
            observation_stamp_ns=self.now,
            sequence=self.sequence,
            instruction=self.instruction,
            policy_id='waves@1',
        )

    def spin_until(self, condition, what):
        self.graph.spin_until(lambda: self.turn() or condition(), what)

    def send(self, instruction='', time_limit_s=0.0):
        """Send a goal; return the goal handle of the client, and the future of its result."""
        goal = RunPolicy.Goal(instruction=instruction, time_limit_s=time_limit_s)
        sent = self.client.send_goal_async(
            goal, feedback_callback=lambda message: self.feedback.append(message.feedback)
        )
        self.spin_until(sent.done, 'an answer to the goal')
        assert sent.result().accepted
        return sent.result(), sent.result().get_result_async()

    def result(self, future):
        """Wait for the end of a goal; return its status and its result."""
        self.spin_until(future.done, 'the result')
        return future.result().status, future.result().result

    def wait_for_motion(self):
        self.spin_until(lambda: self.state == 'tracking', 'motion')

    @property
    def state(self):
        return self.loop.snapshot().state.value

    def is_at_rest(self):
        return self.loop.is_quiet and not self.sent.commands[-1][1].any()


def single_threaded(context):
    return SingleThreadedExecutor(context=context)


def events(context):
    module = pytest.importorskip('rclpy.experimental', reason='rclpy without EventsExecutor')
    return module.EventsExecutor(context=context)


@pytest.fixture(params=[single_threaded, events])
def make_robot(request, graph, processes):
    robots = []

    def make(**settings):
        robots.append(
            Robot(graph, domain_id=processes.domain_id, executor=request.param, **settings)
        )
        return robots[-1]

    yield make
    for robot in robots:
        robot.close()


def test_a_goal_runs_until_its_time_is_up_and_ends_at_rest(make_robot):
    robot = make_robot()
    _, future = robot.send('pick the cube', time_limit_s=1.0)
    status, result = robot.result(future)
    assert (status, result.outcome) == (GoalStatus.STATUS_SUCCEEDED, 'done')
    assert 'time limit of 1 s' in result.detail
    assert result.duration_s >= 1.0
    assert result.chunks > 0
    assert 0.0 < result.max_chunk_age_ms < 1e4
    assert robot.instruction.text == 'pick the cube'
    assert robot.state == 'unarmed'
    assert robot.is_at_rest()
    assert {'idle', 'tracking'} & {feedback.state for feedback in robot.feedback}
    elapsed = [feedback.elapsed_s for feedback in robot.feedback]
    assert elapsed == sorted(elapsed)
    assert (np.diff(elapsed) >= 0.2).all()
    assert robot.feedback[0].chunk_age_ms == -1.0
    assert robot.feedback[-1].chunks > 0


def test_a_cancelled_goal_ends_only_when_the_robot_is_still(make_robot):
    robot = make_robot()
    handle, future = robot.send()
    robot.wait_for_motion()
    cancelled = handle.cancel_goal_async()
    robot.spin_until(cancelled.done, 'an answer to the cancel')
    assert len(cancelled.result().goals_canceling) == 1
    status, result = robot.result(future)
    assert (status, result.outcome) == (GoalStatus.STATUS_CANCELED, 'cancelled')
    assert robot.is_at_rest()
    # An empty instruction leaves the policy's own.
    assert robot.instruction.text == 'wait'


def test_a_stop_aborts_the_goal(make_robot):
    robot = make_robot()
    _, future = robot.send()
    robot.wait_for_motion()
    robot.loop.stop('stop_topic')
    status, result = robot.result(future)
    assert (status, result.outcome) == (GoalStatus.STATUS_ABORTED, 'stopped')
    assert result.detail == 'the executor is stopped: stop_topic'
    assert robot.is_at_rest()


def test_a_stop_on_the_way_to_rest_is_told_as_such(make_robot):
    robot = make_robot()
    handle, future = robot.send()
    robot.wait_for_motion()
    handle.cancel_goal_async()
    robot.spin_until(lambda: robot.state == 'stopping', 'the way to rest')
    robot.loop.stop('stop_topic')
    assert robot.result(future)[1].outcome == 'stopped'


def test_a_disarm_by_somebody_else_ends_the_goal(make_robot):
    robot = make_robot()
    _, future = robot.send()
    robot.wait_for_motion()
    robot.loop.disarm()
    assert robot.result(future)[1].detail == 'the executor is unarmed: disarmed'


def test_starvation_that_stops_is_counted_and_told(make_robot):
    robot = make_robot(starvation='stop')
    _, future = robot.send()
    robot.wait_for_motion()
    robot.has_policy = False
    _, result = robot.result(future)
    assert (result.outcome, result.starvations) == ('stopped', 1)
    assert 'starved' in result.detail


@pytest.mark.parametrize('time_limit_s', [-1.0, math.nan, math.inf])
def test_a_bad_time_limit_is_refused_and_arms_nothing(make_robot, time_limit_s):
    robot = make_robot()
    _, future = robot.send(time_limit_s=time_limit_s)
    status, result = robot.result(future)
    assert (status, result.outcome) == (GoalStatus.STATUS_ABORTED, 'refused')
    assert 'time limit' in result.detail
    assert robot.state == 'unarmed'


def test_an_executor_that_cannot_be_armed_refuses_with_the_reason(make_robot):
    robot = make_robot()
    robot.loop.stop('stop_topic')
    _, future = robot.send('pick the cube')
    status, result = robot.result(future)
    assert (status, result.outcome) == (GoalStatus.STATUS_ABORTED, 'refused')
    assert result.detail == 'not_unarmed: the executor is stopped'
    assert robot.instruction.text == 'wait'
    assert robot.loop.release().is_done
    assert robot.result(robot.send(time_limit_s=0.1)[1])[1].outcome == 'done'


def test_a_second_goal_is_refused_and_the_first_goes_on(make_robot):
    robot = make_robot()
    handle, first = robot.send('pick the cube')
    robot.wait_for_motion()
    _, second = robot.send('drop the cube')
    _, result = robot.result(second)
    assert result.outcome == 'refused'
    assert "another goal runs: 'pick the cube'" in result.detail
    assert not first.done()
    assert (robot.state, robot.instruction.text) == ('tracking', 'pick the cube')
    handle.cancel_goal_async()
    assert robot.result(first)[1].outcome == 'cancelled'


def test_a_new_instruction_takes_over_while_the_goal_runs(make_robot):
    robot = make_robot()
    handle, future = robot.send('pick the cube')
    robot.wait_for_motion()
    publisher = robot.graph.node.create_publisher(String, 'instruction', 10)
    robot.spin_until(publisher.get_subscription_count, 'the policy')
    publisher.publish(String(data='drop the cube'))
    robot.spin_until(lambda: robot.sent.commands[-1][2] == 2, 'chunks of the new instruction')
    ids = [instruction_id for *_, instruction_id in robot.sent.commands]
    assert ids == sorted(ids)
    assert robot.state == 'tracking'
    handle.cancel_goal_async()
    assert robot.result(future)[1].outcome == 'cancelled'


def test_a_policy_that_comes_later_is_told_the_instruction(make_robot):
    robot = make_robot()
    handle, future = robot.send('pick the cube')
    heard = robot.graph.collect(String, 'instruction', LATCHED)
    robot.spin_until(lambda: heard, 'the instruction')
    assert heard[0].data == 'pick the cube'
    handle.cancel_goal_async()
    robot.result(future)


@pytest.mark.parametrize('is_spun', [True, False])
def test_closing_aborts_the_goal_and_brings_the_robot_to_rest(make_robot, is_spun):
    """At the end of a process rclpy's executor is shut down before the node is closed."""
    robot = make_robot()
    _, future = robot.send()
    robot.wait_for_motion()
    if not is_spun:
        robot.executor.shutdown()
    closing = threading.Thread(target=robot.server.close)
    robot.server = None
    closing.start()
    robot.graph.spin_until(future.done, 'the result')
    closing.join()
    status, result = future.result().status, future.result().result
    assert (status, result.outcome) == (GoalStatus.STATUS_ABORTED, 'stopped')
    assert 'deactivated' in result.detail
    while not robot.is_at_rest():
        robot.pass_time()


def test_nothing_is_sent_without_a_goal(make_robot):
    robot = make_robot()
    for _ in range(100):
        robot.turn()
    assert robot.sent.commands == []
    assert robot.feedback == []
