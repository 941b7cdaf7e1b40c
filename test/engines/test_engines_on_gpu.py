# SPDX-License-Identifier: Apache-2.0
"""The device engines of PyTorch and ONNX Runtime on a GPU, and what they say without one."""

from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from contracts.device_engine_contract import DeviceEngineContract
from onnx import helper
from support.array_engine import ArrayEngine, ArrayExecution
from support.bundles import save_doubler, save_model

from vla_policy_ros.core.errors import EngineError, GpuError, SpecMismatchError
from vla_policy_ros.engines import onnxruntime as ort
from vla_policy_ros.engines.plans import PlanStore, network_hash
from vla_policy_ros.engines.registry import engine_memory, load_engine
from vla_policy_ros.engines.settings import EngineSettings

HAS_TORCH = find_spec('torch') is not None
PROVIDERS = ort.onnxruntime.get_available_providers()
HAS_CUDA_PROVIDER = 'CUDAExecutionProvider' in PROVIDERS
HAS_TENSORRT_PROVIDER = 'TensorrtExecutionProvider' in PROVIDERS
HAS_TORCH_TENSORRT = find_spec('torch_tensorrt') is not None
TORCH = pytest.mark.skipif(not HAS_TORCH, reason='torch is not installed')
ENGINES = [
    pytest.param('torch', marks=TORCH),
    pytest.param('torch_compile', marks=TORCH),
    pytest.param(
        'onnxruntime_cuda',
        marks=pytest.mark.skipif(not HAS_CUDA_PROVIDER, reason='no CUDA provider'),
    ),
    pytest.param(
        'onnxruntime_tensorrt',
        marks=pytest.mark.skipif(not HAS_TENSORRT_PROVIDER, reason='no TensorRT provider'),
    ),
    pytest.param(
        'torch_tensorrt',
        marks=pytest.mark.skipif(not HAS_TORCH_TENSORRT, reason='no Torch-TensorRT'),
    ),
]
TORCH_ENGINES = ENGINES[:2]


class FakeTensor:
    def __init__(self, shape, dtype='float32'):
        self.shape, self.dtype, self.address = shape, dtype, 4096


@pytest.fixture
def with_driver(monkeypatch):
    """Let the engine believe in a driver."""
    monkeypatch.setattr(ort, 'require_driver', lambda: None)
    monkeypatch.setattr(ort, 'current_index', lambda: 0)


def test_no_driver_is_told(tmp_path, monkeypatch):
    def refuse():
        raise GpuError('driver', got='none', expected='one', next_step='Go.', code='no_driver')

    monkeypatch.setattr(ort, 'require_driver', refuse)
    for name in ('onnxruntime_cuda', 'onnxruntime_tensorrt'):
        assert engine_memory(name) == 'device'
        with pytest.raises(GpuError) as caught:
            load_engine(name, save_doubler(tmp_path / 'doubler.onnx'))
        assert caught.value.code == 'no_driver'


@pytest.mark.skipif(HAS_CUDA_PROVIDER, reason='there is a CUDA provider')
@pytest.mark.parametrize(
    ('name', 'told'),
    [
        ('onnxruntime_cuda', r'expected CUDAExecutionProvider, and the CUDA'),
        ('onnxruntime_tensorrt', r'expected TensorrtExecutionProvider, and the TensorRT'),
    ],
)
def test_missing_provider_is_told(tmp_path, with_driver, name, told):
    settings = EngineSettings(stream=1, plan_folder=tmp_path / 'plans')
    with pytest.raises(EngineError, match=f'engine {name}: .*{told}') as caught:
        load_engine(name, save_doubler(tmp_path / 'doubler.onnx'), settings=settings)
    assert caught.value.code == 'no_provider'
    assert 'pip install onnxruntime-gpu' in str(caught.value)
    assert not (tmp_path / 'plans').exists()


