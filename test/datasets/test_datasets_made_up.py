# SPDX-License-Identifier: Apache-2.0
"""Recordings that a YAML file describes."""

import numpy as np
import pytest
import yaml
from contracts.dataset_contract import DatasetContract

from vla_policy_ros.core.errors import DatasetError
from vla_policy_ros.core.specs import ColumnKind
from vla_policy_ros.datasets.registry import find_dataset_faults, open_dataset

RECORDING = {
    'rate_hz': 20,
    'num_episodes': 2,
    'num_steps': 60,
    'cameras': {'front': {'height': 48, 'width': 64}, 'wrist': {'height': 32, 'width': 48}},
    'columns': [
        {'name': 'lift', 'unit': 'm', 'low': 0.1, 'high': 0.3},
        {'name': 'hand', 'unit': '1', 'kind': 'gripper', 'low': 0.0, 'high': 1.0},
        {
            'name': 'base',
            'unit': 'm/s',
            'kind': 'twist',
            'low': -0.2,
            'high': 0.2,
            'measured': False,
        },
    ],
}


@pytest.fixture
def path(tmp_path):
    folder = tmp_path / 'my_robot'
    folder.mkdir()
    path = folder / 'recording.yaml'
    path.write_text(yaml.safe_dump(RECORDING))
    return path


class TestContract(DatasetContract):
    @pytest.fixture
    def dataset(self, path):
        return open_dataset(path)


def test_it_is_what_the_file_says(path):
    info = open_dataset(path).info
    assert (info.name, info.step_ns, info.num_episodes) == ('my_robot', 50_000_000, 2)
    assert [column.name for column in info.action] == ['lift', 'hand', 'base']
    assert [column.name for column in info.state] == ['lift', 'hand']
    assert [column.kind for column in info.action] == [
        ColumnKind.LINEAR,
        ColumnKind.GRIPPER,
        ColumnKind.TWIST,
    ]
    assert info.action[2].unit == 'm/s'


def test_values_stay_between_low_and_high_and_use_the_room(path):
    action = open_dataset(path).episode(0).action
    for index, column in enumerate(RECORDING['columns']):
        values = action[:, index]
        assert values.min() >= column['low']
        assert values.max() <= column['high']
        assert np.ptp(values) > 0.1 * (column['high'] - column['low'])


def test_the_action_is_where_the_robot_is_next(path):
    episode = open_dataset(path).episode(1)
    assert episode.state.shape == (60, 2)
    np.testing.assert_array_equal(episode.state[1:], episode.action[:-1, :2])


def test_it_has_no_faults(path):
    assert find_dataset_faults(path) == []


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'columns': []}, 'columns'),
        ({'colour': 1}, 'colour'),
        ({'rate_hz': 0}, 'rate_hz'),
        ({'columns': [{'name': 'x', 'low': 1.0, 'high': 0.0}]}, 'low below high'),
        ({'cameras': {'front': {'height': 4, 'width': 64}}}, 'height'),
    ],
)
def test_what_is_wrong_is_told(path, changes, words):
    path.write_text(yaml.safe_dump({**RECORDING, **changes}))
    with pytest.raises(DatasetError, match=words):
        open_dataset(path)
    [fault] = find_dataset_faults(path)
    assert words in str(fault)
