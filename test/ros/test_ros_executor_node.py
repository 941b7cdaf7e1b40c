# SPDX-License-Identifier: Apache-2.0
"""The executor node in a process of its own, over real DDS; every command that goes out is checked against the limits."""

import signal
import time
from array import array
from pathlib import Path

import numpy as np
import pytest
import yaml
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.event_handler import PublisherEventCallbacks
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool, Float64MultiArray
from support.executor_runs import (
    COLUMNS,
    JOINTS,
    PERIOD_NS,
    Robot,
    assert_at_rest,
    assert_sent_as_told,
    assert_within_limits,
    stamps_ns,
    write_executor_file,
    write_sample_executor_file,
)

from vla_policy_ros.core.specs import Column
from vla_policy_ros.ros.convert import to_ns, to_time

pytestmark = pytest.mark.ros


@pytest.fixture
def executor_file(tmp_path):
    """An executor file for the joints of the test's robot."""
    return write_executor_file(tmp_path)


@pytest.fixture
def robot(graph):
    """Policy and robot around the executor."""
    return Robot(graph)


@pytest.fixture
def start(processes, executor_file):
    """Return a function that starts an active executor node."""

    def start(**parameters):
        given = {'config': executor_file, 'autostart': True, 'status_period_s': 0.1}
        return processes.start_node('executor_node', **given, **parameters)

    return start


def test_chunks_become_commands_at_the_rate(robot, start, executor_file):
    start()
    robot.start()
    count = len(robot.motion)
    robot.spin_until(lambda: len(robot.motion) > count + 400, 'two seconds of commands')
    assert robot.ask('disarm').success
    robot.wait_for_quiet()
    last = list(robot.motion[-1].positions)
    robot.spin_until(lambda: list(robot.commands[-1].data) == last, 'the last command')
    assert_within_limits(robot.motion, executor_file)
    assert_sent_as_told(robot.commands, robot.motion)
    gaps_ns = np.diff(stamps_ns(robot.motion))
    assert abs(np.median(gaps_ns) - PERIOD_NS) < 0.1 * PERIOD_NS
    assert gaps_ns.min() > 0  # never two for one time
    assert robot.status.seams > 0
    assert robot.status.scheduling
    assert not any(message.is_dry_run for message in robot.motion)


def test_nothing_goes_out_before_it_is_armed(robot, start):
    start()
    robot.wait_for_state('unarmed')
    robot.spin_until(
        lambda: (
            dict(zip(robot.status.refusal_causes, robot.status.refusal_counts, strict=True)).get(
                'not_armed', 0
            )
            > 3
        ),
        'chunks that are refused',
    )
    assert robot.motion == robot.commands == []


def test_nothing_is_armed_while_the_node_is_not_active(robot, processes, executor_file, graph):
    processes.start_node('executor_node', config=executor_file)
    assert graph.transition('executor_node', 'configure')
    answer = robot.ask('arm')
    assert not answer.success
    assert 'not active' in answer.message
    assert robot.motion == []


def test_the_stop_latches_and_a_reset_has_to_wait(robot, start, tmp_path, executor_file):
    write_executor_file(tmp_path, cool_down_ms=3000)
    start()
    robot.start()
    robot.stops.publish(Bool(data=True))
    robot.wait_for_state('stopped')
    robot.wait_for_quiet()
    sent = len(robot.motion)
    begin_ns = to_ns(next(s for s in robot.statuses if s.state == 'stopped').header.stamp)
    assert not robot.ask('arm').success
    answers = []

    def is_reset():
        answers.append(robot.ask('reset'))
        return answers[-1].success

    robot.spin_until(is_reset, 'a reset after the cool-down')
    assert len(answers) > 1
    assert all(answer.message.startswith('cooling_down') for answer in answers[:-1])
    robot.wait_for_state('unarmed')
    assert to_ns(robot.status.header.stamp) - begin_ns >= 2_900_000_000
    assert len(robot.motion) == sent
    assert_at_rest(robot.motion)
    robot.start()
    assert_within_limits(robot.motion[:sent], executor_file)
    assert_within_limits(robot.motion[sent:], executor_file)


