# SPDX-License-Identifier: Apache-2.0
import json
import shutil

import numpy as np
import pytest
from support.recordings import HORIZON, JOINTS, NUM_STEPS

from vla_policy_ros.core.errors import ConfigurationError
from vla_policy_ros.evaluation.recording import ChunkRecording

NUM_CHUNKS = -(-NUM_STEPS // HORIZON)


@pytest.fixture
def infer(cli, recording, bundle):
    """Run `vla-policy infer` on the recording."""

    def run(*words):
        return cli('infer', '--dataset', recording.dataset, '--bundle', bundle, *words)

    return run


def test_the_figures_of_one_episode(infer):
    result = infer('--json')
    assert result.status == 0
    document = result.document
    assert (document['episodes'], document['chunks'], document['page']) == ([0], NUM_CHUNKS, None)
    comparison = document['comparison']
    assert [joint['name'] for joint in comparison['joints']] == list(JOINTS)
    joints = [joint['open_loop']['mae'] for joint in comparison['joints']]
    assert comparison['overall']['open_loop']['mae'] == pytest.approx(np.mean(joints))
    assert comparison['overall']['open_loop']['count'] == NUM_STEPS * len(JOINTS)
    assert {'preprocess', 'network', 'infer'} <= set(document['timing']['stages'])


def test_a_policy_that_holds_has_the_error_of_standing_still(infer):
    comparison = infer('--json', '--engine', 'none').document['comparison']
    assert comparison['hold_last'] == pytest.approx(comparison['overall']['open_loop'])


def test_several_at_once_give_the_same_chunks(infer):
    one, two = (
        infer('--json', '--episodes', 'all', '--batch', batch).document for batch in (1, 2)
    )
    assert one['episodes'] == two['episodes'] == [0, 1]
    assert one['policy_digest'] == two['policy_digest']
    assert one['chunks'] == 2 * NUM_CHUNKS


def test_a_shorter_execution_horizon_asks_more_often(infer):
    document = infer('--json', '--execution-horizon', 2).document
    assert document['chunks'] == NUM_STEPS // 2
    assert document['comparison']['execution_horizon'] == 2


def test_in_words(infer):
    result = infer()
    lines = result.out.splitlines()
    assert lines[0].startswith('PASSED  untrained@')
    for word in (*JOINTS, 'all', 'standing still', 'network', 'p99 ms'):
        assert word in result.out
    assert 'untrained@' in result.err


def test_joints_that_were_not_compared_are_named(infer, bundle, tmp_path):
    text = (bundle / 'bundle.yaml').read_text(encoding='utf-8')
    renamed = shutil.copytree(bundle, tmp_path / 'renamed')
    # The state keeps its names, which the dataset has; the first action gets another one.
    state, action = text.split('action:', 1)
    changed = action.replace('joint_0', 'another', 1)
    (renamed / 'bundle.yaml').write_text(f'{state}action:{changed}', encoding='utf-8')
    result = infer('--bundle', renamed)
    line = next(line for line in result.out.splitlines() if line.startswith('NOT COMPARED'))
    assert line.split()[-1] == 'another'


def test_tolerances_decide_the_status(infer):
    result = infer('--json', '--tolerances', 'max_mae: 0')
    assert (result.status, result.document['passed']) == (1, False)
    assert infer('--tolerances', 'max_mae: 100').status == 0
    assert 'FAILED  mean absolute error' in infer('--tolerances', 'max_mae: 0').out


def test_the_report_can_be_made_again(infer, cli, tmp_path):
    folder = tmp_path / 'run'
    page = infer('--json', '--out', folder).document['page']
    assert page == str(folder / 'report.html')
    assert len(ChunkRecording.load(folder / 'policy')) == NUM_CHUNKS
    run = json.loads((folder / 'report.json').read_text(encoding='utf-8'))['verdict']['run']
    assert run['command'].startswith('vla-policy infer --dataset ')
    assert set(run['versions']) == {
        'vla_policy_ros',
        'python',
        'numpy',
        'onnxruntime',
        'machine',
    }
    first = (folder / 'report.html').read_bytes()
    (folder / 'report.html').unlink()
    assert cli('report', folder).out == f'{page}\n'
    assert (folder / 'report.html').read_bytes() == first
    assert cli('report', '--json', folder).document == {'page': page}


def test_a_folder_without_a_run_has_no_report(cli, tmp_path):
    result = cli('report', '--json', tmp_path)
    assert result.status == 1
    assert result.document['error']['code'] == 'missing_file'


@pytest.mark.parametrize(
    'words',
    [
        ('--engine', 'steam'),
        ('--episodes', '0,2'),
        ('--execution-horizon', HORIZON + 1),
        ('--tolerances', 'max_mea: 1'),
    ],
)
def test_wrong_options_give_2(infer, words):
    assert infer(*words).status == 2


def test_a_dataset_of_another_robot_is_told(cli, bundle, gr00t_demo):
    result = cli('infer', '--json', '--dataset', gr00t_demo, '--bundle', bundle)
    assert result.status == 1
    assert result.document['error']['code'] == 'names_differ'


def test_a_real_dataset_from_new_to_report(cli, gr00t_demo, tmp_path):
    bundle = tmp_path / 'bundle'
    assert cli('new', bundle, '--dataset', gr00t_demo, '--image-size', 32).status == 0
    words = ('--dataset', gr00t_demo, '--bundle', bundle, '--episodes', 4)
    result = cli('infer', '--json', *words, '--out', tmp_path / 'run')
    assert result.status == 0
    assert result.document['chunks'] == -(-328 // 16)
    assert len(result.document['comparison']['joints']) == 44
    assert (tmp_path / 'run' / 'report.html').stat().st_size > 10_000


def test_precision_and_plans_reach_the_policy(infer, monkeypatch, tmp_path):
    seen = []

    def load(_folder, *, settings, **_):
        seen.append(settings)
        raise ConfigurationError('x', got='a', expected='b', next_step='Do c.')

    monkeypatch.setattr('vla_policy_ros.policies.registry.load_policy', load)
    words = ('--engine', 'tensorrt', '--precision', 'fp16', '--plans', tmp_path)
    assert infer(*words).status == 2
    assert [(s.precision, s.plan_folder) for s in seen] == [('fp16', tmp_path)]


def test_a_precision_that_does_not_run_is_refused(infer):
    result = infer('--json', '--precision', 'fp16')
    assert result.document['error']['code'] == 'needs_plans'
