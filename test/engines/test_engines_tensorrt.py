# SPDX-License-Identifier: Apache-2.0
"""The engine over a stand-in for TensorRT on the host; `test_engines_tensorrt_gpu.py` has the real one."""

import logging
import subprocess
import sys
import threading
from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from contracts.device_engine_contract import DeviceEngineContract
from support.bundles import save_doubler
from support.fake_tensorrt import (
    KERNELS,
    PLAN,
    WORKSPACE_BYTES,
    DataType,
    FakeRtx,
    FakeTensorRT,
    TensorLocation,
)
from support.host_device import HostDevice

from vla_policy_ros.core.errors import (
    EngineError,
    GpuError,
    MissingDependencyError,
    SpecMismatchError,
)
from vla_policy_ros.engines import tensorrt, tensorrt_library
from vla_policy_ros.engines.plan_facts import BuildOptions, Gpu, PlanKey, ShapeRange
from vla_policy_ros.engines.plans import PlanStore, network_hash
from vla_policy_ros.engines.registry import load_engine
from vla_policy_ros.engines.settings import EngineSettings
from vla_policy_ros.engines.tensorrt import PlanEngine
from vla_policy_ros.engines.tensorrt_library import Library, Messages, _import, _make_logger
from vla_policy_ros.gpu.driver import find_driver

H200 = Gpu('NVIDIA H200', (9, 0))
ROWS = ShapeRange(min=(1, 3), opt=(2, 3), max=(4, 3))
DOUBLER = {'x': (2, 3), 'y': (2, 3)}


@pytest.fixture
def host():
    """A host device, current for the test."""
    with closing(HostDevice()) as device:
        with device.current():
            yield device
        for memory in list(device._open):
            memory.free()


@pytest.fixture
def trt(host):
    return FakeTensorRT(host)


def load_fake(trt, content=PLAN, **options):
    messages = Messages()
    library = Library('tensorrt', trt, messages, _make_logger(trt, messages))
    return PlanEngine(library, memoryview(content), name='doubler.plan', **options)


def allocate(device, shapes=DOUBLER):
    return {name: device.allocate(shape, 'float32') for name, shape in shapes.items()}


class TestPlanEngine(DeviceEngineContract):
    @pytest.fixture
    def device(self, host):
        return host

    @pytest.fixture
    def plan_engine(self, trt):
        return load_fake(trt)


def test_workspace_is_handed_to_the_context(trt, host):
    engine = load_fake(trt)
    assert engine.workspace_bytes == WORKSPACE_BYTES
    buffers, workspace = allocate(host), host.allocate([1024], 'uint8')
    engine.bind(buffers, workspace=workspace)
    engine.bind(buffers)
    shared, own = trt.contexts
    assert shared.strategy.name == 'USER_MANAGED'
    assert shared.workspace == (workspace.address, 1024)
    assert own.strategy.name == 'STATIC'
    assert own.workspace is None


@pytest.mark.parametrize(
    ('shape', 'dtype', 'offset'),
    [([WORKSPACE_BYTES - 1], 'uint8', 0), ([1024], 'int8', 0), ([WORKSPACE_BYTES], 'uint8', 1)],
    ids=['small', 'type', 'unaligned'],
)
def test_unfit_workspace_is_refused(trt, host, shape, dtype, offset):
    memory = host.allocate([2048], 'uint8').view(offset, shape, dtype)
    with pytest.raises(SpecMismatchError, match='512 bytes or more, aligned to 256'):
        load_fake(trt).bind(allocate(host), workspace=memory)


def test_shape_outside_of_the_profile_is_named_with_the_range(trt, host):
    engine = load_fake(trt)
    assert engine.shape_range('x') == ROWS
    message = r"'x': got the shape \[5, 3\].*min \[1, 3\], opt \[2, 3\], max \[4, 3\]"
    with pytest.raises(SpecMismatchError, match=message) as caught:
        engine.bind(allocate(host, {'x': (5, 3), 'y': (5, 3)}))
    assert caught.value.code == 'outside_profile'


def test_output_of_another_shape_than_the_network_makes_is_refused(trt, host):
    with pytest.raises(SpecMismatchError, match=r"'y': got float32\[3, 3\].*float32\[2, 3\]"):
        load_fake(trt).bind(allocate(host, {'x': (2, 3), 'y': (3, 3)}))


def test_host_array_is_refused(trt, host):
    arrays = {name: np.zeros(shape, np.float32) for name, shape in DOUBLER.items()}
    with pytest.raises(SpecMismatchError, match='host array'):
        load_fake(trt).bind(arrays)


@pytest.mark.parametrize(
    ('method', 'text'),
    [
        ('create_execution_context', 'out of memory'),
        ('set_tensor_address', 'no such tensor'),
        ('set_input_shape', 'wrong shape'),
        ('infer_shapes', 'no shape for x'),
    ],
)
def test_refused_binding_tells_why(trt, host, method, text):
    engine = load_fake(trt)
    trt.refuses = method
    with pytest.raises(EngineError, match=f"network 'doubler.plan': got {text}") as caught:
        engine.bind(allocate(host))
    assert caught.value.code == 'not_bound'


