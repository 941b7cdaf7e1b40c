# SPDX-License-Identifier: Apache-2.0
"""Normalising and back: the rules by hand, round trips by property, references by name."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_policy_ros.bundle.manifest import Action, State
from vla_policy_ros.bundle.normalization import ActionDenormalizer, StateNormalizer
from vla_policy_ros.bundle.statistics import GroupStatistics, compute_statistics
from vla_policy_ros.core.errors import BundleError, SpecMismatchError

JOINTS = ('a', 'b', 'c')
POSE_6 = ('x', 'y', 'z', 'rx', 'ry', 'rz')
POSE_9 = ('x', 'y', 'z', 'r0', 'r1', 'r2', 'r3', 'r4', 'r5')
RULES = ('identity', 'min_max', 'quantile', 'mean_std')
# Column c never moved.
ARM = GroupStatistics(
    min=np.array([-2.0, 0.0, 5.0]),
    max=np.array([2.0, 10.0, 5.0]),
    mean=np.array([0.5, 4.0, 5.0]),
    std=np.array([0.5, 2.0, 0.0]),
    q01=np.array([-1.0, 1.0, 5.0]),
    q99=np.array([1.0, 9.0, 5.0]),
)


def group(names=JOINTS, name='arm', **settings):
    return {'name': name, 'names': names, 'units': ('rad',), **settings}


def make_state(*groups, **settings):
    return State(tensor='state', groups=groups, **settings)


def make_action(*groups, horizon=4):
    return Action(tensor='action', groups=groups, horizon=horizon, step_ns=50_000_000)


def normalize_state(state, values, statistics):
    normalizer = StateNormalizer(state, statistics)
    out = np.full((len(values), normalizer.width), 77, np.float32)
    normalizer.write(np.asarray(values, np.float32), out)
    return out


def denormalize(denormalizer, raw, state_row=()):
    out = np.full((len(raw), denormalizer.num_columns), 77, np.float32)
    denormalizer.write(np.asarray(raw, np.float32), np.asarray(state_row, np.float32), out)
    return out


@pytest.mark.parametrize(
    ('rule', 'clip', 'value', 'expected'),
    [
        ('identity', False, (1.5, -3.0, 9.0), (1.5, -3.0, 9.0)),
        ('min_max', False, (1.0, 15.0, 6.0), (0.5, 2.0, 0.0)),
        ('min_max', True, (1.0, 15.0, 6.0), (0.5, 1.0, 0.0)),
        ('quantile', False, (-2.0, 5.0, 5.0), (-2.0, 0.0, 0.0)),
        ('quantile', True, (-2.0, 5.0, 5.0), (-1.0, 0.0, 0.0)),
        ('mean_std', False, (1.5, 0.0, 9.0), (2.0, -2.0, 0.0)),
        ('mean_std', True, (1.5, 0.0, 9.0), (2.0, -2.0, 0.0)),  # clip is no rule of z-scores
    ],
)
def test_the_rules_by_hand(rule, clip, value, expected):
    state = make_state(group(normalization=rule, clip=clip))
    np.testing.assert_allclose(normalize_state(state, [value], {'arm': ARM})[0], expected)


@pytest.mark.parametrize(
    ('rule', 'clip', 'raw', 'expected'),
    [
        ('identity', False, (1.5, -3.0, 9.0), (1.5, -3.0, 9.0)),
        ('min_max', False, (0.5, 2.0, 0.7), (1.0, 15.0, 5.0)),
        ('min_max', True, (0.5, 2.0, 0.7), (1.0, 10.0, 5.0)),
        ('quantile', True, (-3.0, 0.0, -1.0), (-1.0, 5.0, 5.0)),
        ('mean_std', True, (2.0, -2.0, 3.0), (1.5, 0.0, 5.0)),
    ],
)
def test_the_rules_backwards_by_hand(rule, clip, raw, expected):
    action = make_action(group(normalization=rule, clip=clip), horizon=1)
    got = denormalize(ActionDenormalizer(action, None, {'arm': ARM}), [raw])
    np.testing.assert_allclose(got[0], expected)


def test_groups_sin_cos_and_padding_lie_in_order():
    state = make_state(
        group(('p', 'q'), 'angles', normalization='sin_cos'),
        group(normalization='min_max'),
        pad_to=9,
    )
    values = [[0.0, np.pi / 2, -2.0, 10.0, 5.0], [np.pi / 6, 0.0, 0.0, 5.0, 5.0]]
    expected = [[0, 1, 1, 0, -1, 1, 0, 0, 0], [0.5, 0, np.cos(np.pi / 6), 1, 0, 0, 0, 0, 0]]
    np.testing.assert_allclose(normalize_state(state, values, {'arm': ARM}), expected, atol=1e-6)


@pytest.mark.parametrize('rule', RULES)
@given(seed=st.integers(0, 10_000))
def test_actions_survive_the_way_there_and_back(rule, seed):
    rng = np.random.default_rng(seed)
    actions = rng.uniform(-3, 3, (4, 3)).astype(np.float32)
    actions[:, 2] = 1.5  # never moves
    spread = np.array([0.1, 0.2, 0.0])
    statistics = {'arm': compute_statistics(np.concatenate([actions, actions + spread]))}
    denormalizer = ActionDenormalizer(make_action(group(normalization=rule)), None, statistics)
    raw = denormalizer.normalize(actions, np.empty(0))
    assert rule == 'identity' or not raw[:, 2].any()
    np.testing.assert_allclose(denormalize(denormalizer, raw), actions, atol=1e-5)


@given(seed=st.integers(0, 10_000))
def test_min_max_maps_the_data_onto_minus_one_to_one(seed):
    values = np.random.default_rng(seed).normal(size=(30, 3)).astype(np.float32)
    state = make_state(group(normalization='min_max'))
    out = normalize_state(state, values, {'arm': compute_statistics(values)})
    np.testing.assert_allclose(out.min(axis=0), -1, atol=1e-6)
    np.testing.assert_allclose(out.max(axis=0), 1, atol=1e-6)


def test_statistics_per_row_are_used_per_row():
    chunks = np.random.default_rng(0).normal(size=(60, 4, 3)) * np.arange(1, 5)[:, None]
    statistics = {'arm': compute_statistics(chunks)}
    action = make_action(group(normalization='min_max'))
    got = denormalize(ActionDenormalizer(action, None, statistics), np.ones((4, 3)))
    np.testing.assert_allclose(got, chunks.max(axis=0), rtol=1e-6)


def test_relative_columns_are_added_to_the_state_of_the_same_names_and_delta_is_not():
    action = make_action(
        group(('b', 'a'), 'arm', representation='relative_to_observation'),
        group(('c',), 'hand', representation='delta'),
        horizon=2,
    )
    state = make_state(group(JOINTS))
    denormalizer = ActionDenormalizer(action, state, {})
    raw = np.array([[1, 2, 3, 99], [4, 5, 6, 99]], np.float32)  # one column more than names
    got = denormalize(denormalizer, raw, (10, 20, 30))
    np.testing.assert_array_equal(got, [[21, 12, 3], [24, 15, 6]])
    np.testing.assert_array_equal(denormalizer.normalize(got, np.array((10, 20, 30))), raw[:, :3])


@pytest.mark.parametrize(('pose_format', 'names'), [('xyz_rotvec', POSE_6), ('xyz_rot6d', POSE_9)])
def test_relative_poses_are_composed(pose_format, names):
    entry = group(names, 'eef', representation='relative_to_observation', pose_format=pose_format)
    action = make_action(entry, group(('grip',), 'hand'), horizon=1)
    state = make_state(group(('grip',), 'hand'), group(names[::-1], 'eef'))
    denormalizer = ActionDenormalizer(action, state, {})
    # The hand looks along y; one metre ahead of it is one metre along y.
    turn = (0, 0, np.pi / 2) if pose_format == 'xyz_rotvec' else (0, -1, 0, 1, 0, 0)
    still = (0, 0, 0) if pose_format == 'xyz_rotvec' else (1, 0, 0, 0, 1, 0)
    state_row = np.concatenate([[0.5], np.array([3.0, 2.0, 1.0, *turn])[::-1]])
    raw = [[1, 0, 0, *still, 0.25]]

    got = denormalize(denormalizer, raw, state_row)

    np.testing.assert_allclose(got, [[3, 3, 1, *turn, 0.25]], atol=1e-6)
    np.testing.assert_allclose(denormalizer.normalize(got, state_row), raw, atol=1e-6)


def test_a_relative_group_is_denormalised_before_it_is_added():
    entry = group(normalization='min_max', representation='relative_to_observation')
    denormalizer = ActionDenormalizer(
        make_action(entry, horizon=1), make_state(group()), {'arm': ARM}
    )
    got = denormalize(denormalizer, [[1, 1, 0]], (100, 200, 300))
    np.testing.assert_allclose(got, [[102, 210, 305]])


@pytest.mark.parametrize('state', [None, make_state(group(('a', 'b')))])
def test_a_missing_reference_is_refused(state):
    action = make_action(group(representation='relative_to_observation'))
    with pytest.raises(BundleError, match='relative_to_observation') as caught:
        ActionDenormalizer(action, state, {})
    assert caught.value.code == 'missing_reference'


@pytest.mark.parametrize('rule', RULES[1:])
def test_missing_statistics_are_refused(rule):
    with pytest.raises(BundleError, match="state group 'arm'") as caught:
        StateNormalizer(make_state(group(normalization=rule)), {'leg': ARM})
    assert caught.value.code == 'missing_statistics'
    with pytest.raises(BundleError, match="action group 'arm'"):
        ActionDenormalizer(make_action(group(normalization=rule)), None, {})


@pytest.mark.parametrize('shape', [(2,), (3, 3), (5, 3), (4, 2)])
def test_statistics_of_another_shape_are_refused(shape):
    statistics = {'arm': GroupStatistics(*[np.ones(shape)] * 6)}
    with pytest.raises(BundleError) as caught:
        ActionDenormalizer(make_action(group(normalization='min_max')), None, statistics)
    assert caught.value.code == 'bad_statistics'


def test_a_state_has_no_statistics_per_row():
    statistics = {'arm': GroupStatistics(*[np.ones((4, 3))] * 6)}
    with pytest.raises(BundleError, match=r'shape \[4, 3\]'):
        StateNormalizer(make_state(group(normalization='min_max')), statistics)


def test_padding_below_the_width_is_refused():
    with pytest.raises(BundleError, match='pad_to'):
        StateNormalizer(make_state(group(normalization='sin_cos'), pad_to=5), {})


def test_arrays_of_another_shape_are_refused():
    normalizer = StateNormalizer(make_state(group()), {})
    with pytest.raises(SpecMismatchError):
        normalizer.write(np.zeros((1, 4)), np.zeros((1, 3)))
    with pytest.raises(SpecMismatchError):
        normalizer.write(np.zeros((1, 3)), np.zeros((2, 3)))
    relative = make_action(group(representation='relative_to_observation'))
    denormalizer = ActionDenormalizer(relative, make_state(group()), {})
    for raw, row, out in (
        ((4, 2), 3, (4, 3)),
        ((5, 3), 3, (4, 3)),
        ((4, 3), 2, (4, 3)),
        ((4, 3), 3, (4, 4)),
    ):
        with pytest.raises(SpecMismatchError):
            denormalizer.write(np.zeros(raw), np.zeros(row), np.zeros(out))
    with pytest.raises(SpecMismatchError):
        denormalizer.normalize(np.zeros((3, 3)), np.zeros(3))
