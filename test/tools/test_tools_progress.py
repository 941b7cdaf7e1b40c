# SPDX-License-Identifier: Apache-2.0
import pytest
from contracts.policy_contract import PolicyContract
from support.bundles import make_observation, write_direct_bundle

from vla_policy_ros.policies.hold import HoldPolicy
from vla_policy_ros.tools.progress import CountedPolicy, Tally


@pytest.fixture(scope='module')
def bundle(tmp_path_factory):
    return write_direct_bundle(tmp_path_factory.mktemp('direct'))


class TestCountedPolicy(PolicyContract):
    @pytest.fixture
    def policy(self, bundle):
        return CountedPolicy(HoldPolicy(bundle.spec), Tally(lambda _episodes, _observations: None))

    @pytest.fixture
    def observation(self, bundle):
        return make_observation(bundle)


def test_resets_and_inferences_of_several_policies_are_added_up(bundle):
    seen = []
    tally = Tally(lambda *counts: seen.append(counts))
    one, two = (CountedPolicy(HoldPolicy(bundle.spec), tally) for _ in range(2))
    one.warmup()
    one.reset()
    two.reset()
    two.infer(make_observation(bundle))
    assert seen == [(1, 0), (2, 0), (2, 1)]


def test_an_inference_that_fails_is_not_counted(bundle):
    seen = []
    policy = CountedPolicy(HoldPolicy(bundle.spec), Tally(lambda *counts: seen.append(counts)))
    with pytest.raises(ValueError, match='state'):
        policy.infer(make_observation(bundle, state=(1.0,)))
    assert seen == []
