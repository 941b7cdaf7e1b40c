# SPDX-License-Identifier: Apache-2.0
"""`meta/info.json` of a LeRobot dataset: version, rate, path templates and features.

Sources: https://github.com/huggingface/lerobot (dataset formats v2.0, v2.1, v3.0).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_policy_ros.core.errors import DatasetError
from vla_policy_ros.datasets.faults import Report
from vla_policy_ros.datasets.json_files import read_json

SUPPORTED_VERSIONS = ('v2.0', 'v2.1', 'v3.0')
INFO_FILE = 'meta/info.json'

DATA_PATH_V2 = 'data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet'
VIDEO_PATH_V2 = 'videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4'
DATA_PATH_V3 = 'data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet'
VIDEO_PATH_V3 = 'videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4'

_NUMBER_TYPES = ('float', 'int', 'uint', 'bool')
_FLATTENED = ('observation.state', 'action')


@dataclass(frozen=True, slots=True)
class Feature:
    """One feature of `info.json`: key, element type, shape, its names as they stand there, and its video facts."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    names: Any
    video_info: Mapping[str, Any]

    @property
    def is_image(self) -> bool:
        """Whether it is a camera: a video file, or images in the table."""
        return self.dtype in ('video', 'image')

    @property
    def is_depth(self) -> bool:
        """Whether its pixels are distances."""
        return bool(self.video_info.get('video.is_depth_map'))

    @property
    def is_vector(self) -> bool:
        """Whether it is a vector of numbers: up to 1-D, a state or an action of any shape."""
        is_flat = len(self.shape) <= 1 or self.key in _FLATTENED
        return is_flat and self.dtype.startswith(_NUMBER_TYPES)

    @property
    def width(self) -> int:
        """Numbers in one row."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeRobotInfo:
    """What `info.json` says; `video_path` is None in a dataset without videos."""

    root: Path
    version: str
    robot_type: str
    fps: float
    chunks_size: int
    data_path: str
    video_path: str | None
    features: Mapping[str, Feature]

    @property
    def where(self) -> str:
        """Path of the file, for messages."""
        return str(self.root / INFO_FILE)

    @property
    def step_ns(self) -> int:
        """Nominal time between two rows."""
        return round(1e9 / self.fps)


def read_info(root: Path, report: Report) -> LeRobotInfo | None:
    """Read `meta/info.json`; report faults and return None when it cannot be used.

    A version that is not in `SUPPORTED_VERSIONS` is reported with the code `unknown_version`.
    """
    document = read_json(root / INFO_FILE, report)
    if document is None:
        return None
    where = str(root / INFO_FILE)
    version = document.get('codebase_version')
    if version not in SUPPORTED_VERSIONS:
        report(_unknown_version(version, where))
        return None
    fps = document.get('fps')
    if not isinstance(fps, int | float) or isinstance(fps, bool) or not 0 < fps < 1e6:
        report(_bad_value(f'{where}: fps', fps, 'a number above 0'))
        return None
    features = document.get('features')
    if not isinstance(features, dict):
        report(_bad_value(f'{where}: features', features, 'an object of features'))
        return None
    is_v3 = version == 'v3.0'
    return LeRobotInfo(
        root=root,
        version=version,
        robot_type=str(document.get('robot_type') or ''),
        fps=float(fps),
        chunks_size=_positive(document, 'chunks_size', 1000, where, report),
        data_path=str(document.get('data_path') or (DATA_PATH_V3 if is_v3 else DATA_PATH_V2)),
        video_path=str(document['video_path']) if document.get('video_path') else None,
        features=_read_features(features, where, report),
    )


def _read_features(features: dict[str, Any], where: str, report: Report) -> dict[str, Feature]:
    parsed = {key: _read_feature(key, value, where, report) for key, value in features.items()}
    return {key: feature for key, feature in parsed.items() if feature is not None}


def _read_feature(key: str, value: Any, where: str, report: Report) -> Feature | None:
    shape = value.get('shape') if isinstance(value, dict) else None
    if not isinstance(shape, list) or not all(isinstance(size, int) for size in shape):
        report(_bad_value(f'{where}: features.{key}', value, 'an object with dtype and shape'))
        return None
    facts = value.get('info') or value.get('video_info')
    return Feature(
        key,
        str(value.get('dtype')),
        tuple(shape),
        value.get('names'),
        facts if isinstance(facts, dict) else {},
    )


def _positive(document: dict[str, Any], key: str, default: int, where: str, report: Report) -> int:
    value = document.get(key, default)
    if isinstance(value, int) and value > 0:
        return value
    report(_bad_value(f'{where}: {key}', value, 'an integer above 0'))
    return default


def _bad_value(where: str, got: object, expected: str) -> DatasetError:
    return DatasetError(
        where,
        got=repr(got)[:120],
        expected=expected,
        next_step='Mend the file, or convert the dataset again.',
        code='bad_value',
    )


def _unknown_version(version: object, where: str) -> DatasetError:
    return DatasetError(
        f'{where}: codebase_version',
        got=repr(version),
        expected=f'one of {", ".join(SUPPORTED_VERSIONS)}',
        next_step="Convert the dataset with LeRobot's own scripts.",
        code='unknown_version',
    )
