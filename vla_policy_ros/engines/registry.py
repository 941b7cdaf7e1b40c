# SPDX-License-Identifier: Apache-2.0
"""Engines by name; the library of an engine is imported when the engine is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import cast

from vla_policy_ros.bundle.manifest import Precision
from vla_policy_ros.core.engine import Engine, Memory
from vla_policy_ros.core.errors import ConfigurationError, MissingDependencyError
from vla_policy_ros.engines.settings import DEFAULT_SETTINGS, EngineSettings


@dataclass(frozen=True, slots=True)
class _Entry:
    """Where an engine's class is, where its tensors are, and which library it needs."""

    module: str
    class_name: str
    memory: Memory
    library: str
    install: str


_ORT = 'vla_policy_ros.engines.onnxruntime'
_ORT_TENSORRT = 'vla_policy_ros.engines.onnxruntime_tensorrt'
_TENSORRT = 'vla_policy_ros.engines.tensorrt'
_TORCH = 'vla_policy_ros.engines.torch'
_TORCH_TENSORRT = 'vla_policy_ros.engines.torch_tensorrt'
_OPENVINO = 'vla_policy_ros.engines.openvino'
_ENTRIES = {
    'onnxruntime': _Entry(
        _ORT, 'OnnxRuntimeEngine', 'host', 'onnxruntime', 'pip install onnxruntime'
    ),
    'onnxruntime_cuda': _Entry(
        _ORT, 'OnnxRuntimeCudaEngine', 'device', 'onnxruntime', 'pip install onnxruntime-gpu'
    ),
    'onnxruntime_tensorrt': _Entry(
        _ORT_TENSORRT,
        'OnnxRuntimeTensorRTEngine',
        'device',
        'onnxruntime',
        'pip install onnxruntime-gpu',
    ),
    'openvino': _Entry(_OPENVINO, 'OpenVinoEngine', 'host', 'openvino', 'pip install openvino'),
    'openvino_gpu': _Entry(
        _OPENVINO, 'OpenVinoGpuEngine', 'host', 'openvino', 'pip install openvino'
    ),
    'openvino_npu': _Entry(
        _OPENVINO, 'OpenVinoNpuEngine', 'host', 'openvino', 'pip install openvino'
    ),
    'tensorrt': _Entry(
        _TENSORRT, 'TensorRTEngine', 'device', 'tensorrt', 'pip install tensorrt-cu12'
    ),
    'tensorrt_rtx': _Entry(
        _TENSORRT, 'TensorRTRtxEngine', 'device', 'tensorrt_rtx', 'pip install tensorrt-rtx'
    ),
    'torch': _Entry(_TORCH, 'TorchEngine', 'device', 'torch', 'pip install torch'),
    'torch_compile': _Entry(_TORCH, 'TorchCompileEngine', 'device', 'torch', 'pip install torch'),
    'torch_tensorrt': _Entry(
        _TORCH_TENSORRT,
        'TorchTensorRTEngine',
        'device',
        'torch_tensorrt',
        'pip install torch_tensorrt',
    ),
    'torch_cpu': _Entry(_TORCH, 'TorchCpuEngine', 'host', 'torch', 'pip install torch'),
}

ENGINES = tuple(_ENTRIES)
"""Names that `load_engine` takes."""

PLAN_ENGINES = tuple(name for name, entry in _ENTRIES.items() if entry.module == _TENSORRT)
"""Engines that run plans, which hold their precision."""

_COMPUTES_IN: Mapping[str, tuple[Precision, ...]] = {
    'openvino': ('bf16',),
    'openvino_gpu': ('fp16',),
    'openvino_npu': ('fp16',),
}

GRADIENT_ENGINES = ('torch', 'torch_cpu')
"""Engines whose executions are `DifferentiableExecution`."""


def engine_memory(name: str) -> Memory:
    """Return where an engine reads and writes its tensors; imports nothing.

    Raises:
        ConfigurationError: There is no engine of that name (`unknown_engine`).
    """
    return _find(name).memory


def engine_library(name: str) -> str:
    """Return the module that an engine needs; imports nothing.

    Raises:
        ConfigurationError: There is no engine of that name (`unknown_engine`).
    """
    return _find(name).library


def takes_precision(name: str, precision: Precision) -> bool:
    """Tell whether an engine runs in a precision that it is asked for at load; imports nothing.

    Plans hold theirs, and OpenVINO may compute a float32 network in 16 bits. All others run a network as it was exported.
    """
    return name in PLAN_ENGINES or precision in _COMPUTES_IN.get(name, ())


def load_engine(
    name: str, onnx_path: Path, *, settings: EngineSettings = DEFAULT_SETTINGS
) -> Engine:
    """Load one network.

    Device engines are loaded, bound and run with their device current on the calling thread.

    Args:
        name: One of `ENGINES`.
        onnx_path: The ONNX file; weights beside it are found by the engine.
        settings: How it is loaded.

    Raises:
        ConfigurationError: There is no engine of that name (`unknown_engine`).
        MissingDependencyError: Its library is not installed.
        EngineError: The network cannot be loaded.
        GpuError: There is no GPU or driver for a device engine.
    """
    entry = _find(name)
    factory = getattr(_import(name, entry), entry.class_name)
    return cast('Engine', factory(onnx_path, settings=settings))


def _find(name: str) -> _Entry:
    entry = _ENTRIES.get(name)
    if entry is None:
        raise ConfigurationError(
            'engine',
            got=repr(name),
            expected=f'one of {", ".join(ENGINES)}',
            next_step='Choose one of these.',
            code='unknown_engine',
        )
    return entry


def _import(name: str, entry: _Entry) -> ModuleType:
    try:
        return importlib.import_module(entry.module)
    except ModuleNotFoundError as fault:
        if fault.name is None or fault.name.partition('.')[0] != entry.library:
            raise
        raise MissingDependencyError(
            f'engine {name!r}',
            got=f'no library {entry.library!r}',
            expected=f'{entry.library} in this Python environment',
            next_step=f'Run `{entry.install}`.',
        ) from fault
