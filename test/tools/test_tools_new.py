# SPDX-License-Identifier: Apache-2.0
import pytest


@pytest.fixture
def new(cli, recording, tmp_path):
    """Run `vla-policy new` on the recording into a folder of the test."""

    def run(*words, folder='bundle'):
        return cli('new', tmp_path / folder, '--dataset', recording.dataset, *words)

    return run


def test_a_new_bundle_passes_its_check(new, cli, tmp_path):
    result = new('--json', '--horizon', 5, '--image-size', 16)
    assert result.status == 0
    assert result.document['summary']['horizon'] == '5 rows, 33.33 ms apart'
    assert result.document['summary']['cameras']['front'].startswith('16 x 16 px')
    checked = cli('check', '--json', tmp_path / 'bundle')
    assert checked.status == 0
    assert checked.document['summary'] == result.document['summary']


def test_the_seed_changes_the_policy(new):
    ids = {
        name: new('--json', '--image-size', 16, '--seed', seed, folder=name).document['summary']
        for name, seed in (('a', 1), ('b', 1), ('c', 2))
    }
    assert ids['a']['policy'] == ids['b']['policy'] != ids['c']['policy']


def test_a_folder_with_something_in_it_is_refused(new, tmp_path):
    (tmp_path / 'bundle').mkdir()
    (tmp_path / 'bundle' / 'mine.txt').write_text('precious', encoding='utf-8')
    result = new('--json')
    assert result.status == 1
    assert result.document['error']['code'] == 'folder_not_empty'
    assert [path.name for path in (tmp_path / 'bundle').iterdir()] == ['mine.txt']


def test_a_file_in_the_way_is_told(new, tmp_path):
    (tmp_path / 'bundle').write_text('', encoding='utf-8')
    result = new('--json')
    assert result.status == 1
    assert result.document['error']['code'] == 'file_system'


def test_a_missing_dataset_is_told(cli, tmp_path):
    result = cli('new', tmp_path / 'bundle', '--dataset', tmp_path / 'nowhere')
    assert result.status == 1
    assert 'nowhere' in result.err
