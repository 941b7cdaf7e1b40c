# SPDX-License-Identifier: Apache-2.0
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_policy_ros.core.chunk import ActionChunk
from vla_policy_ros.core.errors import ChunkRejectedError, ConfigurationError
from vla_policy_ros.core.specs import Column, ColumnKind
from vla_policy_ros.execution.curve import ActionCurve
from vla_policy_ros.execution.kinds import ColumnMath
from vla_policy_ros.execution.limits import JointLimits
from vla_policy_ros.execution.trajectory import JointGroup, TrajectorySettings, make_trajectory
from vla_policy_ros.execution.trajectory_points import TrajectoryPoints, sample

MS = 1_000_000
STEP_NS = 50 * MS
SETTINGS = TrajectorySettings(step_ns=STEP_NS, lead_ns=20 * MS)
SPLICE = TrajectorySettings(step_ns=STEP_NS, lead_ns=20 * MS, hand_over='splice')
AS_IS = TrajectorySettings(step_ns=STEP_NS, lead_ns=20 * MS, last_point='as_is')


@dataclass
class Line:
    """A straight motion of one or more columns."""

    position: list
    velocity: list
    start_ns: int = 0
    end_ns: int = 500 * MS

    def evaluate(self, time_ns, position_out, velocity_out):
        velocity_out[:] = self.velocity
        after_s = (time_ns - self.start_ns) / 1e9
        position_out[:] = np.array(self.position) + np.array(self.velocity) * after_s


def limits(**given):
    """Return limits of one joint; wide but for what is given."""
    wide = {
        'position_min': -10.0,
        'position_max': 10.0,
        'velocity': 1e3,
        'acceleration': 1e3,
        'jerk': np.inf,
    }
    values = {name: np.array([value]) for name, value in {**wide, **given}.items()}
    return JointLimits(columns=(Column('c0', 'rad'),), **values)


def group(*kinds, limits=None):
    columns = [Column(f'c{index}', 'rad', kind) for index, kind in enumerate(kinds)]
    return JointGroup(columns, {column.name: column.name for column in columns}, limits)


ONE = group(ColumnKind.LINEAR)


def make(source, now_ns=0, *, joints=ONE, rules=SETTINGS, **kwargs):
    return make_trajectory(source, now_ns, group=joints, settings=rules, **kwargs)


def test_elapsed_rows_are_dropped_and_rows_keep_their_times():
    points = make(Line([1.0], [0.5]), 120 * MS, rules=AS_IS)
    assert points.times_ns.tolist() == [at * MS for at in (120, 140, *range(200, 501, 50))]
    np.testing.assert_allclose(points.positions[:, 0], 1.0 + 0.5 * points.times_ns / 1e9)
    np.testing.assert_allclose(points.velocities, 0.5)


def test_a_row_just_behind_the_join_is_kept_when_it_is_far_enough():
    points = make(Line([0.0], [1.0]), 25 * MS, rules=AS_IS)
    assert points.times_ns.tolist()[:4] == [at * MS for at in (25, 45, 100, 150)]


def test_a_splice_starts_at_the_join_and_an_overlap_now():
    line = Line([0.0], [1.0])
    assert make(line, 100 * MS, rules=SPLICE).stamp_ns == 120 * MS
    overlap = make(line, 100 * MS)
    assert overlap.stamp_ns == 100 * MS
    assert overlap.after_ns.tolist()[:2] == [0, 20 * MS]


@pytest.mark.parametrize('now_ms', [470, 480, 500, 900])
def test_nothing_ahead_is_nothing_to_send(now_ms):
    assert make(Line([0.0], [1.0]), now_ms * MS) is None


def test_until_the_source_starts_the_running_motion_goes_on():
    running = make(Line([0.0], [1.0]))
    points = make(Line([0.2], [1.0], start_ns=200 * MS, end_ns=700 * MS), 75 * MS, running=running)
    assert points.times_ns.tolist()[:4] == [at * MS for at in (75, 100, 150, 200)]
    np.testing.assert_allclose(points.positions[:8, 0], points.times_ns[:8] / 1e9)


@pytest.mark.parametrize('rules', [SETTINGS, SPLICE])
def test_at_the_join_position_and_velocity_are_those_of_the_running_motion(rules):
    running = make(Line([0.0], [1.0]))
    points = make(Line([0.3], [-0.5]), 130 * MS, running=running, rules=rules)
    old, new = (sample(curve, np.array([150 * MS]), num_columns=1) for curve in (running, points))
    np.testing.assert_allclose(new, old, atol=1e-12)