def test_a_stop_that_was_latched_before_the_start_counts(robot, start):
    robot.stops.publish(Bool(data=True))
    start()
    robot.wait_for_state('stopped')
    assert robot.status.cause == 'stop_topic'
    assert not robot.ask('arm').success
    assert robot.motion == []


def test_a_stop_of_a_publisher_that_latches_nothing_counts(robot, start, graph):
    start(armed_at_start=True)
    robot.wait_for_state('idle', 'soft_start', 'tracking')
    publisher = graph.node.create_publisher(
        Bool, 'stop', 1, event_callbacks=PublisherEventCallbacks(use_default_callbacks=False)
    )
    robot.spin_until(lambda: publisher.get_subscription_count() > 0, 'a subscription')
    publisher.publish(Bool(data=True))
    robot.wait_for_state('stopped')


def test_false_on_the_stop_topic_does_nothing(robot, start):
    start()
    robot.start()
    robot.stops.publish(Bool(data=False))
    count = len(robot.motion)
    robot.spin_until(lambda: len(robot.motion) > count + 100, 'more commands')
    assert robot.state == 'tracking'


def test_a_dry_run_tells_and_does_not_send(robot, start):
    start(dry_run=True, armed_at_start=True)
    robot.follows = False
    robot.spin_until(lambda: robot.send_joints() or len(robot.motion) > 100, 'motion')
    assert robot.commands == []
    assert all(message.is_dry_run for message in robot.motion)
    assert robot.status.is_dry_run


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM], ids=['INT', 'TERM'])
def test_a_signal_while_it_moves_ends_in_rest_and_0(robot, start, executor_file, number):
    node = start()
    robot.start()
    node.send(number)
    robot.spin_until(lambda: not node.is_running, 'its end')
    assert node.wait() == 0, node.log
    robot.wait_for_quiet()
    assert robot.motion[-1].state == 'unarmed'
    assert 'stopping' in [message.state for message in robot.motion]
    assert_within_limits(robot.motion, executor_file)
    assert_at_rest(robot.motion)
    last = list(robot.motion[-1].positions)
    robot.spin_until(lambda: list(robot.commands[-1].data) == last, 'the last command')
    assert_sent_as_told(robot.commands, robot.motion)
    assert 'Traceback' not in node.log


def test_a_killed_policy_ends_in_a_hold_and_a_new_one_goes_on(graph, processes, tmp_path):
    path = write_sample_executor_file(tmp_path)
    robot = Robot(graph)
    robot.sends_chunks = robot.follows = False
    parameters = {'bundle': 'sample', 'autostart': True, 'instruction': 'pick up the block'}
    policy = processes.start_node('policy_node', **parameters)
    processes.start_node('replay_node', dataset='sample', loop=True, autostart=True)
    executor = processes.start_node(
        'executor_node', config=path, autostart=True, armed_at_start=True, status_period_s=0.1
    )
    robot.wait_for_state('tracking')
    robot.spin_until(lambda: max(abs(v) for v in robot.motion[-1].velocities) > 0.05, 'motion')
    policy.send(signal.SIGKILL)
    policy.wait()
    robot.spin_until(lambda: 'chunk_timeout' in robot.status.alarms, 'an alarm')
    robot.wait_for_hold()
    held = len(robot.motion)
    robot.spin_until(lambda: len(robot.motion) > held + 50, 'a hold that goes on')
    positions = assert_within_limits(robot.motion, path)
    assert (positions[held:] == positions[held]).all()
    used = robot.status.used
    processes.start_node('policy_node', **parameters)
    robot.wait_for_state('tracking')
    robot.spin_until(lambda: robot.status.used > used + 10, 'chunks of the new policy')
    assert 'chunk_timeout' not in robot.status.alarms
    assert_within_limits(robot.motion, path)
    assert executor.end() == 0, executor.log
    robot.wait_for_quiet()
    assert_within_limits(robot.motion, path)
    assert_at_rest(robot.motion)


