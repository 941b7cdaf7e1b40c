# SPDX-License-Identifier: Apache-2.0
"""Every item passes on a sound policy, and fails on one that is made to fail it."""

import json
import shutil
import sys
from contextlib import closing
from dataclasses import replace
from types import ModuleType

import numpy as np
import onnx
import pytest
import yaml
from onnx import numpy_helper
from support.requirements import NEEDS_8_BITS

from vla_policy_ros.bundle.bundle import load_bundle
from vla_policy_ros.datasets.registry import open_dataset
from vla_policy_ros.engines import registry
from vla_policy_ros.engines.onnxruntime import OnnxRuntimeEngine
from vla_policy_ros.evaluation.checklist import ITEMS
from vla_policy_ros.evaluation.sampling import sample_observations
from vla_policy_ros.export.calibration import calibrate, write_calibration
from vla_policy_ros.sample import sample_bundle_path, sample_dataset_path, sample_executor_path
from vla_policy_ros.tools import checklist_run

PATIENT = ('--period-ms', 1e6)  # no test depends on the speed of the machine
SHORT = ('--samples', 4, '--runs', 4)


@pytest.fixture
def check(cli):
    """Run `vla-policy checklist` on the sample; gives the result and the items by name."""

    def run(*words, bundle='sample', dataset='sample', period=PATIENT):
        source = ('--bundle', bundle, '--dataset', dataset)
        result = cli('checklist', *source, *SHORT, *period, *words, '--json')
        result.items = {item['name']: item for item in result.document.get('items', ())}
        return result

    return run


@pytest.fixture(scope='module')
def calibration(tmp_path_factory):
    """Ranges of the sample policy."""
    bundle = load_bundle(sample_bundle_path())
    with closing(open_dataset(sample_dataset_path())) as dataset:
        made = calibrate(bundle, sample_observations(dataset, bundle.spec, count=8))
    path = tmp_path_factory.mktemp('calibration') / 'sample.json'
    write_calibration(path, made)
    return path


@pytest.fixture
def add_engine(monkeypatch):
    """Make an engine that is called `odd`."""

    def add(load):
        module = ModuleType('odd_engine')
        module.OddEngine = load
        monkeypatch.setitem(sys.modules, 'odd_engine', module)
        entry = registry._ENTRIES['onnxruntime']
        entry = replace(entry, module='odd_engine', class_name='OddEngine')
        monkeypatch.setitem(registry._ENTRIES, 'odd', entry)
        monkeypatch.setattr(registry, 'ENGINES', (*registry.ENGINES, 'odd'))

    return add


def statuses(result):
    return {name: item['status'] for name, item in result.items.items()}


def test_a_sound_policy_passes(check):
    result = check('--executor', sample_executor_path())
    assert result.status == 0
    assert result.document['passed'] is True
    assert list(result.items) == list(ITEMS)
    assert statuses(result) == {
        **dict.fromkeys(ITEMS, 'PASS'),
        'quantisation loss': 'NOT CHECKED',
    }
    assert 'exported in' in result.items['quantisation loss']['found']
    assert result.items['accuracy']['details']['relative_error'] == 0
    assert (
        result.items['accuracy']['details']['policy']['runs'] == 5
    )  # the probe and four observations
    assert result.items['latency']['details']['components']['total']['count'] == 4
    assert result.items['limits']['details'] == {'chunks': 4, 'mode': 'clamp', 'refused': []}
    assert len(result.items['edge inputs']['details']['cases']) == 14
    growth = result.items['memory']['details']
    assert (
        growth['ended']['resident_bytes'] - growth['warm']['resident_bytes']
        == (growth['growth_bytes'])
    )


