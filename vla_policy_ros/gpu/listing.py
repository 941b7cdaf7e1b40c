# SPDX-License-Identifier: Apache-2.0
"""The GPUs of this machine, asked of the driver through ctypes: no context is made and no library is needed.

Functions and numbers are those of the CUDA driver API (cuda.h).
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from vla_policy_ros.core.errors import GpuError
from vla_policy_ros.gpu.driver import require_driver

_NAME_BYTES = 256
_MAJOR, _MINOR, _INTEGRATED = 75, 76, 18  # CUdevice_attribute


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """One GPU as the driver describes it."""

    index: int
    name: str
    compute_capability: tuple[int, int]
    memory_bytes: int
    is_integrated: bool


def list_gpus() -> tuple[GpuFacts, ...]:
    """Return every GPU that this process may use.

    Raises:
        GpuError: There is no driver or GPU (`no_driver`), or the driver refused to answer.
    """
    driver = _Driver()
    count = ctypes.c_int()
    driver.call('cuDeviceGetCount', ctypes.byref(count))
    return tuple(driver.describe(index) for index in range(count.value))


def current_index() -> int:
    """Return the number of the GPU whose context is current on this thread.

    Raises:
        GpuError: There is no driver (`no_driver`), or no context is current.
    """
    index = ctypes.c_int()
    _Driver().call('cuCtxGetDevice', ctypes.byref(index))
    return index.value


class _Driver:
    """The driver's library, after it was asked whether it works."""

    def __init__(self) -> None:
        require_driver()
        self._library = ctypes.CDLL('libcuda.so.1')

    def call(self, function: str, *arguments: object) -> None:
        status = getattr(self._library, function)(*arguments)
        if status:
            raise GpuError(
                f'NVIDIA driver, {function}',
                got=f'error {status}',
                expected='an answer',
                next_step='Check the GPU with nvidia-smi.',
            )

    def describe(self, index: int) -> GpuFacts:
        device, name, memory = ctypes.c_int(), (ctypes.c_char * _NAME_BYTES)(), ctypes.c_size_t()
        self.call('cuDeviceGet', ctypes.byref(device), index)
        self.call('cuDeviceGetName', name, _NAME_BYTES, device)
        self.call('cuDeviceTotalMem_v2', ctypes.byref(memory), device)
        return GpuFacts(
            index=index,
            name=name.value.decode(errors='replace'),
            compute_capability=(self._attribute(_MAJOR, device), self._attribute(_MINOR, device)),
            memory_bytes=memory.value,
            is_integrated=bool(self._attribute(_INTEGRATED, device)),
        )

    def _attribute(self, attribute: int, device: ctypes.c_int) -> int:
        value = ctypes.c_int()
        self.call('cuDeviceGetAttribute', ctypes.byref(value), attribute, device)
        return value.value