def test_the_overlap_is_the_running_motion():
    running = make(Line([0.0], [1.0]), running=TrajectoryPoints.still(['c0'], [0.4], now_ns=0))
    rules = TrajectorySettings(step_ns=STEP_NS, lead_ns=120 * MS)
    points = make(Line([0.3], [-0.5]), 130 * MS, running=running, rules=rules)
    times_ns = np.arange(130 * MS, 250 * MS, MS)
    old, new = (sample(curve, times_ns, num_columns=1) for curve in (running, points))
    np.testing.assert_allclose(new, old, atol=1e-12)


def test_the_offset_fades_out_in_the_blend_time():
    still = TrajectoryPoints.still(['c0'], [0.4], now_ns=0)
    points = make(Line([0.0], [1.0]), running=still, rules=AS_IS)
    late = points.times_ns >= 220 * MS
    np.testing.assert_allclose(points.positions[late, 0], points.times_ns[late] / 1e9)
    assert abs(points.positions[2, 0] - 0.05) > 0.2


def test_a_fade_takes_as_long_as_the_limits_ask_for():
    bounds = limits(velocity=1.0, acceleration=4.0)
    still = TrajectoryPoints.still(['c0'], [0.3], now_ns=0)
    points = make(
        Line([0.0], [0.0], end_ns=3000 * MS),
        joints=group(ColumnKind.LINEAR, limits=bounds),
        running=still,
    )
    times_ns = np.arange(0, 3000 * MS, MS)
    position, velocity = sample(points, times_ns, num_columns=1)
    acceleration = np.diff(velocity, axis=0) / 1e-3
    assert (
        np.abs(acceleration).max() < 0.5 * 4.0 * 1.15
    )  # cubics through the points overshoot a little
    assert 0.4 < np.abs(velocity).max() < 0.5 * 1.0 * 1.01
    assert position[-1] == pytest.approx(0.0)


def test_the_end_brakes_with_the_given_acceleration():
    bounds = limits(acceleration=2.5)
    points = make(Line([0.0], [1.0]), joints=group(ColumnKind.LINEAR, limits=bounds))
    assert points.velocities[-1] == 0.0
    assert points.end_ns == 1000 * MS
    assert points.positions[-1, 0] == pytest.approx(0.5 + 0.25)
    times_ns = np.arange(500 * MS, 1000 * MS, MS)
    _, velocity = sample(points, times_ns, num_columns=1)
    np.testing.assert_allclose(np.diff(velocity, axis=0) / 1e-3, -2.0, atol=1e-6)


def test_without_limits_braking_takes_one_step():
    assert make(Line([0.0], [1.0])).end_ns == 550 * MS


def test_a_source_that_ends_at_rest_needs_no_braking():
    points = make(Line([0.0], [0.0]))
    assert points.end_ns == 500 * MS


def test_braking_starts_before_the_position_limit():
    bounds = limits(position_max=0.5, acceleration=2.5)
    points = make(Line([0.0], [1.0]), joints=group(ColumnKind.LINEAR, limits=bounds))
    assert points.times_ns[-2] == 250 * MS
    assert points.positions.max() == pytest.approx(0.5)


def test_rows_beyond_a_position_limit_are_left_out():
    bounds = limits(position_max=0.13, acceleration=100.0)
    rows = TrajectoryPoints(
        names=('c0',),
        times_ns=np.arange(5) * STEP_NS,
        positions=np.array([[0.0], [0.1], [0.2], [0.1], [0.0]]),
        velocities=np.zeros((5, 1)),
    )
    points = make(rows, joints=group(ColumnKind.LINEAR, limits=bounds))
    assert points.end_ns == STEP_NS
    assert points.positions.max() == pytest.approx(0.1)


def test_no_stop_within_the_limits_is_refused():
    bounds = limits(position_max=0.2, acceleration=2.5)
    with pytest.raises(ChunkRejectedError) as caught:
        make(Line([0.0], [1.0]), joints=group(ColumnKind.LINEAR, limits=bounds))
    assert caught.value.code == 'cannot_stop'


def test_at_rest_on_a_limit_there_is_nothing_to_send_as_a_splice():
    bounds = limits(position_max=0.2, acceleration=2.5)
    still = TrajectoryPoints.still(['c0'], [0.2], now_ns=0)
    joints = group(ColumnKind.LINEAR, limits=bounds)
    assert make(Line([1.0], [1.0]), joints=joints, running=still, rules=SPLICE) is None


def test_angles_are_counted_on_beyond_a_turn():
    joints = group(ColumnKind.ANGLE)
    running = TrajectoryPoints.still(['c0'], [3.1], now_ns=0)
    points = make(Line([-3.1], [0.1]), joints=joints, running=running, rules=AS_IS)
    assert points.positions[0, 0] == pytest.approx(3.1)
    assert points.positions[-1, 0] == pytest.approx(-3.05 + 2 * np.pi)
    assert np.abs(np.diff(points.positions[:, 0])).max() < 0.1


