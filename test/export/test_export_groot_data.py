# SPDX-License-Identifier: Apache-2.0
"""What GR00T's training would know of a dataset, and the command's refusals: the library is not needed."""

import json
import sys
from contextlib import closing
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from vla_policy_ros.core.errors import DatasetError, MissingDependencyError
from vla_policy_ros.core.specs import Column, ColumnKind
from vla_policy_ros.datasets.registry import open_dataset
from vla_policy_ros.export.groot.library import require_gr00t
from vla_policy_ros.export.groot.random_data import DataKeys
from vla_policy_ros.sample import sample_dataset_path
from vla_policy_ros.tools.main import main


@pytest.fixture(scope='module')
def dataset():
    with closing(open_dataset(sample_dataset_path())) as dataset:
        yield dataset


def test_grippers_stand_by_themselves(dataset):
    arm, grip = Column('a', '', ColumnKind.LINEAR), Column('g', '', ColumnKind.GRIPPER)
    info = replace(dataset.info, state=(arm, arm, grip, arm), action=(arm, grip, grip, arm))
    keys = DataKeys.of_dataset(info, rows=4)
    assert keys.state == {
        'joints': slice(0, 2),
        'gripper': slice(2, 3),
        'joints_1': slice(3, 4),
    }
    assert keys.action == {
        'joints': slice(0, 1),
        'gripper': slice(1, 3),
        'joints_1': slice(3, 4),
    }
    # Only joints of the same columns can start from the state.
    assert keys.relative == ('joints_1',)
    config = keys.modality_config()
    assert config['video']['modality_keys'] == ['front', 'wrist']
    assert config['action']['delta_indices'] == [0, 1, 2, 3]
    assert [rule['rep'] for rule in config['action']['action_configs']] == [
        'ABSOLUTE',
        'ABSOLUTE',
        'RELATIVE',
    ]


def test_columns_without_recorded_actions(dataset):
    keys = DataKeys.of_dataset(replace(dataset.info, action=()), rows=2)
    assert keys.action == keys.state


class Recording:
    """One episode of two columns; the state stands still, the action moves."""

    def __init__(self, info, steps):
        columns = tuple(Column(name, '', ColumnKind.LINEAR) for name in 'ab')
        self.info = replace(info, state=columns, action=columns, num_episodes=1, cameras=())
        self._steps = steps

    def episode(self, _):
        rows = np.arange(self._steps, dtype=np.float32)[:, None]
        return SimpleNamespace(
            state=np.full((self._steps, 2), 10, np.float32),
            action=rows * [1, 2],
            close=lambda: None,
        )


def test_statistics_of_relative_chunks(dataset):
    recording = Recording(dataset.info, 5)
    keys = DataKeys.of_dataset(recording.info, rows=3)
    statistics = keys.compute_statistics(recording)
    assert statistics['action']['joints']['max'] == [4, 8]
    assert statistics['state']['joints']['std'] == [0, 0]
    # Chunks begin at the steps 0, 1 and 2; row k of the last one is the action of step 2 + k.
    assert statistics['relative_action']['joints']['max'] == [[-8, -6], [-7, -4], [-6, -2]]
    assert statistics['relative_action']['joints']['min'] == [[-10, -10], [-9, -8], [-8, -6]]


def test_episodes_shorter_than_a_chunk(dataset):
    recording = Recording(dataset.info, 5)
    keys = DataKeys.of_dataset(recording.info, rows=6)
    with pytest.raises(DatasetError, match='6 steps') as error:
        keys.compute_statistics(recording)
    assert error.value.code == 'short_episodes'


@pytest.mark.parametrize(
    ('modules', 'remedy'),
    [
        ({'torch': None}, 'pip install torch onnxscript'),
        (
            {'torch': ModuleType('torch'), 'onnxscript': ModuleType('onnxscript'), 'gr00t': None},
            r'n1\.6-release',
        ),
    ],
    ids=['torch', 'gr00t'],
)
def test_a_missing_library_names_the_remedy(monkeypatch, modules, remedy):
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    with pytest.raises(MissingDependencyError, match=remedy):
        require_gr00t('not_imported_before', version='n1.6')


@pytest.mark.parametrize(
    ('words', 'status', 'code'),
    [
        ([], 2, 'no_checkpoint'),
        (['folder', '--random-init', 'n1.7'], 2, 'no_checkpoint'),
        (['--random-init', 'n1.7'], 2, 'no_dataset'),
        (['--random-init', 'n2', '--dataset', 'sample'], 2, 'unsupported_policy'),
        (['--random-init', 'n1.7', '--dataset', 'sample'], 1, 'missing_dependency'),
        (['nowhere', '--dataset', 'sample'], 1, 'bad_checkpoint'),
    ],
    ids=['nothing', 'both', 'dataset', 'version', 'library', 'folder'],
)
def test_wrong_options_are_refused(monkeypatch, tmp_path, capsys, words, status, code):
    monkeypatch.setitem(sys.modules, 'torch', None)
    out = tmp_path / 'bundle'
    assert main(['export', 'groot', *words, '--out', str(out), '--json']) == status
    assert json.loads(capsys.readouterr().out)['error']['code'] == code
    assert not out.exists()


@pytest.mark.parametrize('size', ['480', '480x', '0x640', 'wide'])
def test_image_size_is_height_and_width(size, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(['export', 'groot', 'folder', '--out', 'bundle', '--image-size', size])
    assert exit_.value.code == 2
    assert '480x640' in capsys.readouterr().err