class FakeSession:
    """Takes what a session with a CUDA provider takes, and notes it."""

    def __init__(self, path, options, providers):
        self.inner = ort_session(path)
        self.options, self.providers = options, providers
        self.bound, self.runs = [], []
        self.started = [name for name, _ in providers]

    def get_providers(self):
        return self.started

    def get_inputs(self):
        return self.inner.get_inputs()

    def get_outputs(self):
        return self.inner.get_outputs()

    def io_binding(self):
        return self

    def bind_input(self, *place):
        self.bound.append(place)

    bind_output = bind_input

    def run_with_iobinding(self, binding, options):
        self.runs.append(options.get_run_config_entry('disable_synchronize_execution_providers'))


real_session = ort.onnxruntime.InferenceSession


def ort_session(path):
    return real_session(path, providers=['CPUExecutionProvider'])


@pytest.fixture
def fake_cuda(monkeypatch, with_driver):
    """ONNX Runtime as if its CUDA provider were there."""
    providers = ['TensorrtExecutionProvider', 'CUDAExecutionProvider', 'CPUExecutionProvider']
    monkeypatch.setattr(ort.onnxruntime, 'get_available_providers', lambda: providers)
    monkeypatch.setattr(ort.onnxruntime, 'InferenceSession', FakeSession)


def load_on_stream(path, stream=77):
    return ort.OnnxRuntimeCudaEngine(path, settings=EngineSettings(stream=stream))


def test_session_runs_on_the_callers_stream_and_on_the_gpu_only(tmp_path, fake_cuda):
    engine = load_on_stream(save_doubler(tmp_path / 'doubler.onnx'))
    session = engine._session
    facts = {'device_id': '0', 'user_compute_stream': '77'}
    assert session.providers == [('CUDAExecutionProvider', facts)]
    entry = session.options.get_session_config_entry('session.disable_cpu_ep_fallback')
    assert entry == '1'
    execution = engine.bind({name: FakeTensor((2, 3)) for name in 'xy'})
    assert session.bound == [(n, 'cuda', 0, np.float32, [2, 3], 4096) for n in 'xy']
    execution.enqueue(77)
    assert session.runs == ['1']
    with pytest.raises(EngineError) as caught:
        execution.enqueue(78)
    assert caught.value.code == 'wrong_stream'
    execution.close()
    with pytest.raises(EngineError) as caught:
        execution.enqueue(77)
    assert caught.value.code == 'closed'


def test_bfloat16_is_bound_by_the_number_of_onnx(tmp_path, fake_cuda):
    path = save_model(
        tmp_path / 'same.onnx',
        [helper.make_node('Identity', ['x'], ['y'])],
        [('x', 'BFLOAT16', [2])],
        [('y', 'BFLOAT16', [2])],
    )
    engine = load_on_stream(path)
    assert engine.inputs[0].dtype == 'bfloat16'
    engine.bind({name: FakeTensor((2,), 'bfloat16') for name in 'xy'})
    assert {place[3] for place in engine._session.bound} == {16}


def load_tensorrt(path, plans, stream=77):
    settings = EngineSettings(stream=stream, plan_folder=plans)
    return load_engine('onnxruntime_tensorrt', path, settings=settings)


