# SPDX-License-Identifier: Apache-2.0
"""Noise of a denoise loop, made on the device: the numbers of `bundle.noise.draw_noise`."""

from __future__ import annotations

from vla_policy_ros.core.engine import DeviceTensor
from vla_policy_ros.gpu.interfaces import Device, Stream
from vla_policy_ros.gpu.memory import check_tensor

_BLOCK = 128
_VALUES_PER_BLOCK = 4 * _BLOCK


class NoiseKernel:
    """Fills a tensor with noise that depends on a seed and a stamp only.

    Args:
        device: The device, current on the calling thread.
        num_values: Number of values in the tensor.

    Raises:
        GpuError: The kernel cannot be compiled.
    """

    def __init__(self, device: Device, num_values: int) -> None:
        self._num_values = num_values
        self._kernel = device.load_kernel('noise', 'draw_noise', 'PPi', {})

    def enqueue(self, stream: Stream, key: DeviceTensor, out: DeviceTensor) -> None:
        """Enqueue the kernel; does not block and allocates nothing.

        Args:
            stream: Where it runs.
            key: (2,) uint64 seed and stamp in nanoseconds, modulo 2^64; read when the kernel runs, so that a captured
                graph takes the stamp of its turn.
            out: Any shape of `num_values` float32; written. Differs from the CPU's by `bundle.noise.DEVICE_LIMIT`.

        Raises:
            SpecMismatchError: A tensor is of another size or element type.
        """
        check_tensor('noise key', key, size=2, dtypes=('uint64', 'int64'))
        check_tensor('noise', out, size=self._num_values, dtypes=('float32',))
        blocks = -(-self._num_values // _VALUES_PER_BLOCK)
        self._kernel.launch(
            stream, (blocks, 1, 1), (_BLOCK, 1, 1), key.address, out.address, self._num_values
        )