def test_deactivation_comes_to_rest_and_activation_begins_anew(robot, start, executor_file, graph):
    node = start()
    robot.start()
    assert graph.transition('executor_node', 'deactivate')
    robot.wait_for_state('inactive')
    robot.wait_for_quiet()
    sent = len(robot.motion)
    assert_within_limits(robot.motion, executor_file)
    assert_at_rest(robot.motion)
    assert graph.transition('executor_node', 'activate')
    robot.wait_for_state('unarmed')
    assert len(robot.motion) == sent
    robot.start()
    assert robot.status.offered < 1000
    assert_within_limits(robot.motion[sent:], executor_file)
    assert graph.transition('executor_node', 'deactivate')
    assert graph.transition('executor_node', 'cleanup')
    assert graph.transition('executor_node', 'shutdown')
    assert node.wait() == 0, node.log


def test_cycles_leave_no_thread(robot, processes, executor_file, graph):
    node = processes.start_node('executor_node', config=executor_file, armed_at_start=True)
    counts = []
    for _ in range(6):
        assert graph.transition('executor_node', 'configure')
        assert graph.transition('executor_node', 'activate')
        robot.wait_for_state('tracking')
        assert graph.transition('executor_node', 'deactivate')
        assert graph.transition('executor_node', 'cleanup')
        robot.statuses.clear()
        counts.append(len(list(Path(f'/proc/{node.pid}/task').iterdir())))
    # The middleware's own threads come and go; what leaks stays.
    assert min(counts[3:]) <= max(counts[:3]), counts
    ends = [i for i, message in enumerate(robot.motion, 1) if message.state == 'unarmed']
    for begin, end in zip([0, *ends], ends, strict=False):
        assert_within_limits(robot.motion[begin:end], executor_file)


def test_a_latched_stop_outlives_a_deactivation(robot, start, graph):
    start(armed_at_start=True)
    robot.wait_for_state('tracking')
    robot.stops.publish(Bool(data=True))
    robot.wait_for_state('stopped')
    robot.graph.node.destroy_publisher(robot.stops)
    assert graph.transition('executor_node', 'deactivate')
    robot.wait_for_state('inactive')
    assert graph.transition('executor_node', 'activate')
    robot.wait_for_state('stopped')
    assert robot.status.cause == 'stop_topic'


def test_a_file_that_does_not_fit_is_told_everywhere(graph, start):
    robot = Robot(graph, columns=(*COLUMNS, Column('hand', '')))
    diagnostics = graph.collect(DiagnosticArray, '/diagnostics')
    node = start()
    robot.spin_until(lambda: robot.statuses and robot.status.refusal_causes, 'a refusal')
    assert set(robot.status.refusal_causes) == {'missing_column'}
    node.wait_for(r'the executor file does not fit: controllers: got none for hand, expected ')
    answer = robot.ask('arm')
    assert not answer.success
    assert answer.message.startswith('does_not_fit: controllers: got none for hand')
    levels = [status.level for message in diagnostics for status in message.status]
    assert DiagnosticStatus.ERROR in levels
    assert robot.motion == []


def test_other_columns_later_are_refused(robot, start):
    start()
    robot.start()
    robot.columns = (*COLUMNS[:2], Column('other', 'rad'))
    robot.sends_chunks = False
    robot.send_chunk()
    robot.spin_until(lambda: 'wrong_columns' in robot.status.refusal_causes, 'a refusal')


def test_joints_may_come_from_several_drivers(robot, start):
    start(armed_at_start=True)
    robot.follows = False
    robot.wait_for_state('idle')

    def is_tracking():
        robot.send_joints(JOINTS[:1])
        robot.send_joints(JOINTS[1:])
        return robot.state == 'tracking'

    robot.spin_until(is_tracking, 'tracking')


def test_a_joint_that_nobody_measures_keeps_the_robot_still(robot, start):
    node = start(armed_at_start=True)
    robot.follows = False
    robot.spin_until(
        lambda: (
            robot.send_joints(JOINTS[:1]) or 'nothing is measured for elbow, wrist' in node.log
        ),
        'the reason',
    )
    assert robot.state == 'idle'
    assert robot.motion == []


