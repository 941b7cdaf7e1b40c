# SPDX-License-Identifier: Apache-2.0
"""A test's side of an executor node: its file, a policy of waves, the robot that obeys, and the check of every command."""

from __future__ import annotations

import time
from array import array

import numpy as np
import yaml
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool, Float64MultiArray
from std_srvs.srv import Trigger

from vla_policy_ros.core.chunk import ActionChunk
from vla_policy_ros.core.observation import Instruction
from vla_policy_ros.core.specs import Column
from vla_policy_ros.deployment.executor import load_executor
from vla_policy_ros.deployment.limits import load_limits
from vla_policy_ros.msg import ActionChunk as ChunkMessage
from vla_policy_ros.msg import ExecutorStatus, MotionCommand
from vla_policy_ros.ros.convert import chunk_to_message, to_ns, to_time
from vla_policy_ros.ros.qos import LATCHED, RELIABLE
from vla_policy_ros.sample import sample_executor_path

JOINTS = ('shoulder', 'elbow', 'wrist')
COLUMNS = tuple(Column(name, 'rad') for name in JOINTS)
STEP_NS = 50_000_000
HORIZON = 16
PERIOD_NS = 5_000_000
CHUNK_PERIOD_NS = 200_000_000
JOINTS_PERIOD_NS = 10_000_000
AMPLITUDE = 0.4
_NODE = '/executor_node'
_LIMIT = {
    'has_position_limits': True,
    'min_position': -3.0,
    'max_position': 3.0,
    'has_velocity_limits': True,
    'max_velocity': 2.0,
    'has_acceleration_limits': True,
    'max_acceleration': 8.0,
}


def write_executor_file(folder, *, joints=JOINTS, **changes):
    """Write an executor file with one forward_command controller and a limits file; return its path.

    A chunk is missed after 500 ms, and nothing else hurries, so that a machine that is busy does not stop the robot.
    """
    (folder / 'limits.yaml').write_text(
        yaml.safe_dump({'joint_limits': dict.fromkeys(joints, _LIMIT)})
    )
    document = {
        'rate_hz': 1e9 / PERIOD_NS,
        'strategy': {'name': 'offset_fade'},
        'limits': {'urdf_topic': '', 'file': 'limits.yaml'},
        'first_action': {'tolerance': 1.0, 'soft_start_share': 0.9},
        'watchdogs': {
            'chunk': {'timeout_ms': 500, 'action': 'decelerate'},
            'measured': {'timeout_ms': 60_000, 'action': 'report'},
            'subscriber': {'timeout_ms': 60_000, 'action': 'stop'},
            'tick': {'timeout_ms': 60_000, 'action': 'report'},
        },
        'controllers': [
            {
                'kind': 'forward_command',
                'name': 'arm',
                'topic': 'arm_controller/commands',
                'columns': list(joints),
            }
        ],
        **changes,
    }
    path = folder / 'executor.yaml'
    path.write_text(yaml.safe_dump(document))
    return path


def write_sample_executor_file(folder):
    """Write an executor file for the sample bundle, with one controller for all of its columns; return its path."""
    sample = sample_executor_path()
    document = yaml.safe_load(sample.read_text())
    columns = [name for entry in document['controllers'] for name in entry['columns']]
    path = write_executor_file(
        folder, joints=columns, first_action={'tolerance': None, 'soft_start_share': 0.9}
    )
    (folder / 'limits.yaml').write_text((sample.parent / 'limits.yaml').read_text())
    return path


