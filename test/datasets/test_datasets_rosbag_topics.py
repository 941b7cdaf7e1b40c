# SPDX-License-Identifier: Apache-2.0
"""Which topics are taken, and what cameras are called."""

import pytest

from vla_policy_ros.core.errors import DatasetError
from vla_policy_ros.datasets.rosbag_topics import (
    COMPRESSED_IMAGE,
    IMAGE,
    JOINT_STATE,
    STRING,
    BagTopics,
    choose_topics,
    name_cameras,
)


@pytest.mark.parametrize(
    ('topics', 'names'),
    [
        (['/camera/front/image_raw'], ['front']),
        (['/camera/front/image_raw/compressed', '/wrist/image'], ['front', 'wrist']),
        (['/front/image_rect_color'], ['front']),
        (['/left/cam/image_raw', '/right/cam/image_raw'], ['left_cam', 'right_cam']),
        (['/front'], ['front']),
        (['/image_raw'], ['camera']),
        (['/cam/0/image_raw', '/cam/1/image_raw'], ['_0', '_1']),
    ],
)
def test_camera_names(topics, names):
    assert list(name_cameras(topics)) == names


def test_the_raw_topic_of_a_camera_is_preferred():
    types = {
        '/a/image_raw/compressed': COMPRESSED_IMAGE,
        '/a/image_raw': IMAGE,
        '/b/image_raw/compressed': COMPRESSED_IMAGE,
    }
    chosen = choose_topics(types, BagTopics(), 'bag')
    assert chosen.cameras == {'a': '/a/image_raw', 'b': '/b/image_raw/compressed'}


def test_commands_are_actions_and_only_prompts_are_instructions():
    types = {
        '/image': IMAGE,
        '/joint_states': JOINT_STATE,
        '/joint_command': JOINT_STATE,
        '/chatter': STRING,
        '/robot/task': STRING,
    }
    chosen = choose_topics(types, BagTopics(), 'bag')
    assert chosen.state == ('/joint_states',)
    assert chosen.action == ('/joint_command',)
    assert chosen.instruction == '/robot/task'
    assert chosen.all() == ('/image', '/joint_states', '/joint_command', '/robot/task')


@pytest.mark.parametrize(
    ('topics', 'code', 'told'),
    [
        (BagTopics(cameras=('/nope',)), 'unknown_topic', '/joint_states'),
        (BagTopics(cameras=('/joint_states',)), 'wrong_topic_type', 'sensor_msgs/msg/Image'),
        (BagTopics(state=('/image',)), 'wrong_topic_type', 'JointState'),
        (BagTopics(instruction='/image'), 'wrong_topic_type', 'String'),
        (BagTopics(cameras=()), 'no_camera', 'an image topic'),
    ],
)
def test_wrong_topics_are_refused(topics, code, told):
    types = {'/image': IMAGE, '/joint_states': JOINT_STATE}
    with pytest.raises(DatasetError) as fault:
        choose_topics(types, topics, 'bag')
    assert fault.value.code == code
    assert told in fault.value.expected
