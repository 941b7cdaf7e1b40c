# SPDX-License-Identifier: Apache-2.0
import cv2
import numpy as np
from evaluation_builders import STEP_NS, MemoryDataset

from vla_policy_ros.evaluation.frames import encode_png, shrink, take_sample_frames


def test_png_is_read_back_bit_for_bit():
    image = np.random.default_rng(0).integers(0, 256, (17, 23, 3)).astype(np.uint8)
    decoded = cv2.imdecode(np.frombuffer(encode_png(image), np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(decoded[:, :, ::-1], image)


def test_shrinking_averages_whole_blocks():
    image = np.zeros((5, 482, 3), np.uint8)
    image[:, ::2] = 100
    small = shrink(image)
    assert small.shape == (1, 160, 3)
    assert set(np.unique(small)) <= {33, 67}


def test_small_images_are_copied():
    image = np.full((4, 6, 3), 7, np.uint8)
    small = shrink(image)
    np.testing.assert_array_equal(small, image)
    assert not np.shares_memory(small, image)


def test_sample_frames_are_spread_over_the_episode():
    dataset = MemoryDataset(num_steps=9)
    frames = take_sample_frames(dataset.info, dataset.episode(0), count=3)
    assert [frame.stamp_ns // STEP_NS for frame in frames] == [2, 4, 6]
    assert [int(frame.image[0, 0, 0]) for frame in frames] == [2, 4, 6]


def test_a_short_episode_gives_fewer_frames():
    dataset = MemoryDataset(num_steps=1)
    assert len(take_sample_frames(dataset.info, dataset.episode(0), count=3)) == 1
