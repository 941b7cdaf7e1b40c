# SPDX-License-Identifier: Apache-2.0
import pytest

from vla_policy_ros.core.specs import ActionSpec, ObservationSpec, PolicySpec
from vla_policy_ros.datasets.synthetic import SyntheticDataset
from vla_policy_ros.evaluation.sampling import sample_observations

STEPS = 12


@pytest.fixture
def dataset():
    return SyntheticDataset(
        num_episodes=3, num_steps=STEPS, step_ns=1_000_000, cameras={}, num_joints=2
    )


@pytest.fixture
def spec(dataset):
    return PolicySpec(
        policy_id='any',
        observation=ObservationSpec(cameras=(), state=dataset.info.state, state_history_ns=(0,)),
        action=ActionSpec(columns=dataset.info.action, horizon=1, step_ns=1_000_000),
    )


@pytest.mark.parametrize(
    ('count', 'shares'),
    [(1, [1, 0, 0]), (2, [1, 1, 0]), (3, [1, 1, 1]), (8, [3, 3, 2]), (1000, [12, 12, 12])],
)
def test_samples_are_spread_over_episodes(dataset, spec, count, shares):
    found = list(sample_observations(dataset, spec, count=count))
    starts = sum(observation.sequence == 0 for observation in found)
    assert len(found) == sum(shares)
    assert starts == sum(share > 0 for share in shares)


def test_samples_are_spread_over_an_episode(dataset, spec):
    found = list(sample_observations(dataset, spec, count=9))
    steps = [observation.stamp_ns - found[0].stamp_ns for observation in found[:3]]
    assert steps == [0, 4_000_000, 8_000_000]
