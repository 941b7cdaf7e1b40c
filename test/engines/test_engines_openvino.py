# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys
import threading
import tracemalloc

import numpy as np
import pytest
from contracts.engine_contract import EngineContract
from onnx import helper
from support.bundles import save_doubler, save_model

from vla_policy_ros.core.errors import EngineError, SpecMismatchError
from vla_policy_ros.engines import openvino as engines
from vla_policy_ros.engines.onnxruntime import OnnxRuntimeEngine
from vla_policy_ros.engines.openvino import OpenVinoEngine, open_core
from vla_policy_ros.engines.registry import engine_memory, load_engine
from vla_policy_ros.engines.settings import EngineSettings

TYPES = ['float32', 'float64', 'float16', 'bfloat16', 'int32', 'int64', 'uint8', 'int8', 'bool']
ELEMENTS = {'float32': 'FLOAT', 'float64': 'DOUBLE'}


class TestOpenVino(EngineContract):
    @pytest.fixture
    def engine(self, tmp_path):
        return OpenVinoEngine(save_doubler(tmp_path / 'doubler.onnx'))


class FakeCore:
    """The library on a machine with other devices; compiles for the CPU whatever it is asked for."""

    def __init__(self, devices):
        self.available_devices = devices
        self.compiled = []
        self._real = open_core()

    def get_property(self, device, name):
        assert name == 'FULL_DEVICE_NAME'
        return f'Intel {device} '

    def compile_model(self, model, device, properties):
        self.compiled.append((device, properties))
        return self._real.compile_model(model, 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})


@pytest.fixture
def cores(monkeypatch):
    """Let the library find these devices."""

    def put(*devices):
        core = FakeCore(list(devices))
        monkeypatch.setattr(engines, 'open_core', lambda: core)
        return core

    return put


@pytest.fixture
def doubler(tmp_path):
    return save_doubler(tmp_path / 'doubler.onnx')


@pytest.fixture
def layers(tmp_path):
    """A network that bfloat16 changes: two products with a tanh between them."""
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32) / 8
    nodes = [
        helper.make_node('MatMul', ['x', 'w'], ['h']),
        helper.make_node('Tanh', ['h'], ['t']),
        helper.make_node('MatMul', ['t', 'w'], ['y']),
    ]
    shape = ['n', 64]
    return save_model(
        tmp_path / 'layers.onnx',
        nodes,
        [('x', 'FLOAT', shape)],
        [('y', 'FLOAT', shape)],
        {'w': weight},
    )


def run(engine, x):
    y = np.zeros_like(x)
    engine.bind({'x': x, 'y': y}).enqueue()
    return y


@pytest.mark.parametrize('dtype', TYPES)
def test_element_types_go_through_unchanged(tmp_path, dtype):
    element = ELEMENTS.get(dtype, dtype.upper())
    path = save_model(
        tmp_path / 'same.onnx',
        [helper.make_node('Identity', ['x'], ['y'])],
        [('x', element, [2])],
        [('y', element, [2])],
    )
    np.testing.assert_array_equal(run(OpenVinoEngine(path), np.array([1, 0], dtype)), [1, 0])


def test_scalars_are_bound(tmp_path):
    path = save_model(
        tmp_path / 'scalar.onnx',
        [helper.make_node('Neg', ['x'], ['y'])],
        [('x', 'FLOAT', [])],
        [('y', 'FLOAT', [])],
    )
    assert run(OpenVinoEngine(path), np.array(3, np.float32)) == -3


def test_element_type_that_numpy_lacks_is_named(tmp_path):
    path = save_model(
        tmp_path / 'words.onnx',
        [helper.make_node('Identity', ['x'], ['y'])],
        [('x', 'STRING', [1])],
        [('y', 'STRING', [1])],
    )
    with pytest.raises(EngineError, match=r"tensor 'x'.*string") as caught:
        OpenVinoEngine(path)
    assert caught.value.code == 'unsupported_type'


def test_unknown_rank_is_refused(tmp_path):
    path = save_model(
        tmp_path / 'any.onnx',
        [helper.make_node('Reshape', ['x', 'size'], ['y'])],
        [('x', 'FLOAT', [4]), ('size', 'INT64', ['rank'])],
        [('y', 'FLOAT', [2, 2])],
    )
    with pytest.raises(EngineError, match=r"tensor 'y'") as caught:
        OpenVinoEngine(path)
    assert caught.value.code == 'unsupported_shape'


@pytest.mark.parametrize('content', [None, b'', b'not a network'])
def test_file_that_cannot_be_loaded_is_named_and_leaves_no_log_lines(tmp_path, capfd, content):
    path = tmp_path / 'broken.onnx'
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EngineError, match=r'broken\.onnx') as caught:
        OpenVinoEngine(path)
    assert caught.value.code == 'not_loadable'
    assert 'src/' not in caught.value.got
    assert capfd.readouterr() == ('', '')


