# SPDX-License-Identifier: Apache-2.0
import threading

import numpy as np
import pytest
from evaluation_builders import STEP_NS, EchoPolicy, MemoryDataset, policy_spec

from vla_policy_ros.core.errors import ConfigurationError, DatasetError, EngineError
from vla_policy_ros.core.frame import Frame
from vla_policy_ros.evaluation.metrics import compare
from vla_policy_ros.evaluation.observations import (
    EpisodeObservations,
    NameMap,
    number_instructions,
)
from vla_policy_ros.evaluation.open_loop import evaluate, evaluate_episode


def observe(spec, *, names=None, **kwargs):
    dataset = MemoryDataset()
    source = EpisodeObservations(dataset.info, dataset.episode(0), spec=spec, names=names)
    return list(source.iterate(**kwargs))


def pixel(frame):
    return int(frame.data[0])


def test_observations_follow_the_steps():
    observations = observe(policy_spec(), stride=3, epoch=2)
    assert [one.stamp_ns // STEP_NS for one in observations] == [0, 3, 6, 9]
    assert [one.sequence for one in observations] == [0, 1, 2, 3]
    assert {one.epoch for one in observations} == {2}
    assert [one.state.tolist() for one in observations[:2]] == [[[0, 1]], [[6, 7]]]
    assert observations[1].stream_ages_ns() == {'front': 0, 'state': 0}
    assert [one.instruction.text for one in observations] == ['pick', 'pick', 'place', 'place']
    assert [one.instruction.instruction_id for one in observations] == [0, 0, 1, 1]


def test_frames_outlive_the_array_of_the_dataset():
    observations = observe(policy_spec(), stride=3)
    assert [pixel(one.images['front'][0]) for one in observations] == [0, 3, 6, 9]
    frame = observations[1].images['front'][0]
    assert (frame.stamp_ns, frame.encoding, frame.height, frame.width) == (
        3 * STEP_NS, 'rgb8', 4, 6,
    )  # fmt: skip


def test_history_repeats_the_first_sample_and_keeps_its_order():
    spec = policy_spec(history_ns=(-2 * STEP_NS, -STEP_NS, 0))
    observations = observe(spec, stride=2)
    seen = [[pixel(frame) for frame in one.images['front']] for one in observations]
    assert seen == [[0, 0, 0], [0, 1, 2], [2, 3, 4], [4, 5, 6], [6, 7, 8]]
    assert observations[2].state.tolist() == [[4, 5], [6, 7], [8, 9]]


def test_history_takes_the_nearest_step_at_odd_offsets():
    spec = policy_spec(history_ns=(-int(1.6 * STEP_NS), -int(0.4 * STEP_NS), 0))
    seen = [[pixel(frame) for frame in one.images['front']] for one in observe(spec)]
    assert seen[5] == [3, 5, 5]


def test_only_a_history_of_images_is_alive():
    alive, counts = set(), []

    class Prepared:
        def __init__(self, frame):
            self.camera, self.stamp_ns = frame.camera, frame.stamp_ns
            alive.add(self.stamp_ns)
            counts.append(len(alive))

        def __del__(self):
            alive.discard(self.stamp_ns)

    dataset = MemoryDataset(num_steps=50)
    spec = policy_spec(history_ns=(-STEP_NS, 0))
    source = EpisodeObservations(dataset.info, dataset.episode(0), spec=spec)
    for observation in source.iterate(stride=2, prepare=Prepared):
        assert isinstance(observation.images['front'][0], Prepared)
    assert len(counts) == 49
    assert max(counts) == 4  # the observation at hand and the next one's, while they change over


def test_an_image_is_prepared_once():
    frames = []
    spec = policy_spec(history_ns=(-STEP_NS, 0))

    def prepare(frame):
        frames.append(frame.stamp_ns // STEP_NS)
        return frame

    observe(spec, prepare=prepare)
    assert frames == list(range(10))


@pytest.mark.parametrize(
    ('spec', 'message'),
    [
        (policy_spec(camera='wrist'), 'camera.*dataset has front.*policy has wrist'),
        (
            policy_spec(names=('joint_0', 'elbow')),
            'dataset has joint_0, joint_1.*policy has joint_0, elbow; without a partner: elbow',
        ),
    ],
)
def test_names_are_never_guessed(spec, message):
    with pytest.raises(DatasetError, match=message) as fault:
        observe(spec)
    assert fault.value.code == 'names_differ'
    assert 'mapping' in fault.value.next_step


def test_a_mapping_joins_different_names():
    spec = policy_spec(camera='wrist', names=('elbow', 'joint_0'))
    names = NameMap(cameras={'wrist': 'front'}, state={'elbow': 'joint_1'})
    first = observe(spec, names=names)[1]
    assert first.images['wrist'][0].camera == 'wrist'
    assert first.state.tolist() == [[3, 2]]


def test_a_mapping_of_an_unknown_name_is_refused():
    with pytest.raises(DatasetError, match='without a partner: wirst'):
        observe(policy_spec(), names=NameMap(cameras={'wirst': 'front'}))


def test_instructions_are_numbered_by_their_changes():
    numbered = number_instructions(['a', 'a', 'b', 'a'])
    assert [one.instruction_id for one in numbered] == [0, 0, 1, 2]
    assert number_instructions([]) == []


def test_an_episode_gives_chunks_truth_and_poses():
    policy, dataset = EchoPolicy(), MemoryDataset()
    result = evaluate_episode(policy, dataset, episode_index=1, execution_horizon=3)
    assert policy.resets == 1
    assert [images['front'] for _, images in policy.seen] == [[0], [3], [6], [9]]
    assert result.policy.observation_stamps_ns.tolist() == [
        0,
        3 * STEP_NS,
        6 * STEP_NS,
        9 * STEP_NS,
    ]
    assert len(result.truth) == 10
    comparison = compare(result.policy, result.truth, execution_horizon=3, held=result.held)
    assert comparison.row_mae == (0.0, 2.0, 4.0, 6.0)
    assert comparison.overall.open_loop.count == 20
    assert comparison.hold_last.mae == pytest.approx((0 + 2 + 4) * 3 / 10 + 0.5)
    assert dataset.episode(1).is_closed


def test_latencies_come_from_the_clock_and_the_policy():
    class Clock:
        """Every look at it takes 7 ns."""

        def __init__(self):
            self._now_ns = 0

        def now_ns(self):
            self._now_ns += 7
            return self._now_ns

    result = evaluate_episode(EchoPolicy(), MemoryDataset(), episode_index=0, clock=Clock())
    stages = result.policy.stage_latencies_ns()
    assert list(stages) == ['load', 'network', 'infer']
    assert stages['network'].tolist() == [5, 5, 5]
    taken = result.policy.publish_stamps_ns - result.policy.observation_stamps_ns
    np.testing.assert_array_equal(taken, stages['infer'])
    assert (taken >= 7).all()
    assert result.wall_ns > 0


def test_the_next_observation_is_loaded_while_the_policy_infers():
    loaded = {step: threading.Event() for step in range(10)}

    class Overlapped(EchoPolicy):
        def prepare(self, frame):
            loaded[frame.stamp_ns // STEP_NS].set()
            return frame

        def infer(self, observation):
            following = observation.stamp_ns // STEP_NS + 1
            if following in loaded:
                assert loaded[following].wait(timeout=30)
            return super().infer(observation)

    result = evaluate_episode(Overlapped(), MemoryDataset(), episode_index=0, execution_horizon=1)
    assert len(result.policy) == 10


def test_a_dataset_without_actions_has_no_truth():
    dataset = MemoryDataset(with_actions=False)
    result = evaluate_episode(EchoPolicy(), dataset, episode_index=0)
    assert (len(result.policy), len(result.truth)) == (3, 0)


def test_the_truth_reaches_as_far_as_a_slower_policy():
    spec = policy_spec(horizon=3)
    slow = type(spec.action)(
        columns=spec.action.columns, horizon=3, step_ns=2 * STEP_NS, offset_ns=STEP_NS
    )
    policy = EchoPolicy(type(spec)(policy_id='slow', observation=spec.observation, action=slow))
    result = evaluate_episode(policy, MemoryDataset(), episode_index=0, execution_horizon=2)
    assert result.truth.horizon == 6
    assert [stamp // STEP_NS for stamp in result.policy.observation_stamps_ns] == [0, 4, 8]


@pytest.mark.parametrize('rows', [0, 5])
def test_an_execution_horizon_outside_the_chunk_is_refused(rows):
    with pytest.raises(ConfigurationError, match='1 to 4'):
        evaluate_episode(EchoPolicy(), MemoryDataset(), episode_index=0, execution_horizon=rows)


def test_an_error_of_the_policy_comes_through_and_the_episode_is_closed():
    fault = EngineError('network', got='x', expected='y', next_step='z')
    dataset = MemoryDataset()
    with pytest.raises(EngineError):
        evaluate([EchoPolicy(error=fault)], dataset, episodes=[0])
    assert dataset.episode(0).is_closed


def test_an_error_of_the_dataset_comes_through():
    dataset = MemoryDataset()
    names = NameMap(cameras={'front': 'front'})
    dataset.episodes[0].images = lambda camera: iter(
        [np.zeros((4, 6, 3), np.uint8) for _ in range(2)]
    )
    with pytest.raises(DatasetError) as fault:
        evaluate_episode(EchoPolicy(), dataset, episode_index=0, names=names)
    assert fault.value.code == 'too_few_images'


def test_the_result_does_not_depend_on_the_number_of_policies():
    episodes = [2, 0, 1]
    results = [
        evaluate(
            [EchoPolicy() for _ in range(num_policies)],
            MemoryDataset(num_episodes=3),
            episodes=episodes,
            execution_horizon=2,
        )
        for num_policies in (1, 3)
    ]
    assert results[0].policy.digest() == results[1].policy.digest()
    assert results[0].truth.digest() == results[1].truth.digest()
    assert results[0].episodes == (2, 0, 1)
    assert sorted(set(results[0].policy.epochs.tolist())) == [0, 1, 2]


def test_episodes_with_equal_stamps_are_compared_each_with_its_own():
    result = evaluate(
        [EchoPolicy()], MemoryDataset(num_episodes=3), episodes=[0, 1, 2], execution_horizon=1
    )
    comparison = compare(result.policy, result.truth, execution_horizon=1, held=result.held)
    assert comparison.overall.open_loop.max_error == 0.0
    assert comparison.num_compared == 30


@pytest.mark.parametrize(('policies', 'episodes'), [([], [0]), ([EchoPolicy()], [])])
def test_nothing_to_do_is_refused(policies, episodes):
    with pytest.raises(ConfigurationError):
        evaluate(policies, MemoryDataset(), episodes=episodes)


def test_frames_of_a_preparing_policy_are_not_copied():
    handed = []

    class Slot:
        def __init__(self, frame):
            self.camera, self.stamp_ns = frame.camera, frame.stamp_ns

    class Preparing(EchoPolicy):
        def prepare(self, frame):
            assert isinstance(frame, Frame)
            return Slot(frame)

        def infer(self, observation):
            handed.append(observation.images['front'][0])
            return super().infer(
                type(observation)(
                    images={},
                    state=observation.state,
                    instruction=observation.instruction,
                    stamp_ns=observation.stamp_ns,
                )
            )

    evaluate_episode(Preparing(), MemoryDataset(), episode_index=0)
    assert [type(slot) for slot in handed] == [Slot] * 3
