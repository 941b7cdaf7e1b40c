# SPDX-License-Identifier: Apache-2.0
"""Datasets written by our writer, and the real GR00T demo dataset with its quirks."""

import json

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from contracts.dataset_contract import DatasetContract

from vla_policy_ros.core.errors import DatasetError
from vla_policy_ros.datasets.lerobot import LeRobotDataset
from vla_policy_ros.datasets.registry import find_dataset_faults
from vla_policy_ros.datasets.synthetic import read_step_index

VARIANTS = [(v, c) for v in ('v2.0', 'v2.1', 'v3.0') for c in ('h264', 'av1', 'png')]


def edit_info(root, change):
    path = root / 'meta' / 'info.json'
    info = json.loads(path.read_text())
    change(info)
    path.write_text(json.dumps(info))


def replace_column(path, name, values):
    table = pq.read_table(path)
    at = table.schema.get_field_index(name)
    pq.write_table(table.set_column(at, name, values), path)


@pytest.mark.parametrize(('version', 'codec'), VARIANTS)
class TestContract(DatasetContract):
    @pytest.fixture
    def dataset(self, write_copy, version, codec):
        opened = LeRobotDataset(write_copy(version, codec))
        yield opened
        opened.close()


@pytest.mark.parametrize(('version', 'codec'), VARIANTS)
def test_what_was_written_is_read(write_copy, source, version, codec):
    dataset = LeRobotDataset(write_copy(version, codec))
    info = dataset.info
    assert info.format == f'lerobot {version}'
    assert (info.robot_type, info.step_ns, info.num_episodes) == ('test_arm', 33_333_333, 2)
    assert [camera.name for camera in info.cameras] == ['front', 'wrist']
    assert info.cameras[1].key == 'observation.images.wrist'
    assert [column.name for column in info.state] == ['joint_0', 'joint_1', 'joint_2']
    assert info.warnings == ()
    for index in range(2):
        got, wanted = dataset.episode(index), source.episode(index)
        np.testing.assert_array_equal(got.stamps_ns, wanted.stamps_ns)
        np.testing.assert_array_equal(got.state, wanted.state)
        np.testing.assert_array_equal(got.action, wanted.action)
        assert list(got.instructions) == list(wanted.instructions)
        for camera in ('front', 'wrist'):
            steps = [read_step_index(image) for image in got.images(camera)]
            assert steps == list(range(12))
            if codec == 'png':
                pairs = zip(got.images(camera), wanted.images(camera), strict=True)
                assert all((a == b).all() for a, b in pairs)


def test_v3_reads_episodes_from_several_files(write_copy, source):
    root = write_copy('v3.0', episodes_per_file=1)
    assert len(list(root.glob('data/*/*.parquet'))) == 2
    assert len(list(root.glob('videos/*/*/*.mp4'))) == 4
    episode = LeRobotDataset(root).episode(1)
    np.testing.assert_array_equal(episode.state, source.episode(1).state)
    assert [read_step_index(image) for image in episode.images('front')] == list(range(12))


def test_v3_reads_the_frame_at_the_time_not_the_next_one(write_copy):
    root = write_copy('v3.0')
    table = root / 'meta' / 'episodes' / 'chunk-000' / 'file-000.parquet'
    key = 'videos/observation.images.front/from_timestamp'
    replace_column(table, key, pa.array([0.0, 0.41]))
    with pytest.raises(DatasetError) as fault:
        list(LeRobotDataset(root).episode(1).images('front'))
    assert fault.value.code == 'missing_frames'
    assert '0.41' in fault.value.expected


def change_table_index(root, indices):
    """Say in `meta/episodes` that the rows of each episode lie in these files."""
    table = root / 'meta' / 'episodes' / 'chunk-000' / 'file-000.parquet'
    replace_column(table, 'data/file_index', pa.array(indices))


@pytest.mark.parametrize('codec', ['h264', 'png'])
def test_v3_finds_an_episode_in_the_file_after_the_one_it_is_said_to_be_in(
    write_copy, source, codec
):
    # The converter of LeRobot 0.4.4 from v2.1 writes this for the first episode of every further file.
    root = write_copy('v3.0', codec, episodes_per_file=1)
    change_table_index(root, [0, 0])
    assert find_dataset_faults(root) == []
    episode = LeRobotDataset(root).episode(1)
    np.testing.assert_array_equal(episode.state, source.episode(1).state)
    assert [read_step_index(image) for image in episode.images('front')] == list(range(12))


def test_v3_names_the_file_when_no_later_one_holds_the_episode(write_copy):
    root = write_copy('v3.0', episodes_per_file=1)
    change_table_index(root, [1, 1])
    with pytest.raises(DatasetError, match=r'file-001.parquet .episode 0.: got 0 rows') as fault:
        LeRobotDataset(root).episode(0)
    assert fault.value.code == 'wrong_length'