def test_tensorrt_in_onnx_runtime_keeps_what_it_builds_for_each_network(
    tmp_path, fake_cuda, caplog
):
    plans = tmp_path / 'plans'
    path = save_scaled(tmp_path / 'scaled.onnx', 2)
    session = load_tensorrt(path, plans)._session
    (first, facts), cuda = session.providers
    place = {'device_id': '0', 'user_compute_stream': '77'}
    assert cuda == ('CUDAExecutionProvider', place)  # for the nodes that TensorRT does not take
    assert first == 'TensorrtExecutionProvider'
    kept = Path(facts.pop('trt_engine_cache_path'))
    assert facts == {
        **place,
        'trt_engine_cache_enable': 'True',
        'trt_timing_cache_enable': 'True',
        'trt_timing_cache_path': str(plans),
    }
    assert kept == plans / network_hash(path) / 'onnxruntime'
    assert 'scaled.onnx: ONNX Runtime builds engines' in caplog.text
    caplog.clear()
    (kept / 'TensorrtExecutionProvider_1.engine').touch()
    load_tensorrt(path, plans)
    assert not caplog.text
    # The library does not look at weights: another network of the same names must not find the engine.
    other = load_tensorrt(save_scaled(tmp_path / 'scaled.onnx', 3), plans)._session
    assert Path(other.providers[0][1]['trt_engine_cache_path']) != kept
    assert 'builds engines' in caplog.text
    assert PlanStore(plans).plans(network_hash(path)) == []


def test_tensorrt_in_onnx_runtime_runs_on_the_callers_stream(tmp_path, fake_cuda):
    engine = load_tensorrt(save_doubler(tmp_path / 'doubler.onnx'), tmp_path / 'plans')
    execution = engine.bind({name: FakeTensor((2, 3)) for name in 'xy'})
    execution.enqueue(77)
    assert engine._session.runs == ['1']
    with pytest.raises(EngineError) as caught:
        load_tensorrt(save_doubler(tmp_path / 'doubler.onnx'), tmp_path / 'plans', stream=0)
    assert caught.value.code == 'wrong_stream'


def test_cuda_in_the_place_of_tensorrt_is_told(tmp_path, fake_cuda, monkeypatch):
    # What the library does when TensorRT's libraries are missing.
    monkeypatch.setattr(FakeSession, 'get_providers', lambda _: ['CUDAExecutionProvider'])
    with pytest.raises(EngineError, match=r'does not start.*LD_LIBRARY_PATH') as caught:
        load_tensorrt(save_doubler(tmp_path / 'doubler.onnx'), tmp_path / 'plans')
    assert caught.value.code == 'no_provider'


def save_scaled(path, factor):
    """Write y = x * factor of 3 values."""
    nodes = [helper.make_node('Mul', ['x', 'factor'], ['y'])]
    shape = [1, 3]
    weights = {'factor': np.array([factor], np.float32)}
    return save_model(path, nodes, [('x', 'FLOAT', shape)], [('y', 'FLOAT', shape)], weights)


@pytest.mark.parametrize(
    'tensor',
    [FakeTensor((2, 4)), FakeTensor((3,)), FakeTensor((2, 3), 'float16'), np.zeros((2, 3), 'f4')],
    ids=['size', 'rank', 'dtype', 'host'],
)
def test_wrong_device_tensors_are_refused(tmp_path, fake_cuda, tensor):
    engine = load_on_stream(save_doubler(tmp_path / 'doubler.onnx'))
    with pytest.raises(SpecMismatchError):
        engine.bind({'x': tensor, 'y': FakeTensor((2, 3))})


def test_default_stream_is_refused(tmp_path, fake_cuda):
    with pytest.raises(EngineError) as caught:
        load_on_stream(save_doubler(tmp_path / 'doubler.onnx'), stream=0)
    assert caught.value.code == 'wrong_stream'


def test_provider_that_does_not_start_is_told(tmp_path, fake_cuda, monkeypatch):
    monkeypatch.setattr(FakeSession, 'get_providers', lambda _: ['CPUExecutionProvider'])
    with pytest.raises(EngineError) as caught:
        load_on_stream(save_doubler(tmp_path / 'doubler.onnx'))
    assert caught.value.code == 'no_provider'


# What follows needs a GPU.


@pytest.fixture(scope='module')
def device():
    """The GPU, current for the tests of this module."""
    from vla_policy_ros.gpu.device import open_device

    with closing(open_device()) as opened, opened.current():
        yield opened


