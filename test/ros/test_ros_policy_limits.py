# SPDX-License-Identifier: Apache-2.0
"""A policy node with limits: what breaks one never leaves it."""

import numpy as np
import pytest
import yaml
from diagnostic_msgs.msg import DiagnosticArray
from std_msgs.msg import String
from support.policy_robot import PolicyRobot
from support.recordings import CAMERAS, JOINTS
from support.ros_processes import ros_arguments

from vla_policy_ros.ros.convert import to_ns
from vla_policy_ros.ros.lifecycle import FAILURE, SUCCESS
from vla_policy_ros.ros.qos import LATCHED, RELIABLE

pytestmark = pytest.mark.ros

RATES = {
    'has_velocity_limits': True,
    'max_velocity': 2.0,
    'has_acceleration_limits': True,
    'max_acceleration': 10.0,
}
RANGE = {'has_position_limits': True, 'min_position': -1.0, 'max_position': 1.0}
JOINT = '<joint name="{}" type="revolute"><limit lower="-0.5" upper="0.5" velocity="1"/></joint>'
URDF = f'<robot name="arm">{"".join(JOINT.format(name) for name in JOINTS)}</robot>'


class Robot(PolicyRobot):
    """A policy node that holds the pose it sees, so that the test chooses its chunks; and what it publishes."""

    def __init__(self, graph, **arguments):
        super().__init__(graph, **arguments)
        self.diagnostics = graph.collect(DiagnosticArray, '/diagnostics', RELIABLE)

    def start(self):
        assert self.node.trigger_configure() == SUCCESS
        assert self.node.trigger_activate() == SUCCESS
        self.wait_until_matched()

    def infer(self, *positions):
        """Show the policy a pose; return the acknowledgement of that sample."""
        stamp_ns = self.publish(positions)

        def answers():
            return [ack for ack in self.acks if to_ns(ack.header.stamp) == stamp_ns]

        self.spin_until(answers, 'the acknowledgement')
        return answers()[0]

    def wait_for_chunks(self, count):
        self.spin_until(lambda: len(self.chunks) == count, f'{count} chunks')

    def told(self):
        """Return what the diagnostics say last."""
        ours = [s for message in self.diagnostics for s in message.status if 'policy' in s.name]
        return {entry.key: entry.value for entry in ours[-1].values} if ours else {}


@pytest.fixture
def make_robot(graph, processes, recording, tmp_path):
    """Return a function that makes a node with a section `limits` and entries of the limits file."""
    robots = []

    def make(limits, entry=None, **parameters):
        document = {
            'policy': {'bundle': str(recording.bundle), 'engine': 'none'},
            'cameras': {name: {'topic': f'/camera/{name}/image_raw'} for name in CAMERAS},
            'joint_states': [{'topic': '/joint_states'}],
            'matching': {'patience_ms': 10_000},
            'instruction': {'text': 'hold'},
        }
        if limits is not None:
            document['limits'] = {'file': 'limits.yaml', **limits}
        config = tmp_path / 'robot.yaml'
        config.write_text(yaml.safe_dump(document))
        entries = dict.fromkeys(JOINTS, {**RATES, **RANGE} if entry is None else entry)
        (tmp_path / 'limits.yaml').write_text(yaml.safe_dump({'joint_limits': entries}))
        settings = {'config': config, 'status_period_s': 0.1, **parameters}
        arguments = ros_arguments(tmp_path / 'parameters.yaml', 'policy_node', settings)
        robots.append(Robot(graph, domain_id=processes.domain_id, arguments=arguments))
        return robots[-1]

    yield make
    for robot in robots:
        robot.close()


def test_a_chunk_outside_of_the_limits_never_leaves_the_node(make_robot):
    robot = make_robot({'urdf_topic': '', 'mode': 'reject'})
    robot.start()
    assert robot.infer(0.0, 0.9, 0.0).accepted
    refused = robot.infer(0.0, 1.1, 0.0)
    assert (refused.accepted, refused.stream, refused.cause) == (False, 'policy', 'position_limit')
    assert 'joint_1' in refused.detail
    assert robot.infer(0.0, -0.9, 0.0).accepted
    robot.wait_for_chunks(2)
    values = [chunk.values[1] for chunk in robot.chunks]
    np.testing.assert_allclose(values, [0.9, -0.9])
    robot.spin_until(lambda: robot.status[-1].refused, 'a status that counts it')
    counts = dict(
        zip(robot.status[-1].refusal_causes, robot.status[-1].refusal_counts, strict=True)
    )
    assert counts == {'policy/position_limit': 1}


def test_a_clamped_chunk_leaves_within_the_limits_and_is_counted(make_robot):
    robot = make_robot({'urdf_topic': '', 'mode': 'clamp'})
    robot.start()
    assert robot.infer(0.0, 1.1, 0.0).accepted
    robot.wait_for_chunks(1)
    assert max(robot.chunks[0].values) <= 1.0
    key = 'mended position_limit joint_1'
    robot.spin_until(lambda: robot.told().get(key) == '1', 'the diagnostics')


def test_a_stretched_chunk_keeps_its_range(make_robot):
    robot = make_robot({'urdf_topic': '', 'mode': 'stretch'})
    robot.start()
    assert robot.infer(0.0, 1.1, 0.0).cause == 'position_limit'


def test_the_limits_come_from_the_robot_description(make_robot, graph):
    publisher = graph.node.create_publisher(String, '/robot_description', LATCHED)
    publisher.publish(String(data=URDF))
    robot = make_robot({'mode': 'reject'})
    robot.start()
    assert robot.infer(0.0, 0.0, 0.6).cause == 'position_limit'
    assert robot.infer(0.0, 0.0, 0.4).accepted


def test_without_limits_only_numbers_that_are_not_finite_are_refused(make_robot):
    robot = make_robot(None)
    robot.start()
    assert robot.infer(0.0, 1e6, 0.0).accepted
    assert not robot.infer(0.0, np.nan, 0.0).accepted
    assert not robot.infer(np.inf, 0.0, 0.0).accepted
    robot.wait_for_chunks(1)


@pytest.mark.parametrize(
    ('limits', 'entry', 'told'),
    [
        ({'urdf_topic': ''}, RATES, 'position_min, position_max'),
        ({'urdf_topic': ''}, {**RATES, **RANGE, 'max_velocity': float('nan')}, 'max_velocity'),
        ({'urdf_topic': ''}, {**RATES, **RANGE, 'max_velocity': -2.0}, 'velocity: got -2'),
        ({'urdf_topic': ''}, {**RATES, **RANGE, 'min_position': 2.0}, 'below position_max'),
        ({'urdf_topic': '', 'file': 'nowhere.yaml'}, None, 'nowhere.yaml'),
        ({'urdf_topic': '', 'file': ''}, None, 'no position_min'),
        ({}, None, '/robot_description: got no text within 0 s (no publisher)'),
    ],
)
def test_limits_that_are_missing_or_wrong_refuse_to_configure(
    make_robot, limits, entry, told, capfd
):
    robot = make_robot(limits, entry, description_timeout_s=0.0)
    assert robot.node.trigger_configure() == FAILURE
    log = capfd.readouterr().err
    assert 'cannot configure: ' in log
    assert told in log
    assert 'Traceback' not in log
