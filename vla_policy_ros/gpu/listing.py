# SPDX-License-Identifier: Apache-2.0
"""The GPUs of this machine, asked of the driver through ctypes: no context is made and no library is needed."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from vla_policy_ros.gpu.driver import Driver

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
    driver = Driver()
    return tuple(_describe(driver, index) for index in range(driver.num_gpus))


def current_index() -> int:
    """Return the number of the GPU whose context is current on this thread.

    Raises:
        GpuError: There is no driver (`no_driver`), or no context is current.
    """
    index = ctypes.c_int()
    Driver().call('cuCtxGetDevice', ctypes.byref(index))
    return index.value


def _describe(driver: Driver, index: int) -> GpuFacts:
    device, name, memory = ctypes.c_int(), (ctypes.c_char * _NAME_BYTES)(), ctypes.c_size_t()
    driver.call('cuDeviceGet', ctypes.byref(device), index)
    driver.call('cuDeviceGetName', name, _NAME_BYTES, device)
    driver.call('cuDeviceTotalMem_v2', ctypes.byref(memory), device)
    major, minor, integrated = (
        _attribute(driver, device, attribute) for attribute in (_MAJOR, _MINOR, _INTEGRATED)
    )
    return GpuFacts(
        index=index,
        name=name.value.decode(errors='replace'),
        compute_capability=(major, minor),
        memory_bytes=memory.value,
        is_integrated=bool(integrated),
    )


def _attribute(driver: Driver, device: ctypes.c_int, attribute: int) -> int:
    value = ctypes.c_int()
    driver.call('cuDeviceGetAttribute', ctypes.byref(value), attribute, device)
    return value.value
