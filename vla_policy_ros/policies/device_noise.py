# SPDX-License-Identifier: Apache-2.0
"""The noise of a denoise loop on the device: made there from seed and stamp, or brought from the host."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np

from vla_policy_ros.core.specs import Array
from vla_policy_ros.gpu.interfaces import Device, DeviceBuffer, Stream
from vla_policy_ros.gpu.noise import NoiseKernel

_WORD = (1 << 64) - 1


class DeviceNoise:
    """The noise tensor of the next run; `draw` and `inject` enqueue what fills it.

    It stands outside of the captured graph, so that one graph serves both ways, and the kernel runs while the host is
    still busy with the state and the words.

    Args:
        device: The device, current in every call.
        shape: (n, K, W): one tensor per draw of the loop.
        seed: Seed of the loop.
        stream: The policy's stream.
        undo: Takes what frees the memory.
    """

    def __init__(
        self,
        device: Device,
        shape: tuple[int, ...],
        *,
        seed: int,
        stream: Stream,
        undo: ExitStack,
    ) -> None:
        self.tensor: DeviceBuffer = device.allocate(shape, 'float32')
        """(n, K, W) float32 noise on the device."""
        undo.callback(self.tensor.free)
        self._device = device
        self._stream = stream
        self._seed = seed & _WORD
        self._key = device.allocate((2,), 'uint64')
        undo.callback(self._key.free)
        self._host_key = device.allocate_pinned((2,), 'uint64')
        undo.callback(self._host_key.free)
        self._injected = device.allocate_pinned(shape, 'float32')
        undo.callback(self._injected.free)
        self._kernel = NoiseKernel(device, self._injected.array.size)

    def draw(self, stamp_ns: int) -> None:
        """Enqueue the noise for the observation of one stamp."""
        self._host_key.array[:] = self._seed, stamp_ns & _WORD
        self._device.upload(self._key, self._host_key, self._stream)
        self._kernel.enqueue(self._stream, self._key, self.tensor)

    def inject(self, values: Array) -> None:
        """Enqueue the copy of given noise, (n, K, W)."""
        np.copyto(self._injected.array, values)
        self._device.upload(self.tensor, self._injected, self._stream)