def test_a_damaged_file_fails_and_nothing_else_is_checked(check, tmp_path):
    shutil.copytree(sample_bundle_path(), tmp_path / 'bundle')
    path = tmp_path / 'bundle' / 'encoder.onnx'
    path.write_bytes(path.read_bytes()[:-1000])
    result = check(bundle=tmp_path / 'bundle')
    assert result.status == 1
    assert statuses(result) == {**dict.fromkeys(ITEMS, 'NOT CHECKED'), 'bundle': 'FAIL'}
    assert 'encoder.onnx' in result.items['bundle']['found']
    assert result.items['bundle']['details']['faults'][0]['code'] == 'wrong_hash'
    assert {result.items[name]['found'] for name in ITEMS[1:]} == {'the bundle is broken'}


def test_a_missing_library_fails(check, monkeypatch):
    monkeypatch.setitem(sys.modules, 'torch', None)
    for name in [name for name in sys.modules if name.startswith('vla_policy_ros.engines.torch')]:
        monkeypatch.delitem(sys.modules, name)
    result = check('--engine', 'torch_cpu')
    assert (result.status, statuses(result)['operators']) == (1, 'FAIL')
    assert 'pip install torch' in result.items['operators']['next_step']
    assert statuses(result)['latency'] == 'NOT CHECKED'


def test_a_missing_gpu_fails(check, monkeypatch):
    from vla_policy_ros.core.errors import GpuError

    def refuse(_index=0):
        raise GpuError('GPU', got='none', expected='one', next_step='Plug one in.')

    monkeypatch.setattr('vla_policy_ros.gpu.device.open_device', refuse)
    result = check('--engine', 'onnxruntime_cuda')
    assert (result.status, statuses(result)['operators']) == (1, 'FAIL')
    assert result.items['operators']['next_step'] == 'Plug one in.'


@pytest.mark.parametrize('factor', [1.02, 1.5])
def test_an_engine_that_computes_something_else_fails(check, add_engine, tmp_path, factor):
    """Weights of one stage are a little larger: with 1.02 cosine stays fine, and the error tells."""

    def load(onnx_path, *, settings):
        copied = tmp_path / onnx_path.name
        shutil.copyfile(onnx_path, copied)
        if onnx_path.name == 'velocity.onnx':
            model = onnx.load(copied)
            weight = next(t for t in reversed(model.graph.initializer) if len(t.dims) == 2)
            values = numpy_helper.to_array(weight) * np.float32(factor)
            weight.CopyFrom(numpy_helper.from_array(values, weight.name))
            copied.write_bytes(model.SerializeToString())
        return OnnxRuntimeEngine(copied, settings=settings)

    add_engine(load)
    result = check('--engine', 'odd')
    assert result.status == 1
    accuracy = result.items['accuracy']
    assert accuracy['status'] == 'FAIL'
    assert accuracy['details']['relative_error'] > 0.01
    assert 'first outside: stage velocity' in accuracy['found']
    assert [name for name, status in statuses(result).items() if status == 'FAIL'] == ['accuracy']


def test_the_error_alone_can_fail(check):
    """Within the limits of fp16, and outside of a narrower one."""
    fine = check('--engine', 'onnxruntime:fp16')
    assert (fine.status, statuses(fine)['accuracy']) == (0, 'PASS')
    error = fine.items['accuracy']['details']['relative_error']
    assert 1e-5 < error < 0.005
    warned = check('--engine', 'onnxruntime:fp16', '--max-error', 1.5 * error)
    assert (warned.status, statuses(warned)['accuracy']) == (0, 'WARN')
    narrow = check('--engine', 'onnxruntime:fp16', '--max-error', 0.5 * error)
    assert (narrow.status, statuses(narrow)['accuracy']) == (1, 'FAIL')
    assert narrow.items['accuracy']['details']['grade'] == 'PASS'


def test_fp16_loses_next_to_nothing(check):
    loss = check('--engine', 'onnxruntime:fp16').items['quantisation loss']
    assert loss['status'] == 'PASS'
    assert abs(loss['details']['growth']) < 5e-3
    assert 0 < loss['details']['difference'] < 1e-4
    assert loss['details']['loss'] == max(loss['details']['growth'], loss['details']['difference'])
    assert loss['details']['chunks'] >= 4