def test_nothing_starts_while_a_controller_is_missing(graph, start, tmp_path):
    arm = {'kind': 'forward_command', 'name': 'arm', 'topic': 'arm_controller/commands'}
    hand = {'kind': 'forward_command', 'name': 'hand', 'topic': 'hand_controller/commands'}
    arm['columns'], hand['columns'] = list(JOINTS[:2]), list(JOINTS[2:])
    write_executor_file(tmp_path, controllers=[arm, hand])
    robot = Robot(graph)
    start(armed_at_start=True)
    robot.spin_until(
        lambda: robot.statuses and 'no_subscriber' in robot.status.refusal_causes, 'a refusal'
    )
    robot.spin_until(lambda: list(robot.status.missing) == ['hand'], 'the missing controller')
    assert robot.motion == []
    graph.collect(Float64MultiArray, 'hand_controller/commands')
    robot.wait_for_state('tracking')
    assert list(robot.status.missing) == []


def test_simulated_time_ticks_with_the_clock(robot, start, executor_file, graph):
    start(use_sim_time=True, armed_at_start=True)
    clock = graph.node.create_publisher(Clock, '/clock', 10)
    now_ns = 1_000_000_000_000
    robot.now_ns = lambda: now_ns
    robot.sends_chunks = robot.follows = False

    told_s = time.monotonic()

    def advance():
        nonlocal now_ns, told_s
        if time.monotonic() - told_s < 0.02:
            return False  # a clock that runs away from the node would make it skip ticks
        told_s = time.monotonic()
        now_ns += 20_000_000
        clock.publish(Clock(clock=to_time(now_ns)))
        if now_ns % 200_000_000 == 0:
            robot.send_chunk()
        robot.send_joints()
        return robot.state == 'tracking' and len(robot.motion) > 200

    robot.spin_until(advance, 'motion in simulated time')
    assert_within_limits(robot.motion, executor_file)
    stamps = stamps_ns(robot.motion)
    assert set(np.diff(stamps)) == {PERIOD_NS}
    assert stamps[-1] <= now_ns


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'config': ''}, r'parameter config: got nothing'),
        ({'config': '/nowhere.yaml'}, r'/nowhere\.yaml'),
        ({'realtime_priority': 100}, r'realtime_priority: got .*100'),
    ],
)
def test_wrong_parameters_end_with_1(processes, executor_file, changes, message):
    given = {'config': executor_file, 'autostart': True, **changes}
    node = processes.start_node('executor_node', **given)
    assert node.wait() == 1, node.log
    node.wait_for(message)
    assert 'Traceback' not in node.log


@pytest.mark.parametrize(
    ('limits', 'message'),
    [
        ({'file': 'nowhere.yaml', 'urdf_topic': ''}, r'nowhere\.yaml'),
        ({'file': 'limits.yaml'}, r'robot_description: got no text within 0\.2 s'),
        ({'urdf_file': 'robot.urdf'}, r'robot\.urdf'),
    ],
)
def test_limits_that_cannot_be_read_end_with_1(processes, tmp_path, limits, message):
    path = write_executor_file(tmp_path)
    document = yaml.safe_load(path.read_text())
    document['limits'] = limits
    path.write_text(yaml.safe_dump(document))
    node = processes.start_node(
        'executor_node', config=path, autostart=True, description_timeout_s=0.2
    )
    assert node.wait() == 1, node.log
    node.wait_for(f'cannot configure: .*{message}')


def test_a_measured_joint_may_have_another_name(robot, start, tmp_path, graph):
    write_executor_file(tmp_path, measured={'rename': {'joint_a': JOINTS[0]}})
    start(armed_at_start=True)
    robot.follows = False
    publisher = graph.node.create_publisher(JointState, 'joint_states', 10)

    def is_tracking():
        message = JointState(name=['joint_a', *JOINTS[1:]], position=array('d', [0.0] * 3))
        message.header.stamp = to_time(robot.now_ns())
        publisher.publish(message)
        return robot.state == 'tracking'

    robot.spin_until(is_tracking, 'tracking')
