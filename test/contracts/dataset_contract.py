# SPDX-License-Identifier: Apache-2.0
"""What every dataset must do: subclass this and give a `dataset` fixture."""

import numpy as np
import pytest

from vla_policy_ros.core.errors import DatasetError


class DatasetContract:
    """Tests of the Dataset and Episode protocols; every episode needs at least six steps."""

    def test_info_is_complete(self, dataset):
        info = dataset.info
        assert info.step_ns > 0
        assert info.num_episodes >= 1
        assert info.name
        assert info.format
        names = [camera.name for camera in info.cameras]
        assert names
        assert len(set(names)) == len(names)
        for columns in (info.state, info.action):
            assert len({column.name for column in columns}) == len(columns)

    def test_arrays_have_one_row_per_step(self, dataset):
        for index in range(dataset.info.num_episodes):
            episode = dataset.episode(index)
            steps = len(episode.stamps_ns)
            assert episode.index == index
            assert episode.stamps_ns.dtype == np.int64
            assert episode.state.dtype == episode.action.dtype == np.float32
            assert episode.state.shape == (steps, len(dataset.info.state))
            assert episode.action.shape == (steps, len(dataset.info.action))
            assert len(episode.instructions) == steps
            assert all(isinstance(text, str) for text in episode.instructions)

    def test_stamps_grow_strictly(self, dataset):
        for index in range(dataset.info.num_episodes):
            assert np.all(np.diff(dataset.episode(index).stamps_ns) > 0)

    def test_images_have_the_size_of_the_camera(self, dataset):
        for camera in dataset.info.cameras:
            image = next(dataset.episode(0).images(camera.name))
            assert image.shape == (camera.height, camera.width, 3)
            assert image.dtype == np.uint8

    def test_a_range_of_images_is_a_slice_of_all(self, dataset):
        episode = dataset.episode(dataset.info.num_episodes - 1)
        steps = len(episode.stamps_ns)
        for camera in dataset.info.cameras:
            whole = [image.copy() for image in episode.images(camera.name)]
            assert len(whole) == steps
            for start, stop in ((0, 1), (3, 5), (steps - 2, None), (steps - 1, steps)):
                part = [image.copy() for image in episode.images(camera.name, start, stop)]
                np.testing.assert_array_equal(part, whole[start:stop])

    def test_an_empty_range_gives_no_image(self, dataset):
        episode = dataset.episode(0)
        camera = dataset.info.cameras[0].name
        for start in (0, 2, len(episode.stamps_ns)):
            assert list(episode.images(camera, start, start)) == []

    def test_two_streams_do_not_disturb_each_other(self, dataset):
        episode = dataset.episode(0)
        camera = dataset.info.cameras[0].name
        first, second = episode.images(camera), episode.images(camera, 2)
        expected = [image.copy() for image in episode.images(camera, 0, 4)]
        for step in range(2):
            np.testing.assert_array_equal(next(first), expected[step])
            np.testing.assert_array_equal(next(second), expected[step + 2])

    def test_what_is_not_there_is_named(self, dataset):
        episode = dataset.episode(0)
        with pytest.raises(DatasetError) as fault:
            episode.images('no_such_camera')
        assert fault.value.code == 'unknown_camera'
        assert dataset.info.cameras[0].name in fault.value.expected
        for index in (-1, dataset.info.num_episodes):
            with pytest.raises(DatasetError) as fault:
                dataset.episode(index)
            assert fault.value.code == 'unknown_episode'
        camera, steps = dataset.info.cameras[0].name, len(episode.stamps_ns)
        for start, stop in ((-1, 2), (3, 2), (0, steps + 1)):
            with pytest.raises(DatasetError) as fault:
                episode.images(camera, start, stop)
            assert fault.value.code == 'unknown_step'

    def test_close_may_be_called_twice_and_in_the_middle(self, dataset):
        episode = dataset.episode(0)
        stream = episode.images(dataset.info.cameras[0].name)
        next(stream)
        for _ in range(2):
            episode.close()
            dataset.close()
        stream.close()
