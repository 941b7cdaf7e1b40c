# SPDX-License-Identifier: Apache-2.0
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.chunk_streams import (
    COLUMNS,
    START_NS,
    STEP_NS,
    line,
    make_chunk,
    rough_rows,
    smooth_rows,
)

from vla_policy_ros.core.errors import ChunkRejectedError
from vla_policy_ros.core.specs import Column, ColumnKind, Representation
from vla_policy_ros.execution.curve import ActionCurve
from vla_policy_ros.execution.grippers import GripperRule
from vla_policy_ros.execution.kinds import ColumnMath

STEP_S = STEP_NS * 1e-9


def at(curve, steps):
    """Return position and velocity at a time in steps after row 0."""
    position, velocity = np.full((2, len(curve.math.columns)), np.nan)
    curve.evaluate(START_NS + round(steps * STEP_NS), position, velocity)
    return position, velocity


def one_column(values, kind=ColumnKind.LINEAR, grippers=None):
    columns = (Column('column', '1', kind),)
    return ActionCurve(make_chunk(values, columns=columns), ColumnMath(columns, grippers=grippers))


def mixed(make_rows=rough_rows, horizon=9, seed=3):
    seconds = np.arange(horizon) * STEP_S
    return ActionCurve(make_chunk(make_rows(seconds, seed)), ColumnMath(COLUMNS))


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(0, 99), st.sampled_from([rough_rows, smooth_rows]))
def test_it_runs_through_the_rows_exactly(horizon, seed, make_rows):
    curve = mixed(make_rows, horizon, seed)
    assert (curve.start_ns, curve.end_ns) == (START_NS, START_NS + (horizon - 1) * STEP_NS)
    rows = curve.math.to_unit(curve.chunk.actions)
    for row in range(horizon):
        position, _ = at(curve, row)
        np.testing.assert_array_equal(position, curve.rows[row])
        np.testing.assert_allclose(curve.math.difference(position, rows[row]), 0.0, atol=1e-7)


@settings(deadline=None)
@given(st.integers(0, 99), st.sampled_from([rough_rows, smooth_rows]))
def test_the_velocity_is_the_derivative(seed, make_rows):
    curve = mixed(make_rows, seed=seed)
    moving = curve.math.is_continuous
    for steps in np.random.default_rng(seed).uniform(0.001, 7.999, 20):
        later, earlier = at(curve, steps + 1e-4)[0], at(curve, steps - 1e-4)[0]
        if math.floor(steps + 1e-4) != math.floor(steps - 1e-4):
            continue
        derivative = curve.math.difference(later, earlier) / (2e-4 * STEP_S)
        np.testing.assert_allclose(at(curve, steps)[1][moving], derivative[moving], atol=1e-2)


@settings(deadline=None)
@given(st.integers(0, 99))
def test_linear_columns_and_angles_have_no_step_in_velocity_at_the_rows(seed):
    curve = mixed(seed=seed)
    for row in range(1, 8):
        before, behind = at(curve, row - 1e-6)[1], at(curve, row)[1]
        np.testing.assert_allclose(behind[:2], before[:2], atol=1e-2)


def test_inner_velocities_are_those_of_catmull_and_rom():
    curve = one_column([0.0, 1.0, 3.0, 4.0])
    velocities = [at(curve, row)[1][0] * STEP_S for row in range(4)]
    assert velocities == pytest.approx([1.0, 1.5, 1.5, 1.0])
    assert at(curve, 1.5)[0][0] == pytest.approx(2.0)


@settings(deadline=None)
@given(st.lists(st.floats(-5.0, 5.0, width=32), min_size=2, max_size=6))
def test_it_stays_between_neighbouring_rows(values):
    curve = one_column(values)
    for row in range(len(values) - 1):
        low, high = sorted(values[row : row + 2])
        for part in (0.1, 0.3, 0.5, 0.7, 0.9):
            assert low - 1e-9 <= at(curve, row + part)[0][0] <= high + 1e-9


def test_it_stands_still_before_and_after():
    curve = mixed()
    for steps, row in ((-3.0, 0), (-1e-6, 0), (8.0 + 1e-6, -1), (100.0, -1)):
        position, velocity = at(curve, steps)
        expected = curve.rows[row].copy()
        expected[6] = 0.0
        np.testing.assert_array_equal(position, expected)
        np.testing.assert_array_equal(velocity, 0.0)


