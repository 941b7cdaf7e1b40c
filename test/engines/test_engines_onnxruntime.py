# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from contracts.engine_contract import EngineContract
from onnx import helper
from support.bundles import save_doubler, save_model

from vla_policy_ros.core.errors import EngineError
from vla_policy_ros.engines.onnxruntime import OnnxRuntimeEngine
from vla_policy_ros.engines.settings import EngineSettings

TYPES = {
    'FLOAT': np.float32,
    'DOUBLE': np.float64,
    'FLOAT16': np.float16,
    'INT32': np.int32,
    'INT64': np.int64,
}


class TestOnnxRuntime(EngineContract):
    @pytest.fixture
    def engine(self, tmp_path):
        return OnnxRuntimeEngine(save_doubler(tmp_path / 'doubler.onnx'))


@pytest.mark.parametrize('element', TYPES)
def test_element_types_go_through_unchanged(tmp_path, element):
    engine = OnnxRuntimeEngine(save_doubler(tmp_path / 'doubler.onnx', element=element))
    x = np.array([[1, 2, 3]], TYPES[element])
    y = np.zeros_like(x)
    engine.bind({'x': x, 'y': y}).enqueue()
    np.testing.assert_array_equal(y, [[2, 4, 6]])


@pytest.mark.parametrize('element', ['BOOL', 'UINT8', 'INT8'])
def test_narrow_types_go_through_unchanged(tmp_path, element):
    path = save_model(
        tmp_path / 'same.onnx',
        [helper.make_node('Identity', ['x'], ['y'])],
        [('x', element, [2])],
        [('y', element, [2])],
    )
    dtype = np.dtype(element.lower())
    x, y = np.array([1, 0], dtype), np.array([0, 1], dtype)
    OnnxRuntimeEngine(path).bind({'x': x, 'y': y}).enqueue()
    np.testing.assert_array_equal(y, x)


def test_element_type_that_numpy_lacks_is_named(tmp_path):
    path = save_model(
        tmp_path / 'words.onnx',
        [helper.make_node('Identity', ['x'], ['y'])],
        [('x', 'STRING', [1])],
        [('y', 'STRING', [1])],
    )
    with pytest.raises(EngineError, match=r"tensor 'x'.*tensor\(string\)") as caught:
        OnnxRuntimeEngine(path)
    assert caught.value.code == 'unsupported_type'


@pytest.mark.parametrize('content', [None, b'', b'not a network'])
def test_file_that_cannot_be_loaded_is_named(tmp_path, content):
    path = tmp_path / 'broken.onnx'
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EngineError, match=r'broken\.onnx') as caught:
        OnnxRuntimeEngine(path)
    assert caught.value.code == 'not_loadable'


def make_failing_engine(folder):
    """Gather with an index that only the data puts out of range."""
    path = save_model(
        folder / 'gather.onnx',
        [helper.make_node('Gather', ['x', 'index'], ['y'])],
        [('x', 'FLOAT', [3]), ('index', 'INT64', [1])],
        [('y', 'FLOAT', [1])],
    )
    return OnnxRuntimeEngine(path)


def test_failure_while_running_is_an_engine_error(tmp_path):
    index = np.array([1], np.int64)
    buffers = {'x': np.arange(3, dtype=np.float32), 'index': index, 'y': np.zeros(1, np.float32)}
    execution = make_failing_engine(tmp_path).bind(buffers)
    index[0] = 99
    with pytest.raises(EngineError, match=r'gather\.onnx.*indices') as caught:
        execution.enqueue()
    assert caught.value.code == 'engine_failed'
    index[0] = 2
    execution.enqueue()
    assert buffers['y'][0] == 2


def test_oddities_and_failures_leave_no_log_lines(tmp_path, capfd):
    same = helper.make_node('Identity', ['x'], ['y'])
    unused = {'unused': np.zeros(1, np.float32)}  # the library warns of it at load
    odd = save_model(
        tmp_path / 'odd.onnx', [same], [('x', 'FLOAT', [1])], [('y', 'FLOAT', [1])], unused
    )
    OnnxRuntimeEngine(odd)
    index = np.array([99], np.int64)
    buffers = {'x': np.arange(3, dtype=np.float32), 'index': index, 'y': np.zeros(1, np.float32)}
    execution = make_failing_engine(tmp_path).bind(buffers)
    with pytest.raises(EngineError):
        execution.enqueue()
    with pytest.raises(EngineError):
        OnnxRuntimeEngine(tmp_path / 'none.onnx')
    assert capfd.readouterr() == ('', '')


def test_threads_are_passed_on_and_do_not_change_the_result(tmp_path):
    path = save_doubler(tmp_path / 'doubler.onnx')
    outputs = []
    for threads in (1, 2):
        engine = OnnxRuntimeEngine(path, settings=EngineSettings(threads=threads))
        assert engine._session.get_session_options().intra_op_num_threads == threads
        x, y = np.full((1, 3), 0.1, np.float32), np.zeros((1, 3), np.float32)
        engine.bind({'x': x, 'y': y}).enqueue()
        outputs.append(y.tobytes())
    assert outputs[0] == outputs[1]
