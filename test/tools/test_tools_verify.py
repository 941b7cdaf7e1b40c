# SPDX-License-Identifier: Apache-2.0
import shutil
import sys
from dataclasses import replace
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from support.bundles import write_flow_bundle

from vla_policy_ros.engines import registry
from vla_policy_ros.engines.onnxruntime import OnnxRuntimeEngine


@pytest.fixture
def verify(cli):
    """Run `vla-policy verify` on the sample bundle."""

    def run(*words):
        return cli('verify', '--bundle', 'sample', *words)

    return run


@pytest.fixture
def damaged(monkeypatch, tmp_path):
    """An engine that multiplies the last weights of one stage by 1.5."""

    def damage(file_name):
        def load(onnx_path, *, settings):
            copied = tmp_path / onnx_path.name
            shutil.copyfile(onnx_path, copied)
            if onnx_path.name == file_name:
                model = onnx.load(copied)
                weight = next(t for t in reversed(model.graph.initializer) if len(t.dims) == 2)
                values = numpy_helper.to_array(weight) * np.float32(1.5)
                weight.CopyFrom(numpy_helper.from_array(values, weight.name))
                copied.write_bytes(model.SerializeToString())
            return OnnxRuntimeEngine(copied, settings=settings)

        module = ModuleType('damaged_engine')
        module.DamagedEngine = load
        monkeypatch.setitem(sys.modules, 'damaged_engine', module)
        entry = replace(
            registry._ENTRIES['onnxruntime'], module='damaged_engine', class_name='DamagedEngine'
        )
        monkeypatch.setitem(registry._ENTRIES, 'damaged', entry)
        monkeypatch.setattr(registry, 'ENGINES', ('damaged',))
        monkeypatch.setattr('vla_policy_ros.policies.engine_policy.ENGINES', ('damaged',))

    return damage


def test_an_engine_against_itself_is_exact(verify):
    result = verify('--engine', 'onnxruntime', '--json')
    assert result.status == 0
    document = result.document
    assert (document['passed'], document['first_outside']) == (True, '')
    assert [part['name'] for part in document['stages']] == ['encoder', 'velocity']
    assert [part['runs'] for part in document['stages']] == [1, 4]
    for part in (*document['stages'], document['policy']):
        assert part['parity']['max_error'] == part['parity']['mean_error'] == 0
        assert part['parity']['cosine'] == pytest.approx(1)


def test_observations_of_a_dataset(verify):
    result = verify('--engine', 'onnxruntime', '--dataset', 'sample', '--samples', '3', '--json')
    assert result.status == 0
    assert [part['runs'] for part in result.document['stages']] == [3, 12]
    assert result.document['policy']['runs'] == 3


def test_fp16_costs_something_and_passes(verify):
    result = verify('--engine', 'onnxruntime', '--precision', 'fp16', '--json')
    assert result.status == 0
    for part in (*result.document['stages'], result.document['policy']):
        assert part['precision'] == 'fp16'
        assert 1e-5 < part['parity']['max_error'] < part['limit']['max_error']


@pytest.mark.parametrize('stage', ['encoder', 'velocity'])
def test_a_damaged_stage_is_named(verify, damaged, stage):
    damaged(f'{stage}.onnx')
    result = verify('--engine', 'damaged', '--json')
    assert (result.status, result.document['passed']) == (1, False)
    assert result.document['first_outside'] == stage
    # Each stage gets the reference's inputs, so the other one is exact.
    other = next(part for part in result.document['stages'] if part['name'] != stage)
    assert other['parity']['max_error'] == 0
    words = verify('--engine', 'damaged').out
    assert words.startswith('FAILED')
    assert f'first outside  stage {stage}' in words
    assert ' FAIL\n' in words


@pytest.mark.parametrize(
    ('words', 'code'),
    [
        (('--engine', 'nobody'), 'unknown_engine'),
        (('--engine', 'onnxruntime', '--precision', 'bf16'), 'unsupported_precision'),
        (('--engine', 'onnxruntime', '--precision', 'int8'), 'no_calibration'),
    ],
)
def test_wrong_words(verify, words, code):
    result = verify(*words, '--json')
    assert result.status == 2
    assert result.document['error']['code'] == code


def test_a_bundle_without_a_probe_needs_a_dataset(cli, tmp_path):
    write_flow_bundle(tmp_path / 'flow')
    result = cli('verify', '--bundle', tmp_path / 'flow', '--engine', 'onnxruntime', '--json')
    assert result.status == 2
    assert result.document['error']['code'] == 'nothing_to_compare'


def test_torch_on_the_cpu(verify):
    pytest.importorskip('torch')
    assert verify('--engine', 'torch_cpu', '--json').status == 0


def test_what_makes_a_calibration_is_told(verify):
    result = verify('--engine', 'onnxruntime', '--precision', 'int8')
    assert '--calibration FILE' in result.err
    assert 'vla-policy build --calibrate' in result.err
