# SPDX-License-Identifier: Apache-2.0
"""A chunk stream as it was published, kept in two files.

`chunks.npz` holds what is a function of the input alone: two lock-step runs write the same bytes. `timing.npz` holds
what the clock said.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from vla_policy_ros.core.chunk import ActionChunk
from vla_policy_ros.core.errors import DatasetError, SpecMismatchError
from vla_policy_ros.core.observation import Instruction
from vla_policy_ros.core.specs import Array, Column, ColumnKind, Representation
from vla_policy_ros.evaluation.npz import pack_arrays, read_arrays

CHUNKS_FILE = 'chunks.npz'
TIMING_FILE = 'timing.npz'
_ABSENT = int(np.iinfo(np.int64).min)  # a stream or stage that this chunk does not have


class ChunkRecording:
    """The chunks of one topic in the order of their arrival, all with the same columns, horizon and step.

    One thread at a time. The array properties are copies, made when asked for.
    """

    def __init__(self) -> None:
        self._chunks: list[ActionChunk] = []
        self._publish_stamps_ns: list[int] = []
        self._receive_stamps_ns: list[int] = []

    def __len__(self) -> int:
        return len(self._chunks)

    def __iter__(self) -> Iterator[ActionChunk]:
        return iter(self._chunks)

    def append(self, chunk: ActionChunk, *, publish_stamp_ns: int, receive_stamp_ns: int) -> None:
        """Add one chunk and when it was published and received.

        Raises:
            SpecMismatchError: Its columns, horizon or step differ from those of the chunks before.
        """
        if self._chunks and _layout(chunk) != _layout(self._chunks[0]):
            raise SpecMismatchError(
                f'recording, chunk at {chunk.observation_stamp_ns} ns',
                got=_describe_layout(chunk),
                expected=_describe_layout(self._chunks[0]),
                next_step='Record one policy at a time.',
                code='stream_changed',
            )
        self._chunks.append(chunk)
        self._publish_stamps_ns.append(publish_stamp_ns)
        self._receive_stamps_ns.append(receive_stamp_ns)

    def extend(self, other: ChunkRecording) -> None:
        """Add all chunks of another recording after this one's.

        Raises:
            SpecMismatchError: Its columns, horizon or step differ.
        """
        stamps = zip(other._publish_stamps_ns, other._receive_stamps_ns, strict=True)
        for chunk, (published, received) in zip(other, stamps, strict=True):
            self.append(chunk, publish_stamp_ns=published, receive_stamp_ns=received)

    @property
    def columns(self) -> tuple[Column, ...]:
        """The D columns; none when nothing was recorded."""
        return self._chunks[0].columns if self._chunks else ()

    @property
    def horizon(self) -> int:
        """K, the rows of every chunk; 0 when nothing was recorded."""
        return self._chunks[0].horizon if self._chunks else 0

    @property
    def step_ns(self) -> int:
        """Time between two rows; 0 when nothing was recorded."""
        return self._chunks[0].step_ns if self._chunks else 0

    @property
    def policy_ids(self) -> tuple[str, ...]:
        """The policies that spoke, in order of appearance."""
        return tuple(dict.fromkeys(chunk.policy_id for chunk in self._chunks))

    @property
    def actions(self) -> Array:
        """(N, K, D) float32 actions; (0, 0, 0) when nothing was recorded."""
        if not self._chunks:
            return np.zeros((0, 0, 0), np.float32)
        return np.stack([chunk.actions for chunk in self._chunks])

    @property
    def observation_stamps_ns(self) -> Array:
        """(N,) int64 capture times of the observations."""
        return _integers([chunk.observation_stamp_ns for chunk in self._chunks])

    @property
    def starts_ns(self) -> Array:
        """(N,) int64 times of the rows 0."""
        return _integers([chunk.start_ns for chunk in self._chunks])

    @property
    def sequences(self) -> Array:
        """(N,) int64 sequence numbers."""
        return _integers([chunk.sequence for chunk in self._chunks])

    @property
    def epochs(self) -> Array:
        """(N,) int64 epochs."""
        return _integers([chunk.epoch for chunk in self._chunks])

    @property
    def publish_stamps_ns(self) -> Array:
        """(N,) int64 times of publication, on the publisher's clock."""
        return _integers(self._publish_stamps_ns)

    @property
    def receive_stamps_ns(self) -> Array:
        """(N,) int64 times of receipt, on the receiver's clock."""
        return _integers(self._receive_stamps_ns)

    def stage_latencies_ns(self) -> dict[str, Array]:
        """Return per stage the int64 latencies of the chunks that have it."""
        names, table = _table([chunk.stage_latencies_ns for chunk in self._chunks])
        columns = {str(name): table[:, index] for index, name in enumerate(names)}
        return {name: values[values != _ABSENT] for name, values in columns.items()}

    def digest(self) -> str:
        """Return the SHA-256 of `chunks.npz`: equal for two runs that published the same chunks."""
        return hashlib.sha256(pack_arrays(self._chunk_arrays())).hexdigest()

    def save(self, folder: str | Path) -> None:
        """Write `chunks.npz` and `timing.npz` into a folder, which is made when it is missing."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CHUNKS_FILE).write_bytes(pack_arrays(self._chunk_arrays()))
        (folder / TIMING_FILE).write_bytes(pack_arrays(self._timing_arrays()))

    @classmethod
    def load(cls, folder: str | Path) -> ChunkRecording:
        """Read what `save` wrote.

        Raises:
            DatasetError: A file is missing or broken, or holds a chunk that could never have been published.
        """
        folder = Path(folder)
        arrays = read_arrays(folder / CHUNKS_FILE) | read_arrays(folder / TIMING_FILE)
        recording = cls()
        try:
            chunks = list(_chunks_of(arrays))
            stamps = zip(
                arrays['publish_stamp_ns'].tolist(),
                arrays['receive_stamp_ns'].tolist(),
                strict=True,
            )
            for chunk, (published, received) in zip(chunks, stamps, strict=True):
                recording.append(chunk, publish_stamp_ns=published, receive_stamp_ns=received)
        except (KeyError, IndexError, ValueError) as fault:
            raise DatasetError(
                str(folder),
                got=f'arrays that do not belong together ({fault})',
                expected=f'{CHUNKS_FILE} and {TIMING_FILE} of one run',
                next_step='Record the run again.',
                code='broken_file',
            ) from fault
        return recording

    def _chunk_arrays(self) -> dict[str, Array]:
        chunks = self._chunks
        stream_names, stream_ages_ns = _table([chunk.stream_ages_ns for chunk in chunks])
        return {
            'actions': self.actions,
            'observation_stamp_ns': self.observation_stamps_ns,
            'start_ns': self.starts_ns,
            'sequence': self.sequences,
            'epoch': self.epochs,
            'step_ns': _integers([chunk.step_ns for chunk in chunks]),
            'instruction_id': _integers([chunk.instruction.instruction_id for chunk in chunks]),
            'instruction': _texts([chunk.instruction.text for chunk in chunks]),
            'policy_id': _texts([chunk.policy_id for chunk in chunks]),
            'names': _texts([column.name for column in self.columns]),
            'units': _texts([column.unit for column in self.columns]),
            'kinds': _texts([column.kind.value for column in self.columns]),
            'representations': _texts([column.representation.value for column in self.columns]),
            'stream_names': stream_names,
            'stream_ages_ns': stream_ages_ns,
        }

    def _timing_arrays(self) -> dict[str, Array]:
        names, latencies_ns = _table([chunk.stage_latencies_ns for chunk in self._chunks])
        return {
            'publish_stamp_ns': self.publish_stamps_ns,
            'receive_stamp_ns': self.receive_stamps_ns,
            'stage_names': names,
            'stage_latencies_ns': latencies_ns,
        }


def _layout(chunk: ActionChunk) -> tuple[object, ...]:
    return chunk.columns, chunk.horizon, chunk.step_ns


def _describe_layout(chunk: ActionChunk) -> str:
    names = ', '.join(chunk.names)
    return f'{chunk.horizon} rows every {chunk.step_ns} ns of {names}'


def _integers(values: Sequence[int]) -> Array:
    return np.array(values, np.int64)


def _texts(values: Sequence[str]) -> Array:
    return np.array(values, np.str_)


def _table(rows: Sequence[Mapping[str, int]]) -> tuple[Array, Array]:
    """Return the names in order of appearance and the (N, names) int64 values."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    values = [[row.get(name, _ABSENT) for name in names] for row in rows]
    return _texts(names), np.array(values, np.int64).reshape(len(rows), len(names))


