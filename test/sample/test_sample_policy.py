# SPDX-License-Identifier: Apache-2.0
"""The committed policy on committed episodes that it was not trained on."""

from contextlib import closing

import numpy as np
import pytest

from vla_policy_ros.bundle.bundle import load_bundle
from vla_policy_ros.bundle.probe import check_probe
from vla_policy_ros.core.observation import Instruction
from vla_policy_ros.datasets.registry import open_dataset
from vla_policy_ros.evaluation.observations import EpisodeObservations
from vla_policy_ros.evaluation.truth import recorded_chunk
from vla_policy_ros.policies.engine_policy import EnginePolicy
from vla_policy_ros.sample import HELD_OUT_EPISODES, sample_bundle_path, sample_dataset_path

HORIZON = 16
MAX_BYTES = 12_000_000


@pytest.fixture(scope='module')
def policy():
    policy = EnginePolicy(load_bundle(sample_bundle_path()))
    yield policy
    policy.close()


@pytest.fixture(scope='module')
def dataset():
    with closing(open_dataset(sample_dataset_path())) as dataset:
        yield dataset


def chunks_of(action):
    return np.stack([recorded_chunk(action, step, HORIZON) for step in range(len(action))])


def observations_of(dataset, policy, index):
    with closing(dataset.episode(index)) as episode:
        yield from EpisodeObservations(dataset.info, episode, spec=policy.spec).iterate()


@pytest.fixture(scope='module')
def errors(dataset, policy):
    """(N, 3) mean absolute errors at every held-out step: policy, hold the pose, nearest training step."""
    training = [dataset.episode(index) for index in range(HELD_OUT_EPISODES[0])]
    states = np.concatenate([episode.state for episode in training])
    recorded = np.concatenate([chunks_of(episode.action) for episode in training])
    scale = states.std(axis=0)
    rows = []
    for index in HELD_OUT_EPISODES:
        truth = chunks_of(dataset.episode(index).action)
        for seen, chunk in zip(observations_of(dataset, policy, index), truth, strict=True):
            state = seen.state[-1]
            nearest = np.linalg.norm((states - state) / scale, axis=1).argmin()
            answers = policy.infer(seen).actions, np.tile(state, (HORIZON, 1)), recorded[nearest]
            rows.append([np.abs(answer - chunk).mean() for answer in answers])
    return np.array(rows)


def test_sample_is_small():
    folders = (sample_dataset_path(), sample_bundle_path())
    files = [path for folder in folders for path in folder.rglob('*') if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MAX_BYTES


def test_probe_holds(policy):
    result = check_probe(policy, policy.bundle)
    assert result is not None
    assert result.cosine > 0.9999


def test_policy_and_dataset_fit(policy, dataset):
    info, spec = dataset.info, policy.spec
    assert {camera.name for camera in spec.observation.cameras} == {c.name for c in info.cameras}
    assert spec.observation.state_names == tuple(column.name for column in info.state)
    assert spec.action.names == tuple(column.name for column in info.action)
    assert (spec.action.step_ns, spec.action.horizon) == (info.step_ns, HORIZON)
    assert set(HELD_OUT_EPISODES) < set(range(info.num_episodes))


@pytest.mark.parametrize(
    ('baseline', 'column', 'limit', 'measured'),
    [('hold', 1, 5.0, 6.57), ('nearest', 2, 5.0, 6.78)],
)
def test_policy_beats_baseline_on_held_out_episodes(errors, baseline, column, limit, measured):
    policy, other = errors[:, 0].mean(), errors[:, column].mean()
    assert other > limit * policy, (
        f'policy {policy:.4f}, {baseline} {other:.4f}: {other / policy:.2f} times better, '
        f'limit {limit}; when the bundle was committed: {measured}'
    )


def test_policy_is_far_below_both_baselines_in_every_episode(dataset, errors):
    lengths = [len(dataset.episode(index).state) for index in HELD_OUT_EPISODES]
    for part in np.split(errors, np.cumsum(lengths)[:-1]):
        policy, hold, nearest = part.mean(axis=0)
        assert 3 * policy < min(hold, nearest)


def with_instruction(observation, text):
    return type(observation)(
        images=observation.images,
        state=observation.state,
        instruction=Instruction(text),
        stamp_ns=observation.stamp_ns,
    )


def test_policy_listens(dataset, policy):
    """The block's place decides the pan, so three colours lead to three different places."""
    first = next(observations_of(dataset, policy, HELD_OUT_EPISODES[0]))
    ends = [
        policy.infer(with_instruction(first, f'pick up the {color} block')).actions[-1, 0]
        for color in ('red', 'green', 'blue')
    ]
    assert np.ptp(ends) > 0.2


def test_policy_looks(dataset, policy):
    """Without its images the policy does not know where the block is."""
    seen = next(observations_of(dataset, policy, HELD_OUT_EPISODES[0]))
    other = next(observations_of(dataset, policy, HELD_OUT_EPISODES[1]))
    blind = type(seen)(
        images=other.images,
        state=seen.state,
        instruction=seen.instruction,
        stamp_ns=seen.stamp_ns,
    )
    truth = chunks_of(dataset.episode(HELD_OUT_EPISODES[0]).action)[0]
    error, blind_error = (np.abs(policy.infer(o).actions - truth).mean() for o in (seen, blind))
    assert blind_error > 2 * error
