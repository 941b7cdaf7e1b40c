# SPDX-License-Identifier: Apache-2.0
import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_policy_ros.core.errors import ChunkRejectedError, ConfigurationError, StateError
from vla_policy_ros.core.specs import Column, ColumnKind
from vla_policy_ros.execution.kinds import ColumnMath
from vla_policy_ros.execution.limiter import SMALLEST_RATE, MotionLimiter
from vla_policy_ros.execution.limits import ColumnLimits, check_limits

INF = math.inf
KIND = {
    'p': ColumnKind.LINEAR,
    'a': ColumnKind.ANGLE,
    't': ColumnKind.TWIST,
    'g': ColumnKind.GRIPPER,
    'q': ColumnKind.QUATERNION,
}


@dataclass
class Goal:
    position: np.ndarray
    velocity: np.ndarray


def goal(position, velocity=None):
    position = np.asarray(position, float)
    velocity = np.zeros_like(position) if velocity is None else np.asarray(velocity, float)
    return Goal(position, velocity)


def make(kinds='p', *, period_ns=10_000_000, mode='clamp', **numbers):
    """Make a limiter of columns by letter; numbers are position, velocity, acceleration, jerk for all of them."""
    said = {'velocity': 2.0, 'acceleration': 10.0, **numbers}
    columns = tuple(Column(f'{kind}{i}', '', KIND[kind]) for i, kind in enumerate(kinds))
    ranged = {'position_min': -3.0, 'position_max': 3.0} | {
        name: said.pop(name) for name in ('position_min', 'position_max') if name in said
    }
    limits = check_limits(
        columns,
        {
            column.name: ColumnLimits(**said, **(ranged if kind in 'pg' else {}))
            for kind, column in zip(kinds, columns, strict=True)
        },
    )
    return MotionLimiter(limits, ColumnMath(columns), period_ns=period_ns, mode=mode), limits


def follow(limiter, targets):
    return np.array([limiter.step(target).position.copy() for target in targets])


def check_differences(positions, limits, period_s):
    """Check every limit on the finite differences of positions of columns that are no rotations; rest before row 0.

    A position is rounded to 2^-52 of its size; the difference of order n adds up 2^n of these over period^n.
    """
    size = np.abs(positions).max(initial=0.0) + 1.0
    values = np.vstack([np.repeat(positions[:1], 3, axis=0), positions])
    low, high, *rates = limits.orders()
    assert (positions >= np.minimum(low, positions[0])).all()
    assert (positions <= np.maximum(high, positions[0])).all()
    for order, rate in enumerate(rates, 1):
        values = np.diff(values, axis=0) / period_s
        rounding = 8 * 2.0**-52 * size * (2.0 / period_s) ** order
        assert (np.abs(values) <= rate * (1 + 1e-9) + rounding).all(), (
            order,
            np.abs(values).max(),
        )


RATES = st.floats(0.05, 20.0)


@st.composite
def limiters(draw):
    """Draw arbitrary valid limits for a few columns of mixed kinds, and a period."""
    kinds = draw(st.text('patg', min_size=1, max_size=4))
    columns = tuple(Column(f'{kind}{i}', '', KIND[kind]) for i, kind in enumerate(kinds))
    said = {}
    for kind, column in zip(kinds, columns, strict=True):
        numbers = {'velocity': draw(st.floats(0.05, 5)), 'acceleration': draw(st.floats(1, 60))}
        if draw(st.booleans()):
            numbers['jerk'] = draw(st.floats(20, 400))
        if kind == 'g':
            numbers = dict(list(numbers.items())[: draw(st.integers(0, len(numbers)))])
        if kind in 'pg' or (kind == 'a' and draw(st.booleans())):
            numbers['position_min'] = draw(st.floats(-4, 1))
            numbers['position_max'] = numbers['position_min'] + draw(st.floats(0.01, 6))
        said[column.name] = ColumnLimits(**numbers)
    limits = check_limits(columns, said)
    period_ns = draw(st.sampled_from([1_000_000, 2_000_000, 5_000_000, 20_000_000]))
    mode = draw(st.sampled_from(['clamp', 'reject', 'stretch']))
    return MotionLimiter(limits, ColumnMath(columns), period_ns=period_ns, mode=mode), limits


