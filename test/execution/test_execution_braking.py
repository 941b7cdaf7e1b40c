# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_policy_ros.execution.braking import brake_speed, find_stop, stop_acceleration

LIMITS = st.one_of(st.floats(0.05, 40.0), st.just(1e30))


def run_stop(speed, acceleration, limit):
    """Go through the ticks of a stop; return end, furthest way forwards and backwards."""
    way = high = low = 0.0
    for _ in range(100_000):
        following = float(stop_acceleration(np.array(speed), np.array(acceleration), limit))
        assert abs(following - acceleration) <= 1.0 + 1e-9
        assert abs(following) <= limit * (1.0 + 1e-9)
        acceleration = following
        speed += acceleration
        way += speed
        high, low = max(high, way), min(low, way)
        if abs(speed) < 1e-9 and abs(acceleration) < 1e-9:
            return way, high, low
    raise AssertionError('it never comes to rest')


@given(st.floats(0, 1e6), st.floats(1e-3, 1e3))
def test_braking_from_the_next_speed_uses_up_the_distance(distance, limit):
    speed = float(brake_speed(np.array(distance), limit))
    count = int(speed // limit)
    way = (count + 1) * speed - limit * count * (count + 1) / 2
    assert way == pytest.approx(distance, rel=1e-9, abs=1e-12)


@given(st.floats(0, 100), st.floats(0, 100), st.floats(1e-2, 10))
def test_more_room_allows_more_speed(distance, more, limit):
    rooms = np.array([distance, distance + more])
    slow, fast = brake_speed(rooms, limit)
    assert slow <= fast + 1e-12


@given(st.floats(-300, 300), st.floats(-1, 1), LIMITS)
def test_the_sums_lead_where_the_ticks_lead(speed, share, limit):
    acceleration = share * min(limit, 40.0)
    way, high, low = run_stop(speed, acceleration, limit)
    stop = find_stop(np.array(speed), np.array(acceleration), np.array(limit))
    scale = 1.0 + abs(high) + abs(low)
    assert float(stop.end) == pytest.approx(way, abs=1e-9 * scale)
    assert float(stop.high) == pytest.approx(high, abs=1e-9 * scale)
    assert float(stop.low) == pytest.approx(low, abs=1e-9 * scale)


@given(st.floats(-300, 300), st.floats(0.05, 40.0))
def test_a_higher_acceleration_never_leads_less_far(speed, limit):
    rows = np.linspace(-limit, limit, 101)
    stop = find_stop(speed + rows, rows, np.full(101, limit))
    for way in (stop.end, stop.high, stop.low):
        assert (np.diff(speed + rows + way) > -1e-9).all()
