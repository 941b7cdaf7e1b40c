# SPDX-License-Identifier: Apache-2.0
"""What the writer puts on disk, and what it refuses."""

import json
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest

from vla_policy_ros.core.errors import DatasetError
from vla_policy_ros.datasets.lerobot_writer import LeRobotWriter

SETTINGS = {
    'version': 'v2.1',
    'step_ns': 50_000_000,
    'robot_type': 'arm',
    'cameras': {'top': (16, 32)},
    'state': ['a', 'b'],
    'action': ['a'],
}


def images(number=4, value=0):
    return {'top': (np.full((16, 32, 3), value, np.uint8) for _ in range(number))}


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize('version', ['v2.0', 'v2.1', 'v3.0'])
@pytest.mark.parametrize('codec', ['h264', 'av1', 'png'])
def test_the_same_input_gives_the_same_bytes(write_copy, version, codec):
    first, second = (write_copy(version, codec, folder=name) for name in 'ab')
    files = sorted(path.relative_to(first) for path in first.rglob('*') if path.is_file())
    assert files == sorted(
        path.relative_to(second) for path in second.rglob('*') if path.is_file()
    )
    for file in files:
        assert (first / file).read_bytes() == (second / file).read_bytes(), file


@pytest.mark.parametrize('codec', ['h264', 'av1'])
def test_videos_have_a_key_frame_every_second_frame(write_copy, codec):
    path = next(write_copy(codec=codec).glob('videos/*/*front/*.mp4'))
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.pix_fmt == 'yuv420p'
        keys = [packet.is_keyframe for packet in container.demux(stream) if packet.size]
        assert codec in (stream.codec_context.name.replace('libdav1d', 'av1'))
    assert keys == [True, False] * 6


def test_crf_trades_size_for_quality(write_copy):
    sizes = [
        sum(path.stat().st_size for path in write_copy(crf=crf, folder=str(crf)).rglob('*.mp4'))
        for crf in (10, 40)
    ]
    assert sizes[0] > 1.5 * sizes[1]


def test_meta_files_of_each_version(write_copy):
    wanted = {
        'v2.0': {'info.json', 'episodes.jsonl', 'tasks.jsonl', 'stats.json'},
        'v2.1': {'info.json', 'episodes.jsonl', 'tasks.jsonl', 'episodes_stats.jsonl'},
        'v3.0': {'info.json', 'tasks.parquet', 'stats.json', 'episodes'},
    }
    for version, names in wanted.items():
        root = write_copy(version, folder=version)
        assert {path.name for path in (root / 'meta').iterdir()} == names
        info = json.loads((root / 'meta/info.json').read_text())
        assert (info['codebase_version'], info['fps']) == (version, 30)
        assert (info['total_episodes'], info['total_frames'], info['total_tasks']) == (2, 24, 2)


def test_statistics_are_those_of_the_data(tmp_path):
    state = np.arange(8.0).reshape(4, 2)
    with LeRobotWriter(
        tmp_path / 'd', **{**SETTINGS, 'version': 'v2.0', 'codec': 'png'}
    ) as writer:
        writer.add_episode(images(value=0), state, state[:, :1], 'x')
        writer.add_episode(images(value=255), state + 8, state[:, :1], 'x')
    stats = json.loads((tmp_path / 'd/meta/stats.json').read_text())
    whole = np.concatenate([state, state + 8])
    got = stats['observation.state']
    np.testing.assert_allclose(got['mean'], whole.mean(axis=0))
    np.testing.assert_allclose(got['std'], whole.std(axis=0))
    for name, share in {'q01': 0.01, 'q10': 0.1, 'q50': 0.5, 'q90': 0.9, 'q99': 0.99}.items():
        np.testing.assert_allclose(got[name], np.quantile(whole, share, axis=0))
    assert (got['min'], got['max'], got['count']) == ([0, 1], [14, 15], [8])
    picture = stats['observation.images.top']
    assert np.shape(picture['mean']) == (3, 1, 1)
    np.testing.assert_allclose(np.ravel(picture['mean']), 0.5)
    np.testing.assert_allclose(np.ravel(picture['std']), 0.5)
    assert (np.ravel(picture['min'])[0], np.ravel(picture['max'])[0]) == (0, 1)
    assert [np.ravel(picture[name])[0] for name in ('q01', 'q50', 'q90')] == [0, 0, 1]


def test_vectors_of_one_number_are_plain_columns(tmp_path):
    with LeRobotWriter(tmp_path / 'd', **SETTINGS) as writer:
        writer.add_episode(images(), np.zeros((4, 2)), np.ones((4, 1)), 'x')
    table = pq.read_table(next(tmp_path.glob('d/data/*/*.parquet')))
    assert table.column('action').to_pylist() == [1.0] * 4
    assert table.column('observation.state').to_pylist() == [[0.0, 0.0]] * 4


