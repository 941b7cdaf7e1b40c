# SPDX-License-Identifier: Apache-2.0
import os
import platform
from pathlib import Path

import pytest
from rclpy.duration import Duration
from std_msgs.msg import String

from vla_policy_ros.ros.process import tune_allocator, use_shipped_middleware_profile
from vla_policy_ros.ros.qos import RELIABLE

pytestmark = pytest.mark.ros

CONFIG = Path(__file__).parents[2] / 'config'

VARIABLES = ('FASTDDS_DEFAULT_PROFILES_FILE', 'FASTRTPS_DEFAULT_PROFILES_FILE')


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Two prefixes, as after `colcon build`: that of a ROS distribution and that of this package."""
    monkeypatch.setattr(os, 'environ', {})
    ros, ours = tmp_path / 'ros', tmp_path / 'ours'
    config = ours / 'share' / 'vla_policy_ros' / 'config'
    config.mkdir(parents=True)
    for library in ('fastdds', 'fastrtps'):
        (config / f'{library}.xml').write_text('<profiles/>')
    os.environ['AMENT_PREFIX_PATH'] = f'{ours}:{ros}'
    return ros, config


@pytest.mark.parametrize(('library', 'variable'), [('fastdds', 0), ('fastrtps', 1)])
def test_the_shipped_profile_is_used(install, library, variable):
    ros, config = install
    (ros / 'share' / library).mkdir(parents=True)
    profile = config / f'{library}.xml'
    assert use_shipped_middleware_profile() == profile
    assert os.environ[VARIABLES[variable]] == str(profile)


def test_the_users_profile_wins(install):
    ros, _ = install
    (ros / 'share' / 'fastdds').mkdir(parents=True)
    os.environ[VARIABLES[0]] = '/my/profile.xml'
    assert str(use_shipped_middleware_profile()) == '/my/profile.xml'


def test_without_an_install_there_is_no_profile(install):
    os.environ['AMENT_PREFIX_PATH'] = '/nowhere'
    assert use_shipped_middleware_profile() is None


def test_the_profiles_say_the_same():
    texts = [(CONFIG / f'{name}.xml').read_text() for name in ('fastdds', 'fastrtps')]
    new, old = (text.partition('-->')[2] for text in texts)
    assert old == new.replace('heartbeat_period', 'heartbeatPeriod')


def test_a_publisher_soon_knows_that_its_last_message_has_come(graph):
    got = graph.collect(String, 'last_words', RELIABLE)
    publisher = graph.node.create_publisher(String, 'last_words', RELIABLE)
    graph.spin_until(publisher.get_subscription_count, 'the listener')
    publisher.publish(String(data='still'))
    # By default the question goes out every 3 s.
    assert publisher.wait_for_all_acked(Duration(seconds=1.0))
    graph.spin_until(lambda: got, 'the message')


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='mallopt is of glibc')
def test_the_allocator_takes_the_setting():
    assert tune_allocator() is True
