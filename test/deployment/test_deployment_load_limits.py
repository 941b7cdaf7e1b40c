# SPDX-License-Identifier: Apache-2.0
"""Where limits come from: the section `limits` of both files, and what it leads to."""

import pytest
import yaml

from vla_policy_ros.core.errors import ConfigurationError
from vla_policy_ros.core.specs import Column
from vla_policy_ros.deployment.config import LimitSettings, load_deployment
from vla_policy_ros.deployment.limits import load_limits

ELBOW = [Column('elbow', 'rad')]
URDF = (
    '<robot name="arm"><joint name="elbow" type="revolute">'
    '<limit lower="-2" upper="2" velocity="3" effort="1"/></joint></robot>'
)
RATES = {
    'has_velocity_limits': True,
    'max_velocity': 1.5,
    'has_acceleration_limits': True,
    'max_acceleration': 9.0,
}
RANGE = {'has_position_limits': True, 'min_position': -1.0, 'max_position': 1.0}


def write(folder, **entry):
    path = folder / 'limits.yaml'
    path.write_text(yaml.safe_dump({'joint_limits': {'elbow': entry}}))
    return str(path)


def deployment(folder, **limits):
    path = folder / 'robot.yaml'
    path.write_text(yaml.safe_dump({'policy': {'bundle': 'sample'}, 'limits': limits}))
    return load_deployment(path)


def test_a_deployment_needs_no_limits(tmp_path):
    path = tmp_path / 'robot.yaml'
    path.write_text('policy: {bundle: sample}\n')
    assert load_deployment(path).limits is None


def test_files_lie_relative_to_the_deployment_file(tmp_path):
    limits = deployment(tmp_path, urdf_file='arm.urdf', file='../limits.yaml').limits
    assert limits.urdf_file == str((tmp_path / 'arm.urdf').resolve())
    assert limits.file == str((tmp_path.parent / 'limits.yaml').resolve())
    assert not limits.needs_robot_description
    assert deployment(tmp_path, mode='reject').limits.needs_robot_description
    assert not deployment(tmp_path, urdf_topic='').limits.needs_robot_description


def test_unknown_keys_and_modes_are_refused(tmp_path):
    for limits in ({'urdf': 'arm.urdf'}, {'mode': 'ignore'}):
        with pytest.raises(ConfigurationError, match='limits'):
            deployment(tmp_path, **limits)


@pytest.mark.parametrize('source', ['topic', 'file'])
def test_the_tighter_limit_of_urdf_and_file_counts(tmp_path, source):
    settings = {'file': write(tmp_path, **RATES)}
    if source == 'file':
        (tmp_path / 'arm.urdf').write_text(URDF)
        settings['urdf_file'] = str(tmp_path / 'arm.urdf')
    given = {'robot_description': URDF if source == 'topic' else '<nonsense'}
    limits = load_limits(LimitSettings(**settings), ELBOW, **given)
    assert (limits.position_max[0], limits.velocity[0], limits.acceleration[0]) == (2.0, 1.5, 9.0)


def test_a_file_alone_will_do_when_it_says_everything(tmp_path):
    settings = LimitSettings(urdf_topic='', file=write(tmp_path, **RATES, **RANGE))
    assert load_limits(settings, ELBOW).position_min[0] == -1.0


@pytest.mark.parametrize(
    ('entry', 'code'),
    [
        ({}, 'missing_limit'),
        (RATES, 'missing_limit'),
        ({**RATES, **RANGE, 'min_position': 2.0}, 'swapped_limits'),
        ({**RATES, **RANGE, 'max_velocity': -1.0}, 'bad_limit'),
        ({**RATES, **RANGE, 'max_acceleration': 0.0}, 'bad_limit'),
        ({**RATES, **RANGE, 'max_velocity': float('nan')}, None),
        ({**RATES, **RANGE, 'min_position': None}, 'missing_limit'),
    ],
)
def test_limits_that_are_none_are_refused(tmp_path, entry, code):
    settings = LimitSettings(urdf_topic='', file=write(tmp_path, **entry))
    with pytest.raises(ConfigurationError) as caught:
        load_limits(settings, ELBOW)
    assert 'elbow' in caught.value.where
    assert code in (None, caught.value.code)


def test_a_urdf_that_cannot_be_read_is_named(tmp_path):
    path = tmp_path / 'arm.urdf'
    for make in (
        lambda: None,
        lambda: path.write_bytes(b'\xff\xfe'),
        lambda: path.write_text('<'),
    ):
        make()
        with pytest.raises(ConfigurationError) as caught:
            load_limits(LimitSettings(urdf_file=str(path)), ELBOW)
        assert caught.value.code in ('unreadable_urdf', 'bad_urdf')
