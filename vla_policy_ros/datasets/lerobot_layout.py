# SPDX-License-Identifier: Apache-2.0
"""Where the rows and frames of each episode lie: what the versions of the LeRobot format differ in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from vla_policy_ros.core.errors import DatasetError
from vla_policy_ros.datasets.faults import Report
from vla_policy_ros.datasets.lerobot_info import Feature, LeRobotInfo


@dataclass(frozen=True, slots=True)
class VideoSpan:
    """Frames of one camera; `start_s` is the episode's start in a shared file, None when the file is its own."""

    path: Path
    start_s: float | None = None


@dataclass(frozen=True, slots=True)
class EpisodeRecord:
    """One episode: its index in the files, its number of steps, its tasks and where it lies.

    `videos` maps the keys of video features to their frames; `is_shared` tells that other episodes lie in `data`.
    """

    index: int
    length: int
    tasks: tuple[str, ...]
    data: Path
    videos: Mapping[str, VideoSpan]
    is_shared: bool


class Layout(Protocol):
    """The episodes of a dataset in order."""

    @property
    def tasks(self) -> Mapping[int, str]:
        """Task index to text."""

    def __len__(self) -> int:
        """Number of episodes."""

    def record(self, position: int) -> EpisodeRecord:
        """Return one episode by its position; looks for its files.

        Raises:
            DatasetError: A path template of `info.json` cannot be filled in.
        """


def video_features(info: LeRobotInfo) -> tuple[Feature, ...]:
    """Return the features of dtype video."""
    return tuple(feature for feature in info.features.values() if feature.dtype == 'video')


def find_path(
    info: LeRobotInfo, key: str, templates: tuple[str | None, ...], **fields: Any
) -> Path:
    """Return the first path that a template gives and that exists, or else what the first template gives.

    Args:
        info: The dataset.
        key: Key of the template in `info.json`, for messages.
        templates: In the order in which they are tried; None is skipped.
        fields: Values of the templates' fields.

    Raises:
        DatasetError: A template has a field that is not known (`bad_template`).
    """
    paths = [info.root / _fill(info, key, text, fields) for text in templates if text]
    return next((path for path in paths if path.exists()), paths[0])


def read_task_rows(rows: list[dict[str, Any]], where: str, report: Report) -> dict[int, str]:
    """Read rows of `task_index` and `task` (pandas calls an index without a name `__index_level_0__`)."""
    tasks: dict[int, str] = {}
    for number, row in enumerate(rows, start=1):
        index, text = row.get('task_index'), row.get('task', row.get('__index_level_0__'))
        if isinstance(index, int) and isinstance(text, str):
            tasks[index] = text
        else:
            report(bad_row(f'{where}: row {number}', row, 'task_index and task'))
    return tasks


def bad_row(where: str, row: object, expected: str) -> DatasetError:
    """Return the fault of a row that lacks values or has them in a wrong type."""
    return DatasetError(
        where,
        got=repr(row)[:120],
        expected=expected,
        next_step='Mend the file, or convert the dataset again.',
        code='bad_row',
    )


def _fill(info: LeRobotInfo, key: str, template: str, fields: Mapping[str, Any]) -> str:
    try:
        return template.format(**fields)
    except (LookupError, ValueError, AttributeError, TypeError) as fault:
        raise DatasetError(
            f'{info.where}: {key}',
            got=repr(template),
            expected=f'a template of {", ".join(sorted(fields))}',
            next_step='Mend the template.',
            code='bad_template',
        ) from fault
