# SPDX-License-Identifier: Apache-2.0
"""`vla-policy quantize`, and what is done with its bundle."""

import pytest
from support.requirements import NEEDS_8_BITS, require

pytestmark = NEEDS_8_BITS


@pytest.fixture
def quantize(cli, tmp_path):
    def run(*words):
        return cli('quantize', '--bundle', 'sample', '--out', tmp_path / 'small', *words)

    return run


def test_a_bundle_in_int8(quantize, cli, tmp_path):
    result = quantize('--calibrate', 'sample', '--samples', '12', '--json')
    assert result.status == 0
    document = result.document
    assert document['bundle'] == str(tmp_path / 'small')
    assert document['cosine'] > 0.999
    encoder, velocity = document['networks']
    assert (velocity['onnx'], velocity['products'], velocity['weights']) == (
        'velocity.onnx',
        6,
        393_216,
    )
    assert velocity['bytes'] < velocity['bytes_before'] / 2
    assert 'first product' in encoder['kept'].values()
    assert cli('check', tmp_path / 'small').status == 0
    require('tensorrt_rtx')
    built = cli(
        *('build', '--bundle', tmp_path / 'small', '--engine', 'tensorrt_rtx', '--json'),
        *('--compute-capability', '8.9', '--plans', tmp_path / 'plans', '--stage', 'velocity'),
    )
    (plan,) = built.document['plans']
    assert (plan['precision'], plan['conversion']['nodes']['fp16'] > 0) == ('int8', True)


def test_for_people_and_with_a_file(quantize, cli, tmp_path):
    file = tmp_path / 'ranges.json'
    words = ('build', '--bundle', 'sample', '--calibrate', 'sample', '--samples', '4')
    assert quantize('--calibration', file).status == 1  # there is none yet
    require('tensorrt_rtx')
    cli(
        *words,
        *('--calibration', file, '--precision', 'int8', '--engine', 'tensorrt_rtx'),
        *('--compute-capability', '8.9', '--plans', tmp_path / 'plans', '--stage', 'velocity'),
    )
    result = quantize('--calibration', file)
    assert result.status == 0
    assert 'velocity.onnx' in result.out
    assert 'comes within' in result.out


@pytest.mark.parametrize('words', [(), ('--keep-loss-below', '1e-4')])
def test_without_a_calibration(quantize, words):
    result = quantize(*words, '--json')
    assert (result.status, result.document['error']['code']) == (2, 'no_calibration')