def test_refused_run_tells_why(trt, host):
    stream = host.new_stream()
    execution = load_fake(trt).bind(allocate(host))
    trt.refuses = 'execute_async_v3'
    with pytest.raises(EngineError, match='an illegal address') as caught:
        execution.enqueue(stream.handle)
    assert caught.value.code == 'engine_failed'
    trt.refuses = ''
    execution.enqueue(stream.handle)
    assert host.counts['runs'] == 1


def test_runs_allocate_nothing_and_are_captured(trt, host):
    stream = host.new_stream()
    execution = load_fake(trt).bind(allocate(host))
    before = host.counts['allocations']
    graph = host.capture(stream, lambda: execution.enqueue(stream.handle))
    assert graph.num_nodes == 1
    assert host.counts['allocations'] == before
    graph.close()


def test_plan_that_cannot_be_loaded_is_named_with_the_librarys_words(trt):
    with pytest.raises(EngineError, match=r'doubler\.plan.*magicTag does not match') as caught:
        load_fake(trt, b'something else')
    assert caught.value.code == 'not_loadable'
    assert '10.6.0' in caught.value.expected


@pytest.mark.parametrize(
    ('attribute', 'value', 'code'),
    [
        ('location', TensorLocation.HOST, 'host_tensor'),
        ('dtype', DataType.INT4, 'unsupported_type'),
    ],
)
def test_tensors_that_we_cannot_give_are_refused_at_load(trt, attribute, value, code):
    setattr(trt, attribute, value)
    with pytest.raises(EngineError, match="tensor 'x'") as caught:
        load_fake(trt)
    assert caught.value.code == code


def test_compiled_kernels_are_kept_for_the_next_load(host, tmp_path):
    path = tmp_path / 'plan.kernels'
    for known in (None, KERNELS):
        trt = FakeRtx(host)
        engine = load_fake(trt, kernel_cache=path)
        engine.bind(allocate(host), workspace=host.allocate([1024], 'uint8'))
        engine.bind(allocate(host))
        assert [context.strategy.name for context in trt.contexts] == ['USER_MANAGED', 'STATIC']
        assert all(context.cache.known == known for context in trt.contexts)
        assert all(context.specialization == 'EAGER' for context in trt.contexts)
        engine.close()
        assert path.read_bytes() == KERNELS


