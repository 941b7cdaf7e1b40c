# SPDX-License-Identifier: Apache-2.0
"""The pool on a device: one buffer per tensor; what the host fills has a pinned twin and goes up in one copy."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack

import numpy as np

from vla_policy_ros.bundle.bundle import Bundle
from vla_policy_ros.core.specs import Array, TensorSpec
from vla_policy_ros.gpu.interfaces import Device, DeviceBuffer, PinnedBuffer, Stream
from vla_policy_ros.gpu.memory import count_bytes

_ALIGNMENT_BYTES = 256  # what engines expect of a buffer, and what a fresh allocation has


class DevicePool:
    """Every tensor that stages, loop and runtime exchange, on one device.

    Args:
        device: The device, current in every call.
        bundle: The bundle.
        staged: Tensors that the host fills for every run.
        stream: Stream of all copies.

    Raises:
        GpuError: There is not enough memory (`out_of_memory`).
    """

    def __init__(
        self, device: Device, bundle: Bundle, *, staged: Collection[str], stream: Stream
    ) -> None:
        self._device = device
        self._stream = stream
        with ExitStack() as undo:
            self._staging = Staging(device, [bundle.tensors[name] for name in staged], undo)
            self.host: Mapping[str, Array] = self._staging.host
            """Name to pinned host array of each staged tensor; `upload` brings them to the device."""
            self.tensors: dict[str, DeviceBuffer] = dict(self._staging.device_views)
            """Name to device buffer of every tensor."""
            for name, spec in bundle.tensors.items():
                if name not in self.tensors:
                    self.tensors[name] = device.allocate(fixed_shape(spec), spec.dtype)
                    undo.callback(self.tensors[name].free)
            action = self.tensors[bundle.manifest.action.tensor]
            self._action = device.allocate_pinned(action.shape, action.dtype)
            undo.callback(self._action.free)
            self._action_tensor = action
            for constant in bundle.manifest.constants:
                buffer = self.tensors[constant.tensor]
                self.put(constant.tensor, np.full(buffer.shape, constant.value, buffer.dtype))
            self._undo = undo.pop_all()

    @property
    def raw_action(self) -> Array:
        """Action tensor in pinned host memory, as `download` left it."""
        return self._action.array

    def upload(self) -> None:
        """Enqueue the copy of all staged tensors to the device."""
        self._staging.upload(self._stream)

    def download(self) -> None:
        """Enqueue the copy of the action tensor to the host."""
        self._device.download(self._action, self._action_tensor, self._stream)

    def put(self, name: str, values: Array) -> None:
        """Set one tensor that is not staged; blocks and allocates, so not for the hot path."""
        pinned = self._device.allocate_pinned(values.shape, values.dtype.name)
        try:
            np.copyto(pinned.array, values)
            self._device.upload(self.tensors[name], pinned, self._stream)
            self._stream.synchronize()
        finally:
            pinned.free()

    def fetch(self, tensor: DeviceBuffer) -> Array:
        """Return a copy of a tensor; blocks and allocates, so not for the hot path."""
        pinned = self._device.allocate_pinned(tensor.shape, tensor.dtype)
        try:
            self._device.download(pinned, tensor, self._stream)
            self._stream.synchronize()
            values: Array = pinned.array.copy()
        finally:
            pinned.free()
        return values

    def close(self) -> None:
        """Free all memory; may be called twice."""
        self._undo.close()


class Staging:
    """Tensors that lie one after another in pinned memory, and in the same order on the device.

    Args:
        device: The device, current in every call.
        specs: The tensors.
        undo: Takes what frees the memory.
    """

    def __init__(self, device: Device, specs: Sequence[TensorSpec], undo: ExitStack) -> None:
        self.host: dict[str, Array] = {}
        """Name to pinned host array."""
        self.device_views: dict[str, DeviceBuffer] = {}
        """Name to device buffer."""
        self._device = device
        self._pinned: PinnedBuffer | None = None
        if not specs:
            return
        shapes = [fixed_shape(spec) for spec in specs]
        sizes = [count_bytes(shape, s.dtype) for shape, s in zip(shapes, specs, strict=True)]
        offsets = [0]
        for size in sizes:
            offsets.append(offsets[-1] + -(-size // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES)
        self._pinned = device.allocate_pinned((offsets[-1],), 'uint8')
        undo.callback(self._pinned.free)
        self._whole = device.allocate((offsets[-1],), 'uint8')
        undo.callback(self._whole.free)
        for spec, shape, size, start in zip(specs, shapes, sizes, offsets, strict=False):
            part = self._pinned.array[start : start + size]
            self.host[spec.name] = part.view(spec.dtype).reshape(shape)
            self.device_views[spec.name] = self._whole.view(start, shape, spec.dtype)

    def upload(self, stream: Stream) -> None:
        """Enqueue the copy of all tensors to the device."""
        if self._pinned is not None:
            self._device.upload(self._whole, self._pinned, stream)


def fixed_shape(spec: TensorSpec) -> tuple[int, ...]:
    """Return the shape of a pool tensor, which has no free dimension; a free one would be 1."""
    return tuple(size or 1 for size in spec.shape)
