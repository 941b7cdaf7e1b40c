# SPDX-License-Identifier: Apache-2.0
import os
import platform

import pytest

from vla_policy_ros.ros.process import tune_allocator, use_shipped_middleware_profile

pytestmark = pytest.mark.ros

VARIABLES = ('FASTDDS_DEFAULT_PROFILES_FILE', 'FASTRTPS_DEFAULT_PROFILES_FILE')


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Two prefixes, as after `colcon build`: that of a ROS distribution and that of this package."""
    monkeypatch.setattr(os, 'environ', {})
    ros, ours = tmp_path / 'ros', tmp_path / 'ours'
    profile = ours / 'share' / 'vla_policy_ros' / 'config' / 'fastdds.xml'
    profile.parent.mkdir(parents=True)
    profile.write_text('<profiles/>')
    os.environ['AMENT_PREFIX_PATH'] = f'{ours}:{ros}'
    return ros, profile


@pytest.mark.parametrize(('library', 'variable'), [('fastdds', 0), ('fastrtps', 1)])
def test_the_shipped_profile_is_used(install, library, variable):
    ros, profile = install
    (ros / 'share' / library).mkdir(parents=True)
    assert use_shipped_middleware_profile() == profile
    assert os.environ[VARIABLES[variable]] == str(profile)


def test_the_users_profile_wins(install):
    ros, _ = install
    (ros / 'share' / 'fastdds').mkdir(parents=True)
    os.environ[VARIABLES[0]] = '/my/profile.xml'
    assert str(use_shipped_middleware_profile()) == '/my/profile.xml'


def test_without_an_install_there_is_no_profile(install):
    os.environ['AMENT_PREFIX_PATH'] = '/nowhere'
    assert use_shipped_middleware_profile() is None


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='mallopt is of glibc')
def test_the_allocator_takes_the_setting():
    assert tune_allocator() is True
