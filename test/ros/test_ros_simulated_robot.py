# SPDX-License-Identifier: Apache-2.0
"""The simulated robot as a process, and the executor's outputs in the test's own."""

import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped, TwistStamped
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from vla_policy_ros.core.errors import ConfigurationError
from vla_policy_ros.core.specs import Column
from vla_policy_ros.deployment.executor import ExecutorSettings, load_executor
from vla_policy_ros.deployment.limits import load_limits
from vla_policy_ros.evaluation.simulated_robot import SimulatedRobot
from vla_policy_ros.execution.kinds import ColumnMath
from vla_policy_ros.execution.limiter import MotionLimiter
from vla_policy_ros.execution.report import Command
from vla_policy_ros.execution.states import State
from vla_policy_ros.ros.controllers import ControllerOutputs
from vla_policy_ros.ros.convert import to_ns
from vla_policy_ros.ros.simulated_inputs import SimulatedInputs, to_goal
from vla_policy_ros.runtime.ticker import TickSchedule

pytestmark = pytest.mark.ros

MS = 1_000_000
ARM = {'name': 'arm', 'kind': 'joint_trajectory', 'topic': 'arm/joint_trajectory'}
ARM |= {'columns': ['pan', 'lift'], 'rename': {'pan': 'joint_1'}}
HAND = {'name': 'hand', 'kind': 'forward_command', 'topic': 'hand/commands', 'columns': ['hand']}
LIMIT = {'has_position_limits': True, 'min_position': -2.0, 'max_position': 2.0}
LIMIT |= {'has_velocity_limits': True, 'max_velocity': 1.0}
LIMIT |= {'has_acceleration_limits': True, 'max_acceleration': 4.0}
MEASURED = {'topic': 'robot/joint_states', 'rename': {'joint_1': 'pan'}}


def write(folder, *controllers, **changes):
    columns = [column for controller in controllers for column in controller.get('columns', ())]
    (folder / 'limits.yaml').write_text(
        yaml.safe_dump({'joint_limits': dict.fromkeys(columns, LIMIT)})
    )
    document = {'controllers': list(controllers), 'measured': MEASURED, **changes}
    document |= {'limits': {'urdf_topic': '', 'file': 'limits.yaml'}}
    path = folder / 'executor.yaml'
    path.write_text(yaml.safe_dump(document))
    return path


def last_positions(states):
    return dict(zip(states[-1].name, states[-1].position, strict=True)) if states else {}


def start(graph, processes, path, **parameters):
    states = graph.collect(JointState, 'robot/joint_states')
    process = processes.start_node(
        'simulated_robot_node', config=path, autostart=True, **parameters
    )
    return process, states


def test_it_stands_where_it_was_told_to(graph, processes, tmp_path):
    path = write(tmp_path, ARM, HAND)
    initial = {'initial_names': ['hand', 'pan'], 'initial_positions': [0.25, -0.5]}
    process, states = start(graph, processes, path, **initial)
    graph.spin_until(lambda: len(states) > 20, 'joint states')
    assert last_positions(states) == {'joint_1': -0.5, 'lift': 0.0, 'hand': 0.25}
    stamps_ns = [to_ns(state.header.stamp) for state in states]
    assert stamps_ns == sorted(stamps_ns)
    assert stamps_ns[-1] > 1e18
    assert process.end() == 0
    assert 'accepted trajectories 0, refused messages 0, velocity steps 0' in process.log


def test_it_waits_for_the_state_to_start_from(graph, processes, tmp_path):
    process, states = start(
        graph, processes, write(tmp_path, ARM, HAND), start_from='recorded/joint_states'
    )
    process.wait_for('waiting for recorded/joint_states')
    publisher = graph.node.create_publisher(JointState, 'recorded/joint_states', 1)
    message = JointState(name=['lift', 'joint_1', 'other'], position=[0.1, 0.2, 0.3])
    graph.spin_until(lambda: publisher.get_subscription_count() > 0, 'the robot')
    assert not states
    publisher.publish(message)
    graph.spin_until(lambda: states, 'joint states')
    assert last_positions(states) == {'joint_1': 0.2, 'lift': 0.1, 'hand': 0.0}
    graph.spin_until(lambda: publisher.get_subscription_count() == 0, 'its end')


