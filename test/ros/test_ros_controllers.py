# SPDX-License-Identifier: Apache-2.0
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from builtin_interfaces.msg import Time
from geometry_msgs.msg import PoseStamped, TwistStamped
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray, Header
from trajectory_msgs.msg import JointTrajectory

from vla_policy_ros.core.errors import ConfigurationError
from vla_policy_ros.core.specs import Column, ColumnKind
from vla_policy_ros.deployment.executor import ExecutorSettings
from vla_policy_ros.execution.limits import ColumnLimits, check_limits
from vla_policy_ros.execution.report import Command
from vla_policy_ros.execution.states import State
from vla_policy_ros.ros import tick_outputs
from vla_policy_ros.ros.controllers import ControllerOutputs
from vla_policy_ros.ros.convert import to_ns

pytestmark = pytest.mark.ros

MS = 1_000_000
PERIOD_NS = 5 * MS
START_NS = 7_000_000 * MS
JOINTS = (Column('a', 'rad', ColumnKind.ANGLE), Column('b', 'm'))
BASE = (Column('vx', 'm/s', ColumnKind.TWIST), Column('wz', 'rad/s', ColumnKind.TWIST))
HAND = (Column('hand', '', ColumnKind.GRIPPER),)
POSE = tuple(Column(name, 'm') for name in 'xyz') + tuple(
    Column(f'q{name}', '', ColumnKind.QUATERNION) for name in 'xyzw'
)
LIMITS = {
    ColumnKind.LINEAR: ColumnLimits(
        position_min=-50.0, position_max=50.0, velocity=20.0, acceleration=100.0
    ),
    ColumnKind.ANGLE: ColumnLimits(velocity=20.0, acceleration=100.0),
    ColumnKind.QUATERNION: ColumnLimits(velocity=2.0, acceleration=10.0),
    ColumnKind.TWIST: ColumnLimits(velocity=1.5, acceleration=5.0),
    ColumnKind.GRIPPER: ColumnLimits(position_min=0.0, position_max=1.0),
}
ARM = {'name': 'arm', 'kind': 'forward_command', 'topic': 'arm/commands', 'columns': ['b', 'a']}
TRAJECTORY = {
    'name': 'arm',
    'kind': 'joint_trajectory',
    'topic': 'arm/joint_trajectory',
    'columns': ['b', 'a'],
    'rename': {'a': 'joint_a'},
}
TWIST = {
    'name': 'base',
    'kind': 'twist',
    'topic': 'cmd_vel',
    'frame_id': 'base_link',
    'axes': {'angular_z': 'wz', 'linear_x': 'vx'},
}


class Bench:
    """Outputs on a node of the test; position and velocity tell tick and column."""

    def __init__(self, graph, controllers, columns):
        self.graph = graph
        self.settings = ExecutorSettings.model_validate({'controllers': controllers})
        self.columns = columns
        self.outputs = ControllerOutputs(
            graph.node,
            self.settings,
            columns,
            check_limits(columns, {column.name: LIMITS[column.kind] for column in columns}),
        )
        self.missing = self.outputs.missing()
        self.tick_number = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.outputs.close()

    def position(self, tick):
        """10 * column + tick * 0.01, which is 2 per second."""
        return 10.0 * np.arange(len(self.columns)) + 0.01 * tick

    def command(self, tick):
        size = len(self.columns)
        return Command(
            START_NS + tick * PERIOD_NS + self.outputs.lead_ns,
            self.position(tick),
            np.full(size, 2.0) + np.arange(size),
            np.zeros(size),
            np.zeros(size, bool),
            State.TRACKING,
            *(0, 0, 0, False),
        )

    def tick(self, *, is_over=False):
        due_ns = START_NS + self.tick_number * PERIOD_NS
        self.outputs.put(None if is_over else self.command(self.tick_number), due_ns)
        self.tick_number += 1
        self.graph.executor.spin_once(timeout_sec=0)

    def ticks(self, count, **changes):
        for _ in range(count):
            self.tick(**changes)

    def listen(self, message_class, topic):
        messages = self.graph.collect(message_class, topic)
        self.graph.spin_until(lambda: self.outputs.missing() != self.missing, 'a match')
        return messages

    def wait(self, messages, count):
        self.graph.spin_until(lambda: len(messages) >= count, f'{count} messages')
        return messages


