# SPDX-License-Identifier: Apache-2.0
"""Between messages and the types of `core`: the only place that knows both."""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np
from builtin_interfaces.msg import Time

from vla_policy_ros.core.chunk import ActionChunk
from vla_policy_ros.core.errors import ChunkRejectedError
from vla_policy_ros.core.observation import Instruction
from vla_policy_ros.core.specs import Array, Column, ColumnKind, Representation
from vla_policy_ros.msg import ActionChunk as ActionChunkMessage

_NS_PER_S = 1_000_000_000


def to_time(stamp_ns: int) -> Time:
    """Return nanoseconds as a time message."""
    return Time(sec=stamp_ns // _NS_PER_S, nanosec=stamp_ns % _NS_PER_S)


def to_ns(stamp: Any) -> int:
    """Return a time message in nanoseconds."""
    return int(stamp.sec) * _NS_PER_S + int(stamp.nanosec)


def chunk_to_message(chunk: ActionChunk, *, publish_stamp_ns: int) -> ActionChunkMessage:
    """Return a chunk as its message."""
    message = ActionChunkMessage()
    message.header.stamp = to_time(chunk.observation_stamp_ns)
    message.publish_stamp = to_time(publish_stamp_ns)
    message.start_stamp = to_time(chunk.start_ns)
    message.sequence = chunk.sequence
    message.epoch = chunk.epoch
    message.step_ns = chunk.step_ns
    message.horizon = chunk.horizon
    message.names = list(chunk.names)
    message.kinds = [column.kind.value for column in chunk.columns]
    message.units = [column.unit for column in chunk.columns]
    message.representations = [column.representation.value for column in chunk.columns]
    # An array of the field's own type is taken over without a check of every element.
    message.values = array('f', np.ascontiguousarray(chunk.actions).tobytes())
    message.instruction_id = chunk.instruction.instruction_id
    message.instruction = chunk.instruction.text
    message.stream_names = list(chunk.stream_ages_ns)
    message.stream_ages_ns = list(chunk.stream_ages_ns.values())
    message.stage_names = list(chunk.stage_latencies_ns)
    message.stage_latencies_ns = list(chunk.stage_latencies_ns.values())
    message.policy_id = chunk.policy_id
    return message


def chunk_from_message(message: ActionChunkMessage) -> ActionChunk:
    """Return a message as a chunk.

    Raises:
        ChunkRejectedError: Sizes do not fit, a kind or representation is unknown, or a value is not finite.
    """
    try:
        columns = tuple(
            Column(name, unit, ColumnKind(kind), Representation(representation))
            for name, unit, kind, representation in zip(
                message.names, message.units, message.kinds, message.representations, strict=True
            )
        )
        ages_ns = dict(zip(message.stream_names, message.stream_ages_ns, strict=True))
        stages_ns = dict(zip(message.stage_names, message.stage_latencies_ns, strict=True))
    except ValueError as fault:
        raise ChunkRejectedError(
            f'chunk at {to_ns(message.header.stamp)} ns',
            got=str(fault),
            expected='lists of one length, with kinds and representations of ActionChunk.msg',
            next_step='Check that publisher and receiver use the same version of this package.',
            code='bad_message',
        ) from fault
    values: Array = np.array(message.values, dtype=np.float32)
    rows = int(message.horizon)
    fits = rows > 0 and values.size == rows * len(columns)
    return ActionChunk(
        actions=values.reshape(rows, len(columns)) if fits else values,
        columns=columns,
        step_ns=message.step_ns,
        start_ns=to_ns(message.start_stamp),
        observation_stamp_ns=to_ns(message.header.stamp),
        sequence=message.sequence,
        epoch=message.epoch,
        instruction=Instruction(message.instruction, message.instruction_id),
        policy_id=message.policy_id,
        stream_ages_ns=ages_ns,
        stage_latencies_ns=stages_ns,
    )
