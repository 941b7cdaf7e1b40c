# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest

from vla_policy_ros.core.errors import ConfigurationError
from vla_policy_ros.deployment.executor import ExecutorSettings
from vla_policy_ros.evaluation.controller_model import Goal
from vla_policy_ros.evaluation.simulated_robot import SimulatedRobot

MS = 1_000_000
ARM = {'name': 'arm', 'kind': 'joint_trajectory', 'topic': 'arm', 'columns': ['a', 'b']}
ARM |= {'rename': {'b': 'joint_b'}}
HAND = {'name': 'hand', 'kind': 'forward_command', 'topic': 'hand', 'columns': ['hand']}
BASE = {'name': 'base', 'kind': 'twist', 'topic': 'cmd', 'frame_id': 'base'}
BASE |= {'axes': {'angular_z': 'wz', 'linear_x': 'vx'}}
TOOL = {'name': 'tool', 'kind': 'pose', 'topic': 'tool', 'frame_id': 'base'}
TOOL |= {'position': ['x', 'y', 'z'], 'orientation': ['qx', 'qy', 'qz', 'qw']}


def robot(*controllers, **kwargs):
    settings = ExecutorSettings.model_validate({'controllers': controllers or [ARM, HAND, BASE]})
    return SimulatedRobot(settings.controllers, **kwargs)


def goal(times_ms, rows, velocities=None, **changes):
    given = {'names': ('joint_b', 'a'), 'stamp_ns': 0} | changes
    return Goal(
        after_ns=np.array(times_ms) * MS,
        positions=np.array(rows, np.float64),
        velocities=None if velocities is None else np.array(velocities, np.float64),
        **given,
    )


def run(one, start_ms, end_ms, *, period_ms=5):
    for now_ms in range(start_ms, end_ms + 1, period_ms):
        one.step(now_ms * MS)


def test_every_column_has_a_place_and_a_start():
    one = robot(ARM, HAND, BASE, TOOL, start={'b': 0.5, 'hand': 1.0})
    assert one.columns == ('a', 'b', 'hand', 'vx', 'wz', 'x', 'y', 'z', 'qx', 'qy', 'qz', 'qw')
    assert one.positions.tolist() == [0, 0.5, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1]
    run(one, 0, 50)
    assert one.positions.tolist() == [0, 0.5, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1]


@pytest.mark.parametrize(
    ('start', 'code'), [({'c': 1.0}, 'unknown_column'), ({'a': math.nan}, 'not_finite')]
)
def test_a_start_that_is_none_is_refused(start, code):
    with pytest.raises(ConfigurationError) as caught:
        robot(start=start)
    assert caught.value.code == code


@pytest.mark.parametrize('rules', ['humble', 'jazzy', 'lyrical'])
def test_trajectories_move_the_joints_by_the_controllers_names(rules):
    one = robot(start={'a': 1.0}, rules=rules)
    one.step(0)
    one.accept('arm', goal([100, 200], [[0, 1], [2, 0]], [[0, 0], [0, 0]]), 0)
    run(one, 5, 155)
    assert one.positions[:2] == pytest.approx([0.5, 1.0])
    run(one, 160, 305)
    assert one.positions[:2].tolist() == [0.0, 2.0]
    assert (one.accepted, dict(one.refused)) == (1, {})


def test_refused_messages_are_counted_by_cause():
    one = robot()
    one.step(0)
    one.accept('arm', goal([100], [[0, 1]], names=('x', 'y')), 0)
    one.accept('arm', goal([100], [[0, 1]], [[1, 1]]), 0)
    one.follow('hand', [1.0, 2.0])
    one.follow('hand', [math.nan])
    one.move('base', [1.0], 0)
    run(one, 5, 50)
    assert one.positions.tolist() == [0.0] * 5
    assert dict(one.refused) == {
        'arm wrong_joints': 1,
        'arm ends_moving': 1,
        'hand wrong_size': 1,
        'hand not_finite': 1,
        'base wrong_size': 1,
    }


def test_steps_of_the_velocity_are_counted_where_a_limit_is_known():
    ramp = goal([0, 500, 1000], [[0, 0], [0, 0.5], [0, 1]])
    for accelerations, expected in [({}, 0), ({'a': 10.0}, 2), ({'a': 1e4}, 0), ({'b': 0.1}, 0)]:
        one = robot(accelerations=accelerations)
        run(one, 0, 20)
        one.accept('arm', ramp, 20 * MS)
        run(one, 25, 1200)
        assert one.velocity_steps == expected


def test_velocities_are_integrated_and_end():
    one = robot()
    one.step(0)
    one.move('base', [0.4, -2.0], 0)
    run(one, 5, 100)
    assert one.positions[3:] == pytest.approx([0.04, -0.2])
    assert one.velocities[3:] == pytest.approx([0.4, -2.0])
    run(one, 105, 2000)
    assert one.positions[3:] == pytest.approx([0.2, -1.0])
    assert one.velocities[3:].tolist() == [0.0, 0.0]


def test_positions_follow_with_a_lag():
    one = robot(lag_ns=50 * MS)
    one.step(0)
    one.follow('hand', [1.0])
    run(one, 5, 50)
    assert one.positions[2] == pytest.approx(1 - math.exp(-1))
    assert one.velocities[2] > 0


def test_a_clock_that_goes_back_leaves_it_standing():
    one = robot()
    run(one, 1000, 1010)
    one.accept('arm', goal([0, 1000], [[0, 0], [0, 1]], stamp_ns=1010 * MS), 1010 * MS)
    one.move('base', [1.0, 1.0], 1010 * MS)
    run(one, 1015, 1510)
    place = one.positions.copy()
    assert place[0] == pytest.approx(0.5)
    run(one, 0, 500)
    assert one.positions.tolist() == place.tolist()
    one.accept('arm', goal([100], [[0, 0]]), 500 * MS)
    run(one, 505, 700)
    assert one.positions[0] == 0.0
