# SPDX-License-Identifier: Apache-2.0
"""Examines a rosbag2 recording and collects its faults; decodes every image once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vla_policy_ros.core.errors import DatasetError
from vla_policy_ros.core.specs import Array
from vla_policy_ros.datasets.rosbag import RosbagDataset, RosbagEpisode


def find_rosbag_faults(path: Path) -> list[DatasetError]:
    """Return every fault of a bag whose topics are discovered: what keeps it from opening, values, images."""
    try:
        dataset = RosbagDataset(path)
    except DatasetError as fault:
        return [fault]
    episode = dataset.episode(0)
    faults = []
    for name, values in (('state', episode.state), ('action', episode.action)):
        faults += _find_not_finite(path, name, values)
    for camera in dataset.info.cameras:
        faults += _find_broken_images(episode, camera.name)
    dataset.close()
    return faults


def _find_not_finite(path: Path, name: str, values: Array) -> list[DatasetError]:
    bad = ~np.isfinite(values)
    if not bad.any():
        return []
    row, column = (int(i) for i in np.argwhere(bad)[0])
    return [
        DatasetError(
            f'{path}: {name}',
            got=f'{bad.sum()} values that are not finite, the first at step {row}, column {column}',
            expected='finite numbers',
            next_step='Look for the joint in the recording.',
            code='not_finite',
        )
    ]


def _find_broken_images(episode: RosbagEpisode, camera: str) -> Iterator[DatasetError]:
    """Decode one camera step by step; a broken image ends its stream, so the next step begins a new one."""
    step = 0
    while step < len(episode.stamps_ns):
        decoded, fault = _decode_from(episode, camera, step)
        step += decoded + 1
        if fault is not None:
            yield fault
            if fault.code != 'broken_image':
                return


def _decode_from(
    episode: RosbagEpisode, camera: str, start: int
) -> tuple[int, DatasetError | None]:
    """Return the number of images that decode from a step on, and what ended them."""
    decoded = 0
    try:
        for _ in episode.images(camera, start):
            decoded += 1
    except DatasetError as fault:
        return decoded, fault
    return decoded, None
