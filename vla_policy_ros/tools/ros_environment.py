# SPDX-License-Identifier: Apache-2.0
"""The environment of ROS nodes that must not meet any other: a domain of their own, on this machine only."""

from __future__ import annotations

import os
import secrets
import socket
from contextlib import closing
from importlib.util import find_spec

from vla_policy_ros.core.errors import ConfigurationError, MissingDependencyError

_DOMAINS = range(1, 102)
# DDSI-RTPS 2.5, 9.6.2: multicast discovery of domain d is at port 7400 + 250 d.
_FIRST_PORT, _PORTS_PER_DOMAIN = 7400, 250


def check_ros() -> None:
    """Make sure that nodes can be started.

    Raises:
        MissingDependencyError: rclpy or the generated messages cannot be imported.
    """
    for module, what in (('rclpy', 'ROS 2'), ('vla_policy_ros.msg', 'the built ROS messages')):
        if find_spec(module) is None:
            raise MissingDependencyError(
                f'Python module {module}',
                got='nothing of that name',
                expected=f'{what} in this environment',
                next_step='Run `scripts/shell vla-policy ...`, or source install/setup.bash of your workspace.',
            )


def find_free_domain() -> int:
    """Return a ROS domain in which no process of this machine takes part, drawn anew every time.

    Raises:
        ConfigurationError: All are taken.
    """
    free = [domain for domain in _DOMAINS if is_free_domain(domain)]
    if not free:
        raise ConfigurationError(
            'ROS_DOMAIN_ID',
            got='no free domain',
            expected=f'one of {_DOMAINS[0]} to {_DOMAINS[-1]}',
            next_step='Give one with --domain.',
            code='no_free_domain',
        )
    return secrets.choice(free)


def make_environment(domain: int) -> dict[str, str]:
    """Return the environment of this process, changed so that nodes stay on this machine and in one domain."""
    environment = {
        **os.environ,
        'ROS_DOMAIN_ID': str(domain),
        'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST',
        'PYTHONUNBUFFERED': '1',
        'RCUTILS_COLORIZED_OUTPUT': '0',
    }
    environment.pop('ROS_STATIC_PEERS', None)
    if environment.get('ROS_DISTRO') == 'humble':  # which knows nothing of the discovery range
        environment['ROS_LOCALHOST_ONLY'] = '1'
    return environment


def is_free_domain(domain: int) -> bool:
    """Return whether no process of this machine takes part in a ROS domain."""
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as probe:
        try:
            probe.bind(('', _FIRST_PORT + _PORTS_PER_DOMAIN * domain))
        except OSError:
            return False
    return True
