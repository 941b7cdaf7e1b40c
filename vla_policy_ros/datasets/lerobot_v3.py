# SPDX-License-Identifier: Apache-2.0
"""LeRobot v3.0: many episodes in one parquet file and in one video per camera; `meta/episodes` says where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vla_policy_ros.core.errors import DatasetError
from vla_policy_ros.datasets.faults import Report, missing_file
from vla_policy_ros.datasets.lerobot_info import VIDEO_PATH_V3, LeRobotInfo
from vla_policy_ros.datasets.lerobot_layout import (
    EpisodeRecord,
    VideoSpan,
    bad_row,
    find_path,
    read_task_rows,
    video_features,
)
from vla_policy_ros.datasets.parquet_files import read_episode_indices, read_rows

_EPISODE_COLUMNS = ('episode_index', 'length', 'tasks', 'data/chunk_index', 'data/file_index')
_VIDEO_COLUMNS = ('chunk_index', 'file_index', 'from_timestamp')


class LayoutV3:
    """Reads `meta/episodes/*/*.parquet` and `meta/tasks.parquet`."""

    def __init__(self, info: LeRobotInfo, report: Report) -> None:
        self._info = info
        meta = info.root / 'meta'
        tasks = _read_reported(meta / 'tasks.parquet', _TASK_COLUMNS, report)
        self.tasks = read_task_rows(tasks, str(meta / 'tasks.parquet'), report)
        self._rows = sorted(
            _read_episodes(info, report), key=lambda row: int(row['episode_index'])
        )
        self._episodes_in: dict[Path, frozenset[int]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def record(self, position: int) -> EpisodeRecord:
        """Return one episode by its position; a camera without an entry in `meta/episodes` has no video."""
        row = self._rows[position]
        index = int(row['episode_index'])
        data = self._find_table(row, index)
        videos = {
            feature.key: self._span(row, feature.key)
            for feature in video_features(self._info)
            if all(row.get(f'videos/{feature.key}/{name}') is not None for name in _VIDEO_COLUMNS)
        }
        tasks = tuple(str(task) for task in row.get('tasks') or ())
        return EpisodeRecord(index, int(row['length']), tasks, data, videos, is_shared=True)

    def _find_table(self, row: dict[str, Any], index: int) -> Path:
        """Return the table that `meta/episodes` names, or the later one that holds the episode in its place.

        LeRobot's converter from v2.1 names the file before for the first episode of every further file; LeRobot itself
        does not notice, for it reads all tables as one.
        """
        named = find_path(
            self._info,
            'data_path',
            (self._info.data_path,),
            chunk_index=row['data/chunk_index'],
            file_index=row['data/file_index'],
        )
        if not named.is_file() or self._holds(named, index):
            return named
        later = sorted(path for path in named.parents[1].glob('*/*.parquet') if path > named)
        return next((path for path in later if self._holds(path, index)), named)

    def _holds(self, path: Path, index: int) -> bool:
        if path not in self._episodes_in:
            self._episodes_in[path] = read_episode_indices(path)
        return index in self._episodes_in[path]

    def _span(self, row: dict[str, Any], key: str) -> VideoSpan:
        path = find_path(
            self._info,
            'video_path',
            (self._info.video_path, VIDEO_PATH_V3),
            video_key=key,
            chunk_index=row[f'videos/{key}/chunk_index'],
            file_index=row[f'videos/{key}/file_index'],
        )
        return VideoSpan(path, float(row[f'videos/{key}/from_timestamp']))


_TASK_COLUMNS = ('task_index', 'task', '__index_level_0__')


def _read_episodes(info: LeRobotInfo, report: Report) -> list[dict[str, Any]]:
    folder = info.root / 'meta' / 'episodes'
    paths = sorted(folder.glob('*/*.parquet'))
    if not paths:
        report(missing_file(folder / 'chunk-000' / 'file-000.parquet', 'the table of episodes'))
    columns = [*_EPISODE_COLUMNS]
    for feature in video_features(info):
        columns += [f'videos/{feature.key}/{name}' for name in _VIDEO_COLUMNS]
    return [
        row
        for path in paths
        for row in _read_reported(path, columns, report)
        if _is_episode(row, str(path), report)
    ]


def _read_reported(path: Path, columns: Any, report: Report) -> list[dict[str, Any]]:
    try:
        return read_rows(path, columns)
    except DatasetError as fault:
        report(fault)
        return []


def _is_episode(row: dict[str, Any], where: str, report: Report) -> bool:
    needed = [name for name in _EPISODE_COLUMNS if name != 'tasks']
    values = [row.get(name) for name in needed]
    if all(isinstance(value, int) and value >= 0 for value in values):
        return True
    report(bad_row(where, dict(zip(needed, values, strict=True)), 'integers from 0'))
    return False