def test_bad_messages_are_counted_in_diagnostics(graph, processes, tmp_path):
    process, states = start(graph, processes, write(tmp_path, ARM, HAND))
    diagnostics = graph.collect(DiagnosticArray, '/diagnostics')
    arm = graph.node.create_publisher(JointTrajectory, 'arm/joint_trajectory', 10)
    hand = graph.node.create_publisher(Float64MultiArray, 'hand/commands', 10)
    both = (arm, hand)
    graph.spin_until(lambda: all(one.get_subscription_count() for one in both), 'the robot')
    arm.publish(JointTrajectory(joint_names=['joint_1']))
    hand.publish(Float64MultiArray(data=[1.0, 2.0]))

    def told():
        statuses = [status for message in diagnostics for status in message.status]
        return {value.key: value.value for status in statuses[-1:] for value in status.values}

    graph.spin_until(lambda: told().get('refused messages') == '2', 'the counts')
    assert told()['refused arm wrong_joints'] == told()['refused hand wrong_size'] == '1'
    assert diagnostics[-1].status[0].level == b'\x01'
    hand.publish(Float64MultiArray(data=[1.0]))
    graph.spin_until(lambda: last_positions(states).get('hand') == 1.0, 'the hand')
    assert process.end() == 0
    assert 'refused hand wrong_size 1' in process.log


class Outputs:
    """Commands of a limiter, sent to the robot at the pace of the clock."""

    def __init__(self, graph, path, columns):
        settings = load_executor(path)
        limits = load_limits(settings.limits, columns)
        self.graph, self.period_ns = graph, settings.period_ns
        self.limiter = MotionLimiter(limits, ColumnMath(columns), period_ns=self.period_ns)
        self.outputs = ControllerOutputs(graph.node, settings, columns, limits)
        self.limiter.start(np.zeros(len(columns)))
        self.schedule = TickSchedule(self.period_ns, start_ns=self.now_ns())

    def now_ns(self):
        return self.graph.node.get_clock().now().nanoseconds

    def run(self, target, condition, what):
        """Go to a target until a condition holds; ticks that were missed are skipped, as the executor skips them."""
        wanted = SimpleNamespace(position=np.array(target), velocity=np.zeros(len(target)))

        def tick():
            now_ns = self.now_ns()
            if now_ns >= self.schedule.next_ns:
                tick_ns = now_ns - self.schedule.take(now_ns)[1]
                self.outputs.put(self.command(self.limiter.step(wanted), tick_ns), tick_ns)
            return condition()

        self.graph.spin_until(tick, what)

    def command(self, limited, tick_ns):
        state = (limited.position, limited.velocity, limited.acceleration, limited.is_limited)
        due_ns = tick_ns + self.outputs.lead_ns
        return Command(due_ns, *state, State.TRACKING, *(0, 0, 0, False))


@pytest.mark.parametrize('release', ['humble', 'jazzy', 'lyrical'])
def test_what_the_executor_sends_moves_it_within_the_limits(graph, processes, tmp_path, release):
    columns = (Column('hand', 'm'), Column('lift', 'rad'), Column('pan', 'rad'))
    arm = {**ARM, 'lead_ms': 1000.0}  # machine and messages may be held up, but not longer
    path = write(tmp_path, arm, HAND)
    process, states = start(graph, processes, path, release=release, lag_ms=5.0)
    one = Outputs(graph, path, columns)
    graph.spin_until(lambda: not one.outputs.missing(), 'the robot')
    graph.spin_until(lambda: states, 'joint states')
    goal = {'hand': 0.5, 'lift': -0.3, 'joint_1': 0.4}
    one.run(
        [0.5, -0.3, 0.4],
        lambda: all(abs(last_positions(states)[name] - at) < 1e-6 for name, at in goal.items()),
        'the goal',
    )
    moved = np.array([state.position for state in states])
    assert (np.abs(np.diff(moved, axis=0)) < 0.2).all()
    one.outputs.close()
    assert process.end() == 0
    (accepted,) = re.findall(r'accepted trajectories (\d+)', process.log)
    assert int(accepted) > 20
    assert 'refused messages 0, velocity steps 0' in process.log


@pytest.mark.parametrize(
    ('parameters', 'cause'),
    [
        ({}, 'an executor file'),
        ({'config': '/none.yaml'}, '/none.yaml'),
        ({'initial_names': ['hand'], 'initial_positions': [0.1, 0.2]}, 'one position per name'),
        ({'initial_names': ['head'], 'initial_positions': [0.1]}, 'head'),
    ],
)
def test_it_says_why_it_cannot_start(processes, tmp_path, parameters, cause):
    if 'initial_names' in parameters:
        parameters = {'config': write(tmp_path, ARM, HAND), **parameters}
    process = processes.start_node('simulated_robot_node', autostart=True, **parameters)
    assert process.wait() == 1
    assert 'cannot configure: ' in process.log
    assert cause in process.log


@pytest.fixture
def make_inputs(graph):
    """The inputs alone, in the test's process."""
    opened = []

    def make(*controllers):
        settings = ExecutorSettings.model_validate({'controllers': controllers}).controllers
        robot = SimulatedRobot(settings)
        robot.step(0)
        opened.append(SimulatedInputs(graph.node, settings, robot, now_ns=lambda: 0))
        return robot

    yield make
    for one in opened:
        one.close()


