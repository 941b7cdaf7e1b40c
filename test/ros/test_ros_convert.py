# SPDX-License-Identifier: Apache-2.0
import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rclpy.serialization import deserialize_message, serialize_message

from vla_policy_ros.core.chunk import ActionChunk
from vla_policy_ros.core.errors import ChunkRejectedError
from vla_policy_ros.core.observation import Instruction
from vla_policy_ros.core.specs import Column, ColumnKind, Representation
from vla_policy_ros.msg import ActionChunk as ActionChunkMessage
from vla_policy_ros.ros.convert import (
    chunk_from_message,
    chunk_to_message,
    chunk_to_trajectory,
    to_ns,
    to_time,
)

pytestmark = pytest.mark.ros

MS = 1_000_000


def make_chunk(rows=5, **changes):
    actions = np.arange(rows * 2, dtype=np.float32).reshape(rows, 2) / np.float32(3)
    chunk = ActionChunk(
        actions=actions,
        columns=(
            Column('elbow', 'rad', ColumnKind.ANGLE, Representation.RELATIVE_TO_OBSERVATION),
            Column('gripper', 'm', ColumnKind.GRIPPER),
        ),
        step_ns=50 * MS,
        start_ns=10_000_000_001,
        observation_stamp_ns=9_999_999_999,
        sequence=2**40,
        epoch=3,
        instruction=Instruction('pick the cube', 4),
        policy_id='act@0123456789ab',
        stream_ages_ns={'front': 0, 'joint_states[0]': -5},
        stage_latencies_ns={'prepare': 1, 'network': 2},
    )
    return dataclasses.replace(chunk, **changes)


def send(chunk, publish_stamp_ns=0):
    """Return the message as a subscriber gets it."""
    message = chunk_to_message(chunk, publish_stamp_ns=publish_stamp_ns)
    return deserialize_message(serialize_message(message), ActionChunkMessage)


@given(stamp_ns=st.integers(-(2**31) * 10**9, 2**31 * 10**9 - 1))
def test_stamps_survive(stamp_ns):
    assert to_ns(to_time(stamp_ns)) == stamp_ns


def test_a_chunk_survives_the_wire():
    chunk = make_chunk()
    message = send(chunk, publish_stamp_ns=11_000_000_002)
    received = chunk_from_message(message)
    assert to_ns(message.publish_stamp) == 11_000_000_002
    np.testing.assert_array_equal(received.actions, chunk.actions)
    for field in dataclasses.fields(ActionChunk):
        if field.name != 'actions':
            assert getattr(received, field.name) == getattr(chunk, field.name), field.name


def test_values_are_row_major():
    message = send(make_chunk())
    assert (message.horizon, message.names) == (5, ['elbow', 'gripper'])
    assert message.values[3] == make_chunk().actions[1, 1]


@pytest.mark.parametrize(
    ('field', 'value'),
    [
        ('horizon', 4),
        ('horizon', 0),
        ('kinds', ['angle', 'rubber']),
        ('units', ['rad']),
        ('stage_names', ['prepare']),
        ('values', [0.0] * 9 + [float('nan')]),
    ],
)
def test_a_message_that_does_not_fit_is_refused(field, value):
    message = send(make_chunk())
    setattr(message, field, value)
    with pytest.raises(ChunkRejectedError, match='chunk at 9999999999 ns'):
        chunk_from_message(message)


def test_trajectory_holds_the_rows_that_lie_ahead():
    chunk = make_chunk(start_ns=1000 * MS)  # rows at 1000, 1050, ... 1200 ms
    message = chunk_to_trajectory(chunk, now_ns=1020 * MS, lead_ns=30 * MS, names={})
    assert message.joint_names == ['elbow', 'gripper']
    assert to_ns(message.header.stamp) == 1020 * MS
    after_ms = [to_ns_of(point.time_from_start) / MS for point in message.points]
    assert after_ms == [30, 80, 130, 180]
    positions = np.array([point.positions for point in message.points])
    np.testing.assert_array_equal(positions, chunk.actions[1:].astype(np.float64))


def test_trajectory_speaks_the_robots_names():
    chunk = make_chunk(start_ns=1000 * MS)
    message = chunk_to_trajectory(chunk, now_ns=900 * MS, lead_ns=0, names={'elbow': 'joint3'})
    assert message.joint_names == ['joint3', 'gripper']


def test_trajectory_ends_at_rest_with_the_slope_before():
    chunk = make_chunk(start_ns=1000 * MS)
    message = chunk_to_trajectory(chunk, now_ns=900 * MS, lead_ns=0, names={})
    velocities = np.array([point.velocities for point in message.points])
    slope = 2 / 3 / 0.05
    np.testing.assert_allclose(velocities[:-1], slope, rtol=1e-5)
    np.testing.assert_array_equal(velocities[-1], 0.0)


@pytest.mark.parametrize(('now_ms', 'num_points'), [(1100, 3), (1150, 2), (1151, None)])
def test_fewer_than_two_rows_make_no_trajectory(now_ms, num_points):
    chunk = make_chunk(start_ns=1000 * MS)
    message = chunk_to_trajectory(chunk, now_ns=now_ms * MS, lead_ns=0, names={})
    assert (len(message.points) if message else None) == num_points


def to_ns_of(duration):
    return duration.sec * 1_000_000_000 + duration.nanosec