def test_kernels_stay_in_memory_where_there_is_no_place_for_them(host, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    engine = load_fake(FakeRtx(host))
    engine.bind(allocate(host))
    engine.close()
    assert list(tmp_path.iterdir()) == []


def test_a_portable_plan_that_does_not_load_is_not_to_be_built_again(host):
    with pytest.raises(EngineError) as caught:
        load_fake(FakeRtx(host), b'for another GPU')
    assert caught.value.code == 'not_loadable'
    assert 'vla-policy doctor' in caught.value.next_step


def test_an_engine_closes_where_compiled_kernels_cannot_be_kept(host, tmp_path, caplog):
    blocked = tmp_path / 'file'
    blocked.touch()
    engine = load_fake(FakeRtx(host), kernel_cache=blocked / 'plan.kernels')
    engine.close()
    engine.close()
    assert 'not kept' in caplog.text
    with pytest.raises(EngineError):
        engine.bind(allocate(host))


@pytest.fixture
def machine(monkeypatch, trt):
    """A machine whose TensorRT is the stand-in."""
    messages = Messages()
    library = Library('tensorrt', trt, messages, _make_logger(trt, messages))
    monkeypatch.setattr(tensorrt, 'require_driver', lambda: None)
    monkeypatch.setattr(tensorrt, 'load_library', lambda name: library)
    monkeypatch.setattr(tensorrt, 'read_gpu', lambda: H200)
    return library.machine(H200)


def test_engine_takes_the_plan_of_network_precision_and_machine(host, machine, tmp_path):
    path, store = save_doubler(tmp_path / 'doubler.onnx'), PlanStore(tmp_path / 'plans')
    network = network_hash(path)

    def load(precision):
        settings = EngineSettings(plan_folder=store.folder, precision=precision)
        return load_engine('tensorrt', path, settings=settings)

    options = BuildOptions(precision='fp16', version_compatible=True)
    key = PlanKey(network_hash=network, options=options, machine=machine)
    store.add(memoryview(PLAN), key)
    assert [spec.name for spec in load('fp16').inputs] == ['x']
    with pytest.raises(EngineError, match='precision fp16, wanted fp32') as caught:
        load(None)
    assert caught.value.code == 'plan_mismatch'
    plan = store.add(memoryview(PLAN), replace(key, options=BuildOptions()))
    engine = load(None)
    engine.bind(allocate(host)).enqueue(host.new_stream().handle)
    assert host.counts['runs'] == 1
    plan.path.write_bytes(PLAN[:-1])
    with pytest.raises(EngineError) as caught:
        load('fp32')
    assert caught.value.code == 'damaged_plan'


@pytest.mark.parametrize(
    ('origin', 'is_compatible', 'allowed'),
    [('built', True, True), ('built', False, False), ('foreign', True, False)],
)
def test_only_compatible_plans_of_ours_may_bring_code(
    machine, trt, tmp_path, origin, is_compatible, allowed
):
    path, store = save_doubler(tmp_path / 'doubler.onnx'), PlanStore(tmp_path / 'plans')
    options = BuildOptions(version_compatible=is_compatible)
    key = PlanKey(network_hash=network_hash(path), options=options, machine=machine)
    plan = store.add(memoryview(PLAN), key, origin=origin)
    tensorrt.TensorRTEngine(path, settings=EngineSettings(plan_folder=store.folder))
    assert trt.runtimes[-1].engine_host_code_allowed is allowed
    tensorrt.TensorRTEngine.from_plan(plan.path)
    assert trt.runtimes[-1].engine_host_code_allowed is False


@pytest.mark.parametrize('current', [0, 1, None])
def test_gpu_of_the_current_context_counts(monkeypatch, current):
    def find_current():
        if current is None:
            raise GpuError('cuCtxGetDevice', got='201', expected='0', next_step='Go.')
        return current

    gpus = [SimpleNamespace(name=f'GPU {i}', compute_capability=(9, i)) for i in range(2)]
    monkeypatch.setattr(tensorrt_library, 'list_gpus', lambda: gpus)
    monkeypatch.setattr(tensorrt_library, 'current_index', find_current)
    assert tensorrt_library.read_gpu() == Gpu(f'GPU {current or 0}', (9, current or 0))


def test_messages_are_kept_per_thread_and_warnings_logged(caplog):
    messages = Messages()
    messages.record('the  cause\n', is_error=True)
    messages.record('the call', is_error=True)
    thread = threading.Thread(target=messages.record, args=['other'], kwargs={'is_error': True})
    thread.start()
    thread.join()
    assert messages.last() == 'the cause; the call'
    with caplog.at_level(logging.WARNING):
        messages.record('beware', is_error=False)
    assert caplog.messages == ['beware']
    messages.clear()
    assert messages.last() == 'no reason given'


def test_warnings_of_a_build_are_collected_from_every_thread(caplog):
    messages = Messages()
    with messages.collecting() as warnings:
        thread = threading.Thread(
            target=messages.record, args=['be  ware'], kwargs={'is_error': False}
        )
        thread.start()
        thread.join()
        messages.record('the cause', is_error=True)
    assert (warnings, messages.last()) == (['be ware'], 'the cause')
    messages.record('later', is_error=False)
    assert caplog.messages == ['later']


def test_a_library_that_is_too_old_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, 'tensorrt', SimpleNamespace(__version__='8.5.2.2'))
    with pytest.raises(MissingDependencyError, match=r'got version 8\.5\.2\.2.*10\.3') as caught:
        _import.__wrapped__('tensorrt')
    assert caught.value.code == 'old_library'


def test_strong_typing_is_asked_for_where_it_is_a_choice(trt):
    library = Library('tensorrt', trt, Messages(), None)
    assert library.network_flags == 1 << 1
    assert not library.compiles_at_run_time
    always = SimpleNamespace(NetworkDefinitionCreationFlag=SimpleNamespace())
    assert Library('tensorrt', always, Messages(), None).network_flags == 0


@pytest.mark.parametrize('name', ['tensorrt', 'tensorrt_rtx'])
def test_library_that_cannot_be_imported_is_named(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match=f'library {name!r}.*pip install') as caught:
        _import.__wrapped__(name)
    assert caught.value.code == 'missing_dependency'


@pytest.mark.parametrize('name', ['tensorrt', 'tensorrt_rtx'])
def test_without_a_driver_the_process_lives_and_says_so(tmp_path, name):
    if find_driver():
        pytest.skip('there is a driver')
    path = save_doubler(tmp_path / 'doubler.onnx')
    program = (
        'import sys; from pathlib import Path\n'
        'from vla_policy_ros.core.errors import GpuError\n'
        'from vla_policy_ros.engines.registry import load_engine\n'
        'from vla_policy_ros.engines.tensorrt_library import load_library\n'
        'for call in (lambda: load_engine(sys.argv[1], Path(sys.argv[2])),\n'
        '             lambda: load_library("tensorrt")):\n'
        '    try: call()\n'
        '    except GpuError as fault: print(fault.code)\n'
    )
    done = subprocess.run(
        [sys.executable, '-c', program, name, path], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, 'no_driver\n' * 2), done.stderr