@pytest.fixture
def load(device):
    """Loads an engine for the stream of the `ArrayEngine` around it."""
    opened = []

    def load_around(name, path):
        stream = device.new_stream()
        settings = EngineSettings(stream=stream.handle, plan_folder=path.parent / 'plans')
        engine = load_engine(name, path, settings=settings)
        around = ArrayEngine(engine, device)
        around._stream = stream
        opened.append(around)
        return around

    yield load_around
    for engine in opened:
        engine.close()


@pytest.mark.gpu
@pytest.mark.parametrize('name', ENGINES, scope='class')
class TestOnGpu(DeviceEngineContract):
    @pytest.fixture
    def engine(self, name, load, tmp_path):
        return load(name, save_doubler(tmp_path / 'doubler.onnx'))


@pytest.mark.gpu
@pytest.mark.parametrize('name', ENGINES)
@pytest.mark.parametrize('dtype', ['float32', 'float16', 'bfloat16'])
def test_element_types_on_the_gpu(name, load, tmp_path, dtype):
    element = {'float32': 'FLOAT'}.get(dtype, dtype.upper())
    engine = load(name, save_doubler(tmp_path / 'doubler.onnx', element=element))
    x, y = np.array([[1, 2, 3]], dtype), np.zeros((1, 3), dtype)
    engine.bind({'x': x, 'y': y}).enqueue()
    np.testing.assert_array_equal(y.astype('f4'), [[2, 4, 6]])


def save_product(path, width=64):
    """Write y = gelu(x w) of (4, width): a product and intermediate tensors, so that memory is needed."""
    weights = np.random.default_rng(5).standard_normal((width, width)).astype(np.float32) / 8
    nodes = [
        helper.make_node('MatMul', ['x', 'w'], ['hidden']),
        helper.make_node('Sigmoid', ['hidden'], ['gate']),
        helper.make_node('Mul', ['hidden', 'gate'], ['y']),
    ]
    shape = [4, width]
    return save_model(
        path, nodes, [('x', 'FLOAT', shape)], [('y', 'FLOAT', shape)], {'w': weights}
    )


@pytest.mark.gpu
@pytest.mark.parametrize('name', TORCH_ENGINES)
def test_run_is_captured_and_replayed(name, device, load, tmp_path):
    path = save_product(tmp_path / 'product.onnx')
    engine = load(name, path)
    stream = engine._stream
    arrays = {'x': np.ones((4, 64), np.float32), 'y': np.zeros((4, 64), np.float32)}
    bound = ArrayExecution(engine._engine, device, stream, arrays)
    bound.enqueue()
    with closing(device.capture(stream, lambda: bound.execution.enqueue(stream.handle))) as graph:
        arrays['x'] *= 0.5
        free_bytes = device.free_bytes()
        for _ in range(100):
            bound.upload()
            graph.launch(stream)
        bound.download()
        assert device.free_bytes() == free_bytes
    replayed = arrays['y'].copy()
    bound.enqueue()
    np.testing.assert_array_equal(arrays['y'], replayed)
    reference = {'x': arrays['x'], 'y': np.zeros((4, 64), np.float32)}
    ort.OnnxRuntimeEngine(path).bind(reference).enqueue()
    np.testing.assert_allclose(replayed, reference['y'], rtol=1e-4, atol=1e-5)
    bound.close()


@pytest.mark.gpu
@TORCH
def test_capture_before_the_first_run_is_refused(device, load, tmp_path):
    engine = load('torch', save_product(tmp_path / 'product.onnx'))
    stream = engine._stream
    arrays = {name: np.zeros((4, 64), np.float32) for name in 'xy'}
    bound = ArrayExecution(engine._engine, device, stream, arrays)
    with pytest.raises((EngineError, GpuError)) as caught:
        device.capture(stream, lambda: bound.execution.enqueue(stream.handle))
    assert caught.value.code in ('not_capturable', 'capture_failed')
    bound.enqueue()  # the stream is usable afterwards
    bound.close()