def wild_targets(seed, limits, ticks, period_s):
    """Give steps, noise, sines, places far outside, velocities that fit and such that do not."""
    random = np.random.default_rng(seed)
    size = len(limits.columns)
    place = random.normal(size=size)
    speed = np.zeros(size)
    style = 0
    for _ in range(ticks):
        if random.random() < 0.05:
            style = random.integers(6)
            place = random.normal(size=size) * random.choice([0.1, 1, 3, 100])
        if style == 1:
            place = place + random.normal(size=size) * 0.02
        elif style == 2:
            speed = np.clip(random.normal(size=size) * 3, -limits.velocity, limits.velocity)
            place = place + speed * period_s
        elif style == 3:
            speed = random.normal(size=size) * 1e3
        elif style == 4:
            place = np.where(random.random(size) < 0.5, limits.orders()[0], limits.orders()[1])
            place = np.where(np.isfinite(place), place, 5.0)
        elif style == 5:
            place, speed = random.normal(size=size) * 1e12, np.zeros(size)
        yield goal(place, speed)


@settings(max_examples=60, deadline=None)
@given(limiters(), st.integers(0, 2**32))
def test_no_command_is_ever_outside_a_limit(made, seed):
    limiter, limits = made
    random = np.random.default_rng(seed)
    period_s = limiter._period_s
    low, high = limits.orders()[:2]
    share = random.random(len(low))
    low, high = np.where(np.isfinite(low), low, -1), np.where(np.isfinite(high), high, 1)
    start = np.where(limits.is_value, 0.0, low + share * (high - low))
    limiter.start(start)
    rows = [start]
    for target in wild_targets(seed, limits, 150, period_s):
        command = limiter.step(target)
        rows.append(command.position.copy())
        assert 0 < command.rate <= 1
        np.testing.assert_allclose(command.velocity, (rows[-1] - rows[-2]) / period_s, atol=1e-9)
    for _ in range(math.ceil(limiter.stop_time_ns / 1e9 / period_s)):
        rows.append(limiter.stop_step().position.copy())
        if limiter.is_still:
            break
    assert limiter.is_still
    assert (np.abs(rows[-1][limits.is_value]) <= 1e-12).all()
    check_differences(np.array(rows), limits, period_s)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), RATES, RATES, st.sampled_from([1e-3, 0.02]))
def test_a_rotation_keeps_its_angular_limits(seed, velocity, acceleration, period_s):
    limiter, limits = make(
        'pqqqq', period_ns=round(1e9 * period_s), velocity=velocity, acceleration=acceleration
    )
    math_, random = ColumnMath(limits.columns), np.random.default_rng(seed)
    rows = [np.array([0, 0, 0, 0, 1.0])]
    limiter.start(rows[0])
    place, turn = random.normal(size=5), np.zeros(5)
    for _ in range(200):
        if random.random() < 0.05:
            place = random.normal(size=5)
            turn = np.append(random.normal(size=4) * random.choice([0, 1, 100]), 0)
        rows.append(limiter.step(goal(place, turn)).position.copy())
    while not limiter.is_still:
        rows.append(limiter.stop_step().position.copy())
    rows = np.array(rows)
    np.testing.assert_allclose(np.linalg.norm(rows[:, 1:], axis=1), 1.0, atol=1e-12)
    speeds = math_.difference(rows[1:], rows[:-1])[:, 1:4] / period_s
    speeds = np.vstack([np.zeros(3), speeds])
    changes = np.diff(speeds, axis=0) / period_s
    assert np.linalg.norm(speeds, axis=1).max() <= velocity + 1e-9
    assert np.linalg.norm(changes, axis=1).max() <= acceleration + 1e-7


