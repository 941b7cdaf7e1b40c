# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import pytest

from vla_policy_ros.engines.plans import PlanStore
from vla_policy_ros.export import stage_plans


@pytest.fixture
def build(cli, tmp_path):
    """Run `vla-policy build` on the sample bundle with TensorRT-RTX and one target."""

    def run(*words):
        return cli(
            *('build', '--bundle', 'sample', '--engine', 'tensorrt_rtx'),
            *('--compute-capability', '8.9', '--plans', tmp_path / 'plans'),
            *words,
        )

    return run


def test_plans_are_built_once(build, tmp_path):
    first = build('--precision', 'fp16', '--json')
    assert (first.status, first.document['passed']) == (0, True)
    plans = first.document['plans']
    assert [plan['stages'] for plan in plans] == [['encoder'], ['velocity']]
    for plan in plans:
        assert (plan['precision'], plan['cached'], plan['origin']) == ('fp16', False, 'built')
        assert plan['bytes'] > 100_000
        assert plan['shares']['fp16'] > 0.3
        assert plan['conversion']['nodes']['fp16'] > plan['conversion']['nodes']['fp32']
    stored = {
        plan.path for p in plans for plan in PlanStore(tmp_path / 'plans').plans(p['network_hash'])
    }
    assert {str(path) for path in stored} == {plan['path'] for plan in plans}
    assert not list((tmp_path / 'plans').glob('.converted*'))
    again = build('--precision', 'fp16', '--json').document['plans']
    assert [plan['cached'] for plan in again] == [True, True]
    assert [plan['path'] for plan in again] == [plan['path'] for plan in plans]


def test_force_and_other_options_build_again(build):
    words = ('--precision', 'fp16', '--stage', 'velocity', '--json')
    states = [
        build(*words, *more).document['plans'][0]['cached']
        for more in ((), (), ('--force',), ('--optimization-level', '1'))
    ]
    assert states == [False, True, False, False]


def test_without_a_precision_each_stage_has_its_own(build):
    result = build('--stage', 'velocity', '--json')
    (plan,) = result.document['plans']
    assert (plan['precision'], plan['conversion']) == ('fp32', None)


def test_8_bits_with_calibration_and_with_its_file(build, tmp_path):
    ranges = tmp_path / 'ranges.json'
    words = ('--precision', 'int8', '--calibration', ranges, '--json')
    first = build(*words, '--calibrate', 'sample', '--samples', '2')
    assert first.status == 0
    assert json.loads(ranges.read_text())['observations'] == 2
    conversion = first.document['plans'][0]['conversion']
    assert conversion['quantized_products'] == ['/mix/mix.2/Gemm']
    assert set(conversion['kept_products'].values()) == {
        'few weights',
        'first product',
        'last product',
    }
    assert build(*words).document['plans'][0]['cached']  # needs no calibration any more
    forced = build(*words, '--force').document['plans'][0]
    assert (forced['cached'], forced['conversion']) == (False, conversion)


def test_products_that_lose_too_much_are_kept_and_a_new_calibration_builds_anew(build, tmp_path):
    ranges = tmp_path / 'ranges.json'
    words = ('--precision', 'int8', '--stage', 'velocity', '--calibrate', 'sample')
    loose = build(*words, '--samples', '2', '--json').document['plans'][0]['conversion']
    tight = build(
        *(*words, '--samples', '2', '--keep-loss-below', '1e-9', '--calibration', ranges, '--json')
    ).document['plans'][0]
    assert not tight['cached']
    assert tight['conversion']['quantized_products'] == []
    kept = tight['conversion']['kept_products']
    assert {n for n, why in kept.items() if why == 'loses too much'} == set(
        loose['quantized_products']
    )
    # The file holds it: nothing is measured again.
    again = build(
        '--precision', 'int8', '--stage', 'velocity', '--calibration', ranges, '--force', '--json'
    )
    assert again.document['plans'][0]['conversion'] == tight['conversion']


def test_measuring_needs_observations(build):
    result = build('--precision', 'int8', '--keep-loss-below', '1e-4')
    assert result.status == 2
    assert '--calibrate DATASET' in result.err


def test_8_bits_without_calibration(build):
    result = build('--precision', 'fp8')
    assert result.status == 2
    assert '--calibrate' in result.err
    assert 'building' not in result.err  # said before the work


