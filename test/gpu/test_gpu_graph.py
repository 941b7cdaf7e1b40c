# SPDX-License-Identifier: Apache-2.0
"""Refusals of the driver around a graph; what graphs do is in contracts/device_contract.py."""

import gc
from contextlib import nullcontext

import pytest
from cuda.bindings import driver
from support.pycuda_stand_in import install

from vla_policy_ros.core.errors import GpuError
from vla_policy_ros.gpu.device import open_device


@pytest.fixture
def gpu(monkeypatch):
    return install(monkeypatch)


@pytest.fixture
def device(gpu):
    device = open_device()
    with device.current():
        yield device
    device.close()
    assert not gpu.graphs
    assert not gpu.num_open_graphs


def refuse(name):
    status = getattr(driver.CUresult, name)
    return lambda *_: (status, None)


@pytest.mark.parametrize(
    ('call', 'error'),
    [
        ('cuStreamBeginCapture', 'CUDA_ERROR_ILLEGAL_STATE'),
        ('cuGraphInstantiate', 'CUDA_ERROR_OUT_OF_MEMORY'),
    ],
)
def test_a_graph_that_cannot_be_made_is_refused_by_name(device, monkeypatch, call, error):
    monkeypatch.setattr(driver, call, refuse(error))
    with pytest.raises(GpuError, match=error) as caught:
        device.capture(device.new_stream(), lambda: None)
    assert caught.value.code == 'capture_failed'
    assert 'cuda_graph: false' in caught.value.next_step


def test_a_launch_that_the_driver_refuses_is_named(device, monkeypatch):
    stream = device.new_stream()
    graph = device.capture(stream, lambda: None)
    assert (graph.num_kernels, graph.num_nodes) == (0, 0)
    monkeypatch.setattr(driver, 'cuGraphLaunch', refuse('CUDA_ERROR_ILLEGAL_ADDRESS'))
    with pytest.raises(GpuError, match='CUDA_ERROR_ILLEGAL_ADDRESS') as caught:
        graph.launch(stream)
    assert caught.value.code == 'gpu_failed'
    graph.close()


def test_the_cause_is_kept_when_the_driver_fails_the_capture(device):
    stream, event = device.new_stream(), device.new_event()

    def enqueue():
        event.record(stream)
        event.synchronize()

    with pytest.raises(GpuError, match='CAPTURE_INVALIDATED') as caught:
        device.capture(stream, enqueue)
    assert caught.value.code == 'capture_failed'
    assert isinstance(caught.value.__context__, GpuError)


def test_nothing_is_left_when_the_callable_fails(device):
    def enqueue():
        raise KeyError('ours')

    with pytest.raises(KeyError, match='ours'):
        device.capture(device.new_stream(), enqueue)


@pytest.mark.parametrize('fails', [False, True])
def test_garbage_is_not_collected_while_work_is_recorded(device, fails):
    seen = []

    def enqueue():
        seen.append(gc.isenabled())
        if fails:
            raise KeyError('ours')

    with pytest.raises(KeyError) if fails else nullcontext():
        device.capture(device.new_stream(), enqueue).close()
    assert seen == [False]
    assert gc.isenabled()
