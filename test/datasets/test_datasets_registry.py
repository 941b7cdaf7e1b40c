# SPDX-License-Identifier: Apache-2.0
"""Formats are recognised by what lies in the folder; every fault is found in one pass."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vla_policy_ros.core.errors import DatasetError
from vla_policy_ros.datasets.lerobot import LeRobotDataset
from vla_policy_ros.datasets.registry import find_dataset_faults, open_dataset
from vla_policy_ros.datasets.rosbag_topics import BagTopics


def replace_column(path, name, values):
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.schema.get_field_index(name), name, values), path)


def codes(path):
    return sorted(fault.code for fault in find_dataset_faults(path))


class TestOpen:
    def test_lerobot(self, write_copy):
        assert isinstance(open_dataset(write_copy()), LeRobotDataset)

    def test_unknown_folder_names_what_was_found(self, tmp_path):
        (tmp_path / 'notes.txt').write_text('')
        with pytest.raises(DatasetError) as fault:
            open_dataset(tmp_path)
        assert (fault.value.code, fault.value.got) == ('unknown_format', 'notes.txt')
        assert codes(tmp_path) == ['unknown_format']

    def test_unknown_version_names_the_supported_ones(self, write_copy):
        root = write_copy()
        info = json.loads((root / 'meta/info.json').read_text())
        (root / 'meta/info.json').write_text(json.dumps({**info, 'codebase_version': 'v1.6'}))
        with pytest.raises(DatasetError, match=r'v2\.0, v2\.1, v3\.0') as fault:
            open_dataset(root)
        assert fault.value.code == 'unknown_version'
        assert codes(root) == ['unknown_version']

    def test_nothing_there(self, tmp_path):
        with pytest.raises(DatasetError) as fault:
            open_dataset(tmp_path / 'gone')
        assert fault.value.code == 'missing_file'

    def test_topics_are_for_bags(self, write_copy):
        with pytest.raises(DatasetError) as fault:
            open_dataset(write_copy(), topics=BagTopics())
        assert fault.value.code == 'topics_without_bag'


class TestFaults:
    @pytest.mark.parametrize('version', ['v2.0', 'v2.1', 'v3.0'])
    @pytest.mark.parametrize('codec', ['h264', 'png'])
    def test_a_whole_dataset_has_none(self, write_copy, version, codec):
        assert codes(write_copy(version, codec)) == []

    def test_the_demo_has_only_its_ghost(self, demo_path):
        faults = find_dataset_faults(demo_path)
        assert [fault.code for fault in faults] == ['feature_without_file']
        assert faults[0].where.endswith('observation.images.egoview')

    def test_all_faults_of_a_v2_dataset_are_found_at_once(self, write_copy):
        root = write_copy('v2.1')
        first, second = sorted(root.glob('data/*/*.parquet'))
        numbers = [[0.0, 0.0, 0.0]] * 12
        numbers[3] = [0.0, np.nan, 0.0]
        replace_column(first, 'observation.state', pa.array(numbers, pa.list_(pa.float32())))
        replace_column(first, 'timestamp', pa.array([i / 10 for i in range(12)], pa.float32()))
        second.write_bytes(b'PAR1')
        (root / 'videos/chunk-000/observation.images.front/episode_000000.mp4').unlink()
        (root / 'videos/chunk-000/observation.images.wrist/episode_000001.mp4').write_bytes(b'x')
        with (root / 'meta/tasks.jsonl').open('a') as file:
            file.write('[1]\nnot json\n')
        (root / 'meta/episodes_stats.jsonl').unlink()
        faults = find_dataset_faults(root)
        assert sorted(fault.code for fault in faults) == [
            'broken_json',
            'broken_json',
            'broken_parquet',
            'broken_video',
            'missing_file',
            'missing_file',
            'not_finite',
            'stamps_off_rate',
        ]
        text = '\n'.join(str(fault) for fault in faults)
        for told in ('tasks.jsonl:3', 'tasks.jsonl:4', 'row 3, column 1', '0.100000 s from row 0'):
            assert told in text

    def test_tables_that_do_not_fit_their_meta(self, write_copy):
        root = write_copy('v2.0')
        first, second = sorted(root.glob('data/*/*.parquet'))
        pq.write_table(pq.read_table(first).slice(0, 9), first)
        pq.write_table(pq.read_table(second).drop_columns(['action']), second)
        replace_column(second, 'task_index', pa.array([7] * 12))
        assert codes(root) == ['missing_column', 'unknown_task', 'wrong_length']

    def test_ragged_and_narrow_vectors(self, write_copy):
        root = write_copy('v2.0')
        path = min(root.glob('data/*/*.parquet'))
        ragged = pa.array([[0.0]] * 11 + [[0.0, 1.0]], pa.list_(pa.float32()))
        replace_column(path, 'action', ragged)
        replace_column(path, 'observation.state', pa.array([[0.0]] * 12))
        assert codes(root) == ['wrong_column', 'wrong_width']
        replace_column(path, 'timestamp', pa.array([0.0] * 12))
        assert 'stamps_not_growing' in codes(root)

    @pytest.mark.parametrize('version', ['v2.1', 'v3.0'])
    def test_videos_of_another_length_or_size(self, write_copy, version):
        root = write_copy(version)
        other = write_copy(version, folder='other')
        for camera in ('front', 'wrist'):
            paths = sorted(root.glob(f'videos/**/*{camera}/**/*.mp4'))
            assert paths
        wrong = max(other.glob('videos/**/*wrist/**/*.mp4'))
        target = max(root.glob('videos/**/*front/**/*.mp4'))
        target.write_bytes(wrong.read_bytes())
        assert codes(root) == ['wrong_size']

    def test_a_video_with_too_few_frames(self, write_copy, source):
        short = type(source)(num_episodes=1, num_steps=9, cameras={'front': (48, 64)})
        root, spare = write_copy('v2.0'), write_copy('v3.0', folder='v3')
        from vla_policy_ros.datasets.lerobot_writer import LeRobotWriter

        settings = {'step_ns': 33_333_333, 'robot_type': '', 'state': ['a'], 'action': ['a']}
        with LeRobotWriter(
            root.parent / 'short', version='v2.0', cameras={'front': (48, 64)}, **settings
        ) as writer:
            images = {'front': short.episode(0).images('front')}
            writer.add_episode(images, np.zeros((9, 1)), np.zeros((9, 1)), '')
        video = next((root.parent / 'short').glob('videos/*/*/*.mp4')).read_bytes()
        next(root.glob('videos/*/*front/episode_000001.mp4')).write_bytes(video)
        next(spare.glob('videos/*front/*/*.mp4')).write_bytes(video)
        found = find_dataset_faults(root)
        assert [(f.code, f.got) for f in found] == [('wrong_frame_count', '9 frames')]
        assert codes(spare) == ['wrong_frame_count'] * 2

    def test_v3_without_its_tables(self, write_copy):
        root = write_copy('v3.0')
        (root / 'meta/tasks.parquet').unlink()
        (root / 'meta/episodes/chunk-000/file-000.parquet').write_bytes(b'nothing')
        assert codes(root) == ['broken_parquet', 'missing_file']

    def test_unreadable_info_is_one_fault(self, write_copy):
        root = write_copy()
        (root / 'meta/info.json').write_text('{"fps": }')
        assert codes(root) == ['broken_json']
