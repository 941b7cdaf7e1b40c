# SPDX-License-Identifier: Apache-2.0
import dataclasses

import numpy as np
import pytest
from contracts.policy_contract import PolicyContract
from support.bundles import make_observation, write_direct_bundle

from vla_policy_ros.core.errors import ChunkRejectedError, StateError
from vla_policy_ros.core.specs import Column, Representation
from vla_policy_ros.policies.hold import HoldPolicy


@pytest.fixture(scope='module')
def bundle(tmp_path_factory):
    return write_direct_bundle(tmp_path_factory.mktemp('direct'))


class TestHold(PolicyContract):
    @pytest.fixture
    def policy(self, bundle):
        return HoldPolicy(bundle.spec)

    @pytest.fixture
    def observation(self, bundle):
        return make_observation(bundle)


def with_columns(spec, *columns):
    return dataclasses.replace(spec, action=dataclasses.replace(spec.action, columns=columns))


def test_newest_state_is_held_in_every_row(bundle):
    observation = make_observation(bundle)
    state = np.array([[9, 9, 9], [1, 2, 3]], np.float32)
    chunk = HoldPolicy(bundle.spec).infer(dataclasses.replace(observation, state=state))
    np.testing.assert_array_equal(chunk.actions, np.tile([1, 2, 3], (4, 1)))


def test_columns_are_matched_by_name_and_steps_stay_zero(bundle):
    spec = with_columns(
        bundle.spec,
        Column('wrist', 'rad'),
        Column('gripper', '1'),
        Column('elbow', 'rad', representation=Representation.DELTA),
    )
    observation = make_observation(bundle, state=(1, 2, 3))
    chunk = HoldPolicy(spec).infer(observation)
    np.testing.assert_array_equal(chunk.actions[0], [3, 0, 0])


def test_policy_without_matching_columns_does_not_look_at_the_state(bundle):
    policy = HoldPolicy(with_columns(bundle.spec, Column('gripper', '1')))
    observation = dataclasses.replace(make_observation(bundle), state=np.zeros((0, 0), np.float32))
    assert (policy.infer(observation).actions == 0).all()


def test_wrong_states_are_refused(bundle):
    policy, observation = HoldPolicy(bundle.spec), make_observation(bundle)
    with pytest.raises(StateError) as caught:
        policy.infer(dataclasses.replace(observation, state=np.zeros((1, 2), np.float32)))
    assert caught.value.code == 'wrong_shape'
    with pytest.raises(ChunkRejectedError, match='elbow'):
        policy.infer(make_observation(bundle, state=(0, np.nan, 0)))