class Robot:
    """What surrounds one executor node: whoever spins through this plays policy and robot at the same time.

    Args:
        graph: The test's node.
        columns: Columns of the action.
    """

    def __init__(self, graph, *, columns=COLUMNS):
        self.graph = graph
        self.columns = columns
        self.motion = graph.collect(MotionCommand, 'motion_command', RELIABLE)
        self.commands = graph.collect(Float64MultiArray, 'arm_controller/commands', 1000)
        self.statuses = graph.collect(ExecutorStatus, 'executor_status', LATCHED)
        create = graph.node.create_publisher
        self.chunks = create(ChunkMessage, 'action_chunk', RELIABLE)
        self.joints = create(JointState, 'joint_states', 10)
        self.stops = create(Bool, 'stop', LATCHED)
        self.sends_chunks = True
        self.follows = True
        self.sequence = 0
        self._chunk_ns = self._joints_ns = 0

    @property
    def state(self):
        """State that the newest status tells."""
        return self.statuses[-1].state if self.statuses else ''

    @property
    def status(self):
        """The newest status."""
        return self.statuses[-1]

    def now_ns(self):
        """Return the time of the graph."""
        return self.graph.node.get_clock().now().nanoseconds

    def spin_until(self, condition, what):
        """Play policy and robot until a condition holds."""
        self.graph.spin_until(lambda: self.play() or condition(), what)

    def play(self):
        """Publish what is due."""
        now_ns = time.monotonic_ns()
        if self.sends_chunks and now_ns - self._chunk_ns >= CHUNK_PERIOD_NS:
            self._chunk_ns = now_ns
            self.send_chunk()
        if self.follows and now_ns - self._joints_ns >= JOINTS_PERIOD_NS:
            self._joints_ns = now_ns
            self.send_joints()

    def send_chunk(self, **changes):
        """Publish the chunk of an observation of now: waves in absolute time."""
        now_ns = self.now_ns()
        times_s = (now_ns % 10**13 + np.arange(HORIZON) * STEP_NS) * 1e-9
        rows = [AMPLITUDE * np.sin(2.0 * times_s + index) for index in range(len(self.columns))]
        given = {
            'actions': np.stack(rows, axis=1).astype(np.float32),
            'columns': self.columns,
            'step_ns': STEP_NS,
            'start_ns': now_ns,
            'observation_stamp_ns': now_ns,
            'sequence': self.sequence,
            'instruction': Instruction('wave', 1),
            'policy_id': 'waves@1',
            **changes,
        }
        self.sequence += 1
        message = chunk_to_message(ActionChunk(**given), publish_stamp_ns=now_ns)
        self.chunks.publish(message)

    def send_joints(self, names=None):
        """Publish where the joints are: at their last command."""
        where = (
            dict(zip(self.motion[-1].names, self.motion[-1].positions, strict=True))
            if self.motion
            else {}
        )
        names = [column.name for column in self.columns] if names is None else list(names)
        positions = [where.get(name, 0.0) for name in names]
        message = JointState(name=names, position=array('d', positions))
        message.header.stamp = to_time(self.now_ns())
        self.joints.publish(message)

    def ask(self, service):
        """Call a service of the node; return its response."""
        return self.graph.call(Trigger, f'{_NODE}/{service}')

    def start(self):
        """Arm, and play until the chunks are tracked and the robot moves."""
        self.spin_until(lambda: self.state == 'unarmed', 'an active executor')
        assert self.ask('arm').success
        self.spin_until(lambda: self.state == 'tracking', 'tracking')
        self.move()

    def move(self):
        """Play until every joint moves."""
        self.spin_until(
            lambda: self.motion and min(abs(v) for v in self.motion[-1].velocities) > 0.05,
            'a robot that moves',
        )

    def wait_for_state(self, *states):
        """Play until the executor is in a state."""
        self.spin_until(lambda: self.state in states, f'{" or ".join(states)}')

    def wait_for_hold(self):
        """Play until the executor, starved, commands rest; the status may come before the commands that it tells of."""
        self.spin_until(
            lambda: self.motion[-1].state == 'starved' and not np.any(self.motion[-1].velocities),
            'a hold',
        )

    def wait_for_quiet(self):
        """Play until what the controller got is all that there will be."""
        self.spin_until(
            lambda: self.motion and self.motion[-1].state in ('unarmed', 'stopped'), 'the end'
        )


def assert_within_limits(motion, executor_file):
    """Check every command by the differences of what was published, tick by tick; return the (N, D) positions."""
    settings = load_executor(executor_file)
    columns = tuple(Column(name, 'rad') for name in motion[0].names)
    limits = load_limits(settings.limits, columns)
    positions = np.array([message.positions for message in motion])
    period_s = settings.period_ns * 1e-9
    rates = np.diff(positions, axis=0) / period_s
    changes = np.diff(rates, axis=0) / period_s
    assert (positions >= limits.position_min - 1e-9).all()
    assert (positions <= limits.position_max + 1e-9).all()
    assert (np.abs(rates) <= limits.velocity * (1 + 1e-6) + 1e-9).all()
    assert (np.abs(changes) <= limits.acceleration * (1 + 1e-6) + 1e-6).all()
    return positions


def assert_sent_as_told(commands, motion):
    """Check that the controller got commands that were told, in order; a message may be lost on a busy machine.

    The executor tells commands only once it has discovered a listener: those of the first moments may be untold.
    """
    told = [list(message.positions) for message in motion]
    sent = [list(command.data) for command in commands]
    first = next(index for index, position in enumerate(sent) if position in told)
    assert first < len(sent) / 2
    left = iter(told)
    for index, position in enumerate(sent[first:], first):
        assert any(position == other for other in left), f'command {index} of {len(sent)}'


def assert_at_rest(motion):
    """Check that the last command is one of rest, which was come to and not jumped to."""
    assert not np.any(motion[-1].velocities)
    assert list(motion[-1].positions) == list(motion[-2].positions)


def stamps_ns(motion):
    """Return the times that commands are meant for."""
    return np.array([to_ns(message.header.stamp) for message in motion])