def test_a_rotation_is_followed_to_its_target_and_along_a_curve():
    limiter, limits = make('qqqq', acceleration=20.0)
    math_ = ColumnMath(limits.columns)
    limiter.start(np.array([0, 0, 0, 1.0]))
    steps = 0.01 * np.arange(300)
    angles, rates = 1 - np.cos(steps), np.sin(steps)
    for angle, rate in zip(angles, rates, strict=True):
        place = np.array([0, math.sin(angle / 2), 0, math.cos(angle / 2)])
        command = limiter.step(goal(-place, [0, rate, 0, 0]))
        assert np.abs(math_.difference(place, command.position)).max() <= 1e-9
        assert not command.is_limited.any()
    for _ in range(400):
        command = limiter.step(goal([0.5, 0.5, 0.5, 0.5]))
    assert np.abs(math_.difference(np.full(4, 0.5), command.position)).max() <= 1e-12
    assert limiter.is_still


@pytest.mark.parametrize('jerk', [None, 200.0])
@pytest.mark.parametrize('period_s', [0.001, 0.005, 0.02])
@settings(max_examples=6, deadline=None)
@given(size=st.floats(0.05, 0.9), rate=st.floats(0.2, 3.0), drift=st.floats(-0.3, 0.3))
def test_a_curve_within_the_limits_is_followed_without_lag(jerk, period_s, size, rate, drift):
    """Start on a curve at rest: it sets out smoothly, and has a place where it turns at full size."""
    limiter, _ = make(
        'pa', period_ns=round(1e9 * period_s), **({} if jerk is None else {'jerk': jerk})
    )
    steps = period_s * np.arange(round(8 / period_s))
    ratio = np.clip(steps / 4, 0, 1)
    weight = ratio**4 * (35 - 84 * ratio + 70 * ratio**2 - 20 * ratio**3)
    bend = 140 * ratio**3 * (1 - ratio) ** 3 / 4
    wave = size * min(1.2 / rate, 6 / rate**2, 100 / rate**3, 1.8)
    curve = weight * (wave * np.sin(rate * steps) + drift)
    slope = weight * wave * rate * np.cos(rate * steps)
    slope += bend * (wave * np.sin(rate * steps) + drift)
    padded = np.append(np.zeros(3), curve)
    for order, limit in ((1, 2.0), (2, 10.0), (3, jerk or INF)):
        assert np.abs(np.diff(padded, n=order)).max() / period_s**order <= limit, 'a bad test'
    limiter.start(np.zeros(2))
    targets = [goal([c, c], [s, s]) for c, s in zip(curve, slope, strict=True)]
    rows = follow(limiter, targets)
    assert np.abs(rows - curve[:, None]).max() <= 1e-9


@pytest.mark.parametrize('jerk', [None, 20.0, 200.0])
@pytest.mark.parametrize('period_s', [0.001, 0.02])
@settings(max_examples=6, deadline=None)
@given(start=st.floats(-3, 3), end=st.floats(-4, 4))
def test_a_place_is_reached_and_kept(jerk, period_s, start, end):
    limiter, _ = make(period_ns=round(1e9 * period_s), **({} if jerk is None else {'jerk': jerk}))
    limiter.start(np.array([start]))
    place = min(max(end, -3.0), 3.0)
    rows = follow(limiter, [goal([end])] * round(6 / period_s))[:, 0]
    assert rows[-1] == pytest.approx(place, abs=1e-9)
    assert limiter.is_still
    beyond = np.maximum((rows - place) * np.sign(place - start), 0.0).max()
    # With a jerk limit it may come by one jerk's worth of a few ticks.
    assert beyond <= (1e-12 if jerk is None else 10 * jerk * period_s**3 + 1e-12)


