# SPDX-License-Identifier: Apache-2.0
import json
import shutil
from pathlib import Path

import pytest
import yaml

FACTS = {'code', 'where', 'got', 'expected', 'next_step'}


@pytest.fixture
def my_bundle(recording, tmp_path):
    """A copy of the bundle that may be broken."""
    return shutil.copytree(recording.bundle, tmp_path / 'bundle')


@pytest.fixture
def dataset(recording, tmp_path):
    """A copy of the dataset that may be broken."""
    return shutil.copytree(recording.dataset, tmp_path / 'dataset')


@pytest.fixture
def deployment(my_bundle, tmp_path):
    """Writes a deployment file for the bundle; keywords replace keys, None removes them."""

    def write(**changes):
        document = {
            'policy': {'bundle': 'bundle'},
            'cameras': {name: {'topic': f'/{name}/image'} for name in ('front', 'wrist')},
            'joint_states': [{'topic': '/joint_states'}],
            **changes,
        }
        path = tmp_path / 'robot.yaml'
        path.write_text(yaml.safe_dump(document), encoding='utf-8')
        return path

    return write


def assert_faults(result, kind, *codes):
    document = result.document
    assert (result.status, document['passed'], document['kind']) == (1, False, kind)
    assert all(set(fault) == FACTS for fault in document['faults'])
    assert {fault['code'] for fault in document['faults']} >= set(codes)
    assert document['summary'] == {}


def test_a_sound_dataset(cli, recording):
    result = cli('check', '--json', recording.dataset)
    assert result.status == 0
    assert result.document == {
        'path': str(recording.dataset),
        'kind': 'dataset',
        'passed': True,
        'faults': [],
        'summary': {
            'name': 'dataset',
            'format': 'lerobot v2.1',
            'robot': 'test_arm',
            'rate': '30 Hz',
            'episodes': 2,
            'cameras': {'front': '64 x 48 px', 'wrist': '64 x 48 px'},
            'state': {f'joint_{i}': 'linear' for i in range(3)},
            'action': {f'joint_{i}': 'linear' for i in range(3)},
            'warnings': [],
        },
    }


def test_a_sound_dataset_in_words(cli, recording):
    result = cli('check', recording.dataset)
    assert result.status == 0
    assert result.out.startswith(f'PASSED  dataset {recording.dataset}\n')
    assert 'front, wrist (all 64 x 48 px)' in result.out
    assert 'checking' in result.err


def test_every_fault_of_a_dataset(cli, dataset):
    (dataset / 'data' / 'chunk-000' / 'episode_000001.parquet').unlink()
    for video in dataset.rglob('*.mp4'):
        video.unlink()
    result = cli('check', '--json', dataset)
    assert_faults(result, 'dataset', 'missing_file')
    assert len(result.document['faults']) >= 2


def test_faults_in_words(cli, dataset):
    (dataset / 'data' / 'chunk-000' / 'episode_000001.parquet').unlink()
    result = cli('check', dataset)
    assert result.status == 1
    assert result.out.startswith(f'FAILED  dataset {dataset}: 1 fault\n1. ')
    for label in ('got', 'expected', 'next step'):
        assert f'\n   {label:<9}  ' in result.out


@pytest.mark.parametrize('name', ['', 'bundle.yaml'])
def test_a_sound_bundle(cli, recording, name):
    result = cli('check', '--json', recording.bundle / name)
    assert (result.status, result.document['kind']) == (0, 'bundle')
    summary = result.document['summary']
    assert summary['cameras'] == dict.fromkeys(('front', 'wrist'), '32 x 32 px, 1 image(s)')
    assert summary['stages'] == {'network': 'policy.onnx'}
    assert summary['horizon'] == '8 rows, 33.33 ms apart'
    assert summary['loop'] == 'none'


def test_every_fault_of_a_bundle(cli, my_bundle):
    (my_bundle / 'policy.onnx').write_bytes(b'not a network')
    (my_bundle / 'tokenizer.json').unlink()
    result = cli('check', '--json', my_bundle)
    assert_faults(result, 'bundle')
    places = json.dumps(result.document['faults'])
    assert 'policy.onnx' in places
    assert 'tokenizer.json' in places


def test_a_sound_deployment(cli, deployment):
    result = cli('check', '--json', deployment())
    assert (result.status, result.document['kind']) == (0, 'deployment')
    summary = result.document['summary']
    assert summary['cameras']['front'] == '/front/image, raw'
    assert summary['reference'] == 'front'


def test_a_deployment_with_wrong_keys(cli, deployment):
    result = cli('check', '--json', deployment(camera={}, matching={'patience_ms': -1}))
    assert_faults(result, 'deployment', 'unknown_key', 'bad_value')


def test_a_deployment_of_another_robot(cli, deployment):
    changed = deployment(cameras={'top': {'topic': '/top'}}, joint_states=[])
    assert_faults(
        cli('check', '--json', changed),
        'deployment',
        'missing_camera',
        'unknown_camera',
        'missing_joint',
    )


def test_a_deployment_with_a_my_bundle(cli, deployment, my_bundle):
    (my_bundle / 'policy.onnx').unlink()
    assert_faults(cli('check', '--json', deployment()), 'deployment', 'missing_file')


EXAMPLES = Path(__file__).parents[2] / 'examples'


@pytest.mark.parametrize('path', sorted(EXAMPLES.glob('*/executor.yaml')), ids=str)
def test_a_sound_executor_file(cli, path):
    result = cli('check', '--json', path)
    assert (result.status, result.document['kind']) == (0, 'executor')
    assert result.document['summary']['controllers']


def test_an_executor_file_with_faults(cli, tmp_path):
    path = tmp_path / 'executor.yaml'
    arm = {'name': 'arm', 'kind': 'forward_command', 'topic': 'arm', 'columns': ['a']}
    path.write_text(yaml.safe_dump({'controllers': [arm], 'rate': 200}), encoding='utf-8')
    assert_faults(cli('check', '--json', path), 'executor', 'unknown_key')
    limits = {'file': 'limits.yaml'}
    path.write_text(yaml.safe_dump({'controllers': [arm], 'limits': limits}), encoding='utf-8')
    result = cli('check', '--json', path)
    assert result.status == 1
    assert 'limits.yaml' in result.document['faults'][0]['where']


def test_what_is_none_of_these(cli, tmp_path):
    (tmp_path / 'notes.txt').write_text('', encoding='utf-8')
    result = cli('check', '--json', tmp_path)
    assert_faults(result, 'dataset', 'unknown_format')
    expected = result.document['faults'][0]['expected']
    for word in ('meta/info.json', 'metadata.yaml', 'bundle.yaml', 'deployment file'):
        assert word in expected
    assert '`ros2 bag reindex`' in result.document['faults'][0]['next_step']


def test_nothing_there_is_wrong_use(cli, tmp_path):
    result = cli('check', '--json', tmp_path / 'nowhere')
    assert result.status == 2
    assert result.document['error']['code'] == 'no_such_path'


def test_the_quirks_of_a_real_dataset(cli, gr00t_demo):
    result = cli('check', '--json', gr00t_demo)
    assert_faults(result, 'dataset', 'feature_without_file')
