# SPDX-License-Identifier: Apache-2.0
import contextlib
import sys
import threading
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from contracts.engine_contract import EngineContract
from onnx import TensorProto, helper
from support.bundles import save_doubler, save_model

from vla_policy_ros.core.errors import EngineError, GpuError, SpecMismatchError

torch = pytest.importorskip('torch')

from vla_policy_ros.engines import torch as engines  # noqa: E402
from vla_policy_ros.engines.registry import engine_memory, load_engine  # noqa: E402
from vla_policy_ros.engines.settings import EngineSettings  # noqa: E402
from vla_policy_ros.gpu.driver import find_driver  # noqa: E402

TYPES = ['float32', 'float64', 'float16', 'bfloat16', 'int32', 'int64', 'uint8', 'int8', 'bool']


class TestTorchCpu(EngineContract):
    @pytest.fixture
    def engine(self, tmp_path):
        return engines.TorchCpuEngine(save_doubler(tmp_path / 'doubler.onnx'))


def elem_type(dtype):
    names = {'float32': 'FLOAT', 'float64': 'DOUBLE'}
    return names.get(dtype, dtype.upper())


@pytest.mark.parametrize('dtype', TYPES)
def test_element_types_go_through_unchanged(tmp_path, dtype):
    path = save_model(
        tmp_path / 'same.onnx',
        [helper.make_node('Identity', ['x'], ['y'])],
        [('x', elem_type(dtype), [2])],
        [('y', elem_type(dtype), [2])],
    )
    x, y = np.array([1, 0], dtype), np.array([0, 1], dtype)
    engines.TorchCpuEngine(path).bind({'x': x, 'y': y}).enqueue()
    np.testing.assert_array_equal(y, x)


def test_bfloat16_weights_keep_their_type(tmp_path):
    weights = np.array([1.0, 2.5], 'bfloat16')
    raw = helper.make_tensor(
        'w', TensorProto.BFLOAT16, [2], weights.view(np.uint16).tobytes(), raw=True
    )
    graph = helper.make_graph(
        [helper.make_node('Add', ['x', 'w'], ['y'])],
        'sum',
        [helper.make_tensor_value_info('x', TensorProto.BFLOAT16, [2])],
        [helper.make_tensor_value_info('y', TensorProto.BFLOAT16, [2])],
        [raw],
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid('', 17)])
    path = tmp_path / 'sum.onnx'
    path.write_bytes(model.SerializeToString())
    x, y = np.ones(2, 'bfloat16'), np.zeros(2, 'bfloat16')
    engine = engines.TorchCpuEngine(path)
    assert engine.inputs[0].dtype == 'bfloat16'
    engine.bind({'x': x, 'y': y}).enqueue()
    np.testing.assert_array_equal(y.astype(np.float32), [2.0, 3.5])


@pytest.mark.parametrize('content', [None, b'', b'not a network'])
def test_file_that_cannot_be_loaded_is_named(tmp_path, content):
    path = tmp_path / 'broken.onnx'
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EngineError, match=r'broken\.onnx') as caught:
        engines.TorchCpuEngine(path)
    assert caught.value.code == 'not_loadable'


def test_failure_while_running_is_an_engine_error(tmp_path):
    path = save_model(
        tmp_path / 'gather.onnx',
        [helper.make_node('Gather', ['x', 'index'], ['y'])],
        [('x', 'FLOAT', [3]), ('index', 'INT64', [1])],
        [('y', 'FLOAT', [1])],
    )
    index, y = np.array([99], np.int64), np.zeros(1, np.float32)
    buffers = {'x': np.arange(3, dtype=np.float32), 'index': index, 'y': y}
    execution = engines.TorchCpuEngine(path).bind(buffers)
    with pytest.raises(EngineError, match=r'gather\.onnx.*range') as caught:
        execution.enqueue()
    assert caught.value.code == 'engine_failed'
    index[0] = -1
    execution.enqueue()
    assert y[0] == 2


