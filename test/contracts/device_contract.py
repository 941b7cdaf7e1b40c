# SPDX-License-Identifier: Apache-2.0
"""What every device must do, whether it is a GPU or stands in for one."""

import gc
import threading
import weakref

import numpy as np
import pytest

from vla_policy_ros.core.errors import GpuError, SpecMismatchError

SIZE = 1000
BLOCKS, THREADS = (4, 1, 1), (256, 1, 1)


class DeviceContract:
    """Subclasses give a fixture `device`, current on the thread of the test."""

    num_launches = 100

    @pytest.fixture
    def stream(self, device):
        return device.new_stream()

    @pytest.fixture
    def buffers(self, device):
        """Two device tensors with a pinned one each."""
        made = {
            'a': device.allocate((SIZE,), 'float32'),
            'b': device.allocate((SIZE,), 'float32'),
            'to': device.allocate_pinned((SIZE,), 'float32'),
            'back': device.allocate_pinned((SIZE,), 'float32'),
        }
        yield made
        for buffer in made.values():
            buffer.free()

    @pytest.fixture
    def copy_kernel(self, device, stream, buffers):
        """Enqueues b = a by a kernel that has every kind of argument but a struct."""
        kernel = device.load_kernel('denoise', 'begin_loop', 'PPiPfPPi', {'TIME': 'float'})
        time = device.allocate((1,), 'float32')

        def launch(on=stream):
            source, target = buffers['a'].address, buffers['b'].address
            no_prefix = 0, 0, 1
            kernel.launch(on, BLOCKS, THREADS, target, source, SIZE, time.address, 0.5, *no_prefix)

        yield launch
        time.free()

    def fetch(self, device, stream, tensor):
        pinned = device.allocate_pinned(tensor.shape, tensor.dtype)
        device.download(pinned, tensor, stream)
        stream.synchronize()
        values = pinned.array.copy()
        pinned.free()
        return values

    def fill(self, device, stream, buffers, value):
        buffers['to'].array[:] = value
        device.upload(buffers['a'], buffers['to'], stream)
        stream.synchronize()

    def test_it_says_what_it_is(self, device):
        major, minor = device.compute_capability
        assert device.name
        assert (major, minor) >= (5, 0)
        assert device.is_integrated in (False, True)

    def test_device_memory_begins_as_zeros(self, device, stream):
        tensor = device.allocate((3, 5), 'int64')
        assert (tensor.shape, tensor.dtype, tensor.num_bytes) == ((3, 5), 'int64', 120)
        np.testing.assert_array_equal(self.fetch(device, stream, tensor), np.zeros((3, 5)))
        tensor.free()

    @pytest.mark.parametrize('dtype', ['uint8', 'int64', 'float16', 'bfloat16', 'float32'])
    def test_what_goes_up_comes_down(self, device, stream, dtype):
        tensor, pinned = device.allocate((2, 3), dtype), device.allocate_pinned((2, 3), dtype)
        assert pinned.array.dtype == np.dtype(dtype)
        assert not pinned.array.any()
        pinned.array[:] = np.arange(6).reshape(2, 3)
        device.upload(tensor, pinned, stream)
        values = self.fetch(device, stream, tensor)
        np.testing.assert_array_equal(values.astype(np.float32), np.arange(6).reshape(2, 3))
        tensor.free()
        pinned.free()

    def test_an_upload_may_take_the_first_bytes_only(self, device, stream, buffers):
        buffers['to'].array[:] = 7
        device.upload(buffers['a'], buffers['to'], stream, 8)
        np.testing.assert_array_equal(
            self.fetch(device, stream, buffers['a'])[:4], [7.0, 7.0, 0.0, 0.0]
        )

    def test_copies_within_the_device(self, device, stream, buffers):
        self.fill(device, stream, buffers, 3)
        device.copy(buffers['b'], buffers['a'], stream)
        np.testing.assert_array_equal(self.fetch(device, stream, buffers['b']), np.full(SIZE, 3))

    def test_copies_of_unequal_size_are_refused(self, device, stream, buffers):
        half = buffers['a'].view(0, (SIZE // 2,), 'float32')
        with pytest.raises(SpecMismatchError, match='2000 bytes'):
            device.copy(buffers['b'], half, stream)
        with pytest.raises(SpecMismatchError, match='2000 bytes'):
            device.upload(half, buffers['to'], stream)
        with pytest.raises(SpecMismatchError, match='2000 bytes'):
            device.download(buffers['back'], half, stream)
        with pytest.raises(SpecMismatchError, match='4001 of'):
            device.upload(buffers['a'], buffers['to'], stream, 4001)

    def test_a_view_is_a_part_in_place(self, device, stream, buffers):
        buffers['to'].array[:] = np.arange(SIZE)
        device.upload(buffers['a'], buffers['to'], stream)
        view = buffers['a'].view(40, (2, 2), 'float32')
        assert view.address == buffers['a'].address + 40
        inner = view.view(8, (2,), 'float32')
        np.testing.assert_array_equal(self.fetch(device, stream, view), [[10, 11], [12, 13]])
        np.testing.assert_array_equal(self.fetch(device, stream, inner), [12, 13])
        view.free()
        assert buffers['a'].address

    def test_freeing_twice_is_harmless_and_use_after_it_an_error(self, device):
        tensor, pinned = device.allocate((4,), 'float32'), device.allocate_pinned((4,), 'uint8')
        view = tensor.view(0, (2,), 'float32')
        for buffer in (tensor, pinned, tensor, pinned):
            buffer.free()
        for use in (lambda: tensor.address, lambda: view.address, lambda: pinned.array):
            with pytest.raises(GpuError) as caught:
                use()
            assert caught.value.code == 'freed_memory'

    def test_pinned_memory_is_mapped_where_the_device_is_integrated(self, device, buffers):
        assert bool(buffers['to'].device_address) == device.is_integrated

    def test_too_much_memory_is_refused_by_name(self, device):
        with pytest.raises(GpuError) as caught:
            device.allocate((2 * device.free_bytes(),), 'uint8')
        assert caught.value.code == 'out_of_memory'

    def test_free_memory_counts_what_is_allocated(self, device):
        before = device.free_bytes()
        tensor = device.allocate((64 << 20,), 'uint8')
        assert device.free_bytes() <= before - (64 << 20)
        tensor.free()
        assert device.free_bytes() == before

    def test_events_mark_what_is_done(self, device, stream, copy_kernel):
        first, last = (device.new_event(timing=True) for _ in range(2))
        assert first.is_done()
        first.record(stream)
        copy_kernel()
        last.record(stream)
        last.synchronize()
        assert last.is_done()
        assert last.elapsed_ms(first) > 0

    def test_a_stream_waits_for_another(self, device, stream, buffers, copy_kernel):
        other, event = device.new_stream(), device.new_event()
        assert other.handle != stream.handle
        for value in range(20):
            buffers['to'].array[:] = value
            device.upload(buffers['a'], buffers['to'], other)
            event.record(other)
            stream.wait(event)
            copy_kernel()
            device.download(buffers['back'], buffers['b'], stream)
            stream.synchronize()
            assert (buffers['back'].array == value).all()

    def test_a_graph_records_without_running_and_replays_what_memory_holds_then(
        self, device, stream, buffers, copy_kernel
    ):
        def enqueue():
            device.upload(buffers['a'], buffers['to'], stream)
            copy_kernel()
            device.download(buffers['back'], buffers['b'], stream)

        buffers['to'].array[:] = 1
        graph = device.capture(stream, enqueue)
        stream.synchronize()
        assert not buffers['back'].array.any()
        assert (graph.num_kernels, graph.num_nodes) == (1, 3)
        for value in (2, 3):
            buffers['to'].array[:] = value
            graph.launch(stream)
            stream.synchronize()
            assert (buffers['back'].array == value).all()
        graph.close()
        graph.close()
        with pytest.raises(GpuError) as caught:
            graph.launch(stream)
        assert caught.value.code == 'closed'

    def test_a_graph_keeps_what_it_runs(self, device, stream, buffers):
        class Held:
            """Stands for a kernel, whose code is unloaded with its last reference."""

        held = Held()
        alive = weakref.ref(held)

        def enqueue(held=held):
            device.copy(buffers['b'], buffers['a'], stream)

        graph = device.capture(stream, enqueue)
        del held, enqueue
        gc.collect()
        assert alive()
        graph.close()
        gc.collect()
        assert not alive()

    def test_a_graph_takes_in_other_streams(self, device, stream, buffers, copy_kernel):
        other, fork, join = device.new_stream(), device.new_event(), device.new_event()

        def enqueue():
            device.upload(buffers['a'], buffers['to'], stream)
            fork.record(stream)
            other.wait(fork)
            copy_kernel(other)
            join.record(other)
            stream.wait(join)
            device.download(buffers['back'], buffers['b'], stream)

        graph = device.capture(stream, enqueue)
        buffers['to'].array[:] = 5
        graph.launch(stream)
        stream.synchronize()
        assert graph.num_nodes == 3
        assert (buffers['back'].array == 5).all()
        graph.close()

    def test_an_error_while_capturing_passes_through(self, device, stream, buffers, copy_kernel):
        def enqueue():
            copy_kernel()
            raise KeyError('of the caller')

        with pytest.raises(KeyError, match='of the caller'):
            device.capture(stream, enqueue)
        self.show_usable(device, stream, buffers, copy_kernel)

    def test_what_cannot_be_captured_is_refused(self, device, stream, buffers, copy_kernel):
        other, outside, fork = device.new_stream(), device.new_event(), device.new_event()
        outside.record(other)

        def synchronize():
            copy_kernel()
            stream.synchronize()

        def leave_unjoined():
            fork.record(stream)
            other.wait(fork)
            copy_kernel(other)

        def wait_for_outside():
            copy_kernel()
            stream.wait(outside)

        for enqueue in (synchronize, leave_unjoined, wait_for_outside):
            with pytest.raises(GpuError) as caught:
                device.capture(stream, enqueue)
            assert caught.value.code == 'capture_failed', enqueue
            self.show_usable(device, stream, buffers, copy_kernel)

    def test_nothing_can_be_allocated_while_capturing(self, device, stream, buffers, copy_kernel):
        with pytest.raises(GpuError):
            device.capture(stream, lambda: device.allocate((4,), 'uint8'))
        self.show_usable(device, stream, buffers, copy_kernel)

    def test_other_threads_go_on_while_one_captures(self, device, stream, copy_kernel, buffers):
        seen = []

        def work():
            with device.current():
                tensor, own = device.allocate((4,), 'float32'), device.new_stream()
                seen.append(self.fetch(device, own, tensor).tolist())
                tensor.free()

        def enqueue():
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
            copy_kernel()

        device.capture(stream, enqueue).close()
        assert seen == [[0.0] * 4]
        self.show_usable(device, stream, buffers, copy_kernel)

    def test_buffers_may_be_freed_by_a_thread_without_the_device(self, device):
        before = device.free_bytes()
        tensors = [device.allocate((32 << 20,), 'uint8') for _ in range(2)]
        thread = threading.Thread(target=tensors[0].free)
        thread.start()
        thread.join()
        tensors[1].free()
        assert device.free_bytes() == before

    def test_being_current_may_be_nested(self, device, stream, buffers, copy_kernel):
        with device.current(), device.current():
            self.show_usable(device, stream, buffers, copy_kernel)
        self.show_usable(device, stream, buffers, copy_kernel)

    def test_memory_is_flat(self, device, stream, buffers, copy_kernel):
        event = device.new_event()
        graph = device.capture(stream, copy_kernel)

        def work():
            device.upload(buffers['a'], buffers['to'], stream)
            copy_kernel()
            graph.launch(stream)
            event.record(stream)
            device.download(buffers['back'], buffers['b'], stream)
            event.synchronize()

        work()
        before = device.free_bytes()
        for _ in range(self.num_launches):
            work()
        assert device.free_bytes() == before
        graph.close()

    def show_usable(self, device, stream, buffers, copy_kernel):
        """The stream still does its work."""
        value = float(buffers['to'].array[0]) + 1
        self.fill(device, stream, buffers, value)
        copy_kernel()
        device.download(buffers['back'], buffers['b'], stream)
        stream.synchronize()
        assert (buffers['back'].array == value).all()