def test_the_cpu_computes_in_float32_unless_bfloat16_is_asked_for(layers):
    """Where the processor has bfloat16, the library would choose it for itself."""
    x = np.random.default_rng(1).standard_normal((4, 64)).astype(np.float32)
    expected = run(OnnxRuntimeEngine(layers), x)
    for precision in (None, 'fp32', 'fp16', 'int8'):
        found = run(OpenVinoEngine(layers, settings=EngineSettings(precision=precision)), x)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    narrow = OpenVinoEngine(layers, settings=EngineSettings(precision='bf16'))
    found = run(narrow, x)
    np.testing.assert_allclose(found, expected, atol=5e-2)
    if 'BF16' in open_core().get_property('CPU', 'OPTIMIZATION_CAPABILITIES'):
        assert np.abs(found - expected).max() > 1e-4


def test_threads_are_passed_on_and_do_not_change_the_result(layers):
    x = np.random.default_rng(1).standard_normal((4, 64)).astype(np.float32)
    outputs = []
    for threads in (1, 2):
        engine = OpenVinoEngine(layers, settings=EngineSettings(threads=threads))
        outputs.append(run(engine, x).tobytes())
        [network] = engine._compiled.values()
        assert network.get_property('INFERENCE_NUM_THREADS') == threads
    assert outputs[0] == outputs[1]


def test_bindings_of_equal_shapes_share_a_compiled_network(layers):
    engine = OpenVinoEngine(layers)
    for rows in (4, 4, 2):
        run(engine, np.ones((rows, 64), np.float32))
    assert list(engine._compiled) == [((4, 64),), ((2, 64),)]


def test_output_of_another_shape_than_the_network_gives_is_refused(doubler):
    with pytest.raises(SpecMismatchError, match=r"'y'.*\[3, 3\].*\[2, 3\]"):
        OpenVinoEngine(doubler).bind(
            {'x': np.zeros((2, 3), np.float32), 'y': np.zeros((3, 3), np.float32)}
        )


def test_free_sizes_that_do_not_go_together_are_refused(tmp_path):
    path = save_model(
        tmp_path / 'sum.onnx',
        [helper.make_node('Add', ['a', 'b'], ['y'])],
        [('a', 'FLOAT', ['n']), ('b', 'FLOAT', ['m'])],
        [('y', 'FLOAT', ['k'])],
    )
    buffers = {name: np.zeros(size, np.float32) for name, size in (('a', 2), ('b', 3), ('y', 3))}
    with pytest.raises(EngineError, match=r'sum\.onnx') as caught:
        OpenVinoEngine(path).bind(buffers)
    assert caught.value.code == 'unsupported_shape'


def test_shape_that_depends_on_values_is_refused(tmp_path):
    path = save_model(
        tmp_path / 'tile.onnx',
        [helper.make_node('Tile', ['x', 'times'], ['y'])],
        [('x', 'FLOAT', [2]), ('times', 'INT64', [1])],
        [('y', 'FLOAT', ['n'])],
    )
    buffers = {
        'x': np.zeros(2, np.float32),
        'times': np.array([2], np.int64),
        'y': np.zeros(4, np.float32),
    }
    with pytest.raises(EngineError, match=r"output 'y'") as caught:
        OpenVinoEngine(path).bind(buffers)
    assert caught.value.code == 'unsupported_shape'


def test_failure_while_running_is_an_engine_error(tmp_path):
    path = save_model(
        tmp_path / 'tile.onnx',
        [
            helper.make_node('Tile', ['x', 'times'], ['long']),
            helper.make_node('Reshape', ['long', 'size'], ['y']),
        ],
        [('x', 'FLOAT', [2]), ('times', 'INT64', [1])],
        [('y', 'FLOAT', [4])],
        {'size': np.array([4], np.int64)},
    )
    x, times, y = np.array([1, 2], np.float32), np.array([3], np.int64), np.zeros(4, np.float32)
    execution = OpenVinoEngine(path).bind({'x': x, 'times': times, 'y': y})
    with pytest.raises(EngineError, match=r'tile\.onnx') as caught:
        execution.enqueue()
    assert caught.value.code == 'engine_failed'
    times[0] = 2
    execution.enqueue()
    np.testing.assert_array_equal(y, [1, 2, 1, 2])


def test_runs_keep_no_memory_and_copy_no_output(tmp_path):
    path = save_doubler(tmp_path / 'doubler.onnx')
    x, y = np.ones((4000, 3), np.float32), np.zeros((4000, 3), np.float32)
    execution = OpenVinoEngine(path).bind({'x': x, 'y': y})
    execution.enqueue()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for _ in range(100):
        execution.enqueue()
    after, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 4000
    assert peak - before < y.nbytes / 4


