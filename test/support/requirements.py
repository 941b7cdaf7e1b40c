# SPDX-License-Identifier: Apache-2.0
"""What a test needs of the machine: where it is missing the test is skipped, or fails when VLA_REQUIRE names it."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

import pytest

DATA = Path(__file__).parents[3] / 'shared' / 'data'
_GPU_DEVICES = ('/dev/nvidiactl', '/dev/nvhost-gpu')


def require(name: str) -> None:
    """Skip the test when `name` is missing on this machine; fail it when the environment's VLA_REQUIRE asks for it."""
    missing = find_missing(name)
    if not missing:
        return
    if name in os.environ.get('VLA_REQUIRE', '').split(','):
        pytest.fail(f'VLA_REQUIRE names {name}, but {missing}', pytrace=False)
    pytest.skip(missing)


def find_missing(name: str) -> str:
    """Return what is missing, as a sentence; empty when all is there."""
    if name in ('ros', 'launch'):
        modules = ('rclpy', 'vla_policy_ros.msg', *(['launch_ros'] if name == 'launch' else []))
        for module in modules:
            if importlib.util.find_spec(module) is None:
                return f'{module} cannot be imported; run scripts/test'
        if name == 'launch' and shutil.which('ros2') is None:
            return 'there is no command ros2'
    if name == 'data' and not DATA.is_dir():
        return f'{DATA} is not there'
    if name == 'gpu' and not any(Path(device).exists() for device in _GPU_DEVICES):
        return 'there is no NVIDIA GPU'
    if name == 'tensorrt' and importlib.util.find_spec('tensorrt') is None:
        return 'tensorrt cannot be imported'
    return ''
