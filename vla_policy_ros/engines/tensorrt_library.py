# SPDX-License-Identifier: Apache-2.0
"""The TensorRT libraries: import, messages, and every difference between their versions in one place.

One code path serves TensorRT 10 (from 10.3), 11 and TensorRT-RTX 1. What differs is asked of the library here.
"""

from __future__ import annotations

import functools
import importlib
import logging
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from vla_policy_ros.core.errors import EngineError, GpuError, MissingDependencyError
from vla_policy_ros.engines.plan_facts import Gpu, LibraryName, Machine, version_numbers
from vla_policy_ros.gpu.driver import require_driver
from vla_policy_ros.gpu.listing import current_index, list_gpus

ELEMENT_TYPES = {
    'FLOAT': 'float32',
    'HALF': 'float16',
    'BF16': 'bfloat16',
    'FP8': 'float8_e4m3fn',
    'INT8': 'int8',
    'UINT8': 'uint8',
    'INT32': 'int32',
    'INT64': 'int64',
    'BOOL': 'bool',
}
"""Element types by their name in TensorRT's `DataType`; float8 under its name in ml_dtypes."""

_INSTALL = {
    'tensorrt': 'Run `pip install tensorrt-cu12`; on a Jetson it comes with JetPack.',
    'tensorrt_rtx': 'Run `pip install tensorrt-rtx`.',
}
# TensorRT 8 has other calls. TensorRT-RTX, whose numbers begin at 1, has had these from its start.
_OLDEST_TENSORRT = (10, 3)
_KEPT_MESSAGES = 16
_logger = logging.getLogger(__name__)


class Messages:
    """What TensorRT says: errors are kept per thread for our exceptions, warnings go to `logging`.

    Warnings of a build go into its report instead: somebody who waits for it reads that.
    """

    def __init__(self) -> None:
        self._threads = threading.local()
        self._warnings: list[str] | None = None

    def record(self, text: str, *, is_error: bool) -> None:
        """Keep an error of this thread; log a warning, or collect it."""
        text = ' '.join(text.split())
        if is_error:
            self._errors().append(text)
        elif self._warnings is None:
            _logger.warning('%s', text)
        else:
            self._warnings.append(text)

    @contextmanager
    def collecting(self) -> Iterator[list[str]]:
        """Give the list that warnings of all threads go to within a `with` block: TensorRT builds on threads of its own."""
        warnings: list[str] = []
        self._warnings = warnings
        try:
            yield warnings
        finally:
            self._warnings = None

    def clear(self) -> None:
        """Forget the errors of this thread."""
        self._errors().clear()

    def last(self) -> str:
        """Return the last two errors of this thread: TensorRT tells the cause first, then the call."""
        errors = list(dict.fromkeys(self._errors()))
        return '; '.join(errors[-2:]) or 'no reason given'

    def _errors(self) -> deque[str]:
        errors: deque[str] | None = getattr(self._threads, 'errors', None)
        if errors is None:
            errors = self._threads.errors = deque(maxlen=_KEPT_MESSAGES)
        return errors


@dataclass(frozen=True, slots=True)
class Library:
    """One imported TensorRT library.

    Attributes:
        name: Its Python package.
        module: The package.
        messages: What it says.
        logger: The object that TensorRT's classes are made with; it must outlive them.
    """

    name: LibraryName
    module: Any
    messages: Messages
    logger: Any

    @property
    def version(self) -> str:
        """Version of the library, such as `10.6.0`."""
        return str(self.module.__version__)

    @property
    def compiles_at_run_time(self) -> bool:
        """Whether plans are portable and kernels are compiled at load (TensorRT-RTX).

        Such a library keeps a cache of kernels instead of a timing cache, builds without a GPU and takes targets.
        """
        return hasattr(self.module, 'IRuntimeCache')

    @property
    def network_flags(self) -> int:
        """Flags of a strongly typed network; where every network is, the flag may be gone."""
        flags = self.module.NetworkDefinitionCreationFlag
        typed = getattr(flags, 'STRONGLY_TYPED', None)
        return 0 if typed is None else 1 << int(typed)

    def machine(self, gpu: Gpu | None) -> Machine:
        """Return where this library runs."""
        return Machine(self.name, self.version, gpu)

    def dtype(self, value: Any, tensor: str) -> str:
        """Return the name of a `DataType` as `TensorSpec` has it.

        Raises:
            EngineError: Inputs and outputs cannot have that type (`unsupported_type`).
        """
        name = ELEMENT_TYPES.get(value.name)
        if name is None:
            raise EngineError(
                f'tensor {tensor!r}',
                got=value.name,
                expected=f'one of {", ".join(ELEMENT_TYPES.values())}',
                next_step='Export the network with float32 inputs and outputs; casts inside are free.',
                code='unsupported_type',
            )
        return name


def load_library(name: LibraryName) -> Library:
    """Import a TensorRT library.

    TensorRT ends the process when it is used without an NVIDIA driver, so the driver is asked for first; TensorRT-RTX
    does not, and builds without one.

    Args:
        name: Its Python package.

    Raises:
        GpuError: There is no driver for `tensorrt` (`no_driver`).
        MissingDependencyError: It is not installed, cannot be loaded, or is too old (`old_library`).
    """
    if name == 'tensorrt':
        require_driver()
    return _import(name)


def read_gpu() -> Gpu:
    """Return the GPU that is current on this thread, or the first one: there plans are built and run.

    Raises:
        GpuError: There is no driver (`no_driver`).
    """
    gpus = list_gpus()
    try:
        index = current_index()
    except GpuError:  # no context is current
        index = 0
    return Gpu(gpus[index].name, gpus[index].compute_capability)


def list_targets(module: Any) -> dict[str, Any]:
    """Return the compute capabilities that TensorRT-RTX builds for, such as `8.9`, with its own value for each."""
    known = module.ComputeCapability.__members__.items()  # SM89, and words such as CURRENT
    return {f'{name[2:-1]}.{name[-1]}': value for name, value in known if name.startswith('SM')}


@functools.cache  # TensorRT takes one logger for the life of the process
def _import(name: LibraryName) -> Library:
    try:
        module = importlib.import_module(name)
    except (ImportError, OSError) as fault:  # OSError: a shared library of it is missing
        raise MissingDependencyError(
            f'library {name!r}',
            got=' '.join(str(fault).split()),
            expected=f'{name} in this Python environment',
            next_step=_INSTALL[name],
        ) from fault
    if name == 'tensorrt' and version_numbers(module.__version__) < _OLDEST_TENSORRT:
        raise MissingDependencyError(
            f'library {name!r}',
            got=f'version {module.__version__}',
            expected=f'{".".join(map(str, _OLDEST_TENSORRT))} or later',
            next_step=_INSTALL[name],
            code='old_library',
        )
    messages = Messages()
    return Library(name, module, messages, _make_logger(module, messages))


def _make_logger(module: Any, messages: Messages) -> Any:
    base: Any = module.ILogger

    class Logger(base):  # type: ignore[misc]
        """Passes on what TensorRT says; called from any thread."""

        def __init__(self) -> None:
            base.__init__(self)  # the bindings want it by name

        def log(self, severity: Any, msg: str) -> None:
            if severity <= base.WARNING:  # the lower, the more severe
                messages.record(msg, is_error=severity != base.WARNING)

    return Logger()
