# SPDX-License-Identifier: Apache-2.0
"""PyCUDA and the calls we make of cuda-bindings, on top of `HostDevice`: as strict about contexts as the real ones."""

import itertools
import json
import sys
import types
from contextlib import contextmanager

import numpy as np
from cuda.bindings import driver
from support.host_device import HostDevice, HostGraph
from support.host_kernels import build_kernel

from vla_policy_ros.core.errors import GpuError
from vla_policy_ros.gpu import device as device_module
from vla_policy_ros.gpu.nvrtc import KernelCache

_SUCCESS = driver.CUresult.CUDA_SUCCESS


class Error(Exception):
    """As `pycuda.driver.Error`."""


class OutOfMemoryError(Error):
    """As `pycuda.driver.MemoryError`."""


@contextmanager
def _as_pycuda():
    try:
        yield
    except GpuError as error:
        kind = OutOfMemoryError if error.code == 'out_of_memory' else Error
        raise kind(error.got) from error


class _Gpu(HostDevice):
    """What the driver has: one device, its primary context, streams by handle and graphs by number."""

    def __init__(self, integrated):
        super().__init__(integrated=integrated)
        self.references = 0
        self.graphs = {}
        self.numbers = itertools.count(1)

    @property
    def depth(self):
        return getattr(self._thread, 'depth', 0)

    def push(self):
        assert self.references, 'the primary context was released'
        self._thread.depth = self.depth + 1

    def pop(self):
        assert self.depth, 'nothing to pop'
        self._thread.depth -= 1


class _Context:
    """Keeps two stacks in step, as PyCUDA does: CUDA's, and its own."""

    def __init__(self, gpu):
        self._gpu = gpu
        self._pushed = 0
        gpu.references += 1

    def push(self):
        self._gpu.push()
        self._pushed += 1

    def pop(self):
        assert self._pushed, 'cannot pop non-current context'
        self._gpu.pop()
        self._pushed -= 1

    def detach(self):
        """Release the primary context; CUDA's stack is left as it is."""
        assert self._pushed == 1, 'a context that is not current leaks an entry of the stack'
        self._pushed = 0
        self._gpu.references -= 1


class _Allocation:
    def __init__(self, gpu, num_bytes):
        self._gpu = gpu
        with _as_pycuda():
            self.memory = gpu.allocate((num_bytes,), 'uint8')

    def __int__(self):
        return self.memory.address

    def __del__(self):
        if hasattr(self, 'memory') and self._gpu.references:
            self._gpu.check_current()
            self.memory.free()


class _PinnedAllocation:
    """What the array of `pagelocked_empty` has for a base."""

    def __init__(self, gpu, num_bytes, flags):
        self._gpu = gpu
        self._flags = flags
        self.memory = gpu.allocate_pinned((num_bytes,), 'uint8')
        self.__array_interface__ = self.memory.array.__array_interface__

    def get_device_pointer(self):
        assert self._flags == 2, 'ask for DEVICEMAP first'
        return self.memory.array.ctypes.data

    def __del__(self):
        if self._gpu.references:
            self._gpu.check_current()
            self.memory.free()


class _Array:
    """As numpy gives it: an array whose base owns the memory."""

    def __init__(self, base):
        self.base = base
        self._view = np.asarray(base)
        self.ctypes = self._view.ctypes
        self.shape = self._view.shape


class _Stream:
    def __init__(self, gpu, flags):
        assert flags == 1, 'not a non-blocking stream'
        self.host = gpu.new_stream()
        self.handle = self.host.handle

    def wait_for_event(self, event):
        with _as_pycuda():
            self.host.wait(event.host)

    def synchronize(self):
        with _as_pycuda():
            self.host.synchronize()


class _Event:
    def __init__(self, gpu, flags):
        assert flags in (1, 3), 'not a blocking event'
        self.host = gpu.new_event(timing=flags == 1)

    def record(self, stream):
        self.host.record(stream.host)

    def synchronize(self):
        with _as_pycuda():
            self.host.synchronize()

    def query(self):
        with _as_pycuda():
            return self.host.is_done()

    def time_since(self, other):
        return self.host.elapsed_ms(other.host)


class _Module:
    def __init__(self, gpu, cubin):
        self._gpu = gpu
        self._source, self._defines = json.loads(cubin)

    def get_function(self, entry):
        return _Function(self._gpu, self._source, entry, defines=self._defines)


class _Function:
    def __init__(self, gpu, source, entry, *, defines):
        self._gpu = gpu
        self._arguments = source, entry, defines

    def prepare(self, codes):
        source, entry, defines = self._arguments
        signature = ''.join(code.replace('0q', '') for code in codes)
        self._function = build_kernel(source, entry, signature, defines)

    def prepared_async_call(self, grid, block, stream, *arguments):
        packed = self._function.pack(arguments)
        work = lambda: self._function.run(grid, block, packed)  # noqa: E731
        self._gpu.submit('launches', stream.handle, work)


