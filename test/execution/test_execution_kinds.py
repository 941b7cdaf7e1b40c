# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.chunk_streams import COLUMNS

from vla_policy_ros.core.errors import ChunkRejectedError, ConfigurationError
from vla_policy_ros.core.specs import Column, ColumnKind, Representation
from vla_policy_ros.execution.grippers import GripperLatch, GripperRule
from vla_policy_ros.execution.kinds import ColumnMath, unwrap

ANGLE = Column('wrist', 'rad', ColumnKind.ANGLE)
GRIPPER = Column('gripper', '1', ColumnKind.GRIPPER)
HALF = math.sqrt(0.5)
UNIT = (0.0, 0.0, 0.0, 1.0)


def quaternion(representation=Representation.ABSOLUTE):
    return [Column(f'q{axis}', '1', ColumnKind.QUATERNION, representation) for axis in 'xyzw']


def array(*values):
    return np.array(values, np.float64)


angles = st.floats(-10.0, 10.0)
unit_quaternions = (
    st.tuples(*[st.floats(-1.0, 1.0)] * 4)
    .filter(lambda q: np.linalg.norm(q) > 0.1)
    .map(lambda q: np.array(q) / np.linalg.norm(q))
)


@pytest.mark.parametrize(
    ('a', 'b', 'expected'),
    [
        (1.0, 0.5, 0.5),
        (-3.0, 3.0, 2 * math.pi - 6.0),
        (3.0, -3.0, 6.0 - 2 * math.pi),
        (math.pi, 0.0, -math.pi),
        (-math.pi, 0.0, -math.pi),
        (7 * math.pi, 0.5 * math.pi, 0.5 * math.pi),
    ],
)
def test_the_difference_of_angles_is_the_shorter_way_round(a, b, expected):
    assert ColumnMath([ANGLE]).difference(array(a), array(b)) == pytest.approx(expected)


def test_only_angles_wrap():
    columns = [Column('joint', 'rad'), ANGLE, Column('vx', 'm/s', ColumnKind.TWIST), GRIPPER]
    difference = ColumnMath(columns).difference(array(9, 9, 9, 9), array(0, 0, 0, 0))
    np.testing.assert_allclose(difference, [9.0, 9.0 - 2 * math.pi, 9.0, 9.0])


@settings(deadline=None)
@given(angles, angles)
def test_angles_added_up_are_the_same_direction(a, b):
    subject = ColumnMath([ANGLE])
    difference = subject.difference(array(a), array(b))
    assert -math.pi - 1e-9 <= difference[0] <= math.pi
    again = subject.add(array(b), difference)[0]
    assert math.remainder(again - a, 2 * math.pi) == pytest.approx(0.0, abs=1e-9)


def test_the_difference_of_quaternions_is_a_turn_in_the_fixed_frame():
    subject = ColumnMath(quaternion())
    about_x, about_z = array(HALF, 0, 0, HALF), array(0, 0, HALF, HALF)
    np.testing.assert_allclose(
        subject.difference(about_z, array(*UNIT)), [0, 0, math.pi / 2, 0], atol=1e-12
    )
    turned = subject.add(about_x, array(0, 0, math.pi / 2, 0))
    np.testing.assert_allclose(turned, [0.5, 0.5, 0.5, 0.5], atol=1e-12)


@settings(deadline=None)
@given(unit_quaternions, unit_quaternions)
def test_a_quaternion_moved_by_the_difference_is_the_other_one_up_to_its_sign(a, b):
    subject = ColumnMath(quaternion())
    difference = subject.difference(a, b)
    assert np.linalg.norm(difference) <= math.pi + 1e-9
    again = subject.add(b, difference)
    assert abs(again @ a) == pytest.approx(1.0, abs=1e-9)
    np.testing.assert_allclose(subject.difference(-a, a), 0.0, atol=1e-9)


def test_rows_give_what_vectors_give():
    subject = ColumnMath(COLUMNS)
    a, b = np.random.default_rng(1).uniform(-1.0, 1.0, (2, 5, len(COLUMNS)))
    a, b = subject.to_unit(a), subject.to_unit(b)
    weight = np.linspace(0.0, 1.0, 5)
    differences = subject.difference(a, b)
    blends = subject.blend(a, b, weight[:, None])
    for row in range(5):
        np.testing.assert_allclose(differences[row], subject.difference(a[row], b[row]))
        np.testing.assert_allclose(blends[row], subject.blend(a[row], b[row], weight[row]))
        out = np.empty(len(COLUMNS))
        assert subject.add(b[row], differences[row], out=out) is out


