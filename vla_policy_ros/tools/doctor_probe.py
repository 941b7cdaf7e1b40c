# SPDX-License-Identifier: Apache-2.0
"""Tries one library in a process of its own: some end the process when they find no driver.

    python -m vla_policy_ros.tools.doctor_probe NAME

prints one JSON object a line, as far as it gets; whatever goes wrong then shows in the exit status and on stderr. The
other half, `try_library`, starts it and reads that.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

_PATIENCE_S = 120.0


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of trying a library: facts, and why it went no further (empty when it did not fail)."""

    facts: Mapping[str, Any] = field(default_factory=dict)
    failure: str = ''


def try_library(name: str) -> Trial:
    """Try one of `PROBES` in a process of its own; blocks, for a minute at most on a slow disk."""
    command = [sys.executable, '-m', 'vla_policy_ros.tools.doctor_probe', name]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_PATIENCE_S, check=False
        )
    except subprocess.TimeoutExpired:
        return Trial(failure=f'no answer within {_PATIENCE_S:.0f} s')
    facts: dict[str, Any] = {}
    for line in done.stdout.splitlines():
        if line.startswith('{'):
            facts.update(json.loads(line))
    if done.returncode == 0:
        return Trial(facts)
    last = ([line for line in done.stderr.splitlines() if line.strip()] or ['nothing said'])[-1]
    if done.returncode < 0:
        return Trial(facts, f'the process was ended by signal {-done.returncode}: {last.strip()}')
    return Trial(facts, last.strip())


def _tensorrt(name: str) -> Iterator[dict[str, Any]]:
    library = importlib.import_module(name)
    yield {'version': library.__version__}
    if hasattr(library, 'IRuntimeCache'):  # TensorRT-RTX, which does not run on every GPU
        from vla_policy_ros.engines.tensorrt_library import list_targets

        yield {'targets': list(list_targets(library))}
    logger = library.Logger(library.Logger.ERROR)
    builder = library.Builder(logger)
    yield {'builds': bool(builder)}
    runtime = library.Runtime(logger)
    yield {'runs': bool(runtime)}


def _torch(name: str) -> Iterator[dict[str, Any]]:
    library = importlib.import_module(name)
    yield {'version': library.__version__}
    yield {'cuda': library.version.cuda, 'sees_gpu': library.cuda.is_available()}


def _onnxruntime(name: str) -> Iterator[dict[str, Any]]:
    library = importlib.import_module(name)
    yield {'version': library.__version__, 'providers': library.get_available_providers()}


def _openvino(name: str) -> Iterator[dict[str, Any]]:
    library = importlib.import_module(name)
    yield {'version': library.__version__.partition('-')[0]}  # the build follows
    core = library.Core()
    devices = core.available_devices
    names = {device: core.get_property(device, 'FULL_DEVICE_NAME').strip() for device in devices}
    yield {'devices': names}


def _version(name: str) -> Iterator[dict[str, Any]]:
    library = importlib.import_module(name)
    yield {'version': str(getattr(library, '__version__', 'unknown'))}


def _pycuda(name: str) -> Iterator[dict[str, Any]]:
    yield {'version': importlib.import_module(name).VERSION_TEXT}
    driver = importlib.import_module(f'{name}.driver')  # needs the driver's library
    yield {'cuda': '.'.join(map(str, driver.get_version()[:2]))}


def _nvrtc(name: str) -> Iterator[dict[str, Any]]:
    library = importlib.import_module(name)
    _, major, minor = library.nvrtcVersion()
    yield {'version': f'{major}.{minor}'}


def _nvjpeg(_name: str) -> Iterator[dict[str, Any]]:
    from vla_policy_ros.gpu.jpeg import load_nvjpeg

    library = load_nvjpeg()
    yield {'version': library._name}  # noqa: SLF001 - ctypes' name of the file


PROBES: Mapping[str, Callable[[str], Iterator[dict[str, Any]]]] = {
    'cuda.bindings': _version,
    'cuda.bindings.nvrtc': _nvrtc,
    'nvjpeg': _nvjpeg,
    'onnxruntime': _onnxruntime,
    'openvino': _openvino,
    'pycuda': _pycuda,
    'tensorrt': _tensorrt,
    'tensorrt_rtx': _tensorrt,
    'torch': _torch,
    'torch_tensorrt': _version,
}
"""What can be tried, under the name of its Python module where it has one."""


def main(name: str) -> int:
    """Try one library; what it raises is the answer."""
    for facts in PROBES[name](name):
        print(json.dumps(facts), flush=True)
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1]))
