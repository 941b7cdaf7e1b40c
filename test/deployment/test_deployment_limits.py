# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import yaml

from vla_policy_ros.core.errors import ConfigurationError
from vla_policy_ros.core.specs import Column, ColumnKind
from vla_policy_ros.deployment.limits import (
    LimitsFile,
    merge_limits,
    read_limits_file,
    read_urdf_limits,
)
from vla_policy_ros.execution.limits import ColumnLimits

LIMIT = '<limit lower="-1.5" upper="2" velocity="3" effort="10"/>'


def robot(*joints, head='<?xml version="1.0" encoding="UTF-8"?>'):
    return f'{head}<robot name="arm">{"".join(joints)}</robot>'


def joint(inner=LIMIT, *, name='elbow', kind='revolute'):
    return f'<joint name="{name}" type="{kind}"><parent link="a"/>{inner}</joint>'


def write(folder, document):
    path = folder / 'joint_limits.yaml'
    path.write_text(document if isinstance(document, str) else yaml.safe_dump(document))
    return path


def urdf_fault(text):
    with pytest.raises(ConfigurationError) as caught:
        read_urdf_limits(text)
    return caught.value


def test_a_urdf_tells_its_joints():
    text = robot(
        joint(),
        joint(name='lift', kind='prismatic'),
        joint('<limit velocity="5" effort="1"/>', name='wheel', kind='continuous'),
        joint('', name='roll', kind='continuous'),
        joint('', name='flange', kind='fixed'),
        joint('', name='free', kind='floating'),
        joint(f'{LIMIT}<mimic joint="elbow"/>', name='finger', kind='prismatic'),
        '<ros2_control name="c"><joint name="elbow"><param name="x">1</param></joint></ros2_control>',
    )
    ranged = ColumnLimits(position_min=-1.5, position_max=2, velocity=3)
    endless = ColumnLimits(position_min=-math.inf, position_max=math.inf)
    assert read_urdf_limits(text) == {
        'elbow': ranged,
        'lift': ranged,
        'wheel': ColumnLimits(position_min=-math.inf, position_max=math.inf, velocity=5),
        'roll': endless,
    }


def test_soft_limits_narrow_the_range_and_never_widen_it():
    soft = '<safety_controller soft_lower_limit="-1" soft_upper_limit="9" k_velocity="1"/>'
    limits = read_urdf_limits(robot(joint(LIMIT + soft)))['elbow']
    assert (limits.position_min, limits.position_max) == (-1, 2)
    half = '<safety_controller soft_upper_limit="1.25" k_velocity="1"/>'
    limits = read_urdf_limits(robot(joint(LIMIT + half)))['elbow']
    assert (limits.position_min, limits.position_max) == (-1.5, 1.25)


@pytest.mark.parametrize(
    ('text', 'code', 'words'),
    [
        ('', 'bad_urdf', 'no element found'),
        ('<robot>', 'bad_urdf', 'no element found'),
        ('<robot>&nobody;</robot>', 'bad_urdf', 'undefined entity'),
        (robot(joint('')), 'missing_attribute', 'no lower in <joint/limit>'),
        (robot(joint('<limit lower="0" upper="1" effort="1"/>')), 'missing_attribute', 'velocity'),
        (robot(joint('<limit lower="0" velocity="1"/>')), 'missing_attribute', 'upper'),
        (robot('<joint name="a"/>'), 'missing_attribute', 'no type in <joint>'),
        (robot('<joint type="fixed"/>'), 'missing_attribute', 'no name in <joint>'),
        (robot(joint(LIMIT.replace('3', '${v}'))), 'bad_number', "velocity='${v}'"),
        (robot(joint(LIMIT.replace('3', 'nan'))), 'bad_number', "velocity='nan'"),
        (robot(joint(LIMIT.replace('3', 'inf'))), 'bad_number', "velocity='inf'"),
        (robot(joint(kind='ball')), 'bad_urdf', "type='ball'"),
        (robot(joint(), joint()), 'duplicate_joint', 'a second joint'),
        (robot(head='<!DOCTYPE robot [<!ENTITY a "b">]>'), 'bad_urdf', 'a document type'),
    ],
)
def test_a_broken_urdf_is_refused(text, code, words):
    fault = urdf_fault(text)
    assert fault.code == code
    assert words in fault.got
    assert fault.where.startswith('robot_description')


def test_entities_are_never_expanded():
    entities = ''.join(f'<!ENTITY e{i + 1} "{f"&e{i};" * 10}">' for i in range(9))
    head = f'<!DOCTYPE robot [<!ENTITY e0 "x">{entities}]>'
    assert urdf_fault(robot('&e9;', head=head)).got == 'a document type'


