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
