# SPDX-License-Identifier: Apache-2.0
"""Examines a LeRobot dataset and collects all of its faults in one pass, without decoding a video."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vla_policy_ros.core.errors import DatasetError
from vla_policy_ros.core.specs import Array
from vla_policy_ros.datasets.faults import Report
from vla_policy_ros.datasets.json_files import read_json, read_json_lines
from vla_policy_ros.datasets.lerobot import has_video, make_layout
from vla_policy_ros.datasets.lerobot_columns import image_size
from vla_policy_ros.datasets.lerobot_info import Feature, LeRobotInfo, read_info
from vla_policy_ros.datasets.lerobot_layout import EpisodeRecord, Layout, VideoSpan
from vla_policy_ros.datasets.parquet_files import (
    column_names,
    find_rows,
    missing_column,
    read_numbers,
)
from vla_policy_ros.datasets.video import TOLERANCE_S, VideoFacts, probe_video

_META_FILES = {
    'v2.0': ('episodes.jsonl', 'tasks.jsonl', 'stats.json'),
    'v2.1': ('episodes.jsonl', 'tasks.jsonl', 'episodes_stats.jsonl'),
    'v3.0': ('tasks.parquet', 'stats.json'),
}


def find_lerobot_faults(root: Path) -> list[DatasetError]:
    """Return every fault of a LeRobot dataset of any supported version."""
    faults: list[DatasetError] = []
    info = read_info(root, faults.append)
    if info is None:
        return faults
    layout = make_layout(info, faults.append)
    _check_meta(info, faults.append)
    try:
        _Examination(info, layout, faults.append).run()
    except (
        DatasetError
    ) as fault:  # a path template that cannot be filled in holds for every episode
        faults.append(fault)
    return faults


def _check_meta(info: LeRobotInfo, report: Report) -> None:
    """Check the files under `meta/` that the layout does not read."""
    meta = info.root / 'meta'
    for name in _META_FILES[info.version]:
        path = meta / name
        if name == 'stats.json':
            read_json(path, report)
        elif name == 'episodes_stats.jsonl':
            read_json_lines(path, report)
    if (meta / 'modality.json').is_file():
        read_json(meta / 'modality.json', report)


class _Examination:
    """One pass over the episodes."""

    def __init__(self, info: LeRobotInfo, layout: Layout, report: Report) -> None:
        self._info = info
        self._layout = layout
        self._report = report
        self._videos: dict[Path, VideoFacts | None] = {}

    def run(self) -> None:
        """Check every episode, and every feature that lies in video files."""
        features = self._info.features.values()
        videos = [feature for feature in features if feature.dtype == 'video']
        present = [feature for feature in videos if has_video(self._layout, feature.key)]
        for feature in videos if len(self._layout) else ():
            if feature not in present:
                self._report(self._ghost(feature))
        columns = [feature for feature in features if feature.dtype != 'video']
        for position in range(len(self._layout)):
            record = self._layout.record(position)
            self._check_table(record, columns)
            for feature in present:
                self._check_video(record, feature)

    def _check_table(self, record: EpisodeRecord, columns: Sequence[Feature]) -> None:
        try:
            names = column_names(record.data)
            rows = find_rows(record.data, record.index if record.is_shared else None)
        except DatasetError as fault:
            self._report(fault)
            return
        if len(rows) != record.length:
            expected = f'{record.length} rows as in meta/'
            self._report(_fault(record, f'{len(rows)} rows', expected, 'wrong_length'))
        for feature in columns:
            if feature.key not in names:
                self._report(missing_column(record.data, feature.key, names))
            elif feature.is_vector and rows:
                self._check_numbers(record, feature, rows)

    def _check_numbers(self, record: EpisodeRecord, feature: Feature, rows: range) -> None:
        try:
            values = read_numbers(record.data, [feature.key], rows)[feature.key]
        except DatasetError as fault:
            self._report(fault)
            return
        where = f'{feature.key}: '
        if values.shape[1] != feature.width:
            got, expected = f'{values.shape[1]} numbers per row', f'{feature.width}'
            self._report(_fault(record, where + got, expected, 'wrong_width'))
        finite = np.isfinite(values)
        if not finite.all():
            row, column = (int(i) for i in np.argwhere(~finite)[0])
            got = f'{where}{(~finite).sum()} values that are not finite, the first in row {row}, column {column}'
            self._report(_fault(record, got, 'finite numbers', 'not_finite'))
        elif feature.key == 'timestamp':
            self._check_times(record, values[:, 0].astype(np.float64))
        elif feature.key == 'task_index':
            unknown = sorted(
                {int(index) for index in np.unique(values)} - self._layout.tasks.keys()
            )
            for index in unknown:
                expected = 'an index of meta/tasks'
                self._report(_fault(record, f'task index {index}', expected, 'unknown_task'))

    def _check_times(self, record: EpisodeRecord, times_s: Array) -> None:
        steps_s = np.diff(times_s)
        off_s = np.abs(steps_s - 1 / self._info.fps)
        if np.any(steps_s <= 0):
            row = int(np.argmax(steps_s <= 0)) + 1
            got = f'a time in row {row} that is not later than the one before'
            self._report(_fault(record, got, 'growing times', 'stamps_not_growing'))
        elif np.any(off_s > TOLERANCE_S):
            row = int(np.argmax(off_s > TOLERANCE_S))
            got = f'{steps_s[row]:.6f} s from row {row} to the next'
            expected = f'{1 / self._info.fps:.6f} s as fps says, within {TOLERANCE_S} s'
            self._report(_fault(record, got, expected, 'stamps_off_rate'))

    def _check_video(self, record: EpisodeRecord, feature: Feature) -> None:
        span = record.videos.get(feature.key)
        if span is None:
            got = f'no entry for {feature.key} in meta/episodes'
            self._report(_fault(record, got, 'file and times of its video', 'missing_file'))
            return
        facts = self._probe(span, feature)
        if facts is None:
            return
        # In a shared file only its end can tell: the frames of the other episodes lie in it too.
        before = 0 if span.start_s is None else round(span.start_s * self._info.fps)
        wanted = before + record.length
        is_wrong = facts.num_frames < wanted
        if span.start_s is None:
            is_wrong = facts.num_frames != wanted
        if is_wrong:
            self._report(
                DatasetError(
                    str(span.path),
                    got=f'{facts.num_frames} frames',
                    expected=f'{wanted} frames for episode {record.index}',
                    next_step='Copy the file again, or leave this episode out.',
                    code='wrong_frame_count',
                )
            )

    def _probe(self, span: VideoSpan, feature: Feature) -> VideoFacts | None:
        """Return the facts of a video; a file that several episodes share is looked at once."""
        if span.path not in self._videos:
            self._videos[span.path] = self._probe_new(span.path, feature)
        return self._videos[span.path]

    def _probe_new(self, path: Path, feature: Feature) -> VideoFacts | None:
        try:
            facts = probe_video(path)
        except DatasetError as fault:
            self._report(fault)
            return None
        if image_size(feature) != (facts.height, facts.width):
            self._report(
                DatasetError(
                    str(path),
                    got=f'{facts.height} x {facts.width} px',
                    expected=f'shape {list(feature.shape)} as in meta/info.json',
                    next_step='Correct the shape in meta/info.json.',
                    code='wrong_size',
                )
            )
        return facts

    def _ghost(self, feature: Feature) -> DatasetError:
        return DatasetError(
            f'{self._info.where}: features.{feature.key}',
            got='no file in any episode',
            expected='a video per episode',
            next_step='Copy the videos, or remove the feature.',
            code='feature_without_file',
        )


def _fault(record: EpisodeRecord, got: str, expected: str, code: str) -> DatasetError:
    return DatasetError(
        f'{record.data} (episode {record.index})',
        got=got,
        expected=expected,
        next_step='Mend the episode or leave it out.',
        code=code,
    )
