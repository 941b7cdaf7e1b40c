# SPDX-License-Identifier: Apache-2.0
"""What `vla-policy doctor` looks at for ROS: the environment, the middleware, and the live topics of a deployment.

The topics are looked at by `ros.inspect_topics` in a process of its own; here its answer is judged.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vla_policy_ros.deployment.config import CameraSource, Deployment, JointSource
from vla_policy_ros.tools.doctor_checks import Check, State, is_installed

SEGMENT_BYTES = 64 * 2**20
"""Shared memory that each process takes with the shipped Fast DDS profile (config/fastdds.xml, fastrtps.xml)."""
# Fast DDS 3 (Kilted and later), then 2.
_PROFILE_VARIABLES = ('FASTDDS_DEFAULT_PROFILES_FILE', 'FASTRTPS_DEFAULT_PROFILES_FILE')
_FEWEST_SEGMENTS = 4  # policy node, two cameras, one more
_SOCKET_BUFFER_BYTES = 4 * 2**20  # holds the fragments of a colour image of 1 megapixel
_SOCKET_LIMIT = Path('/proc/sys/net/core/rmem_max')
_RATE_TOLERANCE = 0.2
_PATIENCE_S = 30.0


def check_ros() -> list[Check]:
    """Look at the ROS environment and at what images between processes need."""
    return [
        _check_distribution(),
        _check_messages(),
        _check_middleware(),
        _check_profile(),
        _check_shared_memory(Path('/dev/shm')),  # noqa: S108 - shared memory, no temporary file
        _check_socket_buffers(_SOCKET_LIMIT),
        _check_allocator(),
    ]


def check_topics(
    config: Path, deployment: Deployment, joints: Sequence[str], seconds: float
) -> list[Check]:
    """Look at the live topics of a deployment; blocks for `seconds` and a moment.

    Args:
        config: The deployment file.
        deployment: What it says.
        joints: Names of the policy's state that come from joint states; empty when they are not known.
        seconds: How long to listen.
    """
    command = [sys.executable, '-m', 'vla_policy_ros.ros.inspect_topics', '--config', str(config)]
    command += ['--seconds', str(seconds)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds + _PATIENCE_S, check=False
        )
    except subprocess.TimeoutExpired:
        return [_no_answer(f'no answer within {seconds + _PATIENCE_S:.0f} s')]
    answers = [line for line in done.stdout.splitlines() if line.startswith('{"topics"')]
    if done.returncode or not answers:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ['nothing said']
        return [_no_answer(f'status {done.returncode}: {said[-1].strip()}')]
    sources: dict[str, CameraSource | JointSource] = {
        **deployment.cameras,
        **dict(zip(deployment.joint_streams, deployment.joint_states, strict=True)),
    }
    topics = json.loads(answers[-1])['topics']
    return [judge_topic(facts, sources[facts['stream']], joints) for facts in topics]


def judge_topic(
    facts: Mapping[str, Any], source: CameraSource | JointSource, joints: Sequence[str]
) -> Check:
    """Compare what was seen of one topic with the deployment.

    Args:
        facts: `ros.inspect_topics.TopicFacts` as a document.
        source: What the deployment says of it.
        joints: Names of the policy's state; empty when they are not known.
    """
    name = f'topic {facts["topic"]}'
    purpose = f'{facts["stream"]} of the policy'
    publishers: list[dict[str, str]] = facts['publishers']
    if not publishers:
        step = 'Start its publisher, check ROS_DOMAIN_ID and the name (`ros2 topic list`).'
        return Check(name, 'missing', 'no publisher', purpose, step)
    for problem, step in (
        *_type_problems(facts, publishers),
        *_message_problems(facts),
        *_quality_problems(publishers),
        *(
            _camera_problems(facts, source)
            if isinstance(source, CameraSource)
            else _joint_problems(facts, source, joints)
        ),
    ):
        return Check(name, 'problem', problem, purpose, step)
    return Check(name, 'ok', _describe(facts, publishers), purpose)


Problems = list[tuple[str, str]]


def _type_problems(facts: Mapping[str, Any], publishers: Sequence[Mapping[str, str]]) -> Problems:
    expected = facts['expected_type']
    return [
        (
            f'{publisher["node"]} publishes {publisher["type"]}, expected {expected}',
            'Correct the topic, or `transport` of the camera.',
        )
        for publisher in publishers
        if publisher['type'] != expected
    ]


def _message_problems(facts: Mapping[str, Any]) -> Problems:
    if not facts['num_messages']:
        step = 'Check that the publisher runs, and that shared memory is large enough (above).'
        return [('a publisher, but no message', step)]
    problems: Problems = [
        (f'messages that cannot be read: {fault}', 'Correct the publisher.')
        for fault in facts['faults']
    ]
    if facts['zero_stamps']:
        step = 'Let the driver stamp its messages, or set matching.time_source: receive.'
        problems.append((f'{facts["zero_stamps"]} messages without a stamp', step))
    return problems


def _quality_problems(publishers: Sequence[Mapping[str, str]]) -> Problems:
    offers = {(p['reliability'], p['durability']) for p in publishers}
    if len(offers) == 1:
        return []
    said = '; '.join(f'{p["node"]}: {p["reliability"]}, {p["durability"]}' for p in publishers)
    return [(f'publishers of different QoS: {said}', 'Leave one publisher, or give all one QoS.')]


def _camera_problems(facts: Mapping[str, Any], source: CameraSource) -> Problems:
    from vla_policy_ros.core.errors import ImageError
    from vla_policy_ros.preprocess.decode import ENCODINGS, compressed_encoding

    problems: Problems = []
    for encoding in facts['encodings']:
        try:
            known = compressed_encoding(encoding) if source.transport == 'compressed' else encoding
        except ImageError:
            known = ''
        if known not in ENCODINGS:
            step = f'Let the camera send one of {", ".join(ENCODINGS)}.'
            problems.append((f'encoding {encoding!r}', step))
    rate_hz, wanted_hz = facts['rate_hz'], source.rate_hz
    if wanted_hz and rate_hz is not None and rate_hz < wanted_hz * (1 - _RATE_TOLERANCE):
        step = 'Check the camera, the load and the network; or correct rate_hz.'
        problems.append((f'{rate_hz:.1f} Hz, expected {wanted_hz:g} Hz', step))
    return problems


def _joint_problems(
    facts: Mapping[str, Any], source: JointSource, joints: Sequence[str]
) -> Problems:
    seen = {source.rename.get(name, name) for name in facts['joints']}
    missing = [name for name in (source.names or joints) if name not in seen]
    if not missing:
        return []
    found = f'no joint {", ".join(missing)} among {", ".join(facts["joints"]) or "none"}'
    return [(found, 'Correct `rename` or `names` of this source.')]


def _describe(facts: Mapping[str, Any], publishers: Sequence[Mapping[str, str]]) -> str:
    rate_hz = facts['rate_hz']
    kind = publishers[0]
    parts = [
        f'{rate_hz:.1f} Hz' if rate_hz is not None else 'one message',
        ', '.join(facts['encodings']),
        ', '.join(facts['sizes']),
        f'{len(facts["joints"])} joints' if facts['joints'] else '',
        kind['reliability'].replace('_', ' '),
        f'from {kind["node"]}',
    ]
    return ', '.join(part for part in parts if part)


def _no_answer(found: str) -> Check:
    step = 'Source ROS and the built workspace; run `python -m vla_policy_ros.ros.inspect_topics`.'
    return Check('topics', 'problem', found, 'live topics against the configuration', step)


def _check_distribution() -> Check:
    purpose = 'nodes, replay, demo'
    distribution = os.environ.get('ROS_DISTRO', '')
    if not is_installed('rclpy'):
        step = 'Source /opt/ros/<distribution>/setup.bash, or use scripts/shell.'
        found = f'{distribution or "not sourced"}, no Python module rclpy'
        return Check('ROS 2', 'missing', found, purpose, step)
    return Check('ROS 2', 'ok', distribution or 'rclpy, ROS_DISTRO is not set', purpose)


def _check_messages() -> Check:
    is_there = is_installed('vla_policy_ros.msg')
    found = (
        'vla_policy_ros.msg can be imported' if is_there else 'no Python module vla_policy_ros.msg'
    )
    step = 'Build the workspace with colcon and source install/setup.bash, or use scripts/shell.'
    return Check('our messages', 'ok' if is_there else 'missing', found, 'nodes', step)


def _check_middleware() -> Check:
    chosen = os.environ.get('RMW_IMPLEMENTATION') or "the distribution's default"
    domain = os.environ.get('ROS_DOMAIN_ID') or '0'
    found = f'{chosen}, domain {domain}'
    return Check('middleware', 'ok', found, 'all machines of a robot need the same')


def _check_profile() -> Check:
    purpose = 'images between processes, in shared memory'
    step = (
        'For every publisher of images, set FASTDDS_DEFAULT_PROFILES_FILE to our config/fastdds.xml '
        '(Humble, Jazzy: FASTRTPS_DEFAULT_PROFILES_FILE to fastrtps.xml).'
    )
    chosen = next((os.environ[v] for v in _PROFILE_VARIABLES if os.environ.get(v)), '')
    if not chosen:
        found = 'none in this shell; nodes of this package take the shipped one'
        return Check('DDS profile', 'missing', found, purpose, step)
    path = Path(chosen)
    text = path.read_text(encoding='utf-8', errors='replace') if path.is_file() else ''
    size = re.search(r'<segment_size>\s*(\d+)', text)
    if not size or int(size[1]) < SEGMENT_BYTES:
        what = f'a segment of {size[1]} bytes' if size else 'no segment_size'
        return Check('DDS profile', 'problem', f'{what} in {chosen}', purpose, step)
    return Check('DDS profile', 'ok', f'segments of {_mib(int(size[1]))} in {chosen}', purpose)


def _check_shared_memory(folder: Path) -> Check:
    purpose = 'images between processes'
    step = 'Start the container with --shm-size=512m or --ipc=host.'
    try:
        facts = os.statvfs(folder)
    except OSError as fault:
        return Check('shared memory', 'missing', f'{folder}: {fault.strerror}', purpose, step)
    free_bytes = facts.f_bavail * facts.f_frsize
    wanted_bytes = _FEWEST_SEGMENTS * SEGMENT_BYTES
    found = f'{_mib(free_bytes)} free of {_mib(facts.f_blocks * facts.f_frsize)}'
    if free_bytes < wanted_bytes:
        found += f', expected {_mib(wanted_bytes)}: {_mib(SEGMENT_BYTES)} per process'
        return Check('shared memory', 'problem', found, purpose, step)
    return Check('shared memory', 'ok', found, purpose)


def _check_socket_buffers(limit: Path) -> Check:
    purpose = 'images from other machines'
    step = f'Run `sudo sysctl -w net.core.rmem_max={8 * _SOCKET_BUFFER_BYTES}`.'
    try:
        largest_bytes = int(limit.read_text(encoding='ascii'))
    except (OSError, ValueError):
        return Check('socket buffers', 'missing', f'cannot read {limit}', purpose, step)
    state: State = 'ok' if largest_bytes >= _SOCKET_BUFFER_BYTES else 'problem'
    return Check('socket buffers', state, f'at most {_mib(largest_bytes)}', purpose, step)


def _check_allocator() -> Check:
    has_mallopt = hasattr(ctypes.CDLL(None), 'mallopt')
    found = 'glibc, mallopt is there' if has_mallopt else 'a C library without mallopt'
    purpose = 'no page faults for every image'
    step = 'Use a distribution with glibc; everything works without, a little slower.'
    return Check('allocator', 'ok' if has_mallopt else 'missing', found, purpose, step)


def _mib(num_bytes: int) -> str:
    return f'{num_bytes / 2**20:.1f} MiB'
