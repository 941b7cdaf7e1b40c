# SPDX-License-Identifier: Apache-2.0
"""What the package asks of a device. `gpu.device.CudaDevice` is the real one; tests run the same code on the host."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from vla_policy_ros.core.engine import DeviceTensor
from vla_policy_ros.core.specs import Array


class DeviceBuffer(DeviceTensor, Protocol):
    """Device memory with an owner; C-contiguous."""

    @property
    def num_bytes(self) -> int:
        """Size of the whole tensor in bytes."""

    def view(self, offset_bytes: int, shape: Sequence[int], dtype: str) -> DeviceBuffer:
        """Return a part as a tensor of its own; it keeps the memory alive.

        Raises:
            SpecMismatchError: The part does not lie within the buffer.
        """

    def free(self) -> None:
        """Give the memory back now; may be called twice; on a view it does nothing."""


class PinnedBuffer(Protocol):
    """Page-locked host memory, which the device reads and writes without a copy in between."""

    @property
    def array(self) -> Array:
        """The memory as a host array."""

    @property
    def device_address(self) -> int:
        """Address at which the device sees the memory when it is mapped (integrated GPUs), else 0."""

    def free(self) -> None:
        """Give the memory back now; may be called twice; `array` must not be used afterwards."""


class Event(Protocol):
    """A mark in a stream."""

    def record(self, stream: Stream) -> None:
        """Set the mark behind everything enqueued so far; a second record moves it."""

    def synchronize(self) -> None:
        """Block this thread until the mark is reached; other threads go on."""

    def is_done(self) -> bool:
        """Tell whether the mark is reached (true when it was never set)."""

    def elapsed_ms(self, since: Event) -> float:
        """Return the device time from an earlier mark; both events need `timing`."""


class Stream(Protocol):
    """Work in order on the device."""

    @property
    def handle(self) -> int:
        """The CUstream handle, as engines take it."""

    def wait(self, event: Event) -> None:
        """Let later work of this stream wait for a mark of another one; the host does not block."""

    def synchronize(self) -> None:
        """Block this thread until all work is done."""


class Kernel(Protocol):
    """One compiled function."""

    def launch(
        self,
        stream: Stream,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        *arguments: object,
    ) -> None:
        """Enqueue one launch; arguments as the kernel's signature says."""


class Graph(Protocol):
    """A captured sequence of device work."""

    @property
    def num_kernels(self) -> int:
        """Number of kernel launches in it."""

    @property
    def num_nodes(self) -> int:
        """Number of all its nodes: kernels, copies, fills."""

    def launch(self, stream: Stream) -> None:
        """Enqueue the whole sequence."""

    def close(self) -> None:
        """Free it; must come before what it runs is freed; may be called twice."""


class Device(Protocol):
    """One GPU. Every method but `current` is called with the device current on the calling thread."""

    @property
    def name(self) -> str:
        """Marketing name, such as `NVIDIA H200`."""

    @property
    def compute_capability(self) -> tuple[int, int]:
        """Major and minor number, such as (9, 0)."""

    @property
    def is_integrated(self) -> bool:
        """Whether the GPU shares its memory with the host (Jetson); pinned memory is mapped then."""

    def current(self) -> AbstractContextManager[None]:
        """Make the device current on this thread for a `with` block; cheap, may be nested."""

    def new_stream(self) -> Stream:
        """Make a stream that does not wait for the default stream."""

    def new_event(self, *, timing: bool = False) -> Event:
        """Make an event."""

    def allocate(self, shape: Sequence[int], dtype: str) -> DeviceBuffer:
        """Allocate zeroed device memory.

        Raises:
            GpuError: There is not enough (`out_of_memory`).
        """

    def allocate_pinned(self, shape: Sequence[int], dtype: str) -> PinnedBuffer:
        """Allocate zeroed page-locked host memory, mapped on an integrated GPU.

        Raises:
            GpuError: There is not enough (`out_of_memory`).
        """

    def upload(
        self,
        target: DeviceTensor,
        source: PinnedBuffer,
        stream: Stream,
        num_bytes: int | None = None,
    ) -> None:
        """Enqueue a copy from pinned memory: the whole target, or its first bytes."""

    def download(self, target: PinnedBuffer, source: DeviceTensor, stream: Stream) -> None:
        """Enqueue a copy of a whole tensor to pinned memory."""

    def copy(self, target: DeviceTensor, source: DeviceTensor, stream: Stream) -> None:
        """Enqueue a copy of a whole tensor within the device; both have the same size in bytes."""

    def load_kernel(
        self, source_name: str, entry: str, signature: str, defines: Mapping[str, str | int]
    ) -> Kernel:
        """Compile one function of `gpu/kernels/<source_name>.cu`, or take it from the cache on disk.

        Args:
            source_name: Name of the source file without its suffix.
            entry: Name of the `extern "C"` function.
            signature: Its arguments as `struct` characters: `P` address, `i` int, `q` int64, `f` float, `<n>s` struct
                of n bytes by value, which must be aligned to 8 bytes (it holds an address or an int64).
            defines: Preprocessor names and values that choose the variant.

        Raises:
            GpuError: It is not in the cache and there is no compiler (`no_compiler`), or it does not compile.
        """

    def capture(self, stream: Stream, enqueue: Callable[[], None]) -> Graph:
        """Record everything that `enqueue` puts on the stream, without running it.

        The graph keeps `enqueue`, and all that it holds, until it is closed: kernels, engines, buffers.

        Raises:
            GpuError: Something in it cannot be captured (`capture_failed`); the stream is usable afterwards.
        """

    def free_bytes(self) -> int:
        """Return the free device memory, as the driver counts it."""

    def close(self) -> None:
        """Let the device go; buffers and graphs of it must be closed first; outside of `current`; may be called twice."""
