# SPDX-License-Identifier: Apache-2.0
"""What a test needs of the machine: where it is missing the test is skipped, or fails when VLA_REQUIRE names it."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
from importlib.machinery import PathFinder
from pathlib import Path

import onnxruntime
import pytest

from vla_policy_ros.core.errors import GpuError
from vla_policy_ros.gpu.driver import require_driver

# Names of requirements that are Python modules.
_MODULES = {
    'groot': ('torch', 'onnxscript', 'transformers', 'gr00t'),
    'groot_n15': ('torch', 'onnxscript', 'transformers', 'gr00t.model.gr00t_n1'),
    'groot_n17': ('torch', 'onnxscript', 'transformers', 'gr00t.model.gr00t_n1d7'),
    'lerobot': ('lerobot',),
    'openvino': ('openvino',),
    'pi0': ('lerobot.policies.common', 'transformers'),  # lerobot 0.6
    'qwen3_vl': ('torch', 'onnxscript', 'transformers.models.qwen3_vl'),
    'smolvla': ('lerobot', 'transformers', 'num2words'),
    'tensorrt_rtx': ('tensorrt_rtx',),
}
# Without its optimiser ONNX Runtime 1.18 computes networks of fp16 and 8 bits wrong; which later version is the first to do
# it right was not looked for.
NEEDS_8_BITS = pytest.mark.skipif(
    tuple(int(part) for part in onnxruntime.__version__.split('.')[:2]) < (1, 20),
    reason='ONNX Runtime is too old for 8 bits',
)
DATA = Path(__file__).parents[3] / 'shared' / 'data'


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
    if name in ('gpu', 'tensorrt'):
        return _find_missing_gpu(name)
    for module in _MODULES.get(name, ()):
        if not is_there(module):
            return f'{module} cannot be imported'
    return _find_missing_nvrtc() if name == 'nvrtc' else ''


def is_there(module: str) -> bool:
    """Return whether a module is installed; imports no package around it, since some take long, or warn."""
    package, *inner = module.split('.')
    spec = importlib.util.find_spec(package)
    for part in inner:
        # transformers, once imported, names its folders as Path.
        folders = [str(folder) for folder in spec.submodule_search_locations or ()] if spec else []
        spec = PathFinder.find_spec(part, folders)
    return spec is not None


def _find_missing_nvrtc() -> str:
    try:
        importlib.import_module('cuda.bindings.nvrtc').nvrtcVersion()
    except (ImportError, RuntimeError) as error:  # the bindings, or the library behind them
        return f'kernels cannot be compiled: {error}'
    return ''


def _find_missing_gpu(name: str) -> str:
    """Ask the driver first: TensorRT ends the process when there is none."""
    try:
        require_driver()
    except GpuError as error:
        return f'there is no NVIDIA GPU: {error.got}'
    modules = [
        'pycuda.driver',
        'cuda.bindings.driver',
        *(['tensorrt'] if name == 'tensorrt' else []),
    ]
    try:
        for module in modules:
            importlib.import_module(module)
    except ImportError as error:
        return f'the GPU tests need {", ".join(modules)}: {error}'
    return ''
