# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from vla_policy_ros.core.chunk import ActionChunk
from vla_policy_ros.core.clock import ManualClock, MonotonicClock
from vla_policy_ros.core.errors import (
    ChunkRejectedError,
    MissingDependencyError,
    SpecMismatchError,
    VlaPolicyError,
)
from vla_policy_ros.core.frame import Frame
from vla_policy_ros.core.latency import LatencySummary, LatencyWindow
from vla_policy_ros.core.observation import Instruction, Observation
from vla_policy_ros.core.specs import Column, ColumnKind, TensorSpec

COLUMNS = (Column('a', 'rad'), Column('b', 'm'))


def make_chunk(actions, **changes):
    given = {'columns': COLUMNS, 'step_ns': 10, 'start_ns': 100, 'observation_stamp_ns': 90}
    return ActionChunk(actions=np.asarray(actions, np.float32), **{**given, **changes})


def test_chunk_knows_its_rows_in_time_and_cannot_be_changed():
    chunk = make_chunk([[1, 2], [3, 4], [5, 6]])
    assert (chunk.horizon, chunk.names) == (3, ('a', 'b'))
    assert chunk.times_ns().tolist() == [100, 110, 120]
    with pytest.raises(ValueError, match='read-only'):
        chunk.actions[0, 0] = 9


@pytest.mark.parametrize(
    ('actions', 'changes', 'code'),
    [
        ([[1, 2, 3]], {}, 'wrong_shape'),
        (np.zeros((0, 2)), {}, 'wrong_shape'),
        ([1, 2], {}, 'wrong_shape'),
        ([[1, 2]], {'step_ns': 0}, 'wrong_type'),
        ([[1, 2], [np.nan, 4]], {}, 'not_finite'),
        ([[1, np.inf]], {}, 'not_finite'),
    ],
)
def test_chunk_that_must_not_be_sent_is_refused(actions, changes, code):
    with pytest.raises(ChunkRejectedError) as raised:
        make_chunk(actions, **changes)
    assert raised.value.code == code


def test_refusal_of_a_bad_number_names_row_and_column():
    with pytest.raises(ChunkRejectedError, match='got nan for b in row 1'):
        make_chunk([[1, 2], [3, np.nan]])


def test_double_precision_is_no_chunk():
    with pytest.raises(ChunkRejectedError, match='float64'):
        ActionChunk(
            actions=np.zeros((1, 2)),
            columns=COLUMNS,
            step_ns=1,
            start_ns=0,
            observation_stamp_ns=0,
        )


def test_error_says_where_got_expected_and_next_step():
    error = VlaPolicyError('here', got=3, expected='4', next_step='Count again.', code='miscount')
    assert str(error) == 'here: got 3, expected 4. Count again.'
    assert error.as_dict() == {
        'code': 'miscount',
        'where': 'here',
        'got': '3',
        'expected': '4',
        'next_step': 'Count again.',
    }


def test_errors_are_also_what_python_calls_them():
    facts = {'got': '', 'expected': '', 'next_step': ''}
    assert isinstance(SpecMismatchError('x', **facts), ValueError)
    assert isinstance(MissingDependencyError('x', **facts), ImportError)
    assert SpecMismatchError('x', **facts).code == 'spec_mismatch'


def test_tensor_spec_takes_free_dimensions_and_nothing_else():
    spec = TensorSpec('image', (None, 3), 'float32')
    array = np.zeros((5, 3), np.float32)
    assert spec.validate(array) is array
    assert spec.empty().shape == (1, 3)
    for wrong in (np.zeros((5, 4), np.float32), np.zeros((5, 3)), np.zeros(3, np.float32)):
        with pytest.raises(SpecMismatchError, match="tensor 'image'"):
            spec.validate(wrong)


def test_latency_window_keeps_the_newest_and_counts_all():
    window = LatencyWindow(size=3)
    assert window.summary() == LatencySummary(0, 0.0, 0.0, 0.0, 0.0)
    for milliseconds in (100, 1, 2, 3):
        window.add(milliseconds * 1_000_000)
    summary = window.summary()
    assert (summary.count, summary.p50_ms, summary.max_ms) == (4, 2.0, 3.0)
    window.clear()
    assert window.summary().count == 0


def test_ages_are_positive_for_older_samples():
    observation = Observation(
        images={},
        state=np.zeros((1, 0), np.float32),
        instruction=Instruction(),
        stamp_ns=100,
        stream_stamps_ns={'front': 100, 'wrist': 80, 'joints': 105},
    )
    assert observation.stream_ages_ns() == {'front': 0, 'wrist': 20, 'joints': -5}


def test_frame_of_an_array_is_a_view():
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    frame = Frame.from_rgb('front', 7, image)
    assert (frame.height, frame.width, frame.step_bytes, frame.encoding) == (2, 4, 12, 'rgb8')
    assert np.shares_memory(frame.data, image)


def test_clocks():
    clock = ManualClock(5)
    clock.advance(-2)
    assert clock.now_ns() == 3
    monotonic = MonotonicClock()
    assert monotonic.now_ns() <= monotonic.now_ns()


@pytest.mark.parametrize(
    ('kind', 'unit', 'turn'),
    [
        (ColumnKind.ANGLE, 'rad', 2 * np.pi),
        (ColumnKind.ANGLE, '', 2 * np.pi),
        (ColumnKind.ANGLE, 'deg', 360.0),
        (ColumnKind.ANGLE, 'degrees', 360.0),
        (ColumnKind.LINEAR, 'deg', 0.0),
    ],
)
def test_a_turn_is_told_in_the_unit_of_the_column(kind, unit, turn):
    assert Column('wrist', unit, kind).turn == turn