def test_a_gripper_does_not_fade():
    joints = group(ColumnKind.GRIPPER, ColumnKind.LINEAR)
    still = TrajectoryPoints.still(['c0', 'c1'], [0.0, 0.0], now_ns=0)
    points = make(Line([1.0, 1.0], [0.0, 0.0]), joints=joints, running=still)
    assert points.positions[2].tolist() == [1.0, pytest.approx(0.058, abs=1e-2)]


def test_a_gripper_stays_between_its_rows():
    columns = (Column('c0', '', ColumnKind.GRIPPER),)
    actions = np.float32([0, 0, 1, 1, 0.5, 0.2, 0.2, 0.6, 0.7, 1.0])[:, None]
    chunk = ActionChunk(
        actions=actions, columns=columns, step_ns=STEP_NS, start_ns=0, observation_stamp_ns=0
    )
    points = make(ActionCurve(chunk, ColumnMath(columns)), joints=group(ColumnKind.GRIPPER))
    times_ns = np.arange(0, points.end_ns, MS)
    position, _ = sample(points, times_ns, num_columns=1)
    assert position.min() >= 0.0
    assert position.max() <= 1.0 + 1e-9
    assert points.end_ns == chunk.times_ns()[-1]


def test_between_its_points_a_chunk_is_what_its_curve_is():
    columns = (Column('c0', 'rad'),)
    actions = np.float32([0, 0.1, 0.4, 0.2, 0.3, 0.9])[:, None]
    chunk = ActionChunk(
        actions=actions, columns=columns, step_ns=STEP_NS, start_ns=0, observation_stamp_ns=0
    )
    curve = ActionCurve(chunk, ColumnMath(columns))
    points = make(curve, 30 * MS, rules=AS_IS)
    times_ns = np.arange(30 * MS, 250 * MS, MS)
    ours, its = (sample(one, times_ns, num_columns=1) for one in (points, curve))
    np.testing.assert_allclose(ours, its, atol=1e-9)


def test_a_group_picks_and_renames_its_joints():
    columns = [Column('lift', 'm'), Column('pan', 'rad'), Column('drive', 'm/s', ColumnKind.TWIST)]
    joints = JointGroup(columns, {'pan': 'arm_pan', 'lift': 'arm_lift'})
    points = make(Line([1.0, 2.0, 3.0], [0.0, 0.0, 0.0]), joints=joints)
    assert points.names == ('arm_pan', 'arm_lift')
    assert points.positions[0].tolist() == [2.0, 1.0]


@pytest.mark.parametrize(
    ('joints', 'code'),
    [({'elbow': 'e'}, 'unknown_joint'), ({}, 'unknown_joint'), ({'c0': 'base'}, 'no_joint')],
)
def test_columns_that_are_no_joints_are_refused(joints, code):
    with pytest.raises(ConfigurationError) as caught:
        JointGroup([Column('c0', 'm/s', ColumnKind.TWIST)], joints)
    assert caught.value.code == code


@pytest.mark.parametrize('wrong', [{'step_ns': 0}, {'lead_ns': -1}, {'blend_ns': -1}])
def test_times_below_zero_are_refused(wrong):
    with pytest.raises(ConfigurationError):
        TrajectorySettings(**{'step_ns': STEP_NS, 'lead_ns': 0, **wrong})


def test_as_a_curve_points_rest_outside():
    points = make(Line([1.0], [1.0]), rules=AS_IS)
    position, velocity = sample(
        points, np.array([-1, 499 * MS, 500 * MS, 501 * MS]), num_columns=1
    )
    np.testing.assert_allclose(position[:, 0], [1.0, 1.499, 1.5, 1.5])
    np.testing.assert_allclose(velocity[:, 0], [0.0, 1.0, 1.0, 0.0])


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 600),
    st.integers(0, 200),
    st.floats(-1, 1),
    st.floats(-1, 1),
    st.sampled_from(['overlap', 'splice']),
    st.sampled_from(['stop', 'as_is']),
)
def test_what_is_made_can_be_sent(now_ms, lead_ms, position, velocity, hand_over, last_point):
    rules = TrajectorySettings(
        step_ns=STEP_NS, lead_ns=lead_ms * MS, hand_over=hand_over, last_point=last_point
    )
    running = TrajectoryPoints.still(['c0'], [0.0], now_ns=-MS)
    points = make(Line([position], [velocity]), now_ms * MS, rules=rules, running=running)
    if points is None:
        assert now_ms + lead_ms >= 500 - 50 / 4
        return
    assert len(points.times_ns) >= 2
    assert (np.diff(points.times_ns) > 0).all()
    assert points.stamp_ns == (now_ms + (lead_ms if hand_over == 'splice' else 0)) * MS
    assert np.isfinite(points.positions).all()
    assert np.isfinite(points.velocities).all()
    assert last_point == 'as_is' or not points.velocities[-1].any()