def _rows(names: Array, table: Array) -> list[dict[str, int]]:
    """Undo `_table`."""
    labels = names.tolist()
    return [
        {name: value for name, value in zip(labels, row, strict=True) if value != _ABSENT}
        for row in table.tolist()
    ]


def _chunks_of(arrays: Mapping[str, Array]) -> Iterator[ActionChunk]:
    keys = ('names', 'units', 'kinds', 'representations')
    columns = tuple(
        Column(name, unit, ColumnKind(kind), Representation(representation))
        for name, unit, kind, representation in zip(
            *(arrays[key].tolist() for key in keys), strict=True
        )
    )
    ages = _rows(arrays['stream_names'], arrays['stream_ages_ns'])
    stages = _rows(arrays['stage_names'], arrays['stage_latencies_ns'])
    for index, actions in enumerate(arrays['actions']):
        yield ActionChunk(
            actions=actions,
            columns=columns,
            step_ns=int(arrays['step_ns'][index]),
            start_ns=int(arrays['start_ns'][index]),
            observation_stamp_ns=int(arrays['observation_stamp_ns'][index]),
            sequence=int(arrays['sequence'][index]),
            epoch=int(arrays['epoch'][index]),
            instruction=Instruction(
                str(arrays['instruction'][index]), int(arrays['instruction_id'][index])
            ),
            policy_id=str(arrays['policy_id'][index]),
            stream_ages_ns=ages[index],
            stage_latencies_ns=stages[index],
        )
