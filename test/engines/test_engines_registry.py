# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys

import pytest
from support.bundles import save_doubler

from vla_policy_ros.core.errors import ConfigurationError, MissingDependencyError
from vla_policy_ros.engines.onnxruntime import OnnxRuntimeEngine
from vla_policy_ros.engines.registry import (
    ENGINES,
    engine_memory,
    load_engine,
    takes_precision,
)
from vla_policy_ros.engines.settings import EngineSettings


def test_every_engine_has_a_place_for_its_tensors():
    memories = {name: engine_memory(name) for name in ENGINES}
    assert set(memories.values()) == {'host', 'device'}
    on_host = [name for name in ENGINES if memories[name] == 'host']
    assert on_host == ['onnxruntime', 'openvino', 'openvino_gpu', 'openvino_npu', 'torch_cpu']


def test_settings_reach_the_engine(tmp_path):
    settings = EngineSettings(threads=1)
    engine = load_engine('onnxruntime', save_doubler(tmp_path / 'doubler.onnx'), settings=settings)
    assert isinstance(engine, OnnxRuntimeEngine)
    assert [spec.name for spec in engine.inputs] == ['x']
    assert engine._session.get_session_options().intra_op_num_threads == 1


def test_unknown_engine_is_told_what_exists(tmp_path):
    with pytest.raises(ConfigurationError, match=r"'warp'.*one of onnxruntime") as caught:
        load_engine('warp', tmp_path / 'doubler.onnx')
    assert caught.value.code == 'unknown_engine'
    with pytest.raises(ConfigurationError):
        engine_memory('warp')


@pytest.mark.parametrize(
    ('name', 'module', 'library', 'remedy'),
    [
        ('onnxruntime', 'onnxruntime', 'onnxruntime', 'pip install onnxruntime`'),
        ('onnxruntime_cuda', 'onnxruntime', 'onnxruntime', 'pip install onnxruntime-gpu'),
        (
            'onnxruntime_tensorrt',
            'onnxruntime_tensorrt',
            'onnxruntime',
            'pip install onnxruntime-gpu',
        ),
        ('torch', 'torch', 'torch', 'pip install torch'),
        (
            'torch_tensorrt',
            'torch_tensorrt',
            'torch_tensorrt',
            'pip install torch_tensorrt',
        ),
        ('torch_compile', 'torch', 'torch', 'pip install torch'),
        ('torch_cpu', 'torch', 'torch', 'pip install torch'),
        ('openvino', 'openvino', 'openvino', 'pip install openvino'),
        ('openvino_npu', 'openvino', 'openvino', 'pip install openvino'),
    ],
)
def test_missing_library_is_told_how_to_install(
    tmp_path, monkeypatch, name, module, library, remedy
):
    for loaded in {module, 'onnxruntime'}:  # others build on it
        monkeypatch.delitem(sys.modules, f'vla_policy_ros.engines.{loaded}', raising=False)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingDependencyError, match=remedy) as caught:
        load_engine(name, tmp_path / 'doubler.onnx')
    assert caught.value.code == 'missing_dependency'


def test_precisions_that_can_be_asked_for():
    assert takes_precision('tensorrt', 'fp8')
    assert takes_precision('openvino', 'bf16')
    assert takes_precision('openvino_npu', 'fp16')
    assert not takes_precision('openvino', 'fp16')
    assert not takes_precision('onnxruntime', 'bf16')


def test_registry_imports_no_library():
    script = (
        'import sys, vla_policy_ros.engines.registry as r; '
        'print(r.ENGINES, "onnxruntime" in sys.modules)'
    )
    done = subprocess.run(
        [sys.executable, '-c', script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == f'{ENGINES} False'