@NEEDS_8_BITS
def test_ranges_that_are_too_narrow_lose_too_much(check, calibration, tmp_path):
    """Activations beyond a fifth of what occurs are cut off."""
    document = json.loads(calibration.read_text())
    for network in document['networks'].values():
        network['largest'] = {name: 0.2 * value for name, value in network['largest'].items()}
    narrow = tmp_path / 'narrow.json'
    narrow.write_text(json.dumps(document))
    result = check('--engine', 'onnxruntime:int8', '--calibration', narrow)
    assert result.status == 1
    loss = result.items['quantisation loss']
    assert (loss['status'], loss['details']['max_loss']) == ('FAIL', 0.02)
    assert loss['details']['loss'] > 0.02
    allowed = check('--engine', 'onnxruntime:int8', '--calibration', narrow, '--max-loss', 1000)
    assert statuses(allowed)['quantisation loss'] == 'PASS'


def test_a_dataset_without_actions_tells_no_loss(check, monkeypatch):
    monkeypatch.setattr(
        'vla_policy_ros.evaluation.action_error.measure_action_error', lambda *_, **__: None
    )
    loss = check('--engine', 'onnxruntime:fp16').items['quantisation loss']
    assert loss['status'] == 'NOT CHECKED'
    assert 'no actions' in loss['found']


def test_a_period_that_nothing_keeps_fails(check):
    result = check('--period-ms', 0.001)
    assert result.status == 1
    latency = result.items['latency']
    assert (latency['status'], latency['wanted']) == ('FAIL', 'p99 < 0.001 ms, as asked for')
    assert check('--period-ms', 1e6).items['latency']['status'] == 'PASS'


@pytest.mark.parametrize(('words', 'rows'), [((), 1), (('--execution-horizon', 8), 8)])
def test_the_period_is_that_of_the_rows_that_are_executed(check, words, rows):
    latency = check(*words, period=()).items['latency']
    assert latency['details']['period_ms'] == pytest.approx(rows * 66.666667)
    assert latency['details']['period_source'].startswith(f'{rows} row')


def test_an_engine_that_keeps_memory_fails(check, add_engine):
    kept = []

    def load(onnx_path, *, settings):
        engine = OnnxRuntimeEngine(onnx_path, settings=settings)
        bind = engine.bind

        def bind_leaking(tensors, *, workspace=None):
            execution = bind(tensors, workspace=workspace)
            enqueue = execution.enqueue

            def leak(stream=0):
                kept.append(np.ones(2 << 20, np.uint8))
                enqueue(stream)

            execution.enqueue = leak
            return execution

        engine.bind = bind_leaking
        return engine

    add_engine(load)
    result = check('--engine', 'odd')
    assert result.status == 1
    memory = result.items['memory']
    assert memory['status'] == 'FAIL'
    assert memory['details']['growth_bytes'] > memory['details']['max_growth_bytes'] == 16 << 20


def test_a_system_that_tells_no_memory(check, monkeypatch):
    monkeypatch.setattr(checklist_run, 'read_process_memory', lambda: None)
    result = check()
    assert (result.status, statuses(result)['memory']) == (0, 'NOT CHECKED')


@pytest.fixture
def slow_robot(tmp_path):
    """An executor file of a robot whose elbow hardly moves, and which refuses what is faster."""

    def write(mode):
        for path in (sample_executor_path(), sample_executor_path().with_name('limits.yaml')):
            shutil.copyfile(path, tmp_path / path.name)
        limits = yaml.safe_load((tmp_path / 'limits.yaml').read_text())
        limits['joint_limits']['elbow_flex']['max_velocity'] = 0.001
        (tmp_path / 'limits.yaml').write_text(yaml.safe_dump(limits))
        path = tmp_path / sample_executor_path().name
        path.write_text(path.read_text().replace('mode: clamp', f'mode: {mode}'))
        return path

    return write


