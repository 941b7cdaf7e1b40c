# SPDX-License-Identifier: Apache-2.0
import math
from dataclasses import replace

import numpy as np
import pytest

from vla_policy_ros.core.errors import ConfigurationError
from vla_policy_ros.core.specs import Column, ColumnKind, Representation
from vla_policy_ros.execution.limits import (
    ColumnLimits,
    JointLimits,
    check_limits,
    needed_fields,
)

FULL = ColumnLimits(position_min=-1, position_max=2, velocity=3, acceleration=4, jerk=5)
RATES = ColumnLimits(velocity=3, acceleration=4)
ARM = Column('elbow', 'rad')
WHEEL = Column('wheel', 'rad', ColumnKind.ANGLE)
BASE = Column('base', 'm/s', ColumnKind.TWIST)
STEP = Column('step', 'm', ColumnKind.LINEAR, Representation.DELTA)
HAND = Column('hand', '', ColumnKind.GRIPPER)
TURN = tuple(Column(f'turn_{axis}', '', ColumnKind.QUATERNION) for axis in 'xyzw')


def refusal(columns, said):
    with pytest.raises(ConfigurationError) as caught:
        check_limits(columns, said)
    return caught.value


def test_every_column_gets_its_numbers():
    columns = (ARM, WHEEL, BASE, HAND, *TURN)
    said = {
        'elbow': FULL,
        'wheel': RATES,
        'base': replace(RATES, jerk=6),
        'hand': ColumnLimits(position_min=0, position_max=1),
        **{column.name: RATES for column in TURN},
    }
    limits = check_limits(columns, said)
    inf = math.inf
    assert limits.columns == columns
    assert limits.position_min.tolist() == [-1, -inf, -inf, 0, *[-inf] * 4]
    assert limits.position_max.tolist() == [2, inf, inf, 1, *[inf] * 4]
    assert limits.velocity.tolist() == [3, 3, 3, inf, *[3] * 4]
    assert limits.acceleration.tolist() == [4, 4, 4, inf, *[4] * 4]
    assert limits.jerk.tolist() == [5, inf, 6, inf, *[inf] * 4]
    with pytest.raises(ValueError, match='read-only'):
        limits.velocity[0] = 100


@pytest.mark.parametrize('column', [BASE, STEP])
def test_a_twist_and_a_step_are_limited_one_order_lower(column):
    limits = check_limits((ARM, column), {'elbow': FULL, column.name: replace(RATES, jerk=6)})
    assert limits.is_value.tolist() == [False, True]
    low, high, first, second, third = (values.tolist() for values in limits.orders())
    assert (low, high) == ([-1, -3], [2, 3])
    assert (first, second, third) == ([3, 4], [4, 6], [5, math.inf])


def test_a_joint_without_end_says_so():
    endless = replace(FULL, position_min=-math.inf, position_max=math.inf)
    assert check_limits((ARM,), {'elbow': endless}).position_max.tolist() == [math.inf]


@pytest.mark.parametrize(
    ('column', 'needed'),
    [
        (ARM, ('position_min', 'position_max', 'velocity', 'acceleration')),
        (WHEEL, ('velocity', 'acceleration')),
        (BASE, ('velocity', 'acceleration')),
        (STEP, ('velocity', 'acceleration')),
        (HAND, ('position_min', 'position_max')),
        (TURN[0], ('velocity', 'acceleration')),
    ],
)
def test_no_limit_is_assumed(column, needed):
    assert needed_fields(column) == needed
    numbers = dict.fromkeys(needed, 1.0) | (
        {'position_min': 0.0} if 'position_min' in needed else {}
    )
    for name in needed:
        said = ColumnLimits(**{n: None if n == name else v for n, v in numbers.items()})
        fault = refusal((column,), {column.name: said})
        assert (fault.code, fault.got) == ('missing_limit', f'no {name}')
        assert column.name in fault.where
    assert refusal((column,), {}).code == 'missing_limit'


@pytest.mark.parametrize('name', ['velocity', 'acceleration', 'jerk'])
@pytest.mark.parametrize('value', [0.0, -1.0, math.nan, -math.inf])
def test_a_limit_is_above_zero(name, value):
    fault = refusal((ARM,), {'elbow': replace(FULL, **{name: value})})
    assert (fault.code, fault.where) == ('bad_limit', f'limits.elbow.{name}')
    assert fault.got == f'{value:g}'


def test_an_endless_speed_is_no_limit():
    fault = refusal((ARM,), {'elbow': replace(FULL, velocity=math.inf)})
    assert fault.where == 'limits.elbow.velocity'


@pytest.mark.parametrize(
    ('low', 'high', 'code'),
    [
        (2, -1, 'swapped_limits'),
        (1, 1, 'swapped_limits'),
        (math.nan, 1, 'bad_limit'),
        (0, math.nan, 'bad_limit'),
        (-math.inf, 1, 'bad_limit'),
        (0, math.inf, 'bad_limit'),
        (math.inf, -math.inf, 'bad_limit'),
    ],
)
def test_a_range_has_two_ends_in_order(low, high, code):
    fault = refusal((ARM,), {'elbow': replace(FULL, position_min=low, position_max=high)})
    assert (fault.code, 'elbow' in fault.where) == (code, True)
    assert fault.got == f'{low:g}, {high:g}'


@pytest.mark.parametrize(
    ('column', 'said', 'got'),
    [
        (BASE, FULL, 'position_min, position_max'),
        (TURN[0], replace(RATES, jerk=5), 'jerk'),
        (TURN[0], FULL, 'position_min, position_max, jerk'),
    ],
)
def test_a_limit_that_would_not_be_kept_is_refused(column, said, got):
    fault = refusal((column,), {column.name: said})
    assert (fault.code, fault.got) == ('unused_limit', got)


def test_names_are_known_and_told_once():
    fault = refusal((ARM,), {'elbow': FULL, 'elbo': FULL})
    assert (fault.code, fault.where) == ('unknown_column', 'limits.elbo')
    assert fault.next_step == "Did you mean 'elbow'?"
    assert refusal((ARM, ARM), {'elbow': FULL}).code == 'duplicate_column'


def test_a_rotation_has_one_limit():
    said = {column.name: RATES for column in TURN}
    check_limits(TURN, said)
    fault = refusal(TURN, {**said, 'turn_z': replace(RATES, velocity=2)})
    assert (fault.code, fault.got) == ('unequal_quaternion', '3, 3, 2, 3')
    steps = tuple(replace(column, representation=Representation.DELTA) for column in TURN)
    assert refusal(steps, said).code == 'no_limits_for_kind'


def test_a_hand_with_acceleration_needs_a_velocity():
    said = ColumnLimits(position_min=0, position_max=1, acceleration=3)
    assert refusal((HAND,), {'hand': said}).got == 'acceleration without velocity'


@pytest.mark.parametrize(
    ('field', 'value', 'code'),
    [('velocity', [0.0], 'bad_limit'), ('jerk', [1.0, 1.0], 'wrong_shape')],
)
def test_arrays_are_checked_however_they_are_made(field, value, code):
    limits = check_limits((ARM,), {'elbow': FULL})
    with pytest.raises(ConfigurationError) as caught:
        replace(limits, **{field: np.array(value)})
    assert caught.value.code == code
    assert isinstance(replace(limits, jerk=np.array([7])), JointLimits)