@pytest.mark.parametrize('version', ['v2.1', 'v3.0'])
def test_vectors_of_two_dimensions(write_copy, source, version):
    root = write_copy(version)

    def widen(info):
        info['features']['action'].update(shape=[3, 1], names=None)

    edit_info(root, widen)
    for path in root.glob('data/*/*.parquet'):
        rows = [[[x] for x in row] for row in pq.read_table(path).column('action').to_pylist()]
        replace_column(path, 'action', pa.array(rows, pa.list_(pa.list_(pa.float32()))))
    dataset = LeRobotDataset(root)
    assert [column.name for column in dataset.info.action] == ['action_0', 'action_1', 'action_2']
    np.testing.assert_array_equal(dataset.episode(1).action, source.episode(1).action)
    assert find_dataset_faults(root) == []
    edit_info(root, lambda info: info['features']['action'].update(shape=[2, 1]))
    assert {fault.code for fault in find_dataset_faults(root)} == {'wrong_width'}


def test_v3_takes_tasks_from_a_nameless_index(write_copy, source):
    root = write_copy('v3.0')
    path = root / 'meta' / 'tasks.parquet'
    table = pq.read_table(path)
    pq.write_table(table.rename_columns(['task_index', '__index_level_0__']), path)
    assert LeRobotDataset(root).episode(1).instructions[0] == source.episode(1).instructions[0]


class TestDemo:
    def test_info(self, demo_path):
        info = LeRobotDataset(demo_path).info
        assert (info.num_episodes, info.step_ns) == (5, 50_000_000)
        assert len(info.state) == len(info.action) == 44
        assert info.state[43].name == 'motor_43'
        assert [(c.name, c.height, c.width) for c in info.cameras] == [('ego_view', 256, 256)]
        assert any('observation.images.egoview' in warning for warning in info.warnings)
        assert any('episode_index' in warning for warning in info.warnings)

    def test_every_episode_opens(self, demo_path):
        dataset = LeRobotDataset(demo_path)
        episodes = [dataset.episode(index) for index in range(5)]
        assert [len(episode.stamps_ns) for episode in episodes] == [416, 470, 470, 412, 328]
        for episode in episodes:
            np.testing.assert_array_equal(np.diff(episode.stamps_ns), 50_000_000)
            assert np.isfinite(episode.state).all()
        expected = 'pick the pear from the counter and place it in the plate'
        assert set(episodes[0].instructions) == {expected}
        assert episodes[4].state.shape == (328, 44)

    def test_frames_equal_pyav(self, demo_path):
        images = LeRobotDataset(demo_path).episode(0).images('ego_view')
        path = next(demo_path.glob('videos/*/*/episode_000000.mp4'))
        number = 0
        with av.open(str(path)) as container:
            for frame, image in zip(container.decode(video=0), images, strict=True):
                np.testing.assert_array_equal(image, frame.to_ndarray(format='rgb24'))
                number += 1
        assert number == 416

    def test_start_is_exact_around_the_second_key_frame(self, demo_path):
        episode = LeRobotDataset(demo_path).episode(0)
        whole = [image.copy() for image in episode.images('ego_view', 0, 256)]
        for start in (1, 249, 250, 251):
            np.testing.assert_array_equal(next(episode.images('ego_view', start)), whole[start])


class TestFaults:
    def test_missing_video(self, write_copy):
        root = write_copy()
        path = root / 'videos/chunk-000/observation.images.front/episode_000001.mp4'
        path.unlink()
        dataset = LeRobotDataset(root)
        assert [camera.name for camera in dataset.info.cameras] == ['front', 'wrist']
        assert len(list(dataset.episode(0).images('front'))) == 12
        with pytest.raises(DatasetError) as fault:
            next(dataset.episode(1).images('front'))
        assert (fault.value.code, fault.value.where) == ('missing_file', str(path))

    def test_a_video_that_ends_early(self, write_copy):
        root = write_copy()
        for table in root.glob('data/*/*.parquet'):
            rows = pq.read_table(table)
            pq.write_table(pa.concat_tables([rows, rows.slice(0, 1)]), table)
            longer = pa.array([i / 30 for i in range(13)], pa.float32())
            replace_column(table, 'timestamp', longer)
        lines = (root / 'meta/episodes.jsonl').read_text()
        (root / 'meta/episodes.jsonl').write_text(lines.replace('12', '13'))
        with pytest.raises(DatasetError) as fault:
            list(LeRobotDataset(root).episode(0).images('front'))
        assert fault.value.code == 'missing_frames'
        assert (fault.value.got, fault.value.expected) == ('12 frames', '13 frames')
        assert fault.value.where.endswith('observation.images.front/episode_000000.mp4')

    def test_a_video_that_is_a_pointer(self, write_copy):
        root = write_copy()
        path = root / 'videos/chunk-000/observation.images.front/episode_000000.mp4'
        path.write_text('version https://git-lfs.github.com/spec/v1\n')
        with pytest.raises(DatasetError, match='git lfs pull') as fault:
            next(LeRobotDataset(root).episode(0).images('front'))
        assert fault.value.code == 'broken_video'

    def test_truncated_parquet(self, write_copy):
        root = write_copy()
        path = root / 'data/chunk-000/episode_000001.parquet'
        path.write_bytes(path.read_bytes()[:-100])
        dataset = LeRobotDataset(root)
        with pytest.raises(DatasetError) as fault:
            dataset.episode(1)
        assert (fault.value.code, fault.value.where) == ('broken_parquet', str(path))

    def test_broken_line(self, write_copy):
        root = write_copy()
        path = root / 'meta/episodes.jsonl'
        path.write_text(path.read_text() + '{"episode_index": 2,\n')
        with pytest.raises(DatasetError, match=r'episodes\.jsonl:3') as fault:
            LeRobotDataset(root)
        assert fault.value.code == 'broken_json'

    def test_wrong_length(self, write_copy):
        root = write_copy()
        path = root / 'meta/episodes.jsonl'
        path.write_text(path.read_text().replace('"length": 12', '"length": 11'))
        with pytest.raises(DatasetError, match='got 12 rows, expected 11 rows') as fault:
            LeRobotDataset(root).episode(0)
        assert fault.value.code == 'wrong_length'

    def test_images_of_another_size(self, write_copy):
        root = write_copy()

        def halve(info):
            info['features']['observation.images.front']['shape'] = [24, 32, 3]

        edit_info(root, halve)
        with pytest.raises(DatasetError) as fault:
            next(LeRobotDataset(root).episode(0).images('front'))
        assert fault.value.code == 'wrong_size'

    def test_unknown_task(self, write_copy):
        root = write_copy()
        (root / 'meta/tasks.jsonl').write_text('{"task_index": 0, "task": "wave"}\n')
        dataset = LeRobotDataset(root)
        assert dataset.episode(0).instructions[0] == 'wave'
        with pytest.raises(DatasetError, match='task index 1') as fault:
            dataset.episode(1)
        assert fault.value.code == 'unknown_task'


