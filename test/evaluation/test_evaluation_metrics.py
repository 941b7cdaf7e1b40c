# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
from evaluation_builders import STEP_NS, chunk, columns, record, stream
from hypothesis import given
from hypothesis import strategies as st

from vla_policy_ros.core.errors import SpecMismatchError
from vla_policy_ros.evaluation.metrics import compare, summarize_errors
from vla_policy_ros.evaluation.recording import ChunkRecording
from vla_policy_ros.evaluation.smoothness import measure_smoothness

RAMP = np.arange(12, dtype=np.float32)[:, None]


def test_figures_of_one_chunk_by_hand():
    policy = record([chunk([[1, 0], [2, 0], [5, 0]])])
    truth = record([chunk([[1, 4], [1, 4], [1, 4]], step) for step in range(3)])
    result = compare(policy, truth, execution_horizon=2)
    first, second = result.joints
    assert first.whole.mae == pytest.approx(5 / 3)
    assert first.whole.mse == pytest.approx(17 / 3)
    assert (first.whole.max_error, first.whole.count) == (4.0, 3)
    assert (first.executed.mae, first.executed.mse) == (0.5, 0.5)
    assert second.executed.mae == 4.0
    assert result.overall.whole.mae == pytest.approx((5 + 12) / 6)
    assert result.row_mae == (2.0, 2.5, 4.0)


def test_open_loop_counts_every_moment_once_and_executed_every_chunk():
    # Chunks at every step; the chunk of step 1 is wrong, and open loop with two rows never plays it.
    chunks = [chunk(RAMP[step : step + 4] + 8 * (step == 1), step) for step in range(8)]
    result = compare(record(chunks), stream(RAMP, horizon=4), execution_horizon=2)
    assert result.overall.open_loop.mae == 0.0
    assert result.overall.open_loop.count == 8
    assert result.overall.executed.mae == pytest.approx(1.0)


def test_open_loop_puts_the_executed_rows_end_to_end():
    rng = np.random.default_rng(1)
    motion = rng.normal(size=(10, 2)).astype(np.float32)
    predictions = {step: rng.normal(size=(4, 2)).astype(np.float32) for step in range(0, 10, 3)}
    policy = record([chunk(rows, step) for step, rows in predictions.items()])
    joined = np.concatenate([rows[:3] for rows in predictions.values()])[: len(motion)]
    result = compare(policy, stream(motion, horizon=4), execution_horizon=3)
    assert result.overall.open_loop.mse == pytest.approx(np.square(joined - motion).mean())
    assert result.overall.open_loop.mae == pytest.approx(np.abs(joined - motion).mean())


@given(
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(2, 20),
    st.sampled_from([0.0, 0.25, -1.5, 8.0]),
)
def test_a_constant_shift_is_the_error_everywhere(horizon, stride, num_steps, shift):
    motion = np.arange(num_steps * 2, dtype=np.float32).reshape(-1, 2)
    policy = stream(motion, horizon=horizon, stride=stride, offset=shift)
    result = compare(policy, stream(motion, horizon=horizon))
    for part in (result.overall.whole, result.overall.executed, result.overall.open_loop):
        assert part.mae == pytest.approx(abs(shift))
        assert part.mse == pytest.approx(shift**2)
        assert part.max_error == pytest.approx(abs(shift))
    assert result.num_compared == result.num_policy_chunks


def test_identical_streams_are_equally_smooth():
    motion = np.sin(np.arange(30, dtype=np.float32))[:, None]
    truth = stream(motion, horizon=5)
    result = compare(truth, truth, execution_horizon=3)
    assert result.policy_smoothness == result.truth_smoothness
    assert result.overall.whole.max_error == 0.0


def test_the_execution_horizon_defaults_to_the_distance_between_chunks():
    truth = stream(RAMP, horizon=6)
    assert compare(stream(RAMP, horizon=6, stride=4), truth).execution_horizon == 4


@pytest.mark.parametrize('rows', [0, 7])
def test_an_execution_horizon_outside_the_chunk_is_refused(rows):
    truth = stream(RAMP, horizon=6)
    with pytest.raises(SpecMismatchError, match='1 to 6'):
        compare(truth, truth, execution_horizon=rows)


