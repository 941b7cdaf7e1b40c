# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest

from vla_policy_ros.bundle.bundle import load_bundle
from vla_policy_ros.sample import sample_bundle_path

COLUMNS = list(load_bundle(sample_bundle_path()).spec.action.names)


@pytest.fixture
def compare(cli):
    """Run `vla-policy compare` on the sample bundle."""

    def run(*words):
        return cli('compare', '--bundle', 'sample', '--engine', *words)

    return run


def test_precisions_are_held_against_the_first(compare):
    result = compare('onnxruntime', 'onnxruntime:fp16', 'onnxruntime', '--json')
    assert result.status == 0
    document = result.document
    assert (document['passed'], document['reference'], document['observations']) == (
        True,
        'onnxruntime',
        1,
    )
    assert document['versions']['onnxruntime']
    half, same = document['comparisons']
    assert (half['engine'], same['engine']) == ('onnxruntime:fp16', 'onnxruntime')
    assert [part['name'] for part in half['stages']] == ['encoder', 'velocity']
    assert [column['name'] for column in half['columns']] == COLUMNS
    for part in (*half['stages'], half['policy'], *half['columns']):
        assert 1e-5 < part['parity']['max_error'] < 0.02
        assert part['grade'] == 'PASS'
    assert {column['max_error'] for column in same['columns']} == {0}


def test_both_sides_may_be_lowered(compare):
    result = compare('onnxruntime:fp16', 'onnxruntime:fp16', '--json')
    assert (result.status, result.document['reference']) == (0, 'onnxruntime:fp16')
    [same] = result.document['comparisons']
    assert same['policy']['parity']['max_error'] == 0
    assert same['policy']['limit']['max_error'] == 0.02


def test_observations_of_a_dataset(compare):
    result = compare(
        'onnxruntime', 'onnxruntime:fp16', '--dataset', 'sample', '--samples', '2', '--json'
    )
    assert result.document['observations'] == 2
    [part] = result.document['comparisons']
    assert [stage['runs'] for stage in part['stages']] == [2, 8]


def test_a_difference_outside_of_a_limit_fails(compare, monkeypatch, tmp_path):
    """Hold fp16 against limits that only equal numbers keep."""
    from vla_policy_ros.bundle import limits

    strict = limits.AccuracyLimit(min_cosine=0.999, max_error=1e-6)
    monkeypatch.setitem(limits.ACCURACY_LIMITS, 'fp16', strict)
    monkeypatch.setitem(limits.ACCURACY_LIMITS, 'fp32', strict)
    result = compare('onnxruntime', 'onnxruntime:fp16', '--out', tmp_path / 'out')
    assert result.status == 1
    assert result.out.startswith('FAILED')
    document = json.loads((tmp_path / 'out' / 'compare.json').read_text())
    [comparison] = document['comparisons']
    assert (document['passed'], comparison['first_outside']) == (False, 'encoder')
    assert {column['grade'] for column in comparison['columns']} == {'FAIL'}
    assert (tmp_path / 'out' / 'compare.md').read_text().startswith('# FAILED')


def test_report_in_words_and_on_disk(compare, tmp_path):
    result = compare('onnxruntime', 'onnxruntime:fp16', '--out', tmp_path)
    assert result.status == 0
    text = (tmp_path / 'compare.md').read_text()
    for name in (*COLUMNS, 'encoder', 'velocity', 'policy', 'onnxruntime:fp16', 'rad', 'PASS'):
        assert name in result.out
        assert name in text
    assert '| engine | part |' in text
    document = json.loads((tmp_path / 'compare.json').read_text())
    assert np.isfinite(document['comparisons'][0]['policy']['parity']['cosine'])


@pytest.mark.parametrize(
    ('words', 'code'),
    [
        (('onnxruntime',), 'nothing_to_compare'),
        (('onnxruntime', 'nobody'), 'unknown_engine'),
        (('onnxruntime', 'onnxruntime:fp4'), 'unknown_precision'),
        (('onnxruntime', 'onnxruntime:'), 'unknown_precision'),
        (('onnxruntime', 'onnxruntime:bf16'), 'unsupported_precision'),
        (('onnxruntime', 'onnxruntime:int8'), 'no_calibration'),
    ],
)
def test_wrong_words(compare, words, code):
    result = compare(*words, '--json')
    assert result.status == 2
    assert result.document['error']['code'] == code


def test_openvino(compare):
    pytest.importorskip('openvino')
    result = compare('onnxruntime', 'openvino', 'openvino:bf16', '--json')
    assert result.status == 0
    exact, narrow = result.document['comparisons']
    assert exact['policy']['parity']['max_error'] < 1e-5
    assert narrow['policy']['limit']['max_error'] == 0.05