def install(monkeypatch, *, integrated=False):
    """Put the stand-ins where the real modules would be; return the device behind them."""
    gpu = _Gpu(integrated)
    package, module = types.ModuleType('pycuda'), types.ModuleType('pycuda.driver')
    package.driver = module
    for name, value in _pycuda(gpu).items():
        setattr(module, name, value)
    monkeypatch.setitem(sys.modules, 'pycuda', package)
    monkeypatch.setitem(sys.modules, 'pycuda.driver', module)
    for name, value in _bindings(gpu).items():
        monkeypatch.setattr(driver, name, value)
    monkeypatch.setattr(device_module, 'require_driver', lambda: None)
    monkeypatch.setattr(
        KernelCache,
        'load',
        lambda _, source, *, arch, defines: json.dumps([source, dict(defines)]).encode(),
    )
    return gpu


def _pycuda(gpu):
    one = types.SimpleNamespace(
        name=lambda: gpu.name,
        compute_capability=lambda: gpu.compute_capability,
        get_attribute=lambda attribute: int(gpu.is_integrated),
        retain_primary_context=lambda: _Context(gpu),
    )
    device = lambda index: one  # noqa: E731
    device.count = lambda: 1

    def move(target, source, size, stream):
        with _as_pycuda():
            gpu._copy(stream, target, source, size)

    def memset(target, value, size, stream):
        zeros = np.full(size, value, np.uint8)
        move(target, zeros.ctypes.data, size, stream)

    return {
        'Error': Error,
        'MemoryError': OutOfMemoryError,
        'init': lambda: None,
        'Device': device,
        'device_attribute': types.SimpleNamespace(INTEGRATED=18),
        'event_flags': types.SimpleNamespace(BLOCKING_SYNC=1, DISABLE_TIMING=2),
        'host_alloc_flags': types.SimpleNamespace(DEVICEMAP=2),
        'mem_alloc': lambda size: _Allocation(gpu, size),
        'pagelocked_empty': lambda shape, dtype, mem_flags: _Array(
            _PinnedAllocation(gpu, shape, mem_flags)
        ),
        'memset_d8_async': memset,
        'memcpy_htod_async': lambda to, array, stream: move(
            to, array.ctypes.data, array.nbytes, stream
        ),
        'memcpy_dtoh_async': lambda array, source, stream: move(
            array.ctypes.data, source, array.nbytes, stream
        ),
        'memcpy_dtod_async': move,
        'Stream': lambda flags: _Stream(gpu, flags),
        'Event': lambda flags: _Event(gpu, flags),
        'module_from_buffer': lambda cubin: _Module(gpu, cubin),
        'mem_get_info': lambda: (gpu.free_bytes(), gpu.free_bytes()),
    }


def _bindings(gpu):
    def status(fault=''):
        name = 'CUDA_ERROR_STREAM_CAPTURE_INVALIDATED' if fault else 'CUDA_SUCCESS'
        return getattr(driver.CUresult, name)

    def begin(handle, mode):
        assert mode == driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        gpu.begin_capture(gpu._streams[handle])
        return (_SUCCESS,)

    def end(handle):
        try:
            graph = gpu.end_capture(gpu._streams[handle])
        except GpuError as error:
            return status(error.got), None
        number = next(gpu.numbers)
        gpu.graphs[number] = graph
        return _SUCCESS, number

    def nodes(number, count=0):
        kinds = gpu.graphs[number]._capture.kinds
        return _SUCCESS, kinds[:count], len(kinds)

    def node_type(kind):
        name = 'KERNEL' if kind == 'launches' else 'MEMCPY'
        return _SUCCESS, getattr(driver.CUgraphNodeType, f'CU_GRAPH_NODE_TYPE_{name}')

    def instantiate(number, flags):
        ready = next(gpu.numbers)
        gpu.graphs[ready] = HostGraph(gpu, gpu.graphs[number]._capture)
        return _SUCCESS, ready

    def launch(number, handle):
        gpu.graphs[number].launch(gpu._streams[handle])
        return (_SUCCESS,)

    def destroy(number):
        gpu.check_current()
        gpu.graphs.pop(number).close()
        return (_SUCCESS,)

    def pop():
        gpu.pop()
        return _SUCCESS, 0

    return {
        'cuDevicePrimaryCtxSetFlags': lambda index, flags: (_SUCCESS,),
        'cuCtxPopCurrent': pop,
        'cuStreamBeginCapture': begin,
        'cuStreamEndCapture': end,
        'cuGraphGetNodes': nodes,
        'cuGraphNodeGetType': node_type,
        'cuGraphInstantiate': instantiate,
        'cuGraphLaunch': launch,
        'cuGraphExecDestroy': destroy,
        'cuGraphDestroy': destroy,
    }