@pytest.mark.parametrize(('mode', 'status'), [('reject', 'FAIL'), ('clamp', 'WARN')])
def test_chunks_beyond_the_limits_of_the_robot(check, slow_robot, mode, status):
    result = check('--executor', slow_robot(mode))
    limits = result.items['limits']
    assert (limits['status'], result.status) == (status, int(status == 'FAIL'))
    [refused] = limits['details']['refused']
    assert (refused['column'], refused['limit']) == ('elbow_flex', 'velocity_limit')
    assert limits['found'].startswith(f'{refused["chunks"]} of 4 chunks refused: elbow_flex')


def test_an_executor_file_that_does_not_fit_fails(check, tmp_path):
    (tmp_path / 'executor.yaml').write_text('rate_hz: 200\n')
    result = check('--executor', tmp_path / 'executor.yaml')
    assert (result.status, statuses(result)['limits']) == (1, 'FAIL')


def test_a_urdf_that_only_the_robot_publishes_is_not_checked(check, slow_robot):
    path = slow_robot('reject')
    path.write_text(path.read_text().replace("urdf_topic: ''", 'urdf_topic: robot_description'))
    result = check('--executor', path)
    assert (result.status, statuses(result)['limits']) == (0, 'NOT CHECKED')
    assert 'urdf_topic' in result.items['limits']['found']


def test_report_in_words_and_on_disk(cli, tmp_path):
    words = ('--bundle', 'sample', '--dataset', 'sample', *SHORT, '--period-ms', 0.001)
    result = cli('checklist', *words, '--out', tmp_path / 'out')
    assert result.status == 1
    assert result.out.startswith('FAILED  sample on onnxruntime: ')
    assert 'checking sample on onnxruntime' in result.err
    document = json.loads((tmp_path / 'out' / 'checklist.json').read_text(encoding='utf-8'))
    assert document['command'].startswith('vla-policy checklist --bundle sample')
    assert document['versions']['onnxruntime']
    page = (tmp_path / 'out' / 'checklist.md').read_text(encoding='utf-8')
    assert page.startswith('# FAILED: sample on onnxruntime: ')
    for text in (result.out, page):
        assert all(name in text for name in ITEMS)
        assert '2 NOT CHECKED' in text
        assert 'p99 < 0.001 ms, as asked for' in text
        assert '`vla-policy benchmark` says where the time goes.' in text
        assert 'postprocess' in text
    assert '| images: white | chunk | a chunk of 16 x 6 | ok |' in page
    assert 'images: white' not in result.out  # what passes needs no table
    assert '- **latency**: ' in page


@pytest.mark.parametrize(
    ('words', 'code'),
    [
        (('--engine', 'steam'), 'unknown_engine'),
        (('--engine', 'none'), 'unknown_engine'),
        (('--engine', 'onnxruntime:fp4'), 'unknown_precision'),
        (('--engine', 'onnxruntime:bf16'), 'unsupported_precision'),
        (('--engine', 'onnxruntime:int8'), 'no_calibration'),
        (('--execution-horizon', 17), 'bad_execution_horizon'),
        (('--preprocess', 'gpu'), 'needs_device_engine'),
    ],
)
def test_wrong_options_give_2(check, words, code):
    result = check(*words)
    assert (result.status, result.document['error']['code']) == (2, code)


def test_a_dataset_of_another_robot_is_told(check, recording):
    result = check(dataset=recording.dataset)
    assert (result.status, result.document['error']['code']) == (1, 'names_differ')


def test_a_dataset_without_a_step(check, monkeypatch):
    monkeypatch.setattr(
        'vla_policy_ros.evaluation.sampling.sample_observations', lambda *_, **__: iter(())
    )
    result = check()
    assert (result.status, result.document['error']['code']) == (2, 'nothing_to_check')


@pytest.mark.gpu
def test_the_gpu(check):
    pytest.importorskip('torch')
    result = check('--engine', 'torch', '--preprocess', 'gpu')
    assert result.status == 0, result.items
    assert statuses(result)['operators'] == 'PASS'
    assert result.items['memory']['details']['device_bytes'] > 0
