# SPDX-License-Identifier: Apache-2.0
"""Synthetic episodes."""

import cv2
import numpy as np
import pytest
from contracts.dataset_contract import DatasetContract
from hypothesis import given
from hypothesis import strategies as st

from vla_policy_ros.core.errors import DatasetError
from vla_policy_ros.datasets.synthetic import SyntheticDataset, read_step_index


class TestContract(DatasetContract):
    @pytest.fixture
    def dataset(self, source):
        return source


@given(
    step=st.integers(0, 65535),
    height=st.integers(16, 200),
    width=st.integers(32, 200),
)
def test_any_step_is_recovered_at_any_size(step, height, width):
    dataset = SyntheticDataset(num_steps=65536, cameras={'c': (height, width)}, num_joints=1)
    image = next(dataset.episode(0).images('c', step))
    assert read_step_index(image) == step


@pytest.mark.parametrize('step', [0, 1, 0xAAAA, 0x5555, 65535])
def test_the_step_survives_jpeg_and_resizing(step):
    dataset = SyntheticDataset(num_steps=65536, cameras={'c': (240, 320)}, num_joints=1)
    image = next(dataset.episode(0).images('c', step))
    jpeg = cv2.imdecode(cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, 50])[1], 1)
    assert read_step_index(jpeg) == step
    assert read_step_index(cv2.resize(image, (96, 96), interpolation=cv2.INTER_AREA)) == step


def test_one_buffer_is_reused(source):
    stream = source.episode(0).images('front')
    first = next(stream)
    before = first.copy()
    assert next(stream) is first
    assert (first != before).mean() > 0.3


def test_the_seed_and_the_episode_change_numbers_and_pictures():
    def make(seed, index):
        dataset = SyntheticDataset(num_episodes=2, cameras={'c': (48, 64)}, seed=seed)
        episode = dataset.episode(index)
        return episode.state, next(episode.images('c'))

    state, image = make(0, 0)
    for again in (make(1, 0), make(0, 1)):
        assert not np.allclose(again[0], state)
        assert not np.array_equal(again[1], image)
    np.testing.assert_array_equal(make(0, 0)[0], state)


def test_joints_are_smooth_and_the_action_is_the_next_state(source):
    episode = source.episode(0)
    np.testing.assert_array_equal(episode.action[:-1], episode.state[1:])
    speed_rad_s = np.abs(np.diff(episode.state, axis=0)) / 0.0333
    assert 0 < speed_rad_s.max() < np.pi


@pytest.mark.parametrize(
    ('settings', 'name'),
    [
        ({'num_steps': 0, 'cameras': {}}, 'num_steps'),
        ({'num_steps': 65537, 'cameras': {}}, 'num_steps'),
        ({'cameras': {'c': (8, 64)}}, 'height of c'),
        ({'cameras': {'c': (64, 8)}}, 'width of c'),
    ],
)
def test_settings_out_of_range(settings, name):
    with pytest.raises(DatasetError, match=name):
        SyntheticDataset(**settings)
