# SPDX-License-Identifier: Apache-2.0
import json
import sys

import pytest
import yaml
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image, JointState

from vla_policy_ros.deployment.config import load_deployment
from vla_policy_ros.ros.inspect_topics import inspect_topics, main

pytestmark = pytest.mark.ros

BEST_EFFORT = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
PERIOD_S = 0.02


@pytest.fixture
def config(tmp_path):
    path = tmp_path / 'robot.yaml'
    document = {
        'policy': {'bundle': 'sample'},
        'cameras': {
            'front': {'topic': '/front'},
            'wrist': {'topic': '/wrist', 'transport': 'compressed'},
            'side': {'topic': '/side'},
        },
        'joint_states': [{'topic': '/joints'}],
    }
    path.write_text(yaml.safe_dump(document))
    return path


def make_image():
    image = Image(height=2, width=3, encoding='bgr8', step=9, data=bytes(18))
    image.header.stamp.sec = 1
    return image


def publish_robot(graph):
    """Publish what a robot would: images, compressed ones without stamp, joint states; nothing on /side."""
    node = graph.node
    front = node.create_publisher(Image, '/front', BEST_EFFORT)
    wrist = node.create_publisher(CompressedImage, '/wrist', 10)
    joints = node.create_publisher(JointState, '/joints', 10)
    state = JointState(name=['pan', 'lift'], position=[0.0, 1.0])
    state.header.stamp.sec = 1

    def publish():
        front.publish(make_image())
        wrist.publish(CompressedImage(format='jpeg', data=b'\xff\xd8'))
        joints.publish(state)

    return node.create_timer(PERIOD_S, publish)


def by_stream(topics):
    return {topic['stream']: topic for topic in topics}


def test_topics_are_described(graph, processes, config):
    publish_robot(graph)
    module = 'vla_policy_ros.ros.inspect_topics'
    process = processes.start(
        sys.executable, '-m', module, '--config', str(config), '--seconds', '3'
    )
    graph.spin_until(lambda: '{"topics"' in process.log, 'the answer')
    assert process.wait() == 0
    line = next(line for line in process.log.splitlines() if line.startswith('{"topics"'))
    topics = by_stream(json.loads(line)['topics'])
    front, wrist, joints = topics['front'], topics['wrist'], topics['joint_states[0]']
    assert front['publishers'] == [
        {
            'node': '/test_node',
            'type': 'sensor_msgs/msg/Image',
            'reliability': 'best_effort',
            'durability': 'volatile',
        }
    ]
    assert (front['encodings'], front['sizes'], front['zero_stamps']) == (['bgr8'], ['3 x 2'], 0)
    assert front['num_messages'] > 1
    assert front['rate_hz'] > 0
    assert wrist['encodings'] == ['jpeg']
    assert wrist['zero_stamps'] == wrist['num_messages'] > 0
    assert joints['joints'] == ['pan', 'lift']
    assert topics['side']['publishers'] == []
    assert topics['side']['num_messages'] == 0


def test_publisher_of_another_type_is_seen_and_not_heard(graph, tmp_path):
    path = tmp_path / 'robot.yaml'
    path.write_text(
        yaml.safe_dump({'policy': {'bundle': 'sample'}, 'cameras': {'front': {'topic': '/front'}}})
    )
    graph.node.create_publisher(CompressedImage, '/front', 1)
    graph.spin_until(lambda: graph.node.count_publishers('/front'), 'the publisher')
    (facts,) = inspect_topics(graph.node, graph.executor, load_deployment(path), 0.3)
    assert facts.publishers[0]['type'] == 'sensor_msgs/msg/CompressedImage'
    assert facts.num_messages == 0


def test_broken_configuration_is_told(tmp_path, capsys):
    path = tmp_path / 'robot.yaml'
    path.write_text('policy: {}')
    assert main(['--config', str(path)]) == 1
    assert json.loads(capsys.readouterr().out)['error']['where'].startswith(str(path))
