# SPDX-License-Identifier: Apache-2.0
import socket

import pytest

from vla_policy_ros.core.errors import ConfigurationError, MissingDependencyError
from vla_policy_ros.tools import ros_environment
from vla_policy_ros.tools.ros_environment import check_ros, find_free_domain, make_environment


def bind():
    taken = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    taken.bind(('', 0))
    return taken


@pytest.fixture
def only_one_is_free(monkeypatch):
    """Two domains of which the first is taken on this machine."""
    with bind() as taken:
        with bind() as free:
            ports = taken.getsockname()[1], free.getsockname()[1]
        monkeypatch.setattr(ros_environment, '_FIRST_PORT', ports[0])
        monkeypatch.setattr(ros_environment, '_PORTS_PER_DOMAIN', ports[1] - ports[0])
        monkeypatch.setattr(ros_environment, '_DOMAINS', range(2))
        yield


def test_a_taken_domain_is_never_drawn(only_one_is_free):
    assert {find_free_domain() for _ in range(20)} == {1}


def test_without_a_free_domain_the_user_has_to_choose(only_one_is_free, monkeypatch):
    monkeypatch.setattr(ros_environment, '_DOMAINS', range(1))
    with pytest.raises(ConfigurationError, match='--domain') as fault:
        find_free_domain()
    assert fault.value.code == 'no_free_domain'


def test_a_free_domain_is_within_the_range():
    assert find_free_domain() in range(1, 102)


def test_domains_differ_from_run_to_run():
    assert len({find_free_domain() for _ in range(20)}) > 1


def test_the_environment_keeps_nodes_on_this_machine(monkeypatch):
    monkeypatch.setenv('ROS_DOMAIN_ID', '0')
    monkeypatch.setenv('ROS_AUTOMATIC_DISCOVERY_RANGE', 'SUBNET')
    monkeypatch.setenv('ROS_STATIC_PEERS', 'robot.local')
    monkeypatch.setenv('ROS_DISTRO', 'jazzy')
    monkeypatch.setenv('KEPT', 'yes')
    environment = make_environment(17)
    assert environment['ROS_DOMAIN_ID'] == '17'
    assert environment['ROS_AUTOMATIC_DISCOVERY_RANGE'] == 'LOCALHOST'
    assert 'ROS_STATIC_PEERS' not in environment
    assert environment['KEPT'] == 'yes'


def test_humble_has_a_variable_of_its_own(monkeypatch):
    monkeypatch.delenv('ROS_LOCALHOST_ONLY', raising=False)
    monkeypatch.setenv('ROS_DISTRO', 'kilted')
    assert 'ROS_LOCALHOST_ONLY' not in make_environment(1)
    monkeypatch.setenv('ROS_DISTRO', 'humble')
    assert make_environment(1)['ROS_LOCALHOST_ONLY'] == '1'


@pytest.mark.parametrize('missing', ['rclpy', 'vla_policy_ros.msg'])
def test_without_ros_the_remedy_is_named(monkeypatch, missing):
    monkeypatch.setattr(
        ros_environment, 'find_spec', lambda name: None if name == missing else object()
    )
    with pytest.raises(MissingDependencyError, match='scripts/shell') as fault:
        check_ros()
    assert missing in fault.value.where
