# SPDX-License-Identifier: Apache-2.0
"""Memory, streams, events and kernels of `gpu.device.CudaDevice`, on PyCUDA.

All are made and used with the device current on the calling thread; each may be freed from any thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vla_policy_ros.core.specs import Array
from vla_policy_ros.gpu.context import Owned, PrimaryContext, driver_call
from vla_policy_ros.gpu.interfaces import Event, Stream
from vla_policy_ros.gpu.memory import count_bytes, freed_memory
from vla_policy_ros.gpu.signature import argument_codes

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING, which PyCUDA has no name for


class CudaMemory:
    """One piece of device memory, with nothing in particular in it."""

    def __init__(self, context: PrimaryContext, num_bytes: int) -> None:
        import pycuda.driver

        allocation = pycuda.driver.mem_alloc(num_bytes)
        self._address = int(allocation)
        self._owned = Owned(context, allocation)

    @property
    def address(self) -> int:
        """Device address of its first byte.

        Raises:
            GpuError: It was freed (`freed_memory`).
        """
        if self._owned.item is None:
            raise freed_memory('device buffer')
        return self._address

    def free(self) -> None:
        """Give it back now; may be called twice, from any thread."""
        self._owned.drop()


class CudaPinned:
    """Page-locked host memory, zeroed.

    Views of `array` keep the memory alive also after `free`, so that a late reader never touches foreign memory.

    Args:
        context: Where it lives.
        shape: Size of every dimension.
        dtype: Element type under its name in `TensorSpec`.
        mapped: Whether the device shall see it without a copy.
    """

    def __init__(
        self, context: PrimaryContext, shape: Sequence[int], *, dtype: str, mapped: bool
    ) -> None:
        import pycuda.driver

        flags = pycuda.driver.host_alloc_flags.DEVICEMAP if mapped else 0
        size = count_bytes(shape, dtype)
        made = pycuda.driver.pagelocked_empty(max(size, 1), np.uint8, mem_flags=flags)
        self._device_address = int(made.base.get_device_pointer()) if mapped else 0
        self._bytes: Array | None = np.asarray(_PinnedBytes(context, made))[:size]
        self._bytes[:] = 0
        self._shape = tuple(shape)
        self._dtype = np.dtype(dtype)

    @property
    def bytes(self) -> Array:
        """(n,) uint8, the whole memory.

        Raises:
            GpuError: It was freed (`freed_memory`).
        """
        if self._bytes is None:
            raise freed_memory('pinned buffer')
        return self._bytes

    @property
    def array(self) -> Array:
        """The memory as a host array of its shape and element type.

        Raises:
            GpuError: It was freed (`freed_memory`).
        """
        return self.bytes.view(self._dtype).reshape(self._shape)

    @property
    def device_address(self) -> int:
        """Address at which the device sees the memory when it is mapped, else 0."""
        return self._device_address

    def free(self) -> None:
        """Give the memory back as soon as no view of it is left; may be called twice, from any thread."""
        self._bytes = None


class _PinnedBytes:
    """What numpy keeps as the base of a view: the array interface of the memory, and its owner."""

    def __init__(self, context: PrimaryContext, made: Array) -> None:
        self.__array_interface__ = {
            'data': (made.ctypes.data, False),
            'shape': made.shape,
            'typestr': '|u1',
            'version': 3,
        }
        self._owned = Owned(context, made.base)


class CudaStream:
    """Work in order on the device; does not wait for the default stream."""

    def __init__(self, context: PrimaryContext) -> None:
        import pycuda.driver

        stream = pycuda.driver.Stream(_NON_BLOCKING)
        self._handle = int(stream.handle)
        self._owned = Owned(context, stream)

    @property
    def handle(self) -> int:
        """The CUstream handle, as engines take it."""
        return self._handle

    @property
    def stream(self) -> Any:
        """The stream as PyCUDA's calls take it."""
        return self._owned.item

    @driver_call
    def wait(self, event: Event) -> None:
        """Let later work of this stream wait for a mark of another one; the host does not block."""
        assert isinstance(event, CudaEvent)
        self._owned.item.wait_for_event(event.event)

    @driver_call
    def synchronize(self) -> None:
        """Block this thread until all work is done; other Python threads go on."""
        self._owned.item.synchronize()


class CudaEvent:
    """A mark in a stream; a thread that waits for it sleeps.

    Args:
        context: Where it lives.
        timing: Whether `elapsed_ms` will be asked; a mark without time costs less.
    """

    def __init__(self, context: PrimaryContext, *, timing: bool) -> None:
        import pycuda.driver

        flags = int(pycuda.driver.event_flags.BLOCKING_SYNC)
        if not timing:
            flags |= int(pycuda.driver.event_flags.DISABLE_TIMING)
        self._owned = Owned(context, pycuda.driver.Event(flags))

    @property
    def event(self) -> Any:
        """The event as PyCUDA's calls take it."""
        return self._owned.item

    @driver_call
    def record(self, stream: Stream) -> None:
        """Set the mark behind everything enqueued so far; a second record moves it."""
        self._owned.item.record(pycuda_stream(stream))

    @driver_call
    def synchronize(self) -> None:
        """Block this thread until the mark is reached; other threads go on."""
        self._owned.item.synchronize()

    @driver_call
    def is_done(self) -> bool:
        """Tell whether the mark is reached (true when it was never set)."""
        return bool(self._owned.item.query())

    @driver_call
    def elapsed_ms(self, since: Event) -> float:
        """Return the device time from an earlier mark; both events need `timing`."""
        assert isinstance(since, CudaEvent)
        return float(self._owned.item.time_since(since.event))


class CudaKernel:
    """One compiled function.

    Args:
        context: Where it lives.
        cubin: The compiled code.
        entry: Name of the function.
        signature: Its arguments, as `Device.load_kernel` takes them.
    """

    def __init__(
        self, context: PrimaryContext, cubin: bytes, *, entry: str, signature: str
    ) -> None:
        import pycuda.driver

        function = pycuda.driver.module_from_buffer(cubin).get_function(entry)
        function.prepare(argument_codes(signature))
        self._owned = Owned(context, function)  # the function keeps its module

    @driver_call
    def launch(
        self,
        stream: Stream,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        *arguments: object,
    ) -> None:
        """Enqueue one launch; does not block."""
        self._owned.item.prepared_async_call(grid, block, pycuda_stream(stream), *arguments)


def pycuda_stream(stream: Stream) -> Any:
    """Return the PyCUDA object of a stream of ours."""
    assert isinstance(stream, CudaStream)
    return stream.stream
