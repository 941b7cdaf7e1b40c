# SPDX-License-Identifier: Apache-2.0
import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
from contracts.policy_contract import PolicyContract
from support.bundles import make_observation, write_direct_bundle

from vla_policy_ros.core.chunk import ActionChunk
from vla_policy_ros.core.errors import ChunkRejectedError, ConfigurationError
from vla_policy_ros.core.observation import Instruction, Observation
from vla_policy_ros.core.specs import (
    ActionSpec,
    Column,
    ObservationSpec,
    PolicySpec,
    Representation,
)
from vla_policy_ros.execution.chunk_check import check_chunk
from vla_policy_ros.execution.limits import ColumnLimits, check_limits
from vla_policy_ros.execution.motion import commanded_columns
from vla_policy_ros.policies.checked_policy import CheckedPolicy
from vla_policy_ros.policies.hold import HoldPolicy

ARM = (Column('shoulder', 'rad'), Column('elbow', 'rad'))
LIMITS = ColumnLimits(position_min=-3.0, position_max=3.0, velocity=2.0, acceleration=10.0)
JERKY = dataclasses.replace(LIMITS, jerk=50.0)


class Script:
    """A policy that answers with given rows of its last column; it counts what it is asked."""

    def __init__(self, columns: Sequence[Column] = ARM, state: Sequence[str] = ('elbow',)):
        self.spec = PolicySpec(
            policy_id='script@0',
            observation=ObservationSpec(
                cameras=(), state=tuple(Column(name, 'rad') for name in state)
            ),
            action=ActionSpec(columns=tuple(columns), horizon=4, step_ns=100_000_000),
        )
        self.calls: list[str] = []
        self.rows = [0.0] * 4

    def prepares_at_once(self, frame):
        self.calls.append('prepares_at_once')
        return True

    def note_published(self, delay_ns):
        self.calls.append(f'published after {delay_ns}')
        return ('too_late',)

    def prepare(self, frame):
        self.calls.append('prepare')
        return frame

    def warmup(self):
        self.calls.append('warmup')

    def infer(self, observation):
        actions = np.zeros((4, len(self.spec.action.columns)), np.float32)
        actions[:, -1] = self.rows
        return ActionChunk.answer(observation, actions, spec=self.spec)

    def reset(self):
        self.calls.append('reset')

    def close(self):
        self.calls.append('close')


def observe(*state):
    state = np.array([state or (0.0,)], np.float32)
    return Observation(images={}, state=state, instruction=Instruction(), stamp_ns=5)


def limits_of(columns, said=LIMITS):
    commanded = commanded_columns(columns)
    return check_limits(commanded, {column.name: said for column in commanded})


def make(mode='reject', *, said=LIMITS, **changes):
    script = Script(**changes)
    return CheckedPolicy(script, limits_of(script.spec.action.columns, said), mode), script


@pytest.fixture(scope='module')
def bundle(tmp_path_factory):
    return write_direct_bundle(tmp_path_factory.mktemp('direct'))


class TestChecked(PolicyContract):
    @pytest.fixture
    def policy(self, bundle):
        limits = limits_of(
            bundle.spec.action.columns,
            dataclasses.replace(LIMITS, position_min=-1e3, position_max=1e3),
        )
        return CheckedPolicy(HoldPolicy(bundle.spec), limits, 'reject')

    @pytest.fixture
    def observation(self, bundle):
        return make_observation(bundle)


@pytest.mark.parametrize('mode', ['reject', 'clamp', 'stretch'])
def test_a_chunk_within_the_limits_is_the_policys_own(mode):
    policy, script = make(mode)
    script.rows = [0.0, 0.1, 0.2, 0.3]
    np.testing.assert_array_equal(policy.infer(observe()).actions[:, 1], np.float32(script.rows))
    assert policy.mended == {}


@pytest.mark.parametrize(
    ('rows', 'code'),
    [
        ([0, 0, 0, 3.1], 'position_limit'),
        ([0, 0.1, 0.2, 0.5], 'velocity_limit'),
        ([0, 0.15, 0, 0], 'acceleration_limit'),
        ([0, 0, 0.08, 0.08], 'jerk_limit'),
    ],
)
def test_reject_names_cause_column_and_row(rows, code):
    policy, script = make(said=JERKY)
    script.rows = rows
    with pytest.raises(ChunkRejectedError) as caught:
        policy.infer(observe())
    assert caught.value.code == code
    assert 'elbow' in caught.value.where
    assert 'row' in caught.value.where


@pytest.mark.parametrize('said', [LIMITS, JERKY])
@pytest.mark.parametrize('rows', [[0, 0.5, 1.0, 1.5], [0, 0.15, 0, 0.15], [2.9, 3.0, 2.9, 3.0]])
@pytest.mark.parametrize('mode', ['clamp', 'stretch'])
def test_what_is_mended_is_within_the_limits_and_counted(mode, rows, said):
    policy, script = make(mode, said=said)
    script.rows = rows
    chunk = policy.infer(observe())
    check_chunk(chunk, limits_of(ARM, said))
    assert (chunk.step_ns, chunk.horizon, chunk.start_ns) == (100_000_000, 4, 5)
    policy.infer(observe())
    (told,) = policy.mended.items()
    assert told[0].endswith('_limit elbow')
    assert told[1] == 2


def test_clamp_mends_a_position_and_stretch_refuses_it():
    policy, script = make('clamp')
    script.rows = [3.5] * 4
    np.testing.assert_allclose(policy.infer(observe()).actions[:, 1], 3.0)
    assert policy.mended == {'position_limit elbow': 1}
    policy, script = make('stretch')
    script.rows = [3.5] * 4
    with pytest.raises(ChunkRejectedError, match='position 3'):
        policy.infer(observe())
    assert policy.mended == {}


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('mode', ['reject', 'clamp', 'stretch'])
def test_numbers_that_are_not_finite_are_refused_in_every_mode_and_without_limits(mode, value):
    policy, script = make(mode)
    script.rows = [0.0, 0.0, value, 0.0]
    for asked in (policy, script):
        with pytest.raises(ChunkRejectedError) as caught:
            asked.infer(observe())
        assert caught.value.code == 'not_finite'


STEPS = (ARM[0], dataclasses.replace(ARM[1], representation=Representation.DELTA))


def test_steps_are_added_up_from_the_observed_state():
    policy, script = make(columns=STEPS)
    script.rows = [0.1] * 4
    chunk = policy.infer(observe(2.5))
    np.testing.assert_array_equal(chunk.actions[:, 1], np.float32(script.rows))
    assert chunk.columns == STEPS
    with pytest.raises(ChunkRejectedError) as caught:
        policy.infer(observe(2.7))
    assert (caught.value.code, caught.value.got) == ('position_limit', 'position 3.1')


def test_steps_need_a_state_and_the_mode_reject():
    for changes, code in (({'state': ('wrist',)}, 'no_state'), ({'mode': 'clamp'}, 'no_mode')):
        with pytest.raises(ConfigurationError) as caught:
            make(columns=STEPS, **changes)
        assert caught.value.code == code


def test_everything_else_is_the_policys():
    policy, script = make()
    assert policy.spec is script.spec
    policy.warmup()
    assert policy.prepares_at_once('frame')
    assert policy.prepare('frame') == 'frame'
    assert policy.note_published(3) == ('too_late',)
    policy.reset()
    policy.close()
    told = 'warmup, prepares_at_once, prepare, published after 3, reset, close'
    assert ', '.join(script.calls) == told