def test_it_is_as_fast_as_the_limits_allow():
    limiter, _ = make(period_ns=1_000_000)
    limiter.start(np.zeros(1))
    rows = follow(limiter, [goal([1.0])] * 720)[:, 0]
    # 1 rad at 2 rad/s with 10 rad/s^2 takes 1 / 2 + 2 / 10 s.
    assert rows[690] < 1.0 - 1e-9
    assert rows[702] == pytest.approx(1.0, abs=1e-9)


def test_an_angle_goes_the_short_way_and_a_ranged_one_stays_in_its_range():
    limiter, _ = make('a')
    limiter.start(np.array([3.0]))
    assert follow(limiter, [goal([-3.0])] * 300)[-1, 0] == pytest.approx(2 * math.pi - 3.0)
    limiter, _ = make('a')
    columns = (Column('a', '', ColumnKind.ANGLE),)
    said = ColumnLimits(position_min=-3.1, position_max=3.1, velocity=2, acceleration=10)
    limiter = MotionLimiter(
        check_limits(columns, {'a': said}), ColumnMath(columns), period_ns=10_000_000
    )
    limiter.start(np.array([3.0]))
    rows = follow(limiter, [goal([-3.0])] * 600)[:, 0]
    assert rows[-1] == pytest.approx(-3.0)
    assert np.abs(rows).max() <= 3.1


def test_a_gripper_without_speed_jumps_and_one_with_speed_does_not():
    columns = (Column('snap', '', ColumnKind.GRIPPER), Column('slow', '', ColumnKind.GRIPPER))
    ranged = ColumnLimits(position_min=0, position_max=1)
    slow = ColumnLimits(position_min=0, position_max=1, velocity=2)
    limits = check_limits(columns, {'snap': ranged, 'slow': slow})
    limiter = MotionLimiter(limits, ColumnMath(columns), period_ns=100_000_000)
    limiter.start(np.zeros(2))
    command = limiter.step(goal([1.0, 1.0]))
    np.testing.assert_allclose(command.position, [1.0, 0.2])
    assert command.is_limited.tolist() == [False, True]
    np.testing.assert_allclose(limiter.step(goal([9.0, 1.0])).position, [1.0, 0.4])


def test_a_twist_is_limited_in_value_and_comes_to_zero():
    limiter, _ = make('t', period_ns=100_000_000)
    limiter.start(np.zeros(1))
    rows = follow(limiter, [goal([5.0])] * 4)[:, 0]
    np.testing.assert_allclose(rows, [1.0, 2.0, 2.0, 2.0])
    assert not limiter.is_still
    stops = [float(limiter.stop_step().position[0]) for _ in range(4)]
    np.testing.assert_allclose(stops, [1.0, 0.0, 0.0, 0.0], atol=1e-12)
    assert limiter.is_still


def test_a_start_outside_of_the_range_leads_inwards_only():
    for jerk in ({}, {'jerk': 100.0}):
        limiter, _ = make(**jerk)
        limiter.start(np.array([3.5]))
        rows = follow(limiter, [goal([9.0])] * 500)[:, 0]
        assert (rows[1:] <= np.maximum(rows[:-1], 3.0)).all()
        assert rows[-1] == pytest.approx(3.0, abs=1e-9)


def test_no_number_no_motion():
    limiter, _ = make('pp')
    limiter.start(np.zeros(2))
    limiter.step(goal([1.0, 1.0]))
    before = limiter.position.copy()
    for bad in (goal([0, math.nan]), goal([0, -INF]), goal([0, 0], [0, INF]), goal([INF, -INF])):
        with pytest.raises(ChunkRejectedError) as caught:
            limiter.step(bad)
        assert caught.value.code == 'not_finite'
    assert 'p1' in str(caught.value) or 'p0' in str(caught.value)
    assert (limiter.position == before).all()
    with pytest.raises(StateError, match='finite'):
        limiter.start(np.array([0.0, math.nan]))


