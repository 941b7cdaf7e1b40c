# SPDX-License-Identifier: Apache-2.0
import socket
import subprocess
import sys
import tempfile

import pytest

from vla_policy_ros.core.errors import ConfigurationError, MissingDependencyError
from vla_policy_ros.tools import ros_environment
from vla_policy_ros.tools.ros_environment import check_ros, claim_free_domain, make_environment


def bind():
    taken = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    taken.bind(('', 0))
    return taken


@pytest.fixture
def only_one_is_free(monkeypatch, tmp_path):
    """Two domains of which the first is taken on this machine, and no claims but this test's."""
    monkeypatch.setenv('TMPDIR', str(tmp_path))
    monkeypatch.setattr(tempfile, 'tempdir', None)
    with bind() as taken:
        with bind() as free:
            ports = taken.getsockname()[1], free.getsockname()[1]
        monkeypatch.setattr(ros_environment, '_FIRST_PORT', ports[0])
        monkeypatch.setattr(ros_environment, '_PORTS_PER_DOMAIN', ports[1] - ports[0])
        monkeypatch.setattr(ros_environment, '_DOMAINS', range(2))
        yield


def test_a_domain_with_nodes_in_it_is_never_claimed(only_one_is_free):
    for _ in range(20):
        with claim_free_domain() as claim:
            assert claim.domain == 1


def test_a_claimed_domain_is_not_claimed_again_until_it_is_given_back(only_one_is_free):
    with claim_free_domain(), pytest.raises(ConfigurationError, match='--domain') as fault:
        claim_free_domain()
    assert fault.value.code == 'no_free_domain'
    claim_free_domain().close()


def test_a_claim_keeps_other_processes_out(only_one_is_free):
    look = (
        'from vla_policy_ros.tools import ros_environment as e\n'
        'e._DOMAINS = range(1, 2)\n'
        'e._is_free_domain = lambda domain: True\n'
        'print(e.claim_free_domain().domain)'
    )
    command = [sys.executable, '-c', look]
    with claim_free_domain():
        kept_out = subprocess.run(command, capture_output=True, text=True)
    assert 'no free domain' in kept_out.stderr
    assert subprocess.run(command, capture_output=True, text=True).stdout == '1\n'


def test_a_free_domain_is_within_the_range_and_differs_from_run_to_run():
    claims = [claim_free_domain() for _ in range(20)]
    assert len({claim.domain for claim in claims}) == 20
    assert all(claim.domain in range(1, 102) for claim in claims)
    for claim in claims:
        claim.close()


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
