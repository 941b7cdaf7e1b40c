# SPDX-License-Identifier: Apache-2.0
import shutil

import pytest
import yaml
from support.bundles import JOINTS, make_observation, write_flow_bundle

from vla_policy_ros.core.errors import ChunkRejectedError, ConfigurationError, StateError
from vla_policy_ros.core.specs import Column
from vla_policy_ros.execution.limits import ColumnLimits, check_limits
from vla_policy_ros.export.limit_check import count_refusals, read_executor_limits
from vla_policy_ros.policies.engine_policy import EnginePolicy
from vla_policy_ros.sample import sample_bundle_path

SAMPLE = sample_bundle_path().parent


@pytest.fixture
def policy(tmp_path):
    policy = EnginePolicy(write_flow_bundle(tmp_path / 'flow'))
    yield policy
    policy.close()


@pytest.fixture
def columns():
    names = ('shoulder_pan', 'shoulder_lift', 'elbow_flex', 'wrist_flex', 'wrist_roll')
    return (*(Column(name, 'rad') for name in names), Column('gripper', '1', 'gripper'))


@pytest.fixture
def executor(tmp_path):
    for name in ('executor.yaml', 'limits.yaml'):
        shutil.copyfile(SAMPLE / name, tmp_path / name)
    return tmp_path / 'executor.yaml'


def limits_of(policy, **elbow):
    wide = {'position_min': -99, 'position_max': 99, 'velocity': 1e6, 'acceleration': 1e9}
    said = {name: ColumnLimits(**wide) for name in JOINTS}
    said['elbow'] = ColumnLimits(**{**wide, **elbow})
    return check_limits(policy.spec.action.columns, said)


def test_joint_and_limit_of_every_refused_chunk_are_counted(policy):
    seen = [make_observation(policy.bundle, stamp_ns=stamp, state=(0, 2, 0)) for stamp in (1, 2)]
    wide = count_refusals(policy, seen, limits_of(policy))
    assert (wide.chunks, wide.num_refused, wide.refused) == (2, 0, {})
    for limit, value in (('velocity', 1e-3), ('acceleration', 1e-3)):
        narrow = count_refusals(policy, seen, limits_of(policy, **{limit: value}))
        assert narrow.refused == {('elbow', f'{limit}_limit'): 2}
        assert narrow.num_refused == 2
    below = count_refusals(policy, seen, limits_of(policy, position_min=98))
    assert below.refused == {('elbow', 'position_limit'): 2}


def test_the_policy_stays_open(policy):
    seen = [make_observation(policy.bundle)]
    count_refusals(policy, seen, limits_of(policy))
    assert policy.infer(seen[0]).horizon == 4


def test_a_policy_that_fails_is_no_refusal(policy, monkeypatch):
    bad = make_observation(policy.bundle, state=(0, float('nan'), 0))
    with pytest.raises(StateError):
        count_refusals(policy, [bad], limits_of(policy))

    def refuse(_observation):
        raise ChunkRejectedError(
            'chunk at 1 ns', got='nan', expected='finite', next_step='Look.', code='not_finite'
        )

    monkeypatch.setattr(policy, 'infer', refuse)
    with pytest.raises(ChunkRejectedError, match='nan'):
        count_refusals(policy, [make_observation(policy.bundle)], limits_of(policy))


def test_limits_of_an_executor_file(executor, columns):
    settings, limits = read_executor_limits(executor, columns)
    assert settings.limits.mode == 'clamp'
    assert limits.velocity.tolist() == [2.0, 2.5, 2.5, 2.5, 2.0, 3.0]


def test_a_urdf_that_only_the_robot_publishes(executor, columns):
    document = yaml.safe_load(executor.read_text())
    document['limits']['urdf_topic'] = 'robot_description'
    executor.write_text(yaml.safe_dump(document))
    with pytest.raises(ConfigurationError) as caught:
        read_executor_limits(executor, columns)
    assert caught.value.code == 'needs_robot_description'


def test_a_file_of_another_robot(executor, columns):
    with pytest.raises(ConfigurationError):
        read_executor_limits(executor, columns[:-1])
