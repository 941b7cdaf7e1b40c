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


class Driver:
    """The driver's library, once it has said that it works and has a GPU; functions are those of the driver API (cuda.h).

    Raises:
        GpuError: There is no driver, it does not start, or it has no GPU (`no_driver`).
    """

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL(_LIBRARY)
        except OSError as error:
            raise _no_driver(f'no library {_LIBRARY} ({error})') from error
        count = ctypes.c_int()
        status = self._library.cuInit(0) or self._library.cuDeviceGetCount(ctypes.byref(count))
        if status == _SUCCESS and not count.value:
            status = _NO_DEVICE
        if status != _SUCCESS:
            raise _no_driver(self._describe(status))
        self.num_gpus = count.value
        """Number of GPUs that this process may use."""

    def call(self, function: str, *arguments: object) -> None:
        """Call a function that gives its result through pointers.

        Raises:
            GpuError: The driver refused.
        """
        status = getattr(self._library, function)(*arguments)
        if status != _SUCCESS:
            raise GpuError(
                f'NVIDIA driver, {function}',
                got=self._describe(status),
                expected='an answer',
                next_step='Check the GPU with nvidia-smi.',
            )

    def _describe(self, status: int) -> str:
        name = ctypes.c_char_p()
        self._library.cuGetErrorName(status, ctypes.byref(name))
        return f'error {status} ({name.value.decode() if name.value else "unknown"})'


def require_driver() -> None:
    """Make sure that the driver is there, starts, and has a GPU; may be called anywhere and as often as one likes.

    Raises:
        GpuError: There is no driver, it does not start, or it has no GPU (`no_driver`).
    """
    Driver()


def find_driver() -> str | None:
    """Return the newest CUDA version that the driver can run, such as `13.0`; None when there is nothing to use."""
    version = ctypes.c_int()
    try:
        Driver().call('cuDriverGetVersion', ctypes.byref(version))
    except GpuError:
        return None
    return f'{version.value // 1000}.{version.value % 1000 // 10}'


def _no_driver(got: str) -> GpuError:
    return GpuError(
        'NVIDIA driver',
        got=got,
        expected='a driver that starts and a GPU',
        next_step='Install the driver and check that nvidia-smi lists the GPU (in a container: start it with --gpus all), '
        'or choose the CPU: engine onnxruntime, preprocess cpu.',
        code='no_driver',
    )
