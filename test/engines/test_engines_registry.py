# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys

import pytest
from support.bundles import save_doubler

from vla_policy_ros.core.errors import ConfigurationError, MissingDependencyError
from vla_policy_ros.engines.onnxruntime import OnnxRuntimeEngine
from vla_policy_ros.engines.registry import ENGINES, load_engine


@pytest.mark.parametrize('name', ENGINES)
def test_every_engine_loads_the_doubler(tmp_path, name):
    engine = load_engine(name, save_doubler(tmp_path / 'doubler.onnx'))
    assert [spec.name for spec in engine.inputs] == ['x']


def test_threads_reach_the_engine(tmp_path):
    engine = load_engine('onnxruntime', save_doubler(tmp_path / 'doubler.onnx'), threads=1)
    assert isinstance(engine, OnnxRuntimeEngine)
    assert engine._session.get_session_options().intra_op_num_threads == 1


def test_unknown_engine_is_told_what_exists(tmp_path):
    with pytest.raises(ConfigurationError, match=r"'warp'.*one of onnxruntime") as caught:
        load_engine('warp', tmp_path / 'doubler.onnx')
    assert caught.value.code == 'unknown_engine'


def test_missing_library_is_told_how_to_install(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, 'vla_policy_ros.engines.onnxruntime')
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    with pytest.raises(MissingDependencyError, match='pip install onnxruntime') as caught:
        load_engine('onnxruntime', tmp_path / 'doubler.onnx')
    assert caught.value.code == 'missing_dependency'


def test_registry_imports_no_library():
    script = (
        'import sys, vla_policy_ros.engines.registry as r; '
        'print(r.ENGINES, "onnxruntime" in sys.modules)'
    )
    done = subprocess.run(
        [sys.executable, '-c', script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == f'{ENGINES} False'