@pytest.mark.parametrize('damage', ['gone', 'cut'])
def test_a_damaged_plan_is_built_again(build, damage):
    words = ('--precision', 'fp16', '--stage', 'velocity', '--json')
    path = Path(build(*words).document['plans'][0]['path'])
    if damage == 'gone':
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1])
    (plan,) = build(*words).document['plans']
    assert not plan['cached']
    assert Path(plan['path']).is_file()


def test_warnings_of_the_library_are_part_of_the_report(build, caplog):
    result = build('--precision', 'fp16', '--json')
    warnings = [plan['warnings'] for plan in result.document['plans']]
    assert ['Int64' in ''.join(texts) for texts in warnings] == [True, False]
    assert not caplog.messages
    assert 'encoder: the library warned' in build('--precision', 'fp16').out


def test_a_folder_in_the_home_is_found(cli, monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', str(tmp_path))
    words = ('--bundle', 'sample', '--engine', 'tensorrt_rtx', '--stage', 'velocity')
    result = cli('build', *words, '--plans', '~/my plans', '--json')
    assert result.document['folder'] == str(tmp_path / 'my plans')
    proof = cli('build', *words, '--plans', '~/my plans').out.splitlines()[-1]
    assert proof.endswith(f"--plans '{tmp_path / 'my plans'}'")


def test_in_words(build):
    result = build('--precision', 'fp16')
    lines = result.out.splitlines()
    assert lines[0].split()[:3] == ['stage', 'asked', 'layers']
    assert lines[1].startswith('encoder')
    assert lines[1].endswith('built')
    for word in ('kept fp32', 'delicate', 'fp16', 'of 1'):
        assert word in result.out
    assert 'vla-policy verify --bundle sample --engine tensorrt_rtx --precision fp16' in lines[-1]
    assert 'was there' in build('--precision', 'fp16').out


@pytest.mark.parametrize(
    ('words', 'said'),
    [
        (('--stage', 'nobody'), 'encoder, velocity'),
        (('--compute-capability', '1.0'), '1.0'),
        (('--hardware-compatible',), 'hardware_compatible'),
        (('--import', 'velocity=/nowhere.plan'), 'STAGE=PLAN'),
        (('--import', 'velocity'), 'STAGE=PLAN'),
    ],
)
def test_wrong_words(build, words, said):
    result = build(*words)
    assert result.status == 2
    assert said in result.err
    assert 'building' not in result.err


def test_an_interrupt_leaves_nothing_behind(build, monkeypatch, tmp_path):
    def interrupt(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(stage_plans, 'build_plan', interrupt)
    assert build('--precision', 'fp16').status == 130
    assert list((tmp_path / 'plans').iterdir()) == []


def test_without_a_gpu_tensorrt_is_refused_in_one_error(cli, monkeypatch, tmp_path):
    from vla_policy_ros.core.errors import GpuError
    from vla_policy_ros.engines import tensorrt_library

    def refuse():
        raise GpuError('NVIDIA driver', got='none', expected='one', next_step='Install it.')

    monkeypatch.setattr(tensorrt_library, 'require_driver', refuse)
    result = cli('build', '--bundle', 'sample', '--plans', tmp_path / 'plans', '--json')
    assert (result.status, result.document['error']['where']) == (1, 'NVIDIA driver')
    assert not (tmp_path / 'plans').exists()


@pytest.mark.gpu
@pytest.mark.tensorrt
def test_tensorrt_builds_every_precision_of_the_sample(cli, tmp_path):
    words = ('--bundle', 'sample', '--plans', tmp_path / 'plans')
    ranges = ('--calibrate', 'sample', '--samples', '4')
    for precision in ('fp32', 'fp16', 'bf16', 'int8', 'fp8'):
        result = cli('build', *words, '--precision', precision, *ranges, '--json')
        assert result.status == 0, result.err
        for plan in result.document['plans']:
            assert (plan['layers_of'], plan['cached']) == ('plan', False)
            assert plan['workspace_bytes'] is not None
    for precision in ('fp32', 'fp16', 'bf16'):
        result = cli('verify', *words, '--precision', precision, '--json')
        assert result.status == 0, result.document
