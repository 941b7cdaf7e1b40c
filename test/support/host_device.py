# SPDX-License-Identifier: Apache-2.0
"""A `gpu.interfaces.Device` on host memory: device addresses are host addresses, kernels are built by g++.

It is stricter than a GPU: what CUDA leaves undefined (no current context, freed memory, allocation while capturing,
arguments that do not fit the kernel) fails here.
"""

from __future__ import annotations

import ctypes
import itertools
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager

import numpy as np
from support.host_capture import Capture, capture_failed, refused
from support.host_kernels import build_kernel

from vla_policy_ros.gpu.memory import Buffer, check_copy, count_bytes, freed_memory

_ALIGNMENT = 256  # as cuMemAlloc gives it
_POISON = 0xFF  # NaN in every float format


class HostMemory:
    """One piece of "device" memory; poisoned when it is freed, and kept so that a late write harms nobody."""

    def __init__(self, device, num_bytes):
        self._device = device
        whole = np.zeros(num_bytes + _ALIGNMENT, np.uint8)
        start = -whole.ctypes.data % _ALIGNMENT
        self.bytes = whole[start : start + num_bytes]
        self.is_freed = False

    @property
    def address(self):
        if self.is_freed:
            raise freed_memory('device buffer')
        return self.bytes.ctypes.data

    def free(self):
        if not self.is_freed:
            self.is_freed = True
            self.bytes[:] = _POISON
            self._device.give_back(self)


class HostPinned:
    """Pinned memory; `device_address` is set on an integrated device only, as on a real one."""

    def __init__(self, device, shape, dtype):
        self._memory = HostMemory(device, count_bytes(shape, dtype))
        self._array = self._memory.bytes.view(np.dtype(dtype)).reshape(shape)
        self._is_mapped = device.is_integrated

    @property
    def array(self):
        if self._memory.is_freed:
            raise freed_memory('pinned buffer')
        return self._array

    @property
    def device_address(self):
        return self._memory.address if self._is_mapped else 0

    def free(self):
        self._memory.free()


class HostStream:
    def __init__(self, device, handle):
        self._device = device
        self._handle = handle
        self.capture = None

    @property
    def handle(self):
        return self._handle

    def wait(self, event):
        """Join the capture of an event, as CUDA does; otherwise the work before the event is done already."""
        self._device.check_current()
        if event.capture is not None:
            event.check_usable()
            self.capture = event.capture
            self.capture.draw_in(self, event)
        elif self.capture is not None and event.is_recorded:
            self.capture.invalidate('a wait for an event that was recorded outside the capture')

    def synchronize(self):
        self._device.check_current()
        if self.capture is not None:
            self.capture.invalidate('a wait of the host for a stream that is being captured')


class HostEvent:
    _clock = itertools.count()

    def __init__(self, device, timing):
        self._device = device
        self._has_timing = timing
        self._time = 0
        self.is_recorded = False
        self.capture = None

    def record(self, stream):
        self._device.check_current()
        self._time = next(self._clock)
        self.is_recorded = True
        self.capture = stream.capture
        self.stream = stream
        self.num_nodes = len(stream.capture.kinds) if stream.capture else 0

    def synchronize(self):
        self.is_done()

    def is_done(self):
        self._device.check_current()
        if self.capture is not None:
            self.check_usable()
            self.capture.invalidate('a question about an event that is being captured')
        return True

    def check_usable(self):
        """Fail when the event was last recorded in a capture that has ended, as CUDA does."""
        if self.capture.is_over:
            raise refused('an event that was last recorded in a capture')

    def elapsed_ms(self, since):
        """Count the marks between the two: more than nothing, and no clock."""
        for event in (self, since):
            assert event._has_timing, 'make both events with timing=True'
            assert event.is_recorded, 'record both events first'
        return float(self._time - since._time)


class HostKernel:
    def __init__(self, device, function):
        self._device = device
        self._function = function

    def launch(self, stream, grid, block, *arguments):
        """Run all blocks; arguments are read now, what they point to when the work runs, as on a GPU."""
        assert np.prod(block) <= 1024, f'too many threads in a block: {block}'
        assert min(*grid, *block) >= 1, f'an empty launch: {grid} {block}'
        packed = self._function.pack(arguments)
        self._device.submit(
            'launches', stream.handle, lambda: self._function.run(grid, block, packed)
        )


class HostGraph:
    def __init__(self, device, capture):
        self._device = device
        self._capture = capture
        self.kept = None
        self.is_closed = False
        device.num_open_graphs += 1

    @property
    def num_kernels(self):
        return self._capture.kinds.count('launches')

    @property
    def num_nodes(self):
        return len(self._capture.kinds)

    def launch(self, stream):
        if self.is_closed:
            raise refused('a graph that is closed', code='closed')

        def replay():
            for work in self._capture.work:
                work()

        self._device.submit('graph_launches', stream.handle, replay)

    def close(self):
        if not self.is_closed:
            self.is_closed = True
            self.kept = None
            self._device.num_open_graphs -= 1


