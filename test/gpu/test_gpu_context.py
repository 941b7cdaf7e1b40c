# SPDX-License-Identifier: Apache-2.0
"""How the context and what lives in it are kept and let go, over the stand-in for PyCUDA, then beside PyTorch."""

import gc
import sys
import threading

import numpy as np
import pytest
from support.pycuda_stand_in import Error, install

from vla_policy_ros.core.errors import GpuError, MissingDependencyError
from vla_policy_ros.gpu import device as device_module
from vla_policy_ros.gpu.device import open_device


@pytest.fixture
def gpu(monkeypatch):
    gpu = install(monkeypatch)
    yield gpu
    assert not gpu.depth


@pytest.fixture
def device(gpu):
    device = open_device()
    yield device
    device.close()


def test_the_context_is_retained_while_the_device_is_open(gpu):
    first, second = open_device(), open_device()
    assert gpu.references == 2
    for _ in range(2):
        first.close()
    assert gpu.references == 1
    with second.current():
        second.new_stream().synchronize()
    second.close()
    assert gpu.references == 0


def test_a_device_that_nobody_closes_is_let_go(gpu):
    device = open_device()
    with device.current():
        tensor = device.allocate((4,), 'uint8')
    del device, tensor
    gc.collect()
    assert gpu.references == 0


def test_buffers_that_nobody_frees_are_freed_within_the_context(gpu, device):
    with device.current():
        made = [device.allocate((4,), 'uint8'), device.allocate_pinned((4,), 'uint8')]
    assert gpu.num_open == 2
    thread = threading.Thread(target=made.clear)
    thread.start()
    thread.join()
    gc.collect()
    assert gpu.num_open == 0


def test_a_view_of_pinned_memory_outlives_its_freeing(gpu, device):
    with device.current():
        pinned = device.allocate_pinned((4, 2), 'float32')
        row = pinned.array[2]
        pinned.free()
    row[:] = 5
    assert gpu.num_open == 1
    del row
    gc.collect()
    assert gpu.num_open == 0


def test_freeing_after_close_is_harmless(gpu):
    device = open_device()
    with device.current():
        tensor, pinned = device.allocate((4,), 'uint8'), device.allocate_pinned((4,), 'uint8')
        made = [device.new_stream(), device.new_event()]
        graph = device.capture(made[0], lambda: device.upload(tensor, pinned, made[0]))
    device.close()
    for _ in range(2):
        tensor.free()
        pinned.free()
        graph.close()
    made.clear()
    gc.collect()


def test_a_closed_device_says_so(device):
    device.close()
    with pytest.raises(GpuError) as caught, device.current():
        pass
    assert caught.value.code == 'closed'


def test_an_error_within_the_block_leaves_the_context(gpu, device):
    with pytest.raises(KeyError), device.current():
        raise KeyError
    assert not gpu.depth


def test_errors_of_the_driver_become_ours(device, monkeypatch):
    import pycuda.driver

    def fail(*_):
        raise pycuda.driver.Error('cuMemcpyHtoDAsync failed: an illegal memory access')

    with device.current():
        tensor, pinned = device.allocate((4,), 'uint8'), device.allocate_pinned((4,), 'uint8')
        monkeypatch.setattr(pycuda.driver, 'memcpy_htod_async', fail)
        with pytest.raises(GpuError, match='illegal memory access') as caught:
            device.upload(tensor, pinned, device.new_stream())
        tensor.free()
        pinned.free()
    assert caught.value.code == 'gpu_failed'


@pytest.mark.parametrize('index', [-1, 1])
def test_a_gpu_that_is_not_there_is_named(gpu, index):
    with pytest.raises(GpuError, match=f'number {index}') as caught:
        open_device(index)
    assert caught.value.code == 'no_such_gpu'
    assert gpu.references == 0


@pytest.mark.parametrize('module', ['pycuda.driver', 'cuda.bindings.driver'])
def test_a_missing_library_is_told_with_the_remedy(gpu, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match='pip install pycuda cuda-bindings') as caught:
        open_device()
    assert module in caught.value.got


