# SPDX-License-Identifier: Apache-2.0
"""What an executor told a robot during a run, what the robot did, and the limits that hold for it, in one file.

`motion/commands.npz` lies beside the chunks of the run. It depends on the clock: two runs never write the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from vla_policy_ros.core.errors import SpecMismatchError
from vla_policy_ros.core.specs import Array, Column, ColumnKind, Representation
from vla_policy_ros.evaluation.npz import pack_arrays, read_arrays
from vla_policy_ros.execution.limits import FIELDS, JointLimits

COMMANDS_FILE = 'commands.npz'
_Item = TypeVar('_Item')
_SERIES = ('positions', 'velocities', 'accelerations')


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MotionSample:
    """One command as `MotionCommand` tells it.

    Attributes:
        time_ns: Time that it is meant for.
        names: The D columns.
        positions: (D,) float64.
        velocities: (D,) float64, per second.
        accelerations: (D,) float64, per second squared.
        is_limited: (D,) bool: a limit has changed what the policy wanted.
        state: State of the executor.
        sequence: Number of the chunk that is executed.
        epoch: Its epoch.
        is_seam: Whether it is the first command after a change of the chunk.
    """

    time_ns: int
    names: tuple[str, ...]
    positions: Array
    velocities: Array
    accelerations: Array
    is_limited: Array
    state: str
    sequence: int
    epoch: int
    is_seam: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MotionRecording:
    """The N commands of a run in the order of their times, and M poses of the robot that followed them.

    Attributes:
        columns: The D columns.
        times_ns: (N,) int64, strictly increasing.
        positions: (N, D) float64.
        velocities: (N, D) float64, per second.
        accelerations: (N, D) float64, per second squared.
        is_limited: (N, D) bool.
        states: (N,) text.
        sequences: (N,) int64.
        epochs: (N,) int64.
        is_seam: (N,) bool.
        robot_times_ns: (M,) int64, strictly increasing.
        robot_positions: (M, D) float64, NaN where a column is not measured.
        limits: Limits of the D columns; None when nobody knows them.
    """

    columns: tuple[Column, ...]
    times_ns: Array
    positions: Array
    velocities: Array
    accelerations: Array
    is_limited: Array
    states: Array
    sequences: Array
    epochs: Array
    is_seam: Array
    robot_times_ns: Array
    robot_positions: Array
    limits: JointLimits | None = None

    def __len__(self) -> int:
        return len(self.times_ns)

    @property
    def seams_ns(self) -> Array:
        """(S,) int64 times at which a chunk took over from another."""
        times: Array = self.times_ns[self.is_seam]
        return times

    def robot_at(self, times_ns: Array) -> Array:
        """Return the (P, D) poses of the robot at (P,) times, linear in between, NaN where nothing is measured."""
        return sample_series(self.robot_times_ns, self.robot_positions, times_ns)

    def save(self, folder: str | Path) -> None:
        """Write `commands.npz` into a folder, which is made when it is missing."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        arrays['columns'] = np.array([_describe(column) for column in self.columns], np.str_)
        if self.limits is not None:
            arrays |= {f'limits_{name}': getattr(self.limits, name) for name in FIELDS}
        (folder / COMMANDS_FILE).write_bytes(pack_arrays(arrays))

    @classmethod
    def load(cls, folder: str | Path) -> MotionRecording:
        """Read what `save` wrote.

        Raises:
            DatasetError: The file is missing or broken.
        """
        arrays = read_arrays(Path(folder) / COMMANDS_FILE)
        columns = tuple(_read_column(row) for row in arrays['columns'].tolist())
        limits = None
        if 'limits_velocity' in arrays:
            values = {name: arrays[f'limits_{name}'] for name in FIELDS}
            limits = JointLimits(columns=columns, **values)
        return cls(columns=columns, limits=limits, **{name: arrays[name] for name in _ARRAYS})


_ARRAYS = tuple(
    name for name in MotionRecording.__dataclass_fields__ if name not in ('columns', 'limits')
)