def test_device_tensor_is_refused_on_the_host(tmp_path):
    class Elsewhere:
        shape, dtype, address = (1, 3), 'float32', 4096

    engine = engines.TorchCpuEngine(save_doubler(tmp_path / 'doubler.onnx'))
    with pytest.raises(SpecMismatchError) as caught:
        engine.bind({'x': Elsewhere(), 'y': np.zeros((1, 3), np.float32)})
    assert caught.value.code == 'wrong_memory'


def test_executions_of_equal_shapes_share_a_module(tmp_path):
    engine = engines.TorchCpuEngine(save_doubler(tmp_path / 'doubler.onnx'))
    first, second, other = (
        engine.bind({name: np.zeros((rows, 3), np.float32) for name in 'xy'}) for rows in (2, 2, 1)
    )
    assert first._module is second._module
    assert first._module is not other._module


def test_threads_are_passed_on(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(torch, 'set_num_threads', asked.append)
    path = save_doubler(tmp_path / 'doubler.onnx')
    load_engine('torch_cpu', path, settings=EngineSettings(threads=2))
    load_engine('torch_cpu', path)
    assert asked == [2]


@pytest.fixture
def fake_torch_tensorrt(monkeypatch):
    """An empty library in the place of Torch-TensorRT; our module that imports it is gone afterwards, too."""
    monkeypatch.setitem(sys.modules, 'torch_tensorrt', ModuleType('torch_tensorrt'))
    ours = 'vla_policy_ros.engines.torch_tensorrt'
    monkeypatch.setitem(sys.modules, ours, ModuleType(ours))
    del sys.modules[ours]


@pytest.mark.parametrize('name', ['torch', 'torch_compile', 'torch_tensorrt'])
def test_gpu_engines_say_what_is_missing(tmp_path, fake_torch_tensorrt, name):
    if find_driver():
        pytest.skip('there is a driver')
    assert engine_memory(name) == 'device'
    with pytest.raises(GpuError) as caught:
        load_engine(name, save_doubler(tmp_path / 'doubler.onnx'))
    assert caught.value.code == 'no_driver'


def test_weights_on_the_device_are_shared_between_shapes(tmp_path):
    path = save_model(
        tmp_path / 'product.onnx',
        [helper.make_node('MatMul', ['x', 'w'], ['y'])],
        [('x', 'FLOAT', ['n', 3])],
        [('y', 'FLOAT', ['n', 3])],
        {'w': np.eye(3, dtype=np.float32)},
    )
    engine = engines.TorchCpuEngine(path)
    one, two = (
        engine.bind({name: np.ones((rows, 3), np.float32) for name in 'xy'})._module
        for rows in (1, 2)
    )
    (first,), (second,) = list(one.buffers()), list(two.buffers())
    assert first.data_ptr() == second.data_ptr()


class FakeCuda:
    """Notes what a device execution asks of `torch.cuda`, and runs on the host."""

    def __init__(self, monkeypatch):
        self.calls, self.is_capturing = [], False
        for name, value in {
            'stream': lambda stream: self.note('stream', stream),
            'ExternalStream': lambda handle, device: handle,
            'default_stream': lambda device: 'default',
            'is_current_stream_capturing': lambda: self.is_capturing,
            'MemPool': lambda: SimpleNamespace(id='pool'),
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(engines, '_ENTER_POOL', lambda *_: self.calls.append('enter'))
        for name in ('_cuda_endAllocateToPool', '_cuda_releasePool'):
            monkeypatch.setattr(
                torch._C, name, lambda *_, name=name: self.calls.append(name), raising=False
            )

    def note(self, *what):
        self.calls.append(what)
        return contextlib.nullcontext()


@pytest.fixture
def cuda(monkeypatch):
    return FakeCuda(monkeypatch)


def make_device_execution(**settings):
    x, y = torch.ones(3), torch.zeros(3)
    device = SimpleNamespace(index=0)
    execution = engines.TorchDeviceExecution(
        'net', lambda value: (value * 2,), {'x': x}, {'y': y}, device=device, **settings
    )
    return execution, y


def test_run_is_ordered_on_the_stream_with_memory_of_its_own(cuda):
    execution, y = make_device_execution()
    execution.enqueue(77)
    assert y.tolist() == [2, 2, 2]
    released = ['_cuda_endAllocateToPool', '_cuda_releasePool']
    assert cuda.calls == [('stream', 77), 'enter', *released]
    cuda.calls.clear()
    execution.enqueue()
    assert cuda.calls[0] == ('stream', 'default')
    execution.close()
    with pytest.raises(EngineError) as caught:
        execution.enqueue(77)
    assert caught.value.code == 'closed'


def test_capture_needs_a_run_on_the_same_stream_and_thread(cuda):
    execution, y = make_device_execution()
    execution.enqueue(77)
    y.zero_()
    cuda.is_capturing = True
    execution.enqueue(77)
    assert y.tolist() == [2, 2, 2]
    faults = []

    def try_elsewhere():
        with pytest.raises(EngineError) as caught:
            execution.enqueue(77)
        faults.append(caught.value.code)

    thread = threading.Thread(target=try_elsewhere)
    thread.start()
    thread.join()
    with pytest.raises(EngineError) as caught:
        execution.enqueue(78)
    assert [caught.value.code, *faults] == ['not_capturable'] * 2


def test_a_gradient_is_not_captured(cuda):
    execution, _ = make_device_execution(can_be_captured=False)
    execution.enqueue(77)
    cuda.is_capturing = True
    with pytest.raises(EngineError, match='of a gradient') as caught:
        execution.enqueue(77)
    assert caught.value.code == 'not_capturable'


def test_nothing_is_captured_without_pools(cuda, monkeypatch):
    monkeypatch.setattr(engines, '_ENTER_POOL', None)
    execution, y = make_device_execution()
    execution.enqueue(77)
    assert y.tolist() == [2, 2, 2]
    cuda.is_capturing = True
    with pytest.raises(EngineError) as caught:
        execution.enqueue(77)
    assert caught.value.code == 'not_capturable'


@pytest.mark.parametrize(
    ('dtype', 'kind'),
    [
        ('float32', '<f4'),
        ('float16', '<f2'),
        ('bfloat16', '<i2'),
        ('bool', '|b1'),
        ('int64', '<i8'),
    ],
)
def test_device_tensors_are_described_to_pytorch(dtype, kind):
    tensor = SimpleNamespace(shape=(2, 3), dtype=dtype, address=4096)
    facts = engines._ArrayInterface(tensor).__cuda_array_interface__
    assert facts == {
        'shape': (2, 3),
        'typestr': kind,
        'data': (4096, False),
        'strides': None,
        'version': 3,
    }


def test_the_minutes_of_compiling_are_told(monkeypatch, caplog):
    engine = object.__new__(engines.TorchCompileEngine)  # one that is loaded needs a GPU
    engine._name = 'head.onnx'
    monkeypatch.setattr(torch, 'compile', lambda module, **_: module)
    assert engine._finish('module') == 'module'
    assert 'head.onnx' in caplog.text
    assert 'minutes' in caplog.text


def test_torch_tensorrt_compiles_the_same_module_and_never_falls_back(
    monkeypatch, fake_torch_tensorrt
):
    from vla_policy_ros.engines.torch_tensorrt import TorchTensorRTEngine

    told = {}
    monkeypatch.setattr(torch, 'compile', lambda module, **words: told.update(words) or module)
    engine = object.__new__(TorchTensorRTEngine)
    engine._name = 'head.onnx'
    assert engine._finish('module') == 'module'
    assert told == {
        'backend': 'torch_tensorrt',
        'options': {'pass_through_build_failures': True},
        'fullgraph': True,
        'dynamic': False,
    }