def test_the_driver_is_asked_first(monkeypatch):
    def refuse():
        raise GpuError('driver', got='no driver', expected='one', next_step='-')

    monkeypatch.setattr(device_module, 'require_driver', refuse)
    monkeypatch.setitem(sys.modules, 'pycuda.driver', None)
    with pytest.raises(GpuError, match='no driver'):
        open_device()


@pytest.mark.gpu
class TestBesidePyTorch:
    """PyTorch and we share the primary context, in whatever order they come and go."""

    @pytest.fixture
    def torch(self):
        return pytest.importorskip('torch')

    def test_tensors_are_shared_without_a_copy(self, torch):
        device = open_device()
        with device.current():
            buffer, stream = device.allocate((2, 3), 'float32'), device.new_stream()
            tensor = torch.as_tensor(buffer, device='cuda')
            assert tensor.data_ptr() == buffer.address
            tensor.fill_(4)
            torch.cuda.synchronize()
            host = device.allocate_pinned((2, 3), 'float32')
            device.download(host, buffer, stream)
            stream.synchronize()
            np.testing.assert_array_equal(host.array, np.full((2, 3), 4))
            del tensor
            buffer.free()
            host.free()
        device.close()

    def test_bfloat16_is_shared_through_int16(self, torch):
        device = open_device()
        with device.current():
            buffer, stream = device.allocate((5,), 'bfloat16'), device.new_stream()
            tensor = torch.as_tensor(buffer.view(0, (5,), 'int16'), device='cuda')
            tensor.view(torch.bfloat16).copy_(torch.arange(5))
            torch.cuda.synchronize()
            host = device.allocate_pinned((5,), 'bfloat16')
            device.download(host, buffer, stream)
            stream.synchronize()
            np.testing.assert_array_equal(host.array.astype(np.float32), np.arange(5))
            del tensor
            buffer.free()
            host.free()
        device.close()

    def test_pytorch_works_on_our_stream_and_in_our_graph(self, torch):
        device = open_device()
        with device.current():
            buffer, stream = device.allocate((8,), 'float32'), device.new_stream()
            tensor = torch.as_tensor(buffer, device='cuda')

            def enqueue():
                with torch.cuda.stream(torch.cuda.ExternalStream(stream.handle)):
                    tensor.add_(1)

            enqueue()
            stream.synchronize()
            graph = device.capture(stream, enqueue)
            for _ in range(3):
                graph.launch(stream)
            stream.synchronize()
            assert tensor.tolist() == [4.0] * 8
            graph.close()
            tensor = None
            buffer.free()
        device.close()

    def test_pytorch_goes_on_after_we_are_gone(self, torch):
        tensor = torch.ones(4, device='cuda')
        for _ in range(2):
            device = open_device()
            with device.current():
                device.allocate((4,), 'uint8').free()
            device.close()
            assert (tensor + 1).sum().item() == 8

    def test_threads_use_the_device_beside_pytorch(self, torch):
        device, failures = open_device(), []

        def work(value):
            for _ in range(50):
                with device.current():
                    stream, event = device.new_stream(), device.new_event()
                    tensor, host = (
                        device.allocate((64,), 'int64'),
                        device.allocate_pinned((64,), 'int64'),
                    )
                    host.array[:] = value
                    device.upload(tensor, host, stream)
                    event.record(stream)
                    event.synchronize()
                    if torch.as_tensor(tensor, device='cuda').sum().item() != 64 * value:
                        failures.append(value)
                    tensor.free()
                    host.free()

        threads = [threading.Thread(target=work, args=(value,)) for value in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        device.close()
        assert not failures


@pytest.mark.parametrize('call', ['current', 'close'])
def test_a_driver_that_refuses_the_context_is_an_error_of_ours(gpu, monkeypatch, call):
    device = open_device()

    def refuse():
        raise Error('cuCtxPushCurrent failed: unspecified launch failure')

    def use():
        with device.current():
            pass

    with monkeypatch.context() as patch:
        patch.setattr(gpu, 'push', refuse)
        with pytest.raises(GpuError, match='unspecified launch failure') as caught:
            use() if call == 'current' else device.close()
    assert caught.value.code == 'gpu_failed'
    device.close()
