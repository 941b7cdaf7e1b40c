# SPDX-License-Identifier: Apache-2.0
"""Engines by name; the library of an engine is imported when the engine is asked for."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import cast

from vla_policy_ros.core.engine import Engine
from vla_policy_ros.core.errors import ConfigurationError, MissingDependencyError


@dataclass(frozen=True, slots=True)
class _Entry:
    """Where an engine's class is, and which library it needs."""

    module: str
    class_name: str
    library: str
    install: str


_ENTRIES = {
    'onnxruntime': _Entry(
        module='vla_policy_ros.engines.onnxruntime',
        class_name='OnnxRuntimeEngine',
        library='onnxruntime',
        install='pip install onnxruntime',
    ),
}

ENGINES = tuple(_ENTRIES)
"""Names that `load_engine` takes."""


def load_engine(name: str, onnx_path: Path, *, threads: int = 0) -> Engine:
    """Load one network.

    Args:
        name: One of `ENGINES`.
        onnx_path: The ONNX file; weights beside it are found by the engine.
        threads: Threads of one run; 0 leaves the choice to the engine.

    Raises:
        ConfigurationError: There is no engine of that name (`unknown_engine`).
        MissingDependencyError: Its library is not installed.
        EngineError: The network cannot be loaded.
    """
    entry = _ENTRIES.get(name)
    if entry is None:
        raise ConfigurationError(
            'engine',
            got=repr(name),
            expected=f'one of {", ".join(ENGINES)}',
            next_step='Choose one of these.',
            code='unknown_engine',
        )
    factory = getattr(_import(name, entry), entry.class_name)
    return cast('Engine', factory(onnx_path, threads=threads))


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
