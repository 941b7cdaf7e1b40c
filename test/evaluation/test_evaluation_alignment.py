# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
from evaluation_builders import STEP_NS, chunk, columns, record, stream

from vla_policy_ros.core.specs import Column, ColumnKind, Representation
from vla_policy_ros.evaluation.alignment import (
    align,
    interpolate,
    match_stamps,
    select_executed,
    spacing_rows,
    wrap,
)

RAMP = np.arange(12, dtype=np.float32)[:, None]


def test_columns_are_matched_by_name():
    cols = columns(2)
    policy = record([chunk([[1, 2]], cols=cols)])
    truth = record([chunk([[20, 10]], cols=cols[::-1])])
    pairs = align(policy, truth)
    assert [column.name for column in pairs.columns] == ['joint_0', 'joint_1']
    np.testing.assert_array_equal(pairs.recorded, [[[10, 20]]])
    assert pairs.left_out == ()


def test_columns_that_mean_something_else_are_left_out():
    policy = record(
        [chunk([[1, 2, 3]], cols=(Column('a', 'rad'), Column('b', 'rad'), Column('c', 'rad')))]
    )
    other = (
        Column('a', 'deg'),
        Column('b', 'rad', representation=Representation.DELTA),
        Column('d', 'rad'),
    )
    pairs = align(policy, record([chunk([[1, 2, 3]], cols=other)]))
    assert pairs.columns == ()
    assert pairs.left_out == ('a', 'b', 'c')


def test_only_equal_stamps_are_matched():
    policy, truth = np.array([1, 5, 9, 10]), np.array([0, 1, 9])
    mine, theirs = match_stamps(policy, truth)
    assert mine.tolist() == [0, 2]
    assert theirs.tolist() == [1, 2]


def test_stamps_that_repeat_are_matched_in_order():
    policy, truth = np.array([0, 2, 0, 1]), np.array([0, 1, 2, 0, 1, 2])
    assert match_stamps(policy, truth)[1].tolist() == [0, 2, 3, 4]


def test_equal_steps_compare_row_by_row_exactly():
    motion = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    truth = stream(motion, horizon=4)
    pairs = align(stream(motion, horizon=4, stride=3), truth)
    assert np.nanmax(np.abs(pairs.errors())) == 0.0


def test_rows_past_the_end_of_the_recording_are_unknown():
    pairs = align(stream(RAMP, horizon=4, stride=10), stream(RAMP, horizon=4))
    assert pairs.is_known.tolist() == [[True] * 4, [True, True, False, False]]
    assert np.isnan(pairs.errors()[1, 2:]).all()


def test_each_epoch_has_an_end_of_its_own():
    truth = stream(RAMP[:3], horizon=4, epoch=0)
    truth.extend(stream(RAMP, horizon=4, epoch=1))
    pairs = align(record([chunk(RAMP[:4])]), truth)
    assert pairs.is_known.tolist() == [[True, True, True, False]]


def test_truth_is_interpolated_at_the_times_of_a_faster_policy():
    fast = chunk([[0.0], [0.5], [1.0]], step_ns=STEP_NS // 2)
    pairs = align(record([fast]), stream(RAMP, horizon=4))
    np.testing.assert_allclose(pairs.errors(), 0.0, atol=1e-12)


def test_an_offset_of_row_zero_is_honoured():
    late = chunk([[2.0], [3.0]], start_ns=2 * STEP_NS)
    pairs = align(record([late]), stream(RAMP, horizon=4))
    np.testing.assert_array_equal(pairs.recorded[0, :, 0], [2, 3])


def test_rows_before_and_after_the_recorded_chunk_are_unknown():
    early = chunk([[0.0], [0.0], [1.0], [2.0]], start_ns=-STEP_NS)
    pairs = align(record([early]), stream(RAMP, horizon=2))
    assert pairs.is_known.tolist() == [[False, True, True, False]]


def test_a_step_that_is_no_whole_number_of_nanoseconds_stays_comparable():
    policy = record([chunk(RAMP[:10], step_ns=33_333_333)])
    truth = record([chunk(RAMP[:10], s, step_ns=33_333_334) for s in range(20)])
    assert align(policy, truth).is_known.all()


def test_angles_go_the_short_way_round():
    cols = (
        Column('a', 'rad', ColumnKind.ANGLE),
        Column('b', 'deg', ColumnKind.ANGLE),
        Column('c', 'rad'),
    )
    wrapped = wrap(np.array([math.tau - 0.1, -350.0, 6.0]), cols)
    np.testing.assert_allclose(wrapped, [-0.1, 10.0, 6.0])


def test_interpolation_crosses_the_turn_of_an_angle():
    cols = (Column('a', 'deg', ColumnKind.ANGLE),)
    values = interpolate(np.array([[[170.0], [-170.0]]]), np.array([[0.5]]), cols)
    assert values[0, 0, 0] == 180.0


def test_a_chunk_moves_on_for_one_step_and_then_holds():
    targets = np.array([[[0.0], [1.0], [3.0]]])
    values = interpolate(targets, np.array([[-1.0, 0.5, 2.0, 2.5, 3.0, 9.0]]), columns(1))
    assert values[0, :, 0].tolist() == [0.0, 0.5, 3.0, 4.0, 5.0, 5.0]


def test_spacing_is_the_median_distance_within_the_chunk():
    assert spacing_rows(stream(RAMP, horizon=8, stride=3)) == 3
    assert spacing_rows(stream(RAMP, horizon=2, stride=3)) == 2
    assert spacing_rows(stream(RAMP[:1], horizon=5)) == 5


def test_executed_chunks_follow_one_another():
    recording = stream(RAMP, horizon=6)
    assert select_executed(recording, execution_horizon=4).tolist() == [0, 4, 8]


def test_an_epoch_and_a_jump_back_start_afresh():
    recording = record(
        [chunk([[0]], 0), chunk([[0]], 1), chunk([[0]], 2, epoch=1), chunk([[0]], 1, epoch=1)]
    )
    assert select_executed(recording, execution_horizon=5).tolist() == [0, 2, 3]
