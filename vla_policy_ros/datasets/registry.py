# SPDX-License-Identifier: Apache-2.0
"""Opens any dataset by looking at what lies in its folder, and examines one for all of its faults."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from vla_policy_ros.core.dataset import Dataset
from vla_policy_ros.core.errors import DatasetError, VlaPolicyError
from vla_policy_ros.datasets.faults import missing_file
from vla_policy_ros.datasets.rosbag_topics import BagTopics

_MAX_NAMES = 8
_BAG_SUFFIXES = ('.mcap', '.db3')


def open_dataset(path: str | Path, *, topics: BagTopics | None = None) -> Dataset:
    """Open a LeRobot dataset (v2.0, v2.1, v3.0), a rosbag2 recording (MCAP, SQLite), or a made-up recording (YAML).

    Args:
        path: Folder of the dataset, a bag's single file, or the description of a made-up recording.
        topics: Which topics to read; for bags only.

    Raises:
        DatasetError: There is nothing at the path, its format is not known (`unknown_format`), or it is broken.
    """
    where = Path(path)
    kind = _find_format(where)
    if kind == 'rosbag':
        from vla_policy_ros.datasets.rosbag import RosbagDataset

        return RosbagDataset(where, topics=topics)
    if topics is not None:
        raise DatasetError(
            str(where),
            got='names of topics',
            expected='none: this is no bag',
            next_step='Leave the topics out.',
            code='topics_without_bag',
        )
    if kind == 'made_up':
        from vla_policy_ros.datasets.made_up import open_made_up

        return open_made_up(where)
    from vla_policy_ros.datasets.lerobot import LeRobotDataset

    return LeRobotDataset(where)


def find_dataset_faults(path: str | Path) -> list[VlaPolicyError]:
    """Examine a dataset as a whole and return every fault, each with a code; no video is decoded.

    What is only a warning when the dataset is opened is in `Dataset.info.warnings`, but for a camera that has no file:
    that is a fault here (`feature_without_file`), because `info.json` says something that is not so.
    """
    where = Path(path)
    try:
        kind = _find_format(where)
        if kind == 'rosbag':
            from vla_policy_ros.datasets.rosbag_faults import find_rosbag_faults

            return list(find_rosbag_faults(where))
        if kind == 'made_up':
            open_dataset(where)
            return []
    except DatasetError as fault:
        return [fault]
    from vla_policy_ros.datasets.lerobot_faults import find_lerobot_faults

    return list(find_lerobot_faults(where))


def _find_format(path: Path) -> Literal['lerobot', 'rosbag', 'made_up']:
    if not path.exists():
        raise missing_file(path, 'a folder or file of recorded episodes')
    if path.suffix in _BAG_SUFFIXES or (path / 'metadata.yaml').is_file():
        return 'rosbag'
    if (path / 'meta').is_dir():
        return 'lerobot'
    if path.suffix == '.yaml':
        return 'made_up'
    found = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else [path.name]
    listed = ', '.join(found[:_MAX_NAMES]) + (', ...' if len(found) > _MAX_NAMES else '')
    raise DatasetError(
        str(path),
        got=listed or 'an empty folder',
        expected='meta/info.json (LeRobot), metadata.yaml (rosbag2) or an .mcap file',
        next_step='Name the folder that holds one of these; `ros2 bag reindex` makes metadata.yaml.',
        code='unknown_format',
    )
