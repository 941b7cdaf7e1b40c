# SPDX-License-Identifier: Apache-2.0
"""LeRobot v2.0 and v2.1: one parquet file and one video per camera for each episode."""

from __future__ import annotations

import re
from typing import Any

from vla_policy_ros.datasets.faults import Report
from vla_policy_ros.datasets.json_files import read_json_lines
from vla_policy_ros.datasets.lerobot_info import DATA_PATH_V2, VIDEO_PATH_V2, LeRobotInfo
from vla_policy_ros.datasets.lerobot_layout import (
    EpisodeRecord,
    VideoSpan,
    bad_row,
    find_path,
    read_task_rows,
    video_features,
)

_FOLDER_FIELD = re.compile(r'\{episode_index(:[^}]*)?\}(?=[^/]*/)')


class LayoutV2:
    """Reads `meta/episodes.jsonl` and `meta/tasks.jsonl`.

    Real datasets carry templates with `episode_index` in a folder's name, where the format means the chunk. A file is
    looked for as the template says, then with the chunk in its place, then where the format has it by default.
    """

    def __init__(self, info: LeRobotInfo, report: Report) -> None:
        self._info = info
        meta = info.root / 'meta'
        rows = read_json_lines(meta / 'episodes.jsonl', report)
        self._rows = [
            row for row in rows if _is_episode(row, str(meta / 'episodes.jsonl'), report)
        ]
        self._rows.sort(key=lambda row: int(row['episode_index']))
        tasks = read_json_lines(meta / 'tasks.jsonl', report)
        self.tasks = read_task_rows(tasks, str(meta / 'tasks.jsonl'), report)

    def __len__(self) -> int:
        return len(self._rows)

    def record(self, position: int) -> EpisodeRecord:
        """Return one episode by its position."""
        row, info = self._rows[position], self._info
        index = int(row['episode_index'])
        fields = {'episode_index': index, 'episode_chunk': index // info.chunks_size}
        data = find_path(info, 'data_path', _candidates(info.data_path, DATA_PATH_V2), **fields)
        template = info.video_path or VIDEO_PATH_V2
        videos = {
            feature.key: VideoSpan(
                find_path(
                    info,
                    'video_path',
                    _candidates(template, VIDEO_PATH_V2),
                    video_key=feature.key,
                    **fields,
                )
            )
            for feature in video_features(info)
        }
        tasks = tuple(str(task) for task in row.get('tasks') or ())
        return EpisodeRecord(index, int(row['length']), tasks, data, videos, is_shared=False)


def uses_index_as_chunk(template: str | None) -> bool:
    """Return whether a template has the episode's index in a folder's name."""
    return template is not None and _FOLDER_FIELD.search(template) is not None


def _candidates(template: str, default: str) -> tuple[str, ...]:
    return template, _FOLDER_FIELD.sub(r'{episode_chunk\1}', template), default


def _is_episode(row: dict[str, Any], where: str, report: Report) -> bool:
    values = (row.get('episode_index'), row.get('length'))
    if all(isinstance(value, int) and value >= 0 for value in values):
        return True
    report(bad_row(where, row, 'episode_index and length, integers from 0'))
    return False