class MotionCollector:
    """Collects commands and poses as they come. One thread at a time."""

    def __init__(self) -> None:
        self._samples: list[MotionSample] = []
        self._poses: list[tuple[int, Mapping[str, float]]] = []

    def __len__(self) -> int:
        return len(self._samples)

    def add_command(self, sample: MotionSample) -> None:
        """Take one command.

        Raises:
            SpecMismatchError: Its columns differ from those before.
        """
        if self._samples and sample.names != self._samples[0].names:
            raise SpecMismatchError(
                f'motion command at {sample.time_ns} ns',
                got=', '.join(sample.names),
                expected=', '.join(self._samples[0].names),
                next_step='Record one executor at a time.',
                code='stream_changed',
            )
        self._samples.append(sample)

    def add_pose(self, time_ns: int, positions: Mapping[str, float]) -> None:
        """Take where the robot is, column by column."""
        self._poses.append((time_ns, positions))

    def finish(self, known: Sequence[Column], limits: JointLimits | None) -> MotionRecording:
        """Return what was collected; samples that are not later than all before are left out.

        Args:
            known: Columns that say what a name means; a name that is not among them has no unit.
            limits: Limits of the commanded columns, in their order.
        """
        names = self._samples[0].names if self._samples else tuple(c.name for c in known)
        by_name = {column.name: column for column in known}
        columns = tuple(by_name.get(name, Column(name, '')) for name in names)
        samples = _increasing(self._samples, [sample.time_ns for sample in self._samples])
        poses = _increasing(self._poses, [time_ns for time_ns, _ in self._poses])
        shape = len(samples), len(names)
        return MotionRecording(
            columns=columns,
            times_ns=np.array([sample.time_ns for sample in samples], np.int64),
            **{
                field: np.array([getattr(s, field) for s in samples]).reshape(shape)
                for field in (*_SERIES, 'is_limited')
            },
            states=np.array([sample.state for sample in samples], np.str_),
            sequences=np.array([sample.sequence for sample in samples], np.int64),
            epochs=np.array([sample.epoch for sample in samples], np.int64),
            is_seam=np.array([sample.is_seam for sample in samples], bool),
            robot_times_ns=np.array([time_ns for time_ns, _ in poses], np.int64),
            robot_positions=np.array(
                [[_measured(positions, column) for column in columns] for _, positions in poses],
                np.float64,
            ).reshape(len(poses), len(names)),
            limits=limits,
        )


def sample_series(times_ns: Array, values: Array, at_ns: Array) -> Array:
    """Return (P, D) values of an (N, D) series at (P,) times, linear in between, NaN outside of it."""
    sampled = np.full((len(at_ns), values.shape[1]), np.nan)
    if not len(times_ns):
        return sampled
    origin_ns = int(times_ns[0])
    known, asked = (times_ns - origin_ns) / 1e9, (at_ns - origin_ns) / 1e9
    for index in range(values.shape[1]):
        sampled[:, index] = np.interp(asked, known, values[:, index], left=np.nan, right=np.nan)
    return sampled


def _increasing(items: Sequence[_Item], times_ns: Sequence[int]) -> list[_Item]:
    """Return the items whose time is later than all before."""
    kept, latest_ns = [], -1
    for item, time_ns in zip(items, times_ns, strict=True):
        if time_ns > latest_ns:
            kept.append(item)
            latest_ns = time_ns
    return kept


def _measured(positions: Mapping[str, float], column: Column) -> float:
    """Return where a column is; of a twist, which is a motion, joint states tell only how far it went."""
    return math.nan if column.kind is ColumnKind.TWIST else positions.get(column.name, math.nan)


def _describe(column: Column) -> tuple[str, str, str, str]:
    return column.name, column.unit, column.kind.value, column.representation.value


def _read_column(row: Sequence[str]) -> Column:
    name, unit, kind, representation = row
    return Column(name, unit, ColumnKind(kind), Representation(representation))