@pytest.mark.parametrize('truth', [None, ChunkRecording(), stream(RAMP, horizon=2, start_ns=0)])
def test_without_a_partner_nothing_is_compared(truth):
    policy = record([chunk([[1.0], [2.0]], 99)])
    result = compare(policy, truth)
    assert (result.overall, result.joints, result.num_compared) == (None, (), 0)
    assert result.truth_smoothness is None
    assert result.policy_smoothness.num_boundaries == 0


def test_without_a_common_column_nothing_is_compared():
    policy = record([chunk([[1.0]], cols=columns(1, unit='deg'))])
    result = compare(policy, record([chunk([[1.0]])]))
    assert result.overall is None
    assert result.left_out == ('joint_0',)


def test_no_chunks_at_all():
    result = compare(ChunkRecording(), stream(RAMP, horizon=2))
    assert (result.num_policy_chunks, result.num_truth_chunks) == (0, 12)
    assert result.overall is None


def test_holding_the_pose_is_a_baseline():
    policy = stream(RAMP, horizon=4, stride=4)
    held = RAMP[::4].astype(float)
    result = compare(policy, stream(RAMP, horizon=4), held=held)
    assert result.hold_last.mae == pytest.approx((0 + 1 + 2 + 3) / 4)
    assert compare(policy, stream(RAMP, horizon=4)).hold_last is None


def test_columns_without_a_measured_pose_do_not_count_in_the_baseline():
    motion = np.repeat(RAMP, 2, axis=1)
    policy, truth = stream(motion, horizon=4, stride=4), stream(motion, horizon=4)
    held = motion[::4].astype(float)
    held[:, 0] = np.nan
    held[:, 1] += 2
    assert compare(policy, truth, held=held).hold_last.count == 12
    assert compare(policy, truth, held=np.full((3, 2), np.nan)).hold_last is None
    with pytest.raises(SpecMismatchError, match='held'):
        compare(policy, truth, held=held[:1])


def test_summary_of_nothing_is_nothing():
    assert summarize_errors(np.array([np.nan])) is None


def test_acceleration_by_hand():
    recording = record([chunk([[0, 0], [3, 4], [0, 0]])])
    figures = measure_smoothness(recording, np.array([0]), columns=recording.columns)
    assert figures.mean_acceleration == pytest.approx(10 / (STEP_NS / 1e9) ** 2)
    assert figures.mean_boundary_jump is None


def test_seam_by_hand():
    # The first chunk would be at (2, 0) after two steps; the second starts at (2, 3) and turns by a right angle.
    first = chunk([[0, 0], [1, 0], [2, 0]], 0)
    second = chunk([[2, 3], [2, 4], [2, 5]], 2)
    recording = record([first, second])
    figures = measure_smoothness(recording, np.array([0, 1]), columns=recording.columns)
    assert figures.mean_boundary_jump == figures.max_boundary_jump == pytest.approx(3.0)
    assert figures.mean_direction_cosine == pytest.approx(0.0)
    assert figures.num_boundaries == 1


@pytest.mark.parametrize(('slope', 'cosine'), [(1.0, 1.0), (-1.0, -1.0)])
def test_a_line_cut_into_back_to_back_chunks_has_no_jump(slope, cosine):
    first = chunk(np.arange(3)[:, None], 0)
    second = chunk(3 + slope * np.arange(3)[:, None], 3)
    recording = record([first, second])
    figures = measure_smoothness(recording, np.array([0, 1]), columns=recording.columns)
    assert figures.max_boundary_jump == pytest.approx(0.0)
    assert figures.mean_direction_cosine == pytest.approx(cosine)


def test_an_epoch_is_no_seam_and_standing_still_has_no_direction():
    still = [
        chunk([[1], [1], [1]], 0),
        chunk([[1], [1], [1]], 2),
        chunk([[9], [9], [9]], 4, epoch=1),
    ]
    recording = record(still)
    figures = measure_smoothness(recording, np.arange(3), columns=recording.columns)
    assert (figures.num_boundaries, figures.max_boundary_jump) == (1, 0.0)
    assert figures.mean_direction_cosine is None
    assert figures.mean_acceleration == 0.0


def test_chunks_of_one_row_jump_but_have_no_direction():
    recording = record([chunk([[0.0]], 0), chunk([[2.0]], 1)])
    figures = measure_smoothness(recording, np.arange(2), columns=recording.columns)
    assert figures.max_boundary_jump == 2.0
    assert figures.mean_acceleration is None
    assert figures.mean_direction_cosine is None
    assert not math.isnan(figures.mean_boundary_jump)