class HostDevice:
    """The device. Counters are in `counts`: allocations, frees, launches, copies, graph_launches, captures.

    Args:
        integrated: Whether pinned memory is mapped, as on Jetson.
        total_bytes: Memory it claims to have.
        capture_fault: Non-empty makes every capture fail with this text, to test the way without graphs.
    """

    name = 'Host device of the tests'
    compute_capability = (9, 0)

    def __init__(self, *, integrated=False, total_bytes=1 << 30, capture_fault=''):
        self.is_integrated = integrated
        self.capture_fault = capture_fault
        self.counts = Counter()
        self.num_open_graphs = 0
        self.is_closed = False
        self._total_bytes = total_bytes
        self._open = set()
        self._freed = []
        self._streams = {}
        self._handles = itertools.count(0x1000, 0x10)
        self._thread = threading.local()
        self._lock = threading.Lock()

    @property
    def num_open(self):
        """Number of buffers, device and pinned, that are not freed."""
        return len(self._open)

    @contextmanager
    def current(self):
        assert not self.is_closed, 'the device is closed'
        self._thread.depth = getattr(self._thread, 'depth', 0) + 1
        try:
            yield
        finally:
            self._thread.depth -= 1

    def check_current(self):
        """Fail unless the calling thread has made the device current."""
        assert getattr(self._thread, 'depth', 0), 'use it within `with device.current():`'

    def new_stream(self):
        self.check_current()
        stream = HostStream(self, next(self._handles))
        self._streams[stream.handle] = stream
        return stream

    def new_event(self, *, timing=False):
        self.check_current()
        return HostEvent(self, timing)

    def allocate(self, shape, dtype):
        return Buffer(self._allocate(count_bytes(shape, dtype)), shape, dtype=dtype)

    def allocate_pinned(self, shape, dtype):
        self._check_allocation(0)
        pinned = HostPinned(self, shape, dtype)
        self._count('pinned_allocations')
        self._open.add(pinned._memory)
        return pinned

    def upload(self, target, source, stream, num_bytes=None):
        size = check_copy(_size(target), source.array.nbytes, num_bytes)
        self._copy(stream, target.address, source.array.ctypes.data, size)

    def download(self, target, source, stream):
        size = check_copy(target.array.nbytes, _size(source))
        self._copy(stream, target.array.ctypes.data, source.address, size)

    def copy(self, target, source, stream):
        self._copy(
            stream, target.address, source.address, check_copy(_size(target), _size(source))
        )

    def load_kernel(self, source_name, entry, signature, defines):
        self.check_current()
        return HostKernel(self, build_kernel(source_name, entry, signature, defines))

    def capture(self, stream, enqueue):
        self.begin_capture(stream)
        is_recorded = False
        try:
            enqueue()
            is_recorded = True
        finally:
            graph = self.end_capture(stream)
            graph.kept = enqueue
            if not is_recorded:
                graph.close()
        return graph

    def begin_capture(self, stream):
        self.check_current()
        if stream.capture is not None:
            raise capture_failed('a stream that is being captured already')
        stream.capture = self._thread.capture = Capture(stream)

    def end_capture(self, stream):
        """Stop recording on all streams that were drawn in; raise when the capture is worth nothing."""
        capture, self._thread.capture = self._thread.capture, None
        capture.is_over = True
        for joined in capture.streams:
            joined.capture = None
        fault = capture.fault or self.capture_fault
        if fault or capture.unjoined:
            raise capture_failed(fault or 'work on another stream that was not joined')
        self._count('captures')
        return HostGraph(self, capture)

    def free_bytes(self):
        self.check_current()
        used = sum(m.bytes.nbytes for m in list(self._open))
        return self._total_bytes - used

    def close(self):
        """Fail when something of it is still open: on a GPU that is a leak, or a crash."""
        if not self.is_closed:
            assert not getattr(self._thread, 'depth', 0), 'close it outside of `current()`'
            assert not self.num_open_graphs, f'{self.num_open_graphs} graphs are still open'
            assert not self.num_open, f'{self.num_open} buffers are still open'
            self.is_closed = True

    def submit(self, kind: str, handle: int, work: Callable[[], None]) -> None:
        """Run work now, or record it when the stream of this handle is being captured; for engines in tests too.

        Args:
            kind: Counter it belongs to.
            handle: The stream.
            work: What to run.
        """
        self.check_current()
        stream = self._streams[handle]
        if stream.capture is None:
            self._count(kind)
            work()
        else:
            stream.capture.add(stream, kind, lambda: (self._count(kind), work()))

    def give_back(self, memory):
        """Take memory that was freed."""
        with self._lock:
            self._open.discard(memory)
            self._freed.append(memory)
        self._count('frees')

    def _allocate(self, num_bytes):
        self._check_allocation(num_bytes)
        memory = HostMemory(self, num_bytes)
        self._count('allocations')
        self._open.add(memory)
        return memory

    def _check_allocation(self, num_bytes):
        self.check_current()
        capture = getattr(self._thread, 'capture', None)
        if capture is not None:
            capture.invalidate('an allocation while the stream is being captured')
        if num_bytes > self.free_bytes():
            raise refused(f'{num_bytes} bytes asked for', code='out_of_memory')

    def _copy(self, stream, target, source, num_bytes):
        self.submit('copies', stream.handle, lambda: ctypes.memmove(target, source, num_bytes))

    def _count(self, kind):
        with self._lock:
            self.counts[kind] += 1


def read(tensor):
    """Return a copy of a "device" tensor as an array."""
    data = (ctypes.c_uint8 * _size(tensor)).from_address(tensor.address)
    return np.frombuffer(data, np.dtype(tensor.dtype)).reshape(tensor.shape).copy()


def write(tensor, values):
    """Put values into a "device" tensor; they are converted to its element type."""
    array = np.ascontiguousarray(np.broadcast_to(values, tensor.shape), np.dtype(tensor.dtype))
    ctypes.memmove(tensor.address, array.ctypes.data, array.nbytes)


def _size(tensor):
    return count_bytes(tensor.shape, tensor.dtype)


def open_host_devices(monkeypatch):
    """Let `open_device` give stand-ins; return those that were opened, in their order."""
    opened = []

    def open_device(_index=0):
        opened.append(HostDevice())
        return opened[-1]

    monkeypatch.setattr('vla_policy_ros.gpu.device.open_device', open_device)
    return opened