def test_two_threads_may_run_their_bindings_at_once(tmp_path):
    engine = OpenVinoEngine(save_doubler(tmp_path / 'doubler.onnx'))
    outputs = [np.zeros((1000, 3), np.float32) for _ in range(2)]
    bound = [
        engine.bind({'x': np.full((1000, 3), value, np.float32), 'y': y})
        for value, y in enumerate(outputs)
    ]

    def run_often(execution):
        for _ in range(50):
            execution.enqueue()

    threads = [threading.Thread(target=run_often, args=[execution]) for execution in bound]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [set(y.ravel()) for y in outputs] == [{0.0}, {2.0}]


def test_nothing_is_told_to_anybody(doubler):
    """The library's converter reports its use over the net; loading and running must not."""
    script = (
        'import atexit, sys, pathlib\n'
        'events = []\n'
        'sys.addaudithook(lambda name, _: events.append(name))\n'
        'atexit.register(lambda: print([e for e in events if e.startswith(("socket.", "subprocess."))]))\n'
        'from vla_policy_ros.engines.openvino import OpenVinoEngine\n'
        f'OpenVinoEngine(pathlib.Path({str(doubler)!r}))\n'
    )
    done = subprocess.run(
        [sys.executable, '-c', script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == '[]'


def test_missing_device_is_told_what_there_is(doubler, cores):
    cores('CPU', 'GPU.0', 'GPU.1')
    with pytest.raises(EngineError, match=r'NPU\.0.*CPU \(Intel CPU\), GPU\.0') as caught:
        load_engine('openvino_npu', doubler)
    assert caught.value.code == 'no_device'
    with pytest.raises(EngineError, match=r'device GPU\.2'):
        load_engine('openvino_gpu', doubler, settings=EngineSettings(device_index=2))


@pytest.mark.skipif(
    any(name.startswith(('GPU', 'NPU')) for name in open_core().available_devices),
    reason='there is an Intel GPU or NPU',
)
@pytest.mark.parametrize('name', ['openvino_gpu', 'openvino_npu'])
def test_missing_device_is_told_for_real(doubler, name):
    assert engine_memory(name) == 'host'
    with pytest.raises(EngineError, match=r'got CPU \(') as caught:
        load_engine(name, doubler)
    assert caught.value.code == 'no_device'


@pytest.mark.parametrize(
    ('name', 'present', 'settings', 'device', 'hint'),
    [
        ('openvino', ['CPU'], EngineSettings(device_index=3), 'CPU', 'f32'),
        ('openvino_gpu', ['CPU', 'GPU'], EngineSettings(), 'GPU', 'f32'),
        ('openvino_gpu', ['CPU', 'GPU.0'], EngineSettings(precision='fp16'), 'GPU.0', 'f16'),
        ('openvino_gpu', ['GPU.0', 'GPU.1'], EngineSettings(device_index=1), 'GPU.1', 'f32'),
        ('openvino_npu', ['CPU', 'NPU'], EngineSettings(), 'NPU', None),
    ],
)
def test_device_and_precision_reach_the_library(
    doubler, cores, name, present, settings, device, hint
):
    core = cores(*present)
    engine = load_engine(name, doubler, settings=settings)
    np.testing.assert_array_equal(run(engine, np.ones((1, 3), np.float32)), [[2, 2, 2]])
    [(used, properties)] = core.compiled
    assert used == device
    assert properties['PERFORMANCE_HINT'] == 'LATENCY'
    assert properties.get('INFERENCE_PRECISION_HINT') == hint


SIGNAL_AFTER_ANOTHER_THREAD = """
import os, signal, sys, threading
from pathlib import Path
import numpy as np
from vla_policy_ros.engines.openvino import OpenVinoEngine
told = []
signal.signal(signal.SIGUSR1, lambda *_: told.append(1))
engines = [OpenVinoEngine(Path(sys.argv[1]))]
def work():
    x, y = np.zeros((1, 3), np.float32), np.zeros((1, 3), np.float32)
    engines[0].bind({'x': x, 'y': y}).enqueue()
    engines.clear()
for _ in range(2):
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    os.kill(os.getpid(), signal.SIGUSR1)
    engines.append(OpenVinoEngine(Path(sys.argv[1])))
assert told == [1, 1], told
"""


def test_a_signal_after_an_engine_went_on_another_thread_is_harmless(tmp_path):
    path = save_doubler(tmp_path / 'doubler.onnx')
    command = [sys.executable, '-c', SIGNAL_AFTER_ANOTHER_THREAD, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