def stamps_ms(messages):
    return [(to_ns(message.header.stamp) - START_NS) / MS for message in messages]


@pytest.fixture
def bench(graph):
    opened = []

    def make(controllers, columns):
        opened.append(Bench(graph, controllers, columns))
        return opened[-1]

    yield make
    for one in opened:
        one.outputs.close()


def test_forward_commands_are_in_the_controllers_order(bench):
    one = bench([ARM], JOINTS)
    assert one.outputs.lead_ns == 0
    messages = one.listen(Float64MultiArray, 'arm/commands')
    one.outputs.begin()
    one.ticks(3)
    one.wait(messages, 3)
    assert [list(message.data) for message in messages] == [
        [10.0 + 0.01 * tick, 0.01 * tick] for tick in range(3)
    ]
    one.ticks(3, is_over=True)
    one.tick()
    one.wait(messages, 4)
    assert len(messages) == 4
    assert list(messages[3].data) == [10.06, 0.06]


def test_forward_commands_may_be_velocities(bench):
    one = bench([{**ARM, 'value': 'velocity'}], JOINTS)
    messages = one.listen(Float64MultiArray, 'arm/commands')
    one.tick()
    assert list(one.wait(messages, 1)[0].data) == [3.0, 2.0]


def test_joint_states_have_names_velocities_and_stamps(bench):
    one = bench([{**ARM, 'kind': 'joint_state', 'rename': {'b': 'joint_b'}}], JOINTS)
    messages = one.listen(JointState, 'arm/commands')
    one.ticks(2)
    one.wait(messages, 2)
    assert list(messages[1].name) == ['joint_b', 'a']
    assert list(messages[1].position) == [10.01, 0.01]
    assert list(messages[1].velocity) == [3.0, 2.0]
    assert list(messages[1].effort) == []
    assert stamps_ms(messages) == [0, 5]


def test_twists_have_the_axes_that_were_named(bench):
    one = bench([TWIST], BASE)
    messages = one.listen(TwistStamped, 'cmd_vel')
    one.ticks(2)
    twist = one.wait(messages, 2)[1].twist
    assert (twist.linear.x, twist.linear.y, twist.angular.x, twist.angular.z) == (
        0.01,
        0,
        0,
        10.01,
    )
    assert messages[1].header.frame_id == 'base_link'
    assert stamps_ms(messages) == [0, 5]


def test_poses(bench):
    pose = {
        'name': 'tool',
        'kind': 'pose',
        'topic': 'target',
        'frame_id': 'world',
        'position': ['x', 'y', 'z'],
        'orientation': ['qx', 'qy', 'qz', 'qw'],
    }
    one = bench([pose], POSE)
    messages = one.listen(PoseStamped, 'target')
    one.tick()
    got = one.wait(messages, 1)[0]
    assert (got.pose.position.x, got.pose.position.y, got.pose.position.z) == (0, 10, 20)
    turn = got.pose.orientation
    assert (turn.x, turn.y, turn.z, turn.w) == (30, 40, 50, 60)
    assert got.header.frame_id == 'world'


