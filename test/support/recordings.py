# SPDX-License-Identifier: Apache-2.0
"""A short LeRobot recording and a bundle that fits it, made in a second, and a deployment that nothing hurries."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from vla_policy_ros.datasets.lerobot_writer import LeRobotWriter
from vla_policy_ros.datasets.synthetic import SyntheticDataset

CAMERAS = {'front': (48, 64), 'wrist': (48, 64)}
JOINTS = ('joint_0', 'joint_1', 'joint_2')
HORIZON = 8
NUM_STEPS = 60
STEP_NS = 33_333_333


@dataclass(frozen=True)
class Recording:
    """Two episodes of NUM_STEPS steps at 30 Hz, and an untrained bundle; `source` made the pictures and joints."""

    dataset: Path
    bundle: Path
    source: SyntheticDataset


def write_recording(folder: Path) -> Recording:
    """Write dataset and bundle into a folder."""
    from vla_policy_ros.export.untrained import create_untrained_bundle

    source = SyntheticDataset(
        num_episodes=2,
        num_steps=NUM_STEPS,
        step_ns=STEP_NS,
        cameras=CAMERAS,
        num_joints=len(JOINTS),
    )
    write_lerobot(folder / 'dataset', source)
    create_untrained_bundle(folder / 'bundle', source, horizon=HORIZON, image_size=32)
    return Recording(folder / 'dataset', folder / 'bundle', source)


def write_patient_deployment(path: Path, bundle: Path) -> Path:
    """Write a deployment file with the usual topics, in which no sample is given up because the machine is busy.

    Everything of a short recording may wait, and a set waits for its last sample for ten seconds.
    """
    cameras = yaml.safe_load((bundle / 'bundle.yaml').read_text())['cameras']
    names = [camera['name'] for camera in cameras]
    document = {
        'policy': {'bundle': str(bundle), 'queue': 400, 'slots': 800},
        'cameras': {name: {'topic': f'/camera/{name}/image_raw'} for name in names},
        'joint_states': [{'topic': '/joint_states'}],
        'matching': {'patience_ms': 10_000},
    }
    path.write_text(yaml.safe_dump(document))
    return path


def write_lerobot(
    path: Path, source: SyntheticDataset, *, version: str = 'v2.1', codec: str = 'h264'
) -> None:
    """Write a synthetic dataset in LeRobot's format."""
    info = source.info
    with LeRobotWriter(
        path,
        version=version,
        codec=codec,
        step_ns=info.step_ns,
        robot_type='test_arm',
        cameras={camera.name: (camera.height, camera.width) for camera in info.cameras},
        state=[column.name for column in info.state],
        action=[column.name for column in info.action],
    ) as writer:
        for index in range(info.num_episodes):
            episode = source.episode(index)
            images = {camera.name: episode.images(camera.name) for camera in info.cameras}
            writer.add_episode(images, episode.state, episode.action, episode.instructions)