class TestQuirks:
    def test_template_with_the_episode_in_the_folder(self, write_copy):
        root = write_copy()

        def spoil(info):
            for key in ('data_path', 'video_path'):
                info[key] = info[key].replace('{episode_chunk:03d}', '{episode_index:03d}')

        edit_info(root, spoil)
        dataset = LeRobotDataset(root)
        assert len(list(dataset.episode(1).images('front'))) == 12
        assert len(dataset.info.warnings) == 2

    def test_template_with_an_unknown_field(self, write_copy):
        root = write_copy()
        edit_info(root, lambda info: info.update(data_path='data/{shard}.parquet'))
        with pytest.raises(DatasetError) as fault:
            LeRobotDataset(root).episode(0)
        assert fault.value.code == 'bad_template'

    def test_camera_without_a_file_and_depth_camera(self, write_copy):
        root = write_copy()

        def add(info):
            ghost = info['features']['observation.images.front']
            depth = {**ghost, 'info': {'video.is_depth_map': True}}
            info['features']['observation.images.ghost'] = ghost
            info['features']['observation.images.wrist'] = depth

        edit_info(root, add)
        info = LeRobotDataset(root).info
        assert [camera.name for camera in info.cameras] == ['front']
        assert [w.split()[0] for w in info.warnings] == [
            'observation.images.wrist',
            'observation.images.ghost',
        ]

    def test_times_off_the_rate_are_kept(self, write_copy):
        root = write_copy()
        times = pa.array([0.5 + i / 25 for i in range(12)], pa.float32())
        replace_column(root / 'data/chunk-000/episode_000000.parquet', 'timestamp', times)
        stamps = LeRobotDataset(root).episode(0).stamps_ns
        np.testing.assert_allclose(stamps, np.arange(12) * 40_000_000, atol=200)

    def test_times_that_do_not_grow(self, write_copy):
        root = write_copy()
        times = pa.array([0.0] * 12, pa.float32())
        replace_column(root / 'data/chunk-000/episode_000000.parquet', 'timestamp', times)
        with pytest.raises(DatasetError) as fault:
            LeRobotDataset(root).episode(0)
        assert fault.value.code == 'stamps_not_growing'

    def test_gaps_in_the_indices(self, write_copy, source):
        root = write_copy()
        path = root / 'meta/episodes.jsonl'
        path.write_text(path.read_text().splitlines()[1] + '\n')
        dataset = LeRobotDataset(root)
        assert any('gaps' in warning for warning in dataset.info.warnings)
        np.testing.assert_array_equal(dataset.episode(0).state, source.episode(1).state)

    def test_image_cells_that_name_a_file(self, write_copy, source):
        root = write_copy(codec='png')
        table = root / 'data/chunk-000/episode_000000.parquet'
        cells = pq.read_table(table).column('observation.images.front').to_pylist()
        (root / 'images').mkdir()
        for i, cell in enumerate(cells):
            (root / 'images' / f'{i}.png').write_bytes(cell['bytes'])
        paths = [{'bytes': None, 'path': f'images/{i}.png'} for i in range(12)]
        kind = pa.struct([('bytes', pa.binary()), ('path', pa.string())])
        replace_column(table, 'observation.images.front', pa.array(paths, kind))
        episode = LeRobotDataset(root).episode(0)
        assert [read_step_index(image) for image in episode.images('front')] == list(range(12))
        (root / 'images' / '7.png').unlink()
        with pytest.raises(DatasetError, match=r'7\.png'):
            list(episode.images('front'))
