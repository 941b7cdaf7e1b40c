# SPDX-License-Identifier: Apache-2.0
"""Render the sample dataset: eight training episodes and four held-out ones, LeRobot v2.1 with H.264 videos."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from pathlib import Path

from arm import JOINTS
from layout import HELD_OUT_START
from render import HEIGHT_PX, WIDTH_PX, Image
from samples import CAMERAS, record
from world import STEP_NS, EpisodeRecord

from vla_policy_ros.datasets.lerobot_writer import LeRobotWriter
from vla_policy_ros.sample import HELD_OUT_EPISODES, sample_dataset_path

NUM_TRAINING = HELD_OUT_EPISODES[0]


def episode_numbers() -> tuple[int, ...]:
    """Return the number, in the data this example is made of, of every episode of the sample dataset."""
    held_out = range(HELD_OUT_START, HELD_OUT_START + len(HELD_OUT_EPISODES))
    return (*range(NUM_TRAINING), *held_out)


def write_dataset(folder: Path) -> None:
    """Record, render and write the sample dataset; a dataset that is already there is replaced."""
    shutil.rmtree(folder, ignore_errors=True)
    with LeRobotWriter(
        folder,
        version='v2.1',
        step_ns=STEP_NS,
        robot_type='simulated_so101',
        cameras=dict.fromkeys(CAMERAS, (HEIGHT_PX, WIDTH_PX)),
        state=JOINTS,
        action=JOINTS,
        crf=28,
    ) as writer:
        for number in episode_numbers():
            episode = record(number)
            images = {camera: _images(episode, camera) for camera in CAMERAS}
            writer.add_episode(images, episode.state, episode.action, episode.instruction)
            print(f'episode {number}: {len(episode.state)} steps, {episode.instruction!r}')


def _images(episode: EpisodeRecord, camera: str) -> Iterator[Image]:
    for world in episode.worlds:
        yield world.images()[camera]


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', type=Path, default=sample_dataset_path(), help='folder to write')
    write_dataset(parser.parse_args().out)