def test_joint_states_twists_and_poses_are_taken_by_name(graph, make_inputs):
    state = {'name': 'arm', 'kind': 'joint_state', 'topic': 'arm', 'columns': ['a', 'b']}
    state |= {'rename': {'b': 'joint_b'}}
    wheel = {**HAND, 'name': 'wheel', 'topic': 'wheel', 'columns': ['w'], 'value': 'velocity'}
    base = {'name': 'base', 'kind': 'twist', 'topic': 'cmd', 'frame_id': 'base'}
    base |= {'axes': {'angular_z': 'wz', 'linear_x': 'vx'}}
    tool = {'name': 'tool', 'kind': 'pose', 'topic': 'tool', 'frame_id': 'base'}
    tool |= {'position': ['x', 'y', 'z'], 'orientation': ['qx', 'qy', 'qz', 'qw']}
    robot = make_inputs(state, wheel, base, tool)
    twist, pose = TwistStamped(), PoseStamped()
    twist.twist.linear.x, twist.twist.angular.z = 0.5, -1.0
    pose.pose.position.y, pose.pose.orientation.w, pose.pose.orientation.z = 3.0, 0.6, 0.8
    messages = {
        'arm': JointState(name=['other', 'joint_b', 'a'], position=[9.0, 2.0, 1.0]),
        'wheel': Float64MultiArray(data=[2.0]),
        'cmd': twist,
        'tool': pose,
    }
    publishers = {
        topic: graph.node.create_publisher(type(message), topic, 1)
        for topic, message in messages.items()
    }
    graph.spin_until(
        lambda: all(one.get_subscription_count() for one in publishers.values()), 'the inputs'
    )
    for topic, publisher in publishers.items():
        publisher.publish(messages[topic])
    now_ns = 0

    def has_moved():
        nonlocal now_ns
        now_ns += MS
        robot.step(now_ns)
        return all(robot.positions[[0, 2, 3, 6]])

    graph.spin_until(has_moved, 'all messages')
    values = dict(zip(robot.columns, robot.positions.tolist(), strict=True))
    assert (values['a'], values['b']) == (1.0, 2.0)
    assert values['w'] > 0 > values['wz']
    assert (values['y'], values['qz'], values['qw']) == (3.0, 0.8, 0.6)
    assert not robot.refused


def test_a_joint_state_that_lacks_a_joint_is_refused(graph, make_inputs):
    robot = make_inputs(
        {'name': 'arm', 'kind': 'joint_state', 'topic': 'arm', 'columns': ['a', 'b']}
    )
    publisher = graph.node.create_publisher(JointState, 'arm', 1)
    graph.spin_until(publisher.get_subscription_count, 'the inputs')
    publisher.publish(JointState(name=['a'], position=[1.0]))
    graph.spin_until(lambda: robot.refused, 'the refusal')
    assert dict(robot.refused) == {'arm wrong_size': 1}


def test_a_gripper_needs_control_msgs(make_inputs, monkeypatch):
    monkeypatch.setitem(sys.modules, 'control_msgs', None)
    hand = {'name': 'hand', 'kind': 'gripper', 'topic': 'hand/cmd', 'column': 'hand'}
    with pytest.raises(ConfigurationError, match='control_msgs'):
        make_inputs(hand)


@pytest.mark.parametrize('action', ['gripper_command', 'parallel_gripper_command'])
def test_a_gripper_moves_to_its_goal(make_inputs, monkeypatch, action):
    """With stand-ins: there is no control_msgs without a ROS distribution."""
    served = {}

    class Server:
        def __init__(self, node, action, topic, execute):
            served[topic] = execute

        def destroy(self):
            served.clear()

    results = SimpleNamespace(Result=lambda **fields: fields)
    module = 'vla_policy_ros.ros.simulated_inputs'
    monkeypatch.setattr(f'{module}.ActionServer', Server)
    monkeypatch.setattr(f'{module}.import_control_msgs', lambda *_: results)
    hand = {'name': 'hand', 'kind': 'gripper', 'topic': 'hand/cmd', 'column': 'hand'}
    robot = make_inputs({**hand, 'action': action})
    position = [0.7] if action.startswith('parallel') else 0.7
    command = SimpleNamespace(position=position)
    ends = []
    handle = SimpleNamespace(
        request=SimpleNamespace(command=command), succeed=lambda: ends.append(1)
    )
    assert served['hand/cmd'](handle) == {'reached_goal': True}
    robot.step(5 * MS)
    assert (robot.positions.tolist(), ends) == ([0.7], [1])


def test_a_trajectory_with_uneven_points_is_refused_as_the_controller_does():
    points = [JointTrajectoryPoint(positions=[1.0, 2.0]), JointTrajectoryPoint(positions=[1.0])]
    goal = to_goal(JointTrajectory(joint_names=['a', 'b'], points=points))
    assert goal.positions.shape == (0, 2)
    assert goal.velocities is None