@pytest.mark.parametrize(
    ('target', 'numbers', 'cause'),
    [
        (goal([3.1]), {}, 'position_limit'),
        (goal([1.0]), {}, 'velocity_limit'),
        (goal([0.015]), {}, 'acceleration_limit'),
        (goal([0.0009]), {'jerk': 100.0}, 'cannot_stop'),
    ],
)
def test_reject_stops_with_a_cause_until_the_next_start(target, numbers, cause):
    limiter, _ = make(mode='reject', **numbers)
    limiter.start(np.zeros(1))
    assert limiter.step(goal([0.0])).cause == ''
    for _ in range(3):
        command = limiter.step(target)
        assert (command.cause, command.column) == (cause, 'p0')
        target = goal([0.0])
    limiter.start(np.zeros(1))
    assert limiter.step(goal([0.0])).cause == ''


def test_reject_decelerates_within_the_limits():
    limiter, limits = make('pp', mode='reject')
    limiter.start(np.zeros(2))
    rows = [np.zeros(2)]
    place = 0.0
    for tick in range(60):
        speed = min(0.1 * tick, 1.5)
        place += 0.01 * speed
        command = limiter.step(goal([place if tick < 40 else 3.0, place], [speed, speed]))
        rows.append(command.position.copy())
    assert (command.cause, command.column) == ('velocity_limit', 'p0')
    assert limiter.is_still
    check_differences(np.array(rows), limits, 0.01)


@pytest.mark.parametrize('jerk', [None, 400.0])
def test_stretch_keeps_the_path_in_slower_time(jerk):
    """A circle that is run through four times too fast: both columns stay on it, and the clock goes slower."""
    limiter, limits = make('ppt', mode='stretch', **({} if jerk is None else {'jerk': jerk}))
    rate, size = 4.0, 1.0
    limiter.start(np.array([0.0, size, 0.0]))
    clock = 0.01
    rows, rates = [np.array([0.0, size, 0.0])], []
    for _ in range(500):
        angle = rate * clock
        where = size * np.array([math.sin(angle), math.cos(angle), 3.0])
        speed = rate * size * np.array([math.cos(angle), -math.sin(angle), 0.0])
        command = limiter.step(goal(where, speed))
        rows.append(command.position.copy())
        rates.append(command.rate)
        clock += 0.01 * command.rate
    rows = np.array(rows)
    check_differences(rows, limits, 0.01)
    off = np.abs(np.hypot(rows[:, 0], rows[:, 1]) - size)
    assert off.max() < 0.02
    assert rates[0] < 0.2
    assert 0.4 < np.mean(rates[100:]) < 0.75
    assert clock > 1.5
    # The twist is the motion of the base: in slower time it is smaller by the same factor.
    np.testing.assert_allclose(rows[101:, 2], 3.0 * np.array(rates[100:]), atol=0.35)


def test_stretch_leaves_a_path_that_fits_alone():
    limiter, _ = make(mode='stretch')
    limiter.start(np.zeros(1))
    for tick in range(200):
        step = 0.01 * tick
        command = limiter.step(goal([1 - math.cos(step)], [math.sin(step)]))
        assert command.rate == 1.0
        assert command.position[0] == pytest.approx(1 - math.cos(step), abs=1e-9)


def test_stretch_does_not_wait_for_ever_at_the_end_of_a_range():
    limiter, _ = make('pp', mode='stretch')
    limiter.start(np.array([2.9, 0.0]))
    for _ in range(300):
        command = limiter.step(goal([9.0, 1.0]))
    np.testing.assert_allclose(command.position, [3.0, 1.0], atol=1e-9)
    assert command.rate == 1.0
    assert command.is_limited.tolist() == [True, False]
    assert 0 < SMALLEST_RATE < 1


def test_columns_and_period_must_fit():
    _, limits = make('pp')
    with pytest.raises(ConfigurationError):
        MotionLimiter(limits, ColumnMath(limits.columns[:1]), period_ns=1)
    with pytest.raises(ConfigurationError):
        MotionLimiter(limits, ColumnMath(limits.columns), period_ns=0)
