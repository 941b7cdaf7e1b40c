# SPDX-License-Identifier: Apache-2.0
"""Shared by the dataset tests: the contract, the real demo data, and small datasets written on the fly."""

import pytest

from vla_policy_ros.datasets.lerobot_writer import LeRobotWriter
from vla_policy_ros.datasets.synthetic import SyntheticDataset


@pytest.fixture(autouse=True)
def quiet_av1_encoder(monkeypatch):
    """SVT-AV1 writes a page to stderr for every file it opens."""
    monkeypatch.setenv('SVT_LOG', '1')


@pytest.fixture
def demo_path(gr00t_demo):
    """Path of the GR00T demo dataset; read-only."""
    return gr00t_demo


@pytest.fixture
def source():
    """Two synthetic episodes of 12 steps with two cameras."""
    cameras = {'front': (48, 64), 'wrist': (32, 64)}
    return SyntheticDataset(num_episodes=2, num_steps=12, cameras=cameras, num_joints=3)


@pytest.fixture
def write_copy(tmp_path, source):
    """Return a function that writes `source` as a LeRobot dataset and returns its folder."""

    def write(version='v2.1', codec='h264', folder='dataset', **settings):
        names = [column.name for column in source.info.state]
        with LeRobotWriter(
            tmp_path / folder,
            version=version,
            step_ns=source.info.step_ns,
            robot_type='test_arm',
            cameras={camera.name: (camera.height, camera.width) for camera in source.info.cameras},
            state=names,
            action=names,
            codec=codec,
            **settings,
        ) as writer:
            for index in range(source.info.num_episodes):
                episode = source.episode(index)
                images = {
                    camera.name: episode.images(camera.name) for camera in source.info.cameras
                }
                writer.add_episode(images, episode.state, episode.action, episode.instructions)
        return tmp_path / folder

    return write