def test_trajectories_hold_the_motion_ahead_and_end_at_rest(bench):
    one = bench([TRAJECTORY], JOINTS)
    assert one.outputs.lead_ns == 50 * MS
    messages = one.listen(JointTrajectory, 'arm/joint_trajectory')
    one.outputs.begin()
    one.ticks(41)
    one.wait(messages, 11)
    assert [list(message.joint_names) for message in messages] == [['b', 'joint_a']] * 11
    last = messages[10]
    stamp_ns = to_ns(last.header.stamp) - START_NS
    assert 200 * MS - PERIOD_NS < stamp_ns <= 200 * MS
    times_ns = [stamp_ns + to_ns(point.time_from_start) for point in last.points]
    assert times_ns[0] == stamp_ns
    assert times_ns == sorted(set(times_ns))
    assert times_ns[-1] > 250 * MS
    for time_ns, point in zip(times_ns, last.points, strict=True):
        if time_ns <= 250 * MS - PERIOD_NS:
            tick = (time_ns - 50 * MS) / PERIOD_NS
            assert list(point.positions) == pytest.approx([10 + 0.01 * tick, 0.01 * tick])
            assert list(point.velocities) == pytest.approx([2.0, 2.0])
    assert list(last.points[-1].velocities) == [0.0, 0.0]
    assert last.points[-1].positions[1] == pytest.approx(0.4 + 0.0075 + 0.005 + 0.0025)


def test_trajectories_go_out_until_the_last_command_has_come_to_rest(bench):
    one = bench([TRAJECTORY], JOINTS)
    messages = one.listen(JointTrajectory, 'arm/joint_trajectory')
    one.ticks(4)
    one.ticks(40, is_over=True)
    sent = one.wait(messages, 4)
    ends_ns = [
        to_ns(message.header.stamp) + to_ns(message.points[-1].time_from_start) for message in sent
    ]
    assert len(set(ends_ns[1:])) == 1  # the first one knew one command only
    before = len(sent)
    one.tick()
    one.wait(messages, before + 1)
    assert 4 <= before <= 5
    assert len(messages) == before + 1


def test_others_get_each_command_when_it_is_due(bench):
    """A trajectory's lead is everybody's."""
    one = bench(
        [
            {**TRAJECTORY, 'columns': ['b'], 'rename': {}},
            {**ARM, 'name': 'other', 'columns': ['a']},
        ],
        JOINTS,
    )
    messages = one.listen(Float64MultiArray, 'arm/commands')
    one.graph.collect(JointTrajectory, 'arm/joint_trajectory')
    one.graph.spin_until(lambda: not one.outputs.missing(), 'a match')
    one.outputs.begin()
    one.ticks(12)
    one.wait(messages, 2)
    assert [list(message.data) for message in messages] == [[0.0], [0.01]]
    one.ticks(20, is_over=True)
    one.wait(messages, 12)
    assert [message.data[0] for message in messages] == [0.01 * tick for tick in range(12)]
    one.ticks(3)
    one.outputs.begin()
    one.ticks(10, is_over=True)
    one.ticks(1)
    one.ticks(10, is_over=True)
    one.wait(messages, 13)
    assert messages[12].data[0] == pytest.approx(0.01 * (12 + 20 + 3 + 10))


def test_a_lead_is_rounded_up_to_whole_periods(bench):
    assert bench([{**TRAJECTORY, 'lead_ms': 41.0}], JOINTS).outputs.lead_ns == 45 * MS


def test_missing_sees_nobody_and_somebody(bench, graph):
    one = bench(
        [{**ARM, 'columns': ['b']}, {**TRAJECTORY, 'name': 'rest', 'columns': ['a']}], JOINTS
    )
    assert one.outputs.missing() == ('arm', 'rest')
    graph.collect(JointTrajectory, 'arm/joint_trajectory')
    graph.spin_until(lambda: one.outputs.missing() == ('arm',), 'the second one')
    subscription = graph.node.create_subscription(
        Float64MultiArray, 'arm/commands', lambda _: None, 1
    )
    graph.spin_until(lambda: one.outputs.missing() == (), 'both')
    graph.node.destroy_subscription(subscription)
    graph.spin_until(lambda: one.outputs.missing() == ('arm',), 'its end')


def test_nothing_is_left_after_close(bench, graph):
    one = bench([ARM], JOINTS)
    one.outputs.close()
    graph.spin_until(
        lambda: not graph.node.get_publishers_info_by_topic('/arm/commands'), 'the end'
    )
    assert one.outputs.missing() == ()


