# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_policy_ros.core.chunk import ActionChunk
from vla_policy_ros.core.errors import ChunkRejectedError
from vla_policy_ros.core.specs import Column, ColumnKind
from vla_policy_ros.execution.chunk_check import check_chunk, clamp, stretch
from vla_policy_ros.execution.limits import ColumnLimits, check_limits

KIND = {
    'p': ColumnKind.LINEAR,
    'a': ColumnKind.ANGLE,
    't': ColumnKind.TWIST,
    'g': ColumnKind.GRIPPER,
    'q': ColumnKind.QUATERNION,
}


def make(rows, kinds='p', *, step_ns=100_000_000, **numbers):
    """Make a chunk of columns by letter and their limits: +-3, 2 per s, 10 per s^2."""
    columns = tuple(Column(f'{kind}{i}', '', KIND[kind]) for i, kind in enumerate(kinds))
    said = {'velocity': 2.0, 'acceleration': 10.0, **numbers}
    ranged = {'position_min': -3.0, 'position_max': 3.0}
    limits = check_limits(
        columns,
        {
            column.name: ColumnLimits(**said, **(ranged if kind in 'pg' else {}))
            for kind, column in zip(kinds, columns, strict=True)
        },
    )
    actions = np.array(rows, np.float32).reshape(len(rows), len(columns))
    chunk = ActionChunk(
        actions=actions, columns=columns, step_ns=step_ns, start_ns=0, observation_stamp_ns=7
    )
    return chunk, limits


def refusal(chunk, limits):
    with pytest.raises(ChunkRejectedError) as caught:
        check_chunk(chunk, limits)
    return caught.value


def test_a_chunk_within_the_limits_passes():
    check_chunk(*make([0.0, 0.1, 0.3, 0.5]))
    check_chunk(*make([2.9, 3.0, 3.0]))
    check_chunk(*make([1.0]))


@pytest.mark.parametrize(
    ('rows', 'numbers', 'code', 'where', 'got', 'expected'),
    [
        ([0, 0, 3.5], {}, 'position_limit', 'row 2', 'position 3.5', '-3 to 3'),
        ([-3.01], {}, 'position_limit', 'row 0', 'position -3.01', '-3 to 3'),
        ([0, 0.1, 0.4], {}, 'velocity_limit', 'row 2', 'velocity 3', 'at most 2'),
        ([0, -0.15, 0], {}, 'acceleration_limit', 'row 2', 'acceleration 30', 'at most 10'),
        ([0, 0, 0.1, 0.1], {'jerk': 50.0}, 'jerk_limit', 'row 3', 'jerk 200', 'at most 50'),
    ],
)
def test_what_breaks_a_limit_is_named(rows, numbers, code, where, got, expected):
    fault = refusal(*make(rows, **numbers))
    assert fault.code == code
    assert where in fault.where
    assert 'p0' in fault.where
    assert (fault.got.startswith(got), fault.expected) == (True, f'{expected}'), fault.got


def test_the_column_at_fault_is_named():
    fault = refusal(*make([[0, 0, 0], [0.1, 0.5, 0.1]], 'ppp'))
    assert fault.where == 'chunk at 7 ns, row 1, p1'


def test_an_angle_may_pass_its_seam():
    check_chunk(*make([3.1, -3.1, -3.0], 'a'))
    assert refusal(*make([3.1, -2.8], 'a')).code == 'velocity_limit'


def test_a_twist_is_limited_by_its_value():
    check_chunk(*make([0.0, 1.0, 2.0], 't'))
    fault = refusal(*make([2.5, 2.5], 't'))
    assert (fault.code, 'row 0' in fault.where) == ('velocity_limit', True)
    assert refusal(*make([0.0, 1.5], 't')).code == 'acceleration_limit'


def test_a_gripper_may_jump_within_its_range():
    check_chunk(*make([0.0, 3.0, 0.0], 'g'))
    assert refusal(*make([0.0, 3.1], 'g')).code == 'position_limit'


def test_a_rotation_is_limited_by_its_angle():
    def turn(angle):
        return [0.6 * math.sin(angle / 2), 0.0, 0.8 * math.sin(angle / 2), math.cos(angle / 2)]

    check_chunk(*make([turn(0), turn(0.1), -np.array(turn(0.29))], 'qqqq'))
    fault = refusal(*make([turn(0), turn(0.25)], 'qqqq'))
    assert (fault.code, fault.got) == ('velocity_limit', 'velocity 2.5')


def test_rounding_to_float32_is_forgiven_and_no_more():
    rows = 2.9 + 0.2 * np.arange(-5, 1) * 0.1 * 10
    check_chunk(*make(rows, step_ns=100_000_000))
    assert refusal(*make(rows * 1.0001)).code in ('velocity_limit', 'position_limit')


def test_limits_of_other_columns_are_refused():
    chunk, _ = make([0.0])
    assert refusal(chunk, make([0.0], 'a')[1]).code == 'wrong_columns'


def test_a_fast_chunk_is_run_through_more_slowly_and_twists_shrink():
    chunk, limits = make([[0.0, 0.4], [0.8, 0.4], [1.6, 0.4]], 'pt')
    slow = stretch(chunk, limits)
    assert (slow.step_ns, slow.start_ns, slow.observation_stamp_ns) == (100_000_000, 0, 7)
    np.testing.assert_allclose(slow.actions[:, 0], [0.0, 0.2, 0.4], atol=1e-6)
    np.testing.assert_allclose(slow.actions[:, 1], 0.1, atol=1e-6)


def test_a_chunk_is_bent_as_little_as_the_limits_allow():
    chunk, limits = make([-0.2, 0.0, 0.2, 0.5, 0.6, 0.7])
    bent = clamp(chunk, limits)
    # It goes on with the velocity it begins with: 2 per s; then the row that is too far away is made up for.
    np.testing.assert_allclose(bent.actions[:3, 0], [-0.2, 0.0, 0.2], atol=1e-6)
    assert 0.3 < bent.actions[3, 0] < 0.5
    check_chunk(bent, limits)
    assert bent.step_ns == chunk.step_ns


def test_a_place_out_of_range_is_bent_to_its_end():
    chunk, limits = make([3.5] * 8)
    np.testing.assert_allclose(clamp(chunk, limits).actions, 3.0)


def test_a_chunk_that_fits_stays_itself_and_no_time_mends_a_position():
    chunk, limits = make([0.0, 0.1])
    assert stretch(chunk, limits) is chunk
    assert clamp(chunk, limits) is chunk
    chunk, limits = make([0.0, 4.0])
    with pytest.raises(ChunkRejectedError) as caught:
        stretch(chunk, limits)
    assert caught.value.code == 'position_limit'


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 20), st.sampled_from([None, 30.0]))
def test_what_is_stretched_or_clamped_passes_the_check(seed, horizon, jerk):
    random = np.random.default_rng(seed)
    rows = random.uniform(-3, 3, (horizon, 8))
    rows[:, 4:] = random.normal(size=(horizon, 4))
    rows[:, 4:] /= np.linalg.norm(rows[:, 4:], axis=1, keepdims=True)
    # A rotation has no jerk limit; the others get one in a second chunk.
    kinds = 'patgqqqq' if jerk is None else 'patg'
    chunk, limits = make(
        rows[:, : len(kinds)],
        kinds,
        step_ns=int(random.integers(1_000_000, 100_000_000)),
        **({} if jerk is None else {'jerk': jerk}),
    )
    for mend in (stretch, clamp):
        mended = mend(chunk, limits)
        check_chunk(mended, limits)
        assert (mended.step_ns, mended.horizon) == (chunk.step_ns, chunk.horizon)
