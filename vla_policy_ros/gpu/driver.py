# SPDX-License-Identifier: Apache-2.0
"""Whether there is an NVIDIA driver with a GPU, asked of the driver itself through ctypes.

Other libraries cannot be asked: TensorRT ends the process when there is no driver, and PyCUDA does not import.
"""

from __future__ import annotations

import ctypes

from vla_policy_ros.core.errors import GpuError

_LIBRARY = 'libcuda.so.1'
_SUCCESS = 0
_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE


def require_driver() -> None:
    """Make sure that the driver is there, starts, and has a GPU; may be called anywhere and as often as one likes.

    Raises:
        GpuError: There is no driver, it does not start, or it has no GPU (`no_driver`).
    """
    _open_driver()


def find_driver() -> str | None:
    """Return the newest CUDA version that the driver can run, such as `13.0`; None when there is nothing to use."""
    try:
        library = _open_driver()
    except GpuError:
        return None
    version = ctypes.c_int()
    _check(library, library.cuDriverGetVersion(ctypes.byref(version)))
    return f'{version.value // 1000}.{version.value % 1000 // 10}'


def _open_driver() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise _no_driver(f'no library {_LIBRARY} ({error})') from error
    _check(library, library.cuInit(0))
    count = ctypes.c_int()
    _check(library, library.cuDeviceGetCount(ctypes.byref(count)))
    if count.value == 0:
        _check(library, _NO_DEVICE)
    return library


def _check(library: ctypes.CDLL, status: int) -> None:
    if status == _SUCCESS:
        return
    name = ctypes.c_char_p()
    library.cuGetErrorName(status, ctypes.byref(name))
    raise _no_driver(f'error {status} ({name.value.decode() if name.value else "unknown"})')


def _no_driver(got: str) -> GpuError:
    return GpuError(
        'NVIDIA driver',
        got=got,
        expected='a driver that starts and a GPU',
        next_step='Install the driver and check that nvidia-smi lists the GPU (in a container: start it with --gpus all), '
        'or choose the CPU: engine onnxruntime, preprocess cpu.',
        code='no_driver',
    )
