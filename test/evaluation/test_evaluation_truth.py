# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from evaluation_builders import STEP_NS, MemoryDataset

from vla_policy_ros.core.errors import DatasetError
from vla_policy_ros.evaluation.truth import recorded_chunk, truth_chunk

ACTION = np.arange(5, dtype=np.float64)[:, None]


@pytest.mark.parametrize(
    ('step', 'rows'),
    [(0, [0, 1, 2]), (2, [2, 3, 4]), (3, [3, 4, 4]), (4, [4, 4, 4]), (9, [4, 4, 4])],
)
def test_rows_follow_and_the_last_one_repeats(step, rows):
    chunk = recorded_chunk(ACTION, step, 3)
    assert chunk[:, 0].tolist() == rows
    assert chunk.dtype == np.float32


def test_a_chunk_is_a_copy():
    action = np.zeros((3, 1), np.float32)
    recorded_chunk(action, 0, 2)[:] = 1
    assert action.sum() == 0


@pytest.mark.parametrize(
    ('action', 'step', 'horizon'), [(ACTION, -1, 2), (ACTION, 0, 0), (np.zeros((5, 0)), 0, 2)]
)
def test_the_impossible_is_refused(action, step, horizon):
    with pytest.raises(DatasetError) as fault:
        recorded_chunk(action, step, horizon)
    assert fault.value.code == 'no_actions'


def test_a_truth_chunk_carries_its_place_in_time():
    dataset = MemoryDataset()
    episode = dataset.episode(1)
    chunk = truth_chunk(dataset.info, episode, step=8, horizon=4, instruction_id=1, epoch=3)
    assert (chunk.start_ns, chunk.observation_stamp_ns) == (8 * STEP_NS, 8 * STEP_NS)
    assert (chunk.sequence, chunk.epoch, chunk.step_ns) == (8, 3, STEP_NS)
    assert (chunk.instruction.text, chunk.instruction.instruction_id) == ('place', 1)
    np.testing.assert_array_equal(chunk.actions, episode.action[[8, 9, 9, 9]])
    assert chunk.columns == dataset.info.action


@pytest.mark.parametrize('step', [-1, 10])
def test_a_step_outside_the_episode_is_refused(step):
    dataset = MemoryDataset()
    with pytest.raises(DatasetError, match='from 0 to 9'):
        truth_chunk(dataset.info, dataset.episode(0), step=step, horizon=2)