def test_an_angle_goes_through_pi_without_a_step():
    curve = one_column([3.0, -3.0, -2.5], ColumnKind.ANGLE)
    way = 2 * math.pi - 6.0
    np.testing.assert_allclose(curve.rows[:, 0], [3.0, 3.0 + way, 3.5 + way], atol=1e-6)
    assert 3.0 < at(curve, 0.5)[0][0] < 3.0 + way


def test_a_quaternion_turns_evenly_whatever_its_sign():
    columns = COLUMNS[2:6]
    subject = ColumnMath(columns)
    turns = np.array([[0, 0, angle, 0] for angle in (0.0, 0.4, 1.0)])
    rows = subject.add(np.tile([0.0, 0.0, 0.0, 1.0], (3, 1)), turns)
    rows[1] *= -2.0
    curve = ActionCurve(make_chunk(rows, columns=columns), subject)
    position, velocity = at(curve, 0.25)
    start = np.array([0.0, 0.0, 0.0, 1.0])
    np.testing.assert_allclose(subject.difference(position, start), [0, 0, 0.1, 0], atol=1e-6)
    np.testing.assert_allclose(velocity, [0, 0, 0.4 / STEP_S, 0], atol=1e-4)
    np.testing.assert_allclose(at(curve, 1.0)[1], [0, 0, 0.6 / STEP_S, 0], atol=1e-4)
    assert np.linalg.norm(at(curve, 1.7)[0]) == pytest.approx(1.0)


def test_a_gripper_holds_the_earlier_row():
    curve = one_column([0.0, 1.0, 0.5], ColumnKind.GRIPPER)
    assert [at(curve, s)[0][0] for s in (0, 0.99, 1, 1.5, 2, 3)] == [0, 0, 1, 1, 0.5, 0.5]
    assert all(at(curve, s)[1][0] == 0.0 for s in (0, 0.99, 1, 1.5, 2))


@pytest.mark.parametrize('kind', [ColumnKind.GRIPPER, ColumnKind.TWIST])
def test_linear_grippers_and_twists_go_straight(kind):
    grippers = {'column': GripperRule(motion='linear')} if kind is ColumnKind.GRIPPER else None
    curve = one_column([0.0, 1.0, 0.5], kind, grippers)
    assert [at(curve, s)[0][0] for s in (0.25, 1.5)] == pytest.approx([0.25, 0.75])
    assert at(curve, 1.5)[1][0] == pytest.approx(-0.5 / STEP_S)


def test_one_row_is_a_point():
    curve = one_column([2.0])
    assert (curve.horizon, curve.start_ns) == (1, curve.end_ns)
    assert [at(curve, s)[0][0] for s in (-1, 0, 1)] == [2.0, 2.0, 2.0]
    assert at(curve, 0)[1][0] == 0.0


DELTA = (Column('x', 'm', representation=Representation.DELTA),)


@pytest.mark.parametrize(
    ('now', 'rows'), [(-5, [11, 13, 16]), (0, [11, 13, 16]), (0.2, [10, 12, 15]), (2, [8, 10, 13])]
)
def test_steps_are_anchored_at_the_command_when_the_first_row_is_due(now, rows):
    chunk = make_chunk([1.0, 2.0, 3.0], columns=DELTA)
    curve = ActionCurve.anchored(
        chunk, ColumnMath(DELTA), command=np.array([10.0]), now_ns=START_NS + round(now * STEP_NS)
    )
    np.testing.assert_array_equal(curve.rows[:, 0], rows)


def test_steps_without_a_command_or_without_a_row_left_are_refused():
    chunk = make_chunk([1.0, 2.0, 3.0], columns=DELTA)
    with pytest.raises(ChunkRejectedError) as info:
        ActionCurve(chunk, ColumnMath(DELTA))
    assert info.value.code == 'missing_anchor'
    with pytest.raises(ChunkRejectedError) as info:
        ActionCurve.anchored(
            chunk, ColumnMath(DELTA), command=np.zeros(1), now_ns=START_NS + 2 * STEP_NS + 1
        )
    assert info.value.code == 'late_chunk'


def test_other_columns_are_refused():
    with pytest.raises(ChunkRejectedError) as info:
        ActionCurve(line([1.0]), ColumnMath(COLUMNS))
    assert info.value.code == 'wrong_columns'


def test_evaluating_keeps_nothing():
    curve = mixed()
    at(curve, 0.5)
    position, velocity = np.empty((2, len(COLUMNS)))
    tracemalloc.start()
    try:
        curve.evaluate(START_NS, position, velocity)
        before, _ = tracemalloc.get_traced_memory()
        for tick in range(1000):
            curve.evaluate(START_NS + tick * STEP_NS // 100, position, velocity)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 2000
