# SPDX-License-Identifier: Apache-2.0
"""`CudaDevice`: one NVIDIA GPU through PyCUDA, in the primary context, which PyTorch uses too."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager

from vla_policy_ros.core.cache import cache_folder
from vla_policy_ros.core.engine import DeviceTensor
from vla_policy_ros.core.errors import GpuError, MissingDependencyError
from vla_policy_ros.gpu.context import PrimaryContext, driver_call
from vla_policy_ros.gpu.driver import require_driver
from vla_policy_ros.gpu.graph import CudaGraph, capture_graph
from vla_policy_ros.gpu.interfaces import Device, PinnedBuffer, Stream
from vla_policy_ros.gpu.memory import Buffer, check_copy, count_bytes
from vla_policy_ros.gpu.nvrtc import KernelCache
from vla_policy_ros.gpu.objects import (
    CudaEvent,
    CudaKernel,
    CudaMemory,
    CudaPinned,
    CudaStream,
    pycuda_stream,
)

_LIBRARIES = ('pycuda.driver', 'cuda.bindings.driver')


def open_device(index: int = 0) -> Device:
    """Open one GPU.

    Args:
        index: Its number, in the order that CUDA_VISIBLE_DEVICES gives.

    Raises:
        GpuError: There is no driver (`no_driver`), or no GPU of that number (`no_such_gpu`).
        MissingDependencyError: PyCUDA or cuda-bindings is not installed.
    """
    require_driver()
    try:
        for name in _LIBRARIES:
            importlib.import_module(name)
    except ImportError as error:
        raise MissingDependencyError(
            'GPU',
            got=str(error),
            expected='PyCUDA and cuda-bindings',
            next_step='Run: pip install pycuda cuda-bindings',
        ) from error
    return CudaDevice(index)


class CudaDevice:
    """One GPU; see `gpu.interfaces.Device` for the contract. Take it from `open_device`.

    Args:
        index: Number of the GPU.
    """

    @driver_call
    def __init__(self, index: int = 0) -> None:
        import pycuda.driver

        pycuda.driver.init()
        count = pycuda.driver.Device.count()
        if not 0 <= index < count:
            raise GpuError(
                'GPU',
                got=f'number {index}',
                expected=f'a number below {count}',
                next_step='Look at nvidia-smi, and at CUDA_VISIBLE_DEVICES.',
                code='no_such_gpu',
            )
        gpu = pycuda.driver.Device(index)
        attributes = pycuda.driver.device_attribute
        self._name = str(gpu.name())
        self._major, self._minor = gpu.compute_capability()
        self._is_integrated = bool(gpu.get_attribute(attributes.INTEGRATED))
        self._kernels = KernelCache(cache_folder('kernels'))
        self._context = PrimaryContext(index)
        with self._context:
            self._fill_stream: CudaStream | None = CudaStream(self._context)

    @property
    def name(self) -> str:
        """Marketing name, such as `NVIDIA H200`."""
        return self._name

    @property
    def compute_capability(self) -> tuple[int, int]:
        """Major and minor number, such as (9, 0)."""
        return self._major, self._minor

    @property
    def is_integrated(self) -> bool:
        """Whether the GPU shares its memory with the host (Jetson); pinned memory is mapped then."""
        return self._is_integrated

    def current(self) -> AbstractContextManager[None]:
        """Make the device current on this thread for a `with` block; costs about a microsecond, may be nested."""
        return self._context

    @driver_call
    def new_stream(self) -> CudaStream:
        """Make a stream that does not wait for the default stream."""
        return CudaStream(self._context)

    @driver_call
    def new_event(self, *, timing: bool = False) -> CudaEvent:
        """Make an event."""
        return CudaEvent(self._context, timing=timing)

    @driver_call
    def allocate(self, shape: Sequence[int], dtype: str) -> Buffer:
        """Allocate zeroed device memory; blocks until it is zero.

        Raises:
            GpuError: There is not enough (`out_of_memory`).
        """
        import pycuda.driver

        size = max(count_bytes(shape, dtype), 1)
        memory = CudaMemory(self._context, size)
        # A stream of its own: streams of ours do not wait for the default one, so they would not see its zeros.
        assert self._fill_stream is not None
        pycuda.driver.memset_d8_async(memory.address, 0, size, self._fill_stream.stream)
        self._fill_stream.synchronize()
        return Buffer(memory, shape, dtype=dtype)

    @driver_call
    def allocate_pinned(self, shape: Sequence[int], dtype: str) -> CudaPinned:
        """Allocate zeroed page-locked host memory, mapped on an integrated GPU.

        Raises:
            GpuError: There is not enough (`out_of_memory`).
        """
        return CudaPinned(self._context, shape, dtype=dtype, mapped=self._is_integrated)

    @driver_call
    def upload(
        self,
        target: DeviceTensor,
        source: PinnedBuffer,
        stream: Stream,
        num_bytes: int | None = None,
    ) -> None:
        """Enqueue a copy from pinned memory: the whole target, or its first bytes; does not block."""
        import pycuda.driver

        assert isinstance(source, CudaPinned)
        size = check_copy(_size(target), source.bytes.nbytes, num_bytes)
        pycuda.driver.memcpy_htod_async(target.address, source.bytes[:size], pycuda_stream(stream))

    @driver_call
    def download(self, target: PinnedBuffer, source: DeviceTensor, stream: Stream) -> None:
        """Enqueue a copy of a whole tensor to pinned memory; does not block."""
        import pycuda.driver

        assert isinstance(target, CudaPinned)
        check_copy(target.bytes.nbytes, _size(source))
        pycuda.driver.memcpy_dtoh_async(target.bytes, source.address, pycuda_stream(stream))

    @driver_call
    def copy(self, target: DeviceTensor, source: DeviceTensor, stream: Stream) -> None:
        """Enqueue a copy of a whole tensor within the device; does not block."""
        import pycuda.driver

        size = check_copy(_size(target), _size(source))
        pycuda.driver.memcpy_dtod_async(
            target.address, source.address, size, pycuda_stream(stream)
        )

    @driver_call
    def load_kernel(
        self, source_name: str, entry: str, signature: str, defines: Mapping[str, str | int]
    ) -> CudaKernel:
        """Compile one function of `gpu/kernels/<source_name>.cu`, or take it from the cache on disk.

        Raises:
            GpuError: It is not in the cache and there is no compiler (`no_compiler`), or it does not compile
                (`compile_failed`).
        """
        arch = f'sm_{self._major}{self._minor}'
        cubin = self._kernels.load(source_name, arch=arch, defines=defines)
        return CudaKernel(self._context, cubin, entry=entry, signature=signature)

    @driver_call
    def capture(self, stream: Stream, enqueue: Callable[[], None]) -> CudaGraph:
        """Record everything that `enqueue` puts on the stream, without running it.

        Raises:
            GpuError: Something in it cannot be captured (`capture_failed`); the stream is usable afterwards.
        """
        return capture_graph(self._context, stream, enqueue)

    @driver_call
    def free_bytes(self) -> int:
        """Return the free device memory, as the driver counts it."""
        import pycuda.driver

        return int(pycuda.driver.mem_get_info()[0])

    @driver_call
    def close(self) -> None:
        """Let the device go; call it outside of `current()`; may be called twice.

        What is freed later is freed with the context, or by its other users.
        """
        self._fill_stream = None
        self._context.close()


def _size(tensor: DeviceTensor) -> int:
    return count_bytes(tensor.shape, tensor.dtype)
