# SPDX-License-Identifier: Apache-2.0
"""The committed dataset is what the renderer makes, and its arm does what it is said to do."""

import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from vla_policy_ros.datasets.registry import find_dataset_faults, open_dataset
from vla_policy_ros.sample import HELD_OUT_EPISODES, sample_dataset_path

sys.path.append(str(Path(__file__).parents[2] / 'examples' / 'train_sample_policy'))

import arm
import layout
import render
import render_dataset
import samples
import world


@pytest.fixture(scope='module')
def dataset():
    with closing(open_dataset(sample_dataset_path())) as dataset:
        yield dataset


def test_dataset_is_sound():
    assert find_dataset_faults(sample_dataset_path()) == []


def test_held_out_episodes_are_no_training_episodes():
    numbers = render_dataset.episode_numbers()
    held_out = {numbers[index] for index in HELD_OUT_EPISODES}
    assert held_out.isdisjoint(range(layout.TRAIN_EPISODES))
    assert set(numbers) - held_out <= set(range(layout.TRAIN_EPISODES))


def test_every_episode_is_what_the_script_records(dataset):
    numbers = render_dataset.episode_numbers()
    assert dataset.info.num_episodes == len(numbers)
    for index, number in enumerate(numbers):
        with closing(dataset.episode(index)) as episode:
            record = samples.record(number)
            np.testing.assert_allclose(episode.state, record.state, atol=1e-5)
            np.testing.assert_allclose(episode.action, record.action, atol=1e-5)
            assert set(episode.instructions) == {record.instruction}


@pytest.mark.parametrize('camera', ['front', 'wrist'])
def test_videos_show_what_the_script_renders(dataset, camera):
    last = dataset.info.num_episodes - 1
    with closing(dataset.episode(last)) as episode:
        image = next(episode.images(camera, 30, 31)).astype(int)
    record = samples.record(render_dataset.episode_numbers()[last])
    rendered = record.worlds[30].images()[camera]
    other = record.worlds[10].images()[camera]
    assert np.abs(image - rendered).mean() < 4 < np.abs(image - other).mean()


@pytest.mark.parametrize('yaw_rad', [-0.4, 0.0, 0.3])
def test_hand_reaches_where_it_is_sent(yaw_rad):
    point = np.array([0.17, -0.08, 0.02])
    joints = arm.joints_above(point, yaw_rad, arm.GRIP_OPEN)
    grip = arm.grip_frame(joints)
    np.testing.assert_allclose(grip[:3, 3], point, atol=1e-9)
    np.testing.assert_allclose(grip[:3, 0], [0, 0, -1], atol=1e-9)
    across = abs(grip[:2, 1] @ [np.cos(yaw_rad), np.sin(yaw_rad)])
    assert min(across, 1 - across) < 1e-9  # jaws square to the block's sides


def test_closing_beside_a_block_lifts_nothing():
    scene = world.World.random(np.random.default_rng(0))
    place = scene.blocks['red'][:3, 3] + [0.02, 0, 0]
    for height, gripper in ((0.0, 0.9), (0.0, 0.2), (0.08, 0.2)):
        for _ in range(12):
            scene.step(arm.joints_above(place + np.array([0, 0, height]), 0.0, gripper))
    assert scene.lifted() is None


def test_a_block_is_painted_where_it_is_projected():
    scene = world.World.random(np.random.default_rng(3))
    view = render.front_view()
    image = scene.images()['front'].astype(int)
    for channel, color in enumerate(('red', 'green', 'blue')):
        top = scene.blocks[color][:3, 3] + [0, 0, 0.014]
        column, row = view.project(view.to_camera(top)) / render.SUPERSAMPLING
        pixel = image[int(row), int(column)]
        assert pixel.argmax() == channel
        assert pixel[channel] > 1.4 * np.delete(pixel, channel).max()