def test_a_limits_file_counts_what_its_has_keys_switch_on(tmp_path):
    document = {
        'default_velocity_scaling_factor': 0.5,
        'default_acceleration_scaling_factor': 0.25,
        'joint_limits': {
            'elbow': {
                'has_position_limits': True,
                'min_position': -1,
                'max_position': 1.5,
                'has_velocity_limits': True,
                'max_velocity': 2,
                'has_acceleration_limits': False,
                'max_acceleration': 0,
                'has_jerk_limits': True,
                'max_jerk': 7.5,
            },
            'wrist': {},
        },
    }
    file = read_limits_file(str(write(tmp_path, document)))
    assert (file.velocity_scale, file.acceleration_scale) == (0.5, 0.25)
    assert file.joints == {
        'elbow': ColumnLimits(position_min=-1, position_max=1.5, velocity=2, jerk=7.5),
        'wrist': ColumnLimits(),
    }


@pytest.mark.parametrize(
    ('document', 'code', 'where'),
    [
        ({}, 'missing_key', 'joint_limits'),
        ({'joint_limits': {'a': {'max_speed': 1}}}, 'unknown_key', 'joint_limits.a.max_speed'),
        ({'joint_limits': {}, 'planning': 1}, 'unknown_key', 'planning'),
        ({'joint_limits': {'a': {'max_velocity': 'fast'}}}, 'bad_value', 'a.max_velocity'),
        ({'joint_limits': {'a': {'max_velocity': '.nan'}}}, 'bad_value', 'a.max_velocity'),
        ('joint_limits: {a: {max_velocity: .nan}}', 'bad_value', 'a.max_velocity'),
        ('joint_limits: {a: {has_velocity_limits: true}}', 'missing_limit', 'a.max_velocity'),
        (
            {'joint_limits': {}, 'default_velocity_scaling_factor': 0},
            'bad_value',
            'default_velocity_scaling_factor',
        ),
    ],
)
def test_a_broken_limits_file_is_refused(tmp_path, document, code, where):
    with pytest.raises(ConfigurationError) as caught:
        read_limits_file(write(tmp_path, document))
    assert caught.value.code == code
    assert caught.value.where.endswith(where)
    with pytest.raises(ConfigurationError):
        read_limits_file(tmp_path / 'none.yaml')


URDF = {
    'elbow': ColumnLimits(position_min=-1.5, position_max=2, velocity=3),
    'wheel': ColumnLimits(position_min=-math.inf, position_max=math.inf),
    'torso': ColumnLimits(velocity=0),
}


def file(scale=1.0, **joints):
    return LimitsFile(joints=joints, velocity_scale=scale, acceleration_scale=scale / 2)


def test_the_tighter_value_counts_and_is_scaled():
    own = ColumnLimits(position_min=-2, position_max=1, velocity=4, acceleration=10, jerk=50)
    limits = merge_limits([Column('elbow', 'rad')], URDF, file(0.5, elbow=own))
    assert (limits.position_min[0], limits.position_max[0]) == (-1.5, 1)
    assert (limits.velocity[0], limits.acceleration[0], limits.jerk[0]) == (1.5, 2.5, 50)


def test_a_continuous_joint_needs_no_range():
    rates = ColumnLimits(velocity=4, acceleration=10)
    limits = merge_limits([Column('wheel', 'rad')], URDF, file(wheel=rates))
    assert (limits.position_min[0], limits.position_max[0]) == (-math.inf, math.inf)


def test_degrees_are_converted_and_other_units_not_compared():
    own = ColumnLimits(acceleration=500)
    limits = merge_limits([Column('elbow', 'deg')], URDF, file(elbow=own))
    assert limits.position_max[0] == pytest.approx(math.degrees(2))
    assert limits.velocity[0] == pytest.approx(math.degrees(3))
    assert limits.acceleration[0] == 250  # a share of it, as the file says
    with pytest.raises(ConfigurationError) as caught:
        merge_limits([Column('elbow', 'percent')], URDF, file(elbow=own))
    assert caught.value.code == 'missing_limit'


def test_every_limit_must_be_there():
    arm = [Column('elbow', 'rad')]
    for urdf, limits_file in ((URDF, None), (None, None), (URDF, file(elbow=ColumnLimits()))):
        with pytest.raises(ConfigurationError) as caught:
            merge_limits(arm, urdf, limits_file)
        assert caught.value.code == 'missing_limit'
        assert 'acceleration' in caught.value.got


def test_a_file_may_name_joints_of_the_robot_but_no_others():
    own = ColumnLimits(acceleration=10)
    arm = [Column('elbow', 'rad')]
    merge_limits(arm, URDF, file(elbow=own, torso=own))
    with pytest.raises(ConfigurationError) as caught:
        merge_limits(arm, URDF, file(elbow=own, elbwo=own))
    assert (caught.value.code, caught.value.next_step) == (
        'unknown_column',
        "Did you mean 'elbow'?",
    )


def test_a_placeholder_of_a_joint_in_use_is_refused():
    with pytest.raises(ConfigurationError) as caught:
        merge_limits(
            [Column('torso', 'rad', ColumnKind.ANGLE)],
            URDF,
            file(torso=ColumnLimits(acceleration=1)),
        )
    assert (caught.value.code, caught.value.got) == ('bad_limit', '0')