def test_blends():
    subject = ColumnMath([Column('joint', 'rad'), ANGLE, *quaternion(), GRIPPER])
    a = array(1, 3, *UNIT, 0)
    b = array(2, -3, 0, 0, HALF, HALF, 1)
    quarter = subject.blend(a, b, 0.25)
    turn = math.pi / 16
    way = 2 * math.pi - 6
    expected = [1.25, 3 + way / 4, 0, 0, math.sin(turn), math.cos(turn), 1]
    np.testing.assert_allclose(quarter, expected, atol=1e-12)
    np.testing.assert_allclose(subject.blend(a, b, 0.0), a, atol=1e-12)
    np.testing.assert_allclose(subject.difference(subject.blend(a, b, 1.0), b), 0, atol=1e-12)


def test_a_linear_gripper_is_blended_and_a_snapping_one_is_not():
    grippers = [GRIPPER, Column('other', '1', ColumnKind.GRIPPER)]
    subject = ColumnMath(grippers, grippers={'other': GripperRule(motion='linear')})
    np.testing.assert_array_equal(subject.is_continuous, [False, True])
    blended = subject.blend(array(0, 0), array(1, 1), np.array([0.25, 0.25]))
    np.testing.assert_allclose(blended, [1.0, 0.25])


@settings(deadline=None)
@given(unit_quaternions, unit_quaternions, st.integers(0, 1000))
def test_a_displaced_motion_is_the_motion_it_was_separated_from(q, p, seed):
    subject = ColumnMath(COLUMNS)
    rng = np.random.default_rng(seed)
    a, b, v, w = rng.uniform(-2.0, 2.0, (4, len(COLUMNS)))
    a[2:6], b[2:6] = q, p
    v[5] = w[5] = v[7] = w[7] = a[7] = b[7] = 0.0
    separation = subject.separation((a, v), (b, w))
    subject.displace(b, w, separation)
    np.testing.assert_allclose(subject.difference(a, b), 0.0, atol=1e-9)
    np.testing.assert_allclose(w, v, atol=1e-6)


def test_the_velocity_of_a_displaced_quaternion_is_the_derivative_of_its_turn():
    subject = ColumnMath(quaternion())
    spin, turn, rate = array(0.3, -0.8, 0.5, 0), array(1.0, 0.4, -0.7, 0), array(-2, 1, 0.5, 0)

    def at(seconds):
        position = subject.add(array(0.5, 0.5, 0.5, 0.5), spin * seconds)
        velocity = spin.copy()
        subject.displace(position, velocity, np.stack([turn + rate * seconds, rate]))
        return position, velocity

    later, earlier = at(1e-5)[0], at(-1e-5)[0]
    derivative = subject.difference(later, earlier) / 2e-5
    np.testing.assert_allclose(at(0.0)[1], derivative, atol=1e-6)


def test_rest_holds_positions_and_stops_twists():
    subject = ColumnMath([ANGLE, Column('vx', 'm/s', ColumnKind.TWIST), GRIPPER])
    position, velocity = array(1, 2, 3), array(4, 5, 6)
    subject.rest(position, velocity)
    np.testing.assert_array_equal(position, [1, 0, 3])
    np.testing.assert_array_equal(velocity, [0, 0, 0])


DELTA = Representation.DELTA


@pytest.mark.parametrize(
    ('first_row', 'expected'),
    [(0, [11, 13, 16]), (1, [10, 12, 15]), (2, [8, 10, 13])],
)
def test_steps_go_on_from_the_command_at_the_first_executed_row(first_row, expected):
    columns = [Column('x', 'm', representation=DELTA), Column('joint', 'rad')]
    rows = np.array([[1, 7], [2, 8], [3, 9]], np.float32)
    sums = ColumnMath(columns).accumulate(rows, array(10, 99), first_row=first_row)
    np.testing.assert_array_equal(sums[:, 0], expected)
    np.testing.assert_array_equal(sums[:, 1], [7, 8, 9])


