# SPDX-License-Identifier: Apache-2.0
"""The numbers of one LeRobot episode: stamps, state, action and instructions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vla_policy_ros.core.errors import DatasetError
from vla_policy_ros.core.specs import Array
from vla_policy_ros.datasets.lerobot_info import Feature
from vla_policy_ros.datasets.lerobot_layout import EpisodeRecord
from vla_policy_ros.datasets.parquet_files import column_names, find_rows, read_numbers
from vla_policy_ros.datasets.video import TOLERANCE_S


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSchema:
    """The columns that an episode's table is read for."""

    state: tuple[Feature, ...]
    action: tuple[Feature, ...]
    instruction: str
    image_columns: frozenset[str]
    step_ns: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EpisodeRows:
    """Numbers of one episode of N steps.

    Attributes:
        rows: Rows of the episode within its file.
        timestamps_s: (N,) float64 times as they stand in the file.
        stamps_ns: (N,) int64 times from 0.
        state: (N, S) float32.
        action: (N, D) float32.
        instructions: N texts.
        image_columns: Features whose images lie in the table.
    """

    rows: range
    timestamps_s: Array
    stamps_ns: Array
    state: Array
    action: Array
    instructions: Sequence[str]
    image_columns: frozenset[str]


def read_episode_rows(
    record: EpisodeRecord, schema: RowSchema, tasks: Mapping[int, str]
) -> EpisodeRows:
    """Read an episode's table.

    Raises:
        DatasetError: The table is missing or broken, its length is not what `meta/` says, a column is missing or has
            another width, the times do not grow, or a task index has no text.
    """
    rows = find_rows(record.data, record.index if record.is_shared else None)
    if len(rows) != record.length or not record.length:
        raise _fault(
            record, f'{len(rows)} rows', f'{record.length or "some"} rows', 'wrong_length'
        )
    present = column_names(record.data)
    optional = [name for name in ('timestamp', schema.instruction) if name in present]
    vectors = [feature.key for feature in (*schema.state, *schema.action)]
    numbers = read_numbers(record.data, [*vectors, *optional], rows)
    grid_s = np.arange(len(rows)) * (schema.step_ns / 1e9)
    times_s = numbers['timestamp'][:, 0].astype(np.float64) if 'timestamp' in numbers else grid_s
    return EpisodeRows(
        rows=rows,
        timestamps_s=times_s,
        stamps_ns=_make_stamps(times_s, schema.step_ns, record),
        state=_join(record.data, numbers, schema.state, len(rows)),
        action=_join(record.data, numbers, schema.action, len(rows)),
        instructions=_make_instructions(record, numbers.get(schema.instruction), tasks),
        image_columns=schema.image_columns,
    )


def _make_stamps(times_s: Array, step_ns: int, record: EpisodeRecord) -> Array:
    """Count from the first time; times that follow the rate within the tolerance are put on its exact grid.

    Files keep times as float32, whose error grows with the length of an episode.
    """
    from_start_s = times_s - times_s[0]
    grid_ns = np.arange(len(times_s), dtype=np.int64) * step_ns
    if np.all(np.abs(from_start_s - grid_ns / 1e9) <= TOLERANCE_S):
        return grid_ns
    is_finite = bool(np.isfinite(times_s).all())
    stamps: Array = np.rint(from_start_s * 1e9).astype(np.int64) if is_finite else grid_ns * 0
    if not is_finite or np.any(np.diff(stamps) <= 0):
        raise _fault(record, 'times that do not grow', 'growing times', 'stamps_not_growing')
    return stamps


def _join(
    path: Path, numbers: Mapping[str, Array], features: Sequence[Feature], length: int
) -> Array:
    """Put vectors side by side as (N, sum of widths) float32."""
    for feature in features:
        if numbers[feature.key].shape[1] != feature.width:
            raise DatasetError(
                f'{path}: {feature.key}',
                got=f'{numbers[feature.key].shape[1]} numbers',
                expected=f'{feature.width} as in meta/info.json',
                next_step='Correct the shape in meta/info.json.',
                code='wrong_width',
            )
    parts = [numbers[feature.key] for feature in features] or [np.empty((length, 0))]
    with np.errstate(
        over='ignore'
    ):  # a float64 beyond float32 becomes infinite, and is refused as such later
        return np.concatenate(parts, axis=1).astype(np.float32)


def _make_instructions(
    record: EpisodeRecord, indices: Array | None, tasks: Mapping[int, str]
) -> tuple[str, ...]:
    """Look up one text per step; a table without task indices has the episode's first task throughout."""
    if indices is None:
        return ((record.tasks or ('',))[0],) * record.length
    unknown = sorted({int(index) for index in np.unique(indices)} - tasks.keys())
    if unknown:
        raise _fault(record, f'task index {unknown[0]}', 'an index of meta/tasks', 'unknown_task')
    return tuple(tasks[int(index)] for index in indices[:, 0])


def _fault(record: EpisodeRecord, got: str, expected: str, code: str) -> DatasetError:
    return DatasetError(
        f'{record.data} (episode {record.index})',
        got=got,
        expected=expected,
        next_step='Copy the file again, or leave this episode out.',
        code=code,
    )
