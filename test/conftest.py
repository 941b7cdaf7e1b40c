# SPDX-License-Identifier: Apache-2.0
"""Lies here so that pytest puts `test/` on the path: tests import `support.*` and `contracts.*` from it."""

import os
from pathlib import Path

import hypothesis
import pytest
from support.requirements import DATA, require
from support.ros_processes import RosProcesses

# No test depends on the speed of the machine, and one that passes today passes tomorrow.
hypothesis.settings.register_profile(
    'repeatable',
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile('repeatable')

_REQUIREMENTS = ('ros', 'launch', 'gpu', 'tensorrt', 'nvrtc')
# What modules import before a marker could skip their tests, by folder or by name.
_IMPORTED = {
    'ros': 'ros',
    'launch': 'launch',
    'test_gpu_context': 'nvrtc',
    'test_gpu_device': 'nvrtc',
    'test_gpu_graph': 'nvrtc',
    'test_engines_openvino': 'openvino',
    'test_engines_tensorrt_build': 'tensorrt_rtx',
    'test_export_groot': 'groot',
    'test_export_groot_eagle': 'groot',
    'test_export_groot_n15': 'groot_n15',
    'test_export_groot_qwen': 'qwen3_vl',
    'test_export_groot_qwen_loading': 'groot_n17',
    'test_export_groot_random_init': 'groot',
    'test_export_lerobot': 'lerobot',
    'test_export_lerobot_pi0': 'pi0',
    'test_export_lerobot_smolvla': 'smolvla',
    'test_export_stage_plans': 'tensorrt_rtx',
    'test_tools_build': 'tensorrt_rtx',
}
_PROFILE = Path(__file__).parents[1] / 'config' / 'fastdds.xml'


def pytest_configure():
    """Keep ROS on this machine, and let `ros2` and the tests' own nodes find the others as fast as ours do."""
    os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
    os.environ['FASTDDS_DEFAULT_PROFILES_FILE'] = str(_PROFILE)


class _MissingModule(pytest.Module):
    """Stands in for a module that cannot be imported on this machine."""

    def collect(self):
        require(_requirement_of(self.path))
        return super().collect()


def pytest_pycollect_makemodule(module_path, parent):
    """Check what a module imports before it is imported."""
    if _requirement_of(module_path):
        return _MissingModule.from_parent(parent, path=module_path)
    return None


def _requirement_of(path):
    return _IMPORTED.get(path.stem) or _IMPORTED.get(path.parent.name)


def pytest_runtest_setup(item):
    """Skip or fail a test whose markers ask for something that this machine lacks."""
    for name in _REQUIREMENTS:
        if item.get_closest_marker(name):
            require(name)


@pytest.fixture(scope='session')
def data():
    """Folder of the real recordings beside the project; read-only."""
    require('data')
    return DATA


@pytest.fixture(scope='session')
def gr00t_demo(data):
    """Path of the GR00T demo dataset; read-only."""
    return data / 'gr00t_demo'


@pytest.fixture(scope='session')
def recording(tmp_path_factory):
    """A short recording and a bundle that fits it."""
    from support.recordings import write_recording

    return write_recording(tmp_path_factory.mktemp('recording'))


@pytest.fixture
def processes(tmp_path):
    """Starts processes in a ROS domain of their own."""
    with RosProcesses(tmp_path) as processes:
        yield processes


@pytest.fixture
def graph(processes):
    """A node of the test in the domain of `processes`."""
    from support.ros_graph import RosGraph

    with RosGraph(processes.domain_id) as graph:
        yield graph
