# SPDX-License-Identifier: Apache-2.0
"""Rows of parquet files: numbers as matrices, other cells one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vla_policy_ros.core.errors import DatasetError
from vla_policy_ros.core.specs import Array
from vla_policy_ros.datasets.faults import broken_file, missing_file

_CELLS_PER_BATCH = 8


@contextmanager
def open_parquet(path: Path) -> Iterator[Any]:
    """Open a parquet file for the length of a `with` block; yields a `pyarrow.parquet.ParquetFile`.

    Raises:
        DatasetError: The file is missing, or cannot be read, now or within the block.
    """
    if not path.is_file():
        raise missing_file(path, 'a parquet file')
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, OSError) as fault:
        raise broken_file(path, 'a readable parquet file', fault, 'broken_parquet') from fault


def read_rows(path: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Read the named columns, where present, as one dictionary per row."""
    with open_parquet(path) as file:
        present = [name for name in file.schema_arrow.names if name in columns]
        rows: list[dict[str, Any]] = file.read(columns=present).select(present).to_pylist()
    return rows


def column_names(path: Path) -> tuple[str, ...]:
    """Return the names of a file's columns."""
    with open_parquet(path) as file:
        return tuple(file.schema_arrow.names)


def read_episode_indices(path: Path) -> frozenset[int]:
    """Return the indices of the episodes that have rows in a file; none when it cannot be read."""
    try:
        with open_parquet(path) as file:
            indices = read_numbers(path, ['episode_index'], range(file.metadata.num_rows))
    except DatasetError:
        return frozenset()
    return frozenset(indices['episode_index'][:, 0].tolist())


def find_rows(path: Path, episode_index: int | None) -> range:
    """Return the rows of an episode in a file that several episodes share, or all rows when the index is None.

    Raises:
        DatasetError: The file is missing or broken, lacks `episode_index`, or the rows do not stand together.
    """
    with open_parquet(path) as file:
        if episode_index is None:
            return range(file.metadata.num_rows)
        indices = read_numbers(path, ['episode_index'], range(file.metadata.num_rows))
    hits = np.flatnonzero(indices['episode_index'][:, 0] == episode_index)
    if not len(hits):
        return range(0)
    rows = range(int(hits[0]), int(hits[-1]) + 1)
    if len(hits) != len(rows):
        raise DatasetError(
            str(path),
            got=f'{len(hits)} rows of episode {episode_index} spread over {len(rows)}',
            expected='rows of an episode that stand together',
            next_step='Convert the dataset again.',
            code='scattered_rows',
        )
    return rows


def read_numbers(path: Path, columns: Sequence[str], rows: range) -> dict[str, Array]:
    """Read numeric columns of a range of rows, each as (rows, width) in its own element type.

    Raises:
        DatasetError: The file is missing or broken, or a column is absent, ragged or not numeric.
    """
    with open_parquet(path) as file:
        absent = [name for name in columns if name not in file.schema_arrow.names]
        if absent:
            raise missing_column(path, absent[0], file.schema_arrow.names)
        groups, skipped = _overlapping_groups(file, rows)
        table = file.read_row_groups(groups, columns=list(columns)).slice(skipped, len(rows))
        return {name: _to_matrix(table.column(name), f'{path}: {name}') for name in columns}


def iter_cells(path: Path, column: str, rows: range) -> Iterator[Any]:
    """Yield the cells of one column as Python values, a few rows in memory at a time.

    Raises:
        DatasetError: The file is missing or broken, or has no such column.
    """
    with open_parquet(path) as file:
        if column not in file.schema_arrow.names:
            raise missing_column(path, column, file.schema_arrow.names)
        groups, skipped = _overlapping_groups(file, rows)
        batches = file.iter_batches(_CELLS_PER_BATCH, row_groups=groups, columns=[column])
        position = -skipped
        for batch in batches:
            for cell in batch.column(0):
                if 0 <= position < len(rows):
                    yield cell.as_py()
                position += 1
            if position >= len(rows):
                return


def missing_column(path: Path, column: str, present: Sequence[str]) -> DatasetError:
    """Return the fault of a column that is not in a file."""
    return DatasetError(
        str(path),
        got=f'columns {", ".join(present)}'[:300],
        expected=f'a column {column!r}',
        next_step='Compare meta/info.json with the file.',
        code='missing_column',
    )


def _overlapping_groups(file: Any, rows: range) -> tuple[list[int], int]:
    """Return the row groups that hold the rows, and how many rows of the first one come before them."""
    sizes = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
    ends = np.cumsum([0, *sizes])
    groups = [
        i for i in range(len(sizes)) if ends[i] < rows.stop and ends[i + 1] > rows.start and rows
    ]
    return groups, rows.start - int(ends[groups[0]]) if groups else 0


def _to_matrix(column: Any, where: str) -> Array:
    values = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    rows = len(values)
    is_ragged = False
    while pa.types.is_nested(values.type) and not pa.types.is_struct(values.type):
        lengths = pc.min_max(pc.list_value_length(values)).as_py()
        is_ragged |= lengths['min'] != lengths['max'] or values.null_count > 0
        values = values.flatten()
    if is_ragged or not _is_number(values.type):
        raise DatasetError(
            where,
            got='rows of different length' if is_ragged else f'{column.type}',
            expected='numbers, as many in every row',
            next_step='Convert the dataset again.',
            code='wrong_column',
        )
    array: Array = values.to_numpy(zero_copy_only=False)
    return array.reshape(rows, -1) if rows else array.reshape(0, 0)


def _is_number(kind: Any) -> bool:
    return bool(
        pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)
    )