@pytest.mark.parametrize('first_row', [0, 1, 3])
def test_quaternion_steps_are_turns_in_the_fixed_frame(first_row):
    subject, absolute = ColumnMath(quaternion(DELTA)), ColumnMath(quaternion())
    turns = np.array([[0.1, 0, 0, 0], [0, 0.2, 0, 0], [0, 0, 0.3, 0], [0.4, 0, 0, 0]])
    steps = absolute.add(np.tile(array(*UNIT), (4, 1)), turns)
    anchor = array(0.5, 0.5, 0.5, 0.5)
    rows = subject.accumulate(steps, anchor, first_row=first_row)
    before = rows[first_row - 1] if first_row else anchor
    np.testing.assert_allclose(before, anchor, atol=1e-12)
    np.testing.assert_allclose(
        absolute.difference(rows[first_row], anchor), turns[first_row], atol=1e-12
    )
    np.testing.assert_allclose(absolute.difference(rows[1:], rows[:-1]), turns[1:], atol=1e-12)


def test_a_quaternion_without_length_is_refused():
    with pytest.raises(ChunkRejectedError, match='row 1') as info:
        ColumnMath(quaternion()).to_unit(np.array([[0, 0, 0, 2], [0, 0, 0, 0]], np.float32))
    assert info.value.code == 'zero_quaternion'


@pytest.mark.parametrize(
    'columns',
    [
        quaternion()[:3],
        [*quaternion()[:2], ANGLE, *quaternion()[2:]],
        [*quaternion()[:3], *quaternion(DELTA)[3:]],
    ],
)
def test_quaternions_come_in_fours(columns):
    with pytest.raises(ConfigurationError) as info:
        ColumnMath(columns)
    assert info.value.code == 'bad_quaternion'


def test_two_quaternions_side_by_side():
    assert ColumnMath([ANGLE, *quaternion(), *quaternion()]).quaternions == (1, 5)


def test_a_rule_needs_a_gripper():
    with pytest.raises(ConfigurationError) as info:
        ColumnMath([ANGLE, GRIPPER], grippers={'wrist': GripperRule()})
    assert info.value.code == 'unknown_gripper'


@pytest.mark.parametrize(
    'settings',
    [
        {'closed_above': 0.5},
        {'open_below': 0.5},
        {'closed_above': 0.4, 'open_below': 0.6},
        {'closed_above': 0.6, 'open_below': 0.4, 'motion': 'linear'},
    ],
)
def test_thresholds_are_a_pair_in_order_of_a_gripper_that_snaps(settings):
    with pytest.raises(ConfigurationError) as info:
        GripperRule(**settings)
    assert info.value.code == 'bad_gripper'


def test_thresholds_have_hysteresis():
    rule = GripperRule(closed_above=0.6, open_below=0.4, closed_value=0.0, open_value=0.08)
    latch = GripperLatch({1: rule, 0: GripperRule()})
    commands = []
    for value in (0.45, 0.55, 0.6, 0.61, 0.5, 0.4, 0.39, 0.5):
        position = array(value, value)
        latch.apply(position)
        assert position[0] == value
        commands.append(position[1])
    assert commands == [0.08, 0.08, 0.08, 0.0, 0.0, 0.0, 0.08, 0.08]
    latch.reset()
    position = array(0.0, 0.55)
    latch.apply(position)
    assert position[1] == 0.0


def test_degrees_wrap_at_half_a_turn_of_their_own():
    math = ColumnMath(
        [Column('wrist', 'deg', ColumnKind.ANGLE), Column('elbow', 'rad', ColumnKind.ANGLE)]
    )
    difference = math.difference(np.array([170.0, 3.0]), np.array([-170.0, -3.0]))
    np.testing.assert_allclose(difference, [-20.0, 6.0 - 2 * np.pi])


def test_rows_of_angles_come_to_one_branch():
    rows = np.array([[170.0, 3.0], [-170.0, -3.0], [-150.0, 3.0]])
    unwrapped = unwrap(rows, np.array([360.0, 2 * np.pi]))
    np.testing.assert_allclose(unwrapped, [[170, 3], [190, 2 * np.pi - 3], [210, 3]])
    np.testing.assert_array_equal(unwrap(rows[:1], np.array([360.0, 2 * np.pi])), rows[:1])
