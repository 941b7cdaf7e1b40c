# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from support.chunk_streams import (
    COLUMNS,
    STEP_NS,
    line,
    make,
    make_chunk,
    offer,
    ramp,
    time,
    value,
    values,
)

from vla_policy_ros.core.specs import Column, ColumnKind


def test_offset_fade_starts_where_the_robot_is_and_ends_on_the_new_chunk():
    strategy = make('offset_fade', fade_ms=100.0)
    offer(strategy, ramp(0), 0)
    value(strategy, 2)
    offer(strategy, line([10.0] * 8, start_ns=time(1), sequence=1), 3)
    target = strategy.target(time(3))
    assert target.seam
    assert target.position[0] == pytest.approx(3.0)
    assert target.velocity[0] == pytest.approx(1e9 / STEP_NS, rel=1e-6)
    # Half of the window of two steps: half of the offset -7, and the quintic of the velocity there, 5 / 32 steps.
    assert value(strategy, 4) == pytest.approx(10.0 - 7.0 / 2 + 2 * 5 / 32)
    assert values(strategy, 5, 6) == pytest.approx([10.0, 10.0])


def test_the_velocity_of_a_fade_is_its_derivative():
    strategy = make('offset_fade', fade_ms=220.0)
    offer(strategy, ramp(0), 0)
    offer(strategy, line([10.0, 12.0, 11.0, 15.0] * 2, start_ns=time(1), sequence=1), 3)
    for now in (3.1, 4.7, 5.5, 6.3, 7.3, 7.5):
        slope = (value(strategy, now + 1e-3) - value(strategy, now - 1e-3)) / 2e-3
        velocity = strategy.target(time(now)).velocity[0] * STEP_NS * 1e-9
        assert velocity == pytest.approx(slope, abs=1e-3)


def test_an_angle_fades_the_shorter_way():
    columns = (Column('wrist', 'rad', ColumnKind.ANGLE),)
    strategy = make('offset_fade', columns=columns, fade_ms=100.0)
    for sequence, angle in enumerate((3.0, -3.0)):
        rows = [angle] * 8
        chunk = make_chunk(rows, columns=columns, start_ns=time(sequence), sequence=sequence)
        offer(strategy, chunk, sequence)
    way = 2 * np.pi - 6.0
    got = np.array(values(strategy, 1, 2, 3)) + 2 * np.pi
    assert got == pytest.approx([3.0, 3.0 + way / 2, 3.0 + way], abs=1e-6)


def test_a_chunk_within_the_window_starts_from_what_is_executed():
    strategy = make('offset_fade', fade_ms=200.0)
    offer(strategy, ramp(0), 0)
    offer(strategy, line([10.0] * 8, start_ns=time(1), sequence=1), 3)
    target = strategy.target(time(4))
    position, velocity = target.position[0], target.velocity[0]
    assert 3.0 < position < 10.0
    offer(strategy, line([-5.0] * 8, start_ns=time(2), sequence=2), 4)
    target = strategy.target(time(4))
    assert target.seam
    assert target.position[0] == pytest.approx(position)
    assert target.velocity[0] == pytest.approx(velocity, rel=1e-5)
    assert value(strategy, 8) == pytest.approx(-5.0)


def test_a_chunk_that_ends_within_the_window_ends_where_it_is():
    strategy = make('offset_fade', fade_ms=5000.0)
    offer(strategy, ramp(0), 0)
    offer(strategy, line([10.0] * 8, start_ns=time(1), sequence=1), 7)
    end = value(strategy, 8)
    assert value(strategy, 8.5) is None
    offer(strategy, line([10.0] * 8, start_ns=time(9), sequence=2), 9)
    target = strategy.target(time(9))
    assert target.position[0] == pytest.approx(end)
    assert target.velocity[0] == pytest.approx(0.0, abs=1e-9)


def test_rtc_takes_over_at_row_d():
    strategy = make('rtc', delay_steps=3)
    offer(strategy, ramp(0), 0)
    offer(strategy, line([2, 3, 4, 5, 50, 60, 70, 80], start_ns=time(2), sequence=1), 3.5)
    assert strategy.target(time(4.99)).sequence == 0
    target = strategy.target(time(5))
    assert (target.sequence, target.seam) == (1, True)
    assert target.position[0] == pytest.approx(5.0)
    assert strategy.remaining_ns(time(5)) == 4 * STEP_NS


def test_rtc_takes_a_chunk_that_is_later_than_row_d_at_once():
    strategy = make('rtc', delay_steps=1)
    offer(strategy, ramp(0), 0)
    offer(strategy, ramp(2, start=2, sequence=1), 4.5)
    target = strategy.target(time(4.5))
    assert (target.sequence, target.position[0]) == (1, pytest.approx(4.5))


def test_rtc_does_not_stop_before_row_d():
    strategy = make('rtc', delay_steps=4)
    offer(strategy, ramp(0), 0)
    offer(strategy, ramp(5, start=5, sequence=1), 6)
    assert strategy.target(time(6.99)).sequence == 0
    assert strategy.target(time(7)).sequence == 1


def test_rtc_hands_out_what_will_be_executed():
    strategy = make('rtc', delay_steps=3, fade_ms=1000.0)
    assert strategy.prefix(time(0)).shape == (0, 1)
    offer(strategy, line(np.arange(8) ** 2, start_ns=time(0)), 0)
    np.testing.assert_array_equal(strategy.prefix(time(2))[:, 0], [4, 9, 16, 25, 36, 49])
    offer(strategy, line([4, 9, 16, 20, 20, 20, 20, 20], start_ns=time(2), sequence=1), 3)
    planned = strategy.prefix(time(3.5))
    assert planned.shape == (6, 1)
    executed = values(strategy, *(3.5 + np.arange(6)))
    np.testing.assert_allclose(planned[:, 0], executed)
    assert strategy.prefix(time(9.01)).shape == (0, 1)


def test_rtc_keeps_a_chunk_that_waits_when_the_next_one_comes_early():
    strategy = make('rtc', delay_steps=4)
    offer(strategy, ramp(0), 0)
    offer(strategy, ramp(1, start=1, sequence=1), 2)
    offer(strategy, ramp(3, start=3, sequence=2), 4)
    sequences = [strategy.target(time(now)).sequence for now in (4, 5, 6.9, 7)]
    assert sequences == [0, 1, 1, 2]


def test_rtc_repeats_frozen_rows_exactly():
    strategy = make('rtc', columns=COLUMNS, delay_steps=3)
    rng = np.random.default_rng(0)
    offer(strategy, make_chunk(rng.uniform(-1, 1, (8, len(COLUMNS)))), 0)
    frozen = strategy.prefix(time(2))[:4].astype(np.float32)
    executed = [strategy.target(time(now)).position.copy() for now in (2, 3)]
    rows = np.concatenate([frozen, rng.uniform(-1, 1, (4, len(COLUMNS)))])
    offer(strategy, make_chunk(rows, start_ns=time(2), sequence=1), 4)
    executed += [strategy.target(time(now)).position.copy() for now in (4, 5)]
    difference = strategy.math.difference(np.array(executed), frozen.astype(np.float64))
    np.testing.assert_allclose(difference, 0.0, atol=1e-6)
