# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import numpy as np
import pytest
from evaluation_builders import EchoPolicy, MemoryDataset, policy_spec

from vla_policy_ros.core.errors import EngineError
from vla_policy_ros.evaluation.action_error import measure_action_error
from vla_policy_ros.evaluation.sampling import spread_episodes

VARIANCE = 4 * 8.25  # of 0.5, 2.5, ... 18.5
# Chunks at steps 0, 4 and 8 of 10; row k lies 2 k below the recording, and two rows lie after its end.
MEAN_SQUARE = (2 * (0 + 4 + 16 + 36) + (0 + 4)) / 10


class ShiftedPolicy(EchoPolicy):
    """An `EchoPolicy` whose actions are off by a number."""

    def __init__(self, shift, **words):
        super().__init__(**words)
        self._shift = np.float32(shift)

    def infer(self, observation):
        chunk = super().infer(observation)
        return replace(chunk, actions=chunk.actions + self._shift)


def measure(policy, dataset=None, episodes=(0,), **words):
    return measure_action_error(policy, dataset or MemoryDataset(), episodes=episodes, **words)


def test_errors_are_told_by_column_and_in_parts_of_the_recorded_variance():
    error = measure(EchoPolicy())
    assert [column.name for column in error.columns] == ['joint_0', 'joint_1']
    assert error.actions.shape == (3, 4, 2)
    np.testing.assert_allclose(error.mean_squares, [MEAN_SQUARE] * 2)
    np.testing.assert_allclose(error.variances, [VARIANCE] * 2)
    assert error.relative == pytest.approx(MEAN_SQUARE / VARIANCE)


def test_growth_is_the_change_of_the_error_and_may_be_luck():
    """A shift of 1 goes against the error here: growth is below 0 while the actions differ."""
    own, worse, better = (measure(ShiftedPolicy(shift)) for shift in (0, -1, 1))
    mean_shift = (2 * (0 + 2 + 4 + 6) + (0 + 2)) / 10
    assert worse.growth(own) == pytest.approx((2 * mean_shift + 1) / MEAN_SQUARE)
    assert better.growth(own) == pytest.approx((-2 * mean_shift + 1) / MEAN_SQUARE)
    assert better.growth(own) < 0
    for other in (worse, better):
        assert other.difference(own) == pytest.approx(1 / MEAN_SQUARE)
    assert (own.growth(own), own.difference(own)) == (0, 0)


def test_a_policy_without_an_error_can_only_get_worse():
    spec = policy_spec(horizon=1)
    exact = measure(EchoPolicy(spec))
    assert exact.relative == 0
    assert (exact.growth(exact), exact.difference(exact)) == (0, 0)
    shifted = measure(ShiftedPolicy(1, spec=spec))
    assert min(shifted.growth(exact), shifted.difference(exact)) > 1e6


def test_no_further_episode_is_begun_when_there_are_chunks_enough():
    dataset = MemoryDataset(num_episodes=4)
    for min_chunks, episodes in ((1, (0,)), (3, (0,)), (4, (0, 2)), (None, (0, 2, 3))):
        error = measure(EchoPolicy(), dataset, (0, 2, 3), min_chunks=min_chunks)
        assert error.episodes == episodes
        assert len(error.actions) == 3 * len(episodes)


def test_episodes_count_by_what_is_known_of_them():
    one, both = measure(EchoPolicy()), measure(EchoPolicy(), episodes=(0, 1))
    np.testing.assert_allclose(both.mean_squares, one.mean_squares)
    assert both.variances[0] > one.variances[0]  # the second episode lies elsewhere


def test_a_column_that_never_moved_has_a_unit_of_its_own():
    dataset = MemoryDataset()
    dataset.episodes[0].action[:, 1] = 3.0
    error = measure(EchoPolicy(), dataset)
    assert error.variances[1] == 1.0


def test_nothing_to_hold_it_against():
    assert measure(EchoPolicy(), MemoryDataset(with_actions=False)) is None
    assert measure(EchoPolicy(), episodes=()) is None


def test_a_failing_policy_is_told():
    fault = EngineError('network', got='x', expected='y', next_step='Z.')
    with pytest.raises(EngineError):
        measure(EchoPolicy(error=fault))


def test_episodes_are_spread():
    assert list(spread_episodes(12, 4)) == [0, 3, 6, 9]
    assert list(spread_episodes(3, 8)) == [0, 1, 2]
    assert list(spread_episodes(0, 8)) == []
