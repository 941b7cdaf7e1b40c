# SPDX-License-Identifier: Apache-2.0
import array
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_policy_ros.core.errors import StateError
from vla_policy_ros.scheduling.joints import JointSelector


def test_orders_by_name_and_leaves_out_the_rest():
    selector = JointSelector(['elbow', 'wrist'])
    values = selector.select(['wheel', 'wrist', 'elbow'], [9.0, 2.0, 1.0])
    assert values.tolist() == [1.0, 2.0]
    assert values.dtype == np.float32
    assert selector.names == ('elbow', 'wrist')


@pytest.mark.parametrize('positions', [array.array('d', [2, 1]), (2, 1), np.array([2.0, 1.0])])
def test_takes_what_messages_hold(positions):
    assert JointSelector(['b', 'a']).select(('a', 'b'), positions).tolist() == [1.0, 2.0]


def test_renames_and_keeps_other_names():
    selector = JointSelector(['elbow', 'wrist'], rename={'joint_1': 'elbow'})
    assert selector.select(['wrist', 'joint_1'], [2.0, 1.0]).tolist() == [1.0, 2.0]


def test_follows_a_changed_name_list_even_in_the_same_object():
    selector, names = JointSelector(['a', 'b']), ['a', 'b']
    assert selector.select(names, [1, 2]).tolist() == [1, 2]
    names.reverse()
    assert selector.select(names, [2, 1]).tolist() == [1, 2]


def test_looks_names_up_once(monkeypatch):
    selector = JointSelector(['a'])
    lookups = []
    find = selector._find
    monkeypatch.setattr(selector, '_find', lambda names: lookups.append(1) or find(names))
    for names in (['a', 'b'], ['a', 'b'], ['b', 'a']):
        selector.select(names, [1, 1])
    assert len(lookups) == 2


@pytest.mark.parametrize(
    ('names', 'positions', 'code', 'words'),
    [
        (['a', 'c'], [1, 2], 'missing_joint', 'no b, d among a, c'),
        ([], [], 'missing_joint', 'no a, b, d among no names'),
        (['a', 'b', 'd'], [1, 2], 'short_message', '2 positions for 3 names'),
        (['a', 'b', 'd'], [], 'short_message', '0 positions for 3 names'),
        (['a', 'b', 'd'], [1, math.nan, 3], 'nan_joint', 'nan for b'),
        (['a', 'b', 'd'], [1, 2, -math.inf], 'nan_joint', '-inf for d'),
        (['a', 'b', 'd'], [1e300, 2, 3], 'nan_joint', 'inf for a'),
    ],
)
def test_says_what_is_wrong(names, positions, code, words):
    with pytest.raises(StateError) as caught:
        JointSelector(['a', 'b', 'd']).select(names, positions)
    assert caught.value.code == code
    assert words in caught.value.got


def test_a_bad_message_does_not_spoil_the_next_one():
    selector = JointSelector(['a', 'b'])
    selector.select(['a', 'b'], [1, 2])
    with pytest.raises(StateError):
        selector.select(['a'], [1])
    assert selector.select(['a', 'b'], [3, 4]).tolist() == [3, 4]
    with pytest.raises(StateError):
        selector.select(['a'], [1])


def test_nan_of_a_joint_nobody_wants_is_no_fault():
    assert JointSelector(['a']).select(['a', 'b'], [1, math.nan]).tolist() == [1]


@given(st.permutations(list('abcdef')), st.lists(st.sampled_from('abcdef'), unique=True))
def test_any_order_of_the_message_gives_the_same_vector(message, wanted):
    positions = [float(ord(name)) for name in message]
    assert JointSelector(wanted).select(message, positions).tolist() == [ord(n) for n in wanted]