@pytest.mark.parametrize(
    ('controller', 'columns'),
    [
        ({**ARM, 'kind': 'joint_jog'}, JOINTS),
        ({'name': 'hand', 'kind': 'gripper', 'topic': 'hand/cmd', 'column': 'hand'}, HAND),
    ],
)
def test_a_message_that_is_not_installed_is_one_error(graph, monkeypatch, controller, columns):
    monkeypatch.setitem(sys.modules, 'control_msgs', None)
    with pytest.raises(ConfigurationError, match='control_msgs') as caught:
        Bench(graph, [controller], columns)
    assert caught.value.code == 'missing_dependency'
    assert controller['name'] in caught.value.where


class Jog:
    """Stands in for control_msgs/JointJog."""

    def __init__(self):
        self.header = Header(stamp=Time())
        self.joint_names, self.velocities, self.duration = [], [], 0.0


class Client:
    """Stands in for an action client; its server comes late."""

    def __init__(self, node, action, topic):
        self.topic, self.is_ready, self.goals = topic, False, []

    def server_is_ready(self):
        return self.is_ready

    def send_goal_async(self, goal):
        self.goals.append(goal.command.position)

    def destroy(self):
        self.topic = None


@pytest.fixture
def control_msgs(monkeypatch):
    def action(**fields):
        return SimpleNamespace(Goal=lambda: SimpleNamespace(command=SimpleNamespace(**fields)))

    package = ModuleType('control_msgs')
    package.msg, package.action = ModuleType('control_msgs.msg'), ModuleType('control_msgs.action')
    package.msg.JointJog = Jog
    package.action.GripperCommand = action(position=0.0, max_effort=0.0)
    package.action.ParallelGripperCommand = action(name=[], position=[], effort=[])
    for module in (package, package.msg, package.action):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(tick_outputs, 'ActionClient', Client)


def test_joint_jogs_have_velocities_for_one_period(control_msgs):
    sent = []
    publisher = SimpleNamespace(publish=sent.append, get_subscription_count=lambda: 1)
    node = SimpleNamespace(create_publisher=lambda *_: publisher)
    controller = {**ARM, 'kind': 'joint_jog', 'frame_id': 'base', 'rename': {'a': 'joint_a'}}
    settings = ExecutorSettings.model_validate({'controllers': [controller]}).controllers[0]
    output = tick_outputs.JointJogOutput(node, settings, [1, 0], period_ns=PERIOD_NS)
    output.send(np.array([[1.0, 2.0], [3.0, 4.0]]), START_NS)
    (message,) = sent
    assert message.joint_names == ['b', 'joint_a']
    assert list(message.velocities) == [4.0, 3.0]
    assert message.duration == pytest.approx(0.005)
    assert (message.header.frame_id, to_ns(message.header.stamp)) == ('base', START_NS)


@pytest.mark.parametrize('action', ['gripper_command', 'parallel_gripper_command'])
def test_a_gripper_gets_a_goal_when_its_command_changes(control_msgs, graph, action):
    hand = {'name': 'hand', 'kind': 'gripper', 'topic': 'hand/cmd', 'column': 'hand'}
    hand |= {'action': action, 'max_effort': 4.0, 'deadband': 0.1, 'joint': 'finger'}
    with Bench(graph, [hand], HAND) as one:
        client = one.outputs._ticked[0]._client
        goal = one.outputs._ticked[0]._goal.command
        one.ticks(3)
        assert one.outputs.missing() == ('hand',)
        client.is_ready = True
        one.ticks(22)
        assert one.outputs.missing() == ()
        got = [
            position[0] if isinstance(position, list) else position for position in client.goals
        ]
        assert got == pytest.approx([0.03, 0.14])
        one.outputs.begin()
        one.tick()
        assert len(client.goals) == 3
        if action == 'gripper_command':
            assert goal.max_effort == 4.0
        else:
            assert (goal.name, goal.effort) == (['finger'], [4.0])
