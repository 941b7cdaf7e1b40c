# SPDX-License-Identifier: Apache-2.0
"""The `meta/` folder of a LeRobot dataset that is being written, in the form of each version."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vla_policy_ros.core.specs import Array
from vla_policy_ros.datasets.lerobot_info import (
    DATA_PATH_V2,
    DATA_PATH_V3,
    VIDEO_PATH_V2,
    VIDEO_PATH_V3,
)
from vla_policy_ros.datasets.lerobot_statistics import (
    FeatureStatistics,
    ImageStatistics,
    compute_number_statistics,
)

CHUNKS_SIZE = 1000
NUMBER_TYPES = {
    'observation.state': 'float32',
    'action': 'float32',
    'timestamp': 'float32',
    'frame_index': 'int64',
    'episode_index': 'int64',
    'index': 'int64',
    'task_index': 'int64',
}
"""Columns of every table and their element types."""

# What pandas needs to take the texts as the index, as LeRobot reads them.
_PANDAS_TASK_INDEX = {
    'index_columns': ['task'],
    'column_indexes': [],
    'columns': [
        {
            'name': name,
            'field_name': name,
            'pandas_type': kind,
            'numpy_type': numpy_type,
            'metadata': None,
        }
        for name, kind, numpy_type in (
            ('task_index', 'int64', 'int64'),
            ('task', 'unicode', 'object'),
        )
    ],
    'pandas_version': '2.0.0',
}


@dataclass(frozen=True, slots=True)
class WriterSettings:
    """What is fixed when a dataset is begun; `codec` is `h264`, `av1` or `png`."""

    version: str
    rate_hz: Fraction
    robot_type: str
    cameras: Mapping[str, tuple[int, int]]
    state: tuple[str, ...]
    action: tuple[str, ...]
    codec: str

    @property
    def is_v3(self) -> bool:
        """Whether episodes share files."""
        return self.version == 'v3.0'

    @property
    def has_videos(self) -> bool:
        """Whether images go into videos, not into the table."""
        return self.codec != 'png'


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeMeta:
    """What is known of one episode that is written; `video_starts` maps video keys to the first frame in their file."""

    index: int
    first_row: int
    length: int
    tasks: tuple[str, ...]
    file_index: int
    numbers: Mapping[str, Array]
    images: Mapping[str, ImageStatistics]
    video_starts: Mapping[str, int]

    def statistics(self) -> dict[str, FeatureStatistics]:
        """Compute the statistics of this episode."""
        return compute_statistics([self])


@dataclass(frozen=True, slots=True)
class MetaWriter:
    """Collects episodes and tasks, and writes `meta/` once at the end."""

    root: Path
    settings: WriterSettings
    episodes: list[EpisodeMeta] = field(default_factory=list)
    tasks: dict[str, int] = field(default_factory=dict)

    @property
    def num_rows(self) -> int:
        """Rows of all episodes so far."""
        return sum(episode.length for episode in self.episodes)

    def task_index(self, text: str) -> int:
        """Return the index of a task; a new text gets the next one."""
        return self.tasks.setdefault(text, len(self.tasks))

    def write(self) -> None:
        """Write all files of `meta/`."""
        meta = self.root / 'meta'
        meta.mkdir(parents=True, exist_ok=True)
        _write_json(meta / 'info.json', self._info())
        if self.settings.is_v3:
            self._write_tables(meta)
        else:
            self._write_lines(meta)
        if self.settings.version != 'v2.1':
            _write_json(meta / 'stats.json', compute_statistics(self.episodes))

    def _info(self) -> dict[str, Any]:
        settings, num_episodes = self.settings, len(self.episodes)
        num_videos = len(settings.cameras) * num_episodes if settings.has_videos else 0
        video_path = VIDEO_PATH_V3 if settings.is_v3 else VIDEO_PATH_V2
        info: dict[str, Any] = {
            'codebase_version': settings.version,
            'robot_type': settings.robot_type,
            'total_episodes': num_episodes,
            'total_frames': self.num_rows,
            'total_tasks': len(self.tasks),
            'chunks_size': CHUNKS_SIZE,
            'fps': _rate(settings),
            'splits': {'train': f'0:{num_episodes}'},
            'data_path': DATA_PATH_V3 if settings.is_v3 else DATA_PATH_V2,
            'video_path': video_path if settings.has_videos else None,
            'features': self._features(),
        }
        if settings.is_v3:
            return {**info, 'data_files_size_in_mb': 100, 'video_files_size_in_mb': 200}
        chunks = -(-num_episodes // CHUNKS_SIZE)
        return {**info, 'total_videos': num_videos, 'total_chunks': chunks}

    def _features(self) -> dict[str, Any]:
        settings = self.settings
        names = {'observation.state': settings.state, 'action': settings.action}
        features: dict[str, Any] = {
            key: {
                'dtype': kind,
                'shape': [len(names[key])] if key in names else [1],
                'names': list(names[key]) if key in names else None,
            }
            for key, kind in NUMBER_TYPES.items()
        }
        for camera, (height, width) in settings.cameras.items():
            features[image_key(camera)] = {
                'dtype': 'video' if settings.has_videos else 'image',
                'shape': [height, width, 3],
                'names': ['height', 'width', 'channels'],
                **({'info': _video_info(settings, height, width)} if settings.has_videos else {}),
            }
        return features

    def _write_lines(self, meta: Path) -> None:
        rows = [{'task_index': index, 'task': text} for text, index in self.tasks.items()]
        _write_json_lines(meta / 'tasks.jsonl', rows)
        episodes = [
            {'episode_index': e.index, 'tasks': list(e.tasks), 'length': e.length}
            for e in self.episodes
        ]
        _write_json_lines(meta / 'episodes.jsonl', episodes)
        if self.settings.version == 'v2.1':
            rows = [{'episode_index': e.index, 'stats': e.statistics()} for e in self.episodes]
            _write_json_lines(meta / 'episodes_stats.jsonl', rows)

    def _write_tables(self, meta: Path) -> None:
        tasks = pa.table(
            {'task_index': pa.array(self.tasks.values(), pa.int64()), 'task': list(self.tasks)}
        ).replace_schema_metadata({'pandas': json.dumps(_PANDAS_TASK_INDEX)})
        pq.write_table(tasks, meta / 'tasks.parquet')
        path = meta / 'episodes' / 'chunk-000' / 'file-000.parquet'
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [self._episode_row(episode) for episode in self.episodes]
        pq.write_table(pa.Table.from_pylist(rows), path)

    def _episode_row(self, episode: EpisodeMeta) -> dict[str, Any]:
        row: dict[str, Any] = {
            'episode_index': episode.index,
            'tasks': list(episode.tasks),
            'length': episode.length,
            'data/chunk_index': 0,
            'data/file_index': episode.file_index,
            'dataset_from_index': episode.first_row,
            'dataset_to_index': episode.first_row + episode.length,
            'meta/episodes/chunk_index': 0,
            'meta/episodes/file_index': 0,
        }
        for key, start in episode.video_starts.items():
            rate_hz = self.settings.rate_hz
            row[f'videos/{key}/chunk_index'] = 0
            row[f'videos/{key}/file_index'] = episode.file_index
            row[f'videos/{key}/from_timestamp'] = float(start / rate_hz)
            row[f'videos/{key}/to_timestamp'] = float((start + episode.length) / rate_hz)
        for key, values in episode.statistics().items():
            row.update({f'stats/{key}/{name}': value for name, value in values.items()})
        return row


def image_key(camera: str) -> str:
    """Return the feature key of a camera."""
    return f'observation.images.{camera}'


def compute_statistics(episodes: Iterable[EpisodeMeta]) -> dict[str, FeatureStatistics]:
    """Compute the statistics of all features over all steps of the episodes."""
    listed = list(episodes)
    statistics = {
        key: compute_number_statistics([episode.numbers[key] for episode in listed])
        for key in (listed[0].numbers if listed else ())
    }
    for key in listed[0].images if listed else ():
        counts = ImageStatistics()
        for episode in listed:
            counts.merge(episode.images[key])
        statistics[key] = counts.compute()
    return statistics


def _rate(settings: WriterSettings) -> int | float:
    rate_hz = settings.rate_hz
    return rate_hz.numerator if rate_hz.denominator == 1 else float(rate_hz)


def _video_info(settings: WriterSettings, height: int, width: int) -> dict[str, Any]:
    return {
        'video.height': height,
        'video.width': width,
        'video.channels': 3,
        'video.codec': settings.codec,
        'video.pix_fmt': 'yuv420p',
        'video.is_depth_map': False,
        'video.fps': _rate(settings),
        'has_audio': False,
    }


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=4, ensure_ascii=False) + '\n', encoding='utf-8')


def _write_json_lines(path: Path, rows: Iterable[object]) -> None:
    lines = (json.dumps(row, ensure_ascii=False) + '\n' for row in rows)
    path.write_text(''.join(lines), encoding='utf-8')
