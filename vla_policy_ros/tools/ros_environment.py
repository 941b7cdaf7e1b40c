# SPDX-License-Identifier: Apache-2.0
"""The environment of ROS nodes that must not meet any other: a domain of their own, on this machine only."""

from __future__ import annotations

import fcntl
import os
import secrets
import socket
import tempfile
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from typing_extensions import Self

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


class DomainClaim:
    """A ROS domain that nobody else on this machine claims while this is open; a context manager."""

    def __init__(self, domain: int, lock: IO[str]) -> None:
        self.domain = domain
        """Number of the domain."""
        self._lock = lock

    def close(self) -> None:
        """Give the domain back; may be called twice."""
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def claim_free_domain() -> DomainClaim:
    """Claim a ROS domain in which no process of this machine takes part, drawn anew every time.

    A lock file keeps others out of it who claim one before our first node opens its port.

    Raises:
        ConfigurationError: All are taken.
    """
    for domain in secrets.SystemRandom().sample(_DOMAINS, len(_DOMAINS)):
        lock = _lock(domain)
        if lock is None:
            continue
        if _is_free_domain(domain):
            return DomainClaim(domain, lock)
        lock.close()
    raise ConfigurationError(
        'ROS_DOMAIN_ID',
        got='no free domain',
        expected=f'one of {_DOMAINS[0]} to {_DOMAINS[-1]}',
        next_step='Give one with --domain.',
        code='no_free_domain',
    )


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


def _lock(domain: int) -> IO[str] | None:
    """Lock a domain's file; None when another process has it."""
    folder = Path(tempfile.gettempdir()) / f'vla_policy_ros_domains_{os.getuid()}'
    folder.mkdir(exist_ok=True)
    file = (folder / str(domain)).open('w')
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _is_free_domain(domain: int) -> bool:
    """Return whether no process of this machine takes part in a ROS domain."""
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as probe:
        try:
            probe.bind(('', _FIRST_PORT + _PORTS_PER_DOMAIN * domain))
        except OSError:
            return False
    return True