def test_tables_with_images_say_so_as_the_datasets_library_does(tmp_path):
    with LeRobotWriter(tmp_path / 'd', **SETTINGS, codec='png') as writer:
        writer.add_episode(images(), np.zeros((4, 2)), np.zeros((4, 1)), 'x')
    schema = pq.read_schema(next(tmp_path.glob('d/data/*/*.parquet')))
    features = json.loads(schema.metadata[b'huggingface'])['info']['features']
    assert set(features) == set(schema.names)
    number = {'dtype': 'float32', '_type': 'Value'}
    assert features['observation.images.top'] == {'_type': 'Image'}
    assert features['action'] == number
    assert features['observation.state'] == {'feature': number, 'length': 2, '_type': 'Sequence'}
    assert features['index'] == {'dtype': 'int64', '_type': 'Value'}


def test_statistics_have_the_columns_that_lerobot_appends_to(write_copy):
    path = write_copy('v3.0') / 'meta/episodes/chunk-000/file-000.parquet'
    wanted = {'min', 'max', 'mean', 'std', 'count', 'q01', 'q10', 'q50', 'q90', 'q99'}
    for key in ('observation.state', 'observation.images.front'):
        prefix = f'stats/{key}/'
        names = [name for name in pq.read_schema(path).names if name.startswith(prefix)]
        assert {name.removeprefix(prefix) for name in names} == wanted


def test_one_text_per_step(tmp_path):
    with LeRobotWriter(tmp_path / 'd', **SETTINGS) as writer:
        writer.add_episode(images(), np.zeros((4, 2)), np.zeros((4, 1)), ['x', 'y', 'y', 'x'])
        writer.add_episode(images(), np.zeros((4, 2)), np.zeros((4, 1)), 'y')
    meta = tmp_path / 'd/meta'
    assert [row['task'] for row in read_lines(meta / 'tasks.jsonl')] == ['x', 'y']
    assert [row['tasks'] for row in read_lines(meta / 'episodes.jsonl')] == [['x', 'y'], ['y']]
    assert len(read_lines(meta / 'episodes_stats.jsonl')) == 2
    table = pq.read_table(min(tmp_path.glob('d/data/*/*.parquet')))
    assert table.column('task_index').to_pylist() == [0, 1, 1, 0]
    table = pq.read_table(max(tmp_path.glob('d/data/*/*.parquet')))
    assert table.column('index').to_pylist() == [4, 5, 6, 7]


def test_v3_says_where_each_episode_lies(write_copy):
    root = write_copy('v3.0')
    rows = pq.read_table(root / 'meta/episodes/chunk-000/file-000.parquet').to_pylist()
    starts = [row['videos/observation.images.front/from_timestamp'] for row in rows]
    np.testing.assert_allclose(starts, [0, 0.4])
    assert [(r['dataset_from_index'], r['dataset_to_index']) for r in rows] == [(0, 12), (12, 24)]
    assert rows[1]['stats/observation.state/count'] == [12]
    metadata = json.loads(pq.read_schema(root / 'meta/tasks.parquet').metadata[b'pandas'])
    assert metadata['index_columns'] == ['task']


def test_pandas_takes_the_tasks_as_the_index(write_copy):
    pandas = pytest.importorskip('pandas')
    tasks = pandas.read_parquet(write_copy('v3.0') / 'meta/tasks.parquet')
    assert tasks.index.name == 'task'
    assert list(tasks.columns) == ['task_index']
    assert tasks.loc['follow curve 1', 'task_index'] == 1


@pytest.mark.parametrize(
    ('change', 'place'),
    [
        ({'version': 'v2.2'}, 'version'),
        ({'codec': 'mpeg2'}, 'codec'),
        ({'cameras': {'top': (15, 32)}}, 'top'),
    ],
)
def test_settings_that_are_refused(tmp_path, change, place):
    with pytest.raises(DatasetError, match=f'd: {place}: '):
        LeRobotWriter(tmp_path / 'd', **{**SETTINGS, **change})
    assert not (tmp_path / 'd').exists()


def test_a_folder_in_use_is_refused(tmp_path):
    (tmp_path / 'keep.txt').write_text('')
    with pytest.raises(DatasetError, match='a path that is in use'):
        LeRobotWriter(tmp_path, **SETTINGS)


@pytest.mark.parametrize(
    ('change', 'told'),
    [
        ({'images': {}}, r"cameras \['top'\]"),
        ({'images': images(3)}, '4 images'),
        ({'images': images(5)}, '4 images'),
        ({'images': {'top': [np.zeros((16, 30, 3), np.uint8)] * 4}}, r'uint8\[16, 32, 3\]'),
        ({'images': {'top': [np.zeros((16, 32, 3))] * 4}}, r'uint8\[16, 32, 3\]'),
        ({'state': np.zeros((4, 3))}, r'\[4, 2\]'),
        ({'state': np.full((4, 2), np.nan)}, 'finite'),
        ({'action': np.zeros((3, 1))}, r'\[4, 1\]'),
        ({'instruction': ['x']}, '4 texts'),
        ({'state': np.zeros((0, 2)), 'action': np.zeros((0, 1))}, r'\[1, 2\]'),
    ],
)
def test_episodes_that_are_refused(tmp_path, change, told):
    episode = {'images': images(), 'state': np.zeros((4, 2)), 'action': np.zeros((4, 1))}
    episode = {'instruction': 'x', **episode, **change}
    with (
        pytest.raises(DatasetError, match=told),
        LeRobotWriter(tmp_path / 'd', **SETTINGS) as writer,
    ):
        writer.add_episode(**episode)
    assert not Path(tmp_path / 'd/meta').exists()
