# SPDX-License-Identifier: Apache-2.0
import hashlib
import zipfile

import numpy as np
import pytest
from evaluation_builders import MS, STEP_NS, chunk, columns, record, stream

from vla_policy_ros.core.errors import DatasetError, SpecMismatchError
from vla_policy_ros.core.observation import Instruction
from vla_policy_ros.core.specs import Column, ColumnKind, Representation
from vla_policy_ros.evaluation.npz import pack_arrays, read_arrays
from vla_policy_ros.evaluation.recording import ChunkRecording


def rich_chunks():
    cols = (
        Column('arm', 'rad', ColumnKind.ANGLE),
        Column('grip', '1', ColumnKind.GRIPPER, Representation.DELTA),
    )
    yield chunk(
        [[1, 2], [3, 4]],
        3,
        cols=cols,
        sequence=7,
        epoch=2,
        instruction=Instruction('räum auf', 5),
        policy_id='p@1',
        stream_ages_ns={'front': 12, 'joints': -3},
        stage_latencies_ns={'decode': 100, 'network': 900},
    )
    yield chunk([[5, 6], [7, 8]], 4, cols=cols, sequence=8, stage_latencies_ns={'network': 800})


def test_everything_survives_saving(tmp_path):
    before = record(rich_chunks())
    before.save(tmp_path / 'run')
    after = ChunkRecording.load(tmp_path / 'run')
    assert len(after) == 2
    for old, new in zip(before, after, strict=True):
        for key in (
            'columns', 'step_ns', 'start_ns', 'observation_stamp_ns', 'sequence', 'epoch',
            'instruction', 'policy_id', 'stream_ages_ns', 'stage_latencies_ns',
        ):  # fmt: skip
            assert getattr(old, key) == getattr(new, key), key
        np.testing.assert_array_equal(old.actions, new.actions)
    np.testing.assert_array_equal(after.publish_stamps_ns, before.publish_stamps_ns)
    np.testing.assert_array_equal(after.receive_stamps_ns - after.publish_stamps_ns, [MS, MS])


def test_stage_latencies_leave_out_the_chunks_without_the_stage():
    latencies = record(rich_chunks()).stage_latencies_ns()
    assert {name: ns.tolist() for name, ns in latencies.items()} == {
        'decode': [100],
        'network': [900, 800],
    }


def test_equal_streams_give_equal_bytes_whatever_the_clock_said(tmp_path):
    record(rich_chunks(), latency_ns=5).save(tmp_path / 'a')
    record(rich_chunks(), latency_ns=99).save(tmp_path / 'b')
    first, second = ((tmp_path / name / 'chunks.npz').read_bytes() for name in 'ab')
    assert first == second
    timing = [(tmp_path / name / 'timing.npz').read_bytes() for name in 'ab']
    assert timing[0] != timing[1]
    assert record(rich_chunks()).digest() == hashlib.sha256(first).hexdigest()


def test_the_digest_tells_a_changed_action():
    assert stream([[1.0]], horizon=2).digest() != stream([[1.0000001]], horizon=2).digest()


def test_archives_hold_sorted_names_and_no_time():
    packed = pack_arrays({'b': np.zeros(1), 'a': np.ones(2)})
    assert packed == pack_arrays({'a': np.ones(2), 'b': np.zeros(1)})


def test_archive_entries_carry_the_zero_date(tmp_path):
    stream([[1.0]], horizon=2).save(tmp_path)
    with zipfile.ZipFile(tmp_path / 'chunks.npz') as archive:
        entries = archive.infolist()
    assert {entry.date_time for entry in entries} == {(1980, 1, 1, 0, 0, 0)}
    assert [entry.filename for entry in entries] == sorted(entry.filename for entry in entries)


def test_an_empty_recording_survives_saving(tmp_path):
    ChunkRecording().save(tmp_path)
    empty = ChunkRecording.load(tmp_path)
    assert (len(empty), empty.horizon, empty.step_ns, empty.columns) == (0, 0, 0, ())
    assert empty.actions.shape == (0, 0, 0)
    assert empty.policy_ids == ()


@pytest.mark.parametrize(
    'other',
    [
        chunk([[1.0, 2.0]]),
        chunk([[1.0], [2.0]], cols=columns(1, unit='deg')),
        chunk([[1.0], [2.0]], step_ns=STEP_NS + 1),
        chunk([[1.0], [2.0], [3.0]]),
    ],
    ids=['columns', 'unit', 'step', 'horizon'],
)
def test_a_stream_keeps_its_layout(other):
    recording = record([chunk([[1.0], [2.0]])])
    with pytest.raises(SpecMismatchError) as fault:
        recording.append(other, publish_stamp_ns=0, receive_stamp_ns=0)
    assert fault.value.code == 'stream_changed'
    assert len(recording) == 1


def test_extend_joins_recordings_with_their_stamps():
    joined = record([chunk([[1.0]], 0, policy_id='a')])
    joined.extend(record([chunk([[2.0]], 1, policy_id='b')], latency_ns=3))
    assert joined.publish_stamps_ns.tolist() == [10 * MS, STEP_NS + 3]
    assert joined.policy_ids == ('a', 'b')


@pytest.mark.parametrize('content', [b'', b'not a zip file', None], ids=['empty', 'text', 'none'])
def test_a_broken_file_is_a_dataset_error(tmp_path, content):
    stream([[1.0]], horizon=2).save(tmp_path)
    if content is None:
        (tmp_path / 'timing.npz').unlink()
    else:
        (tmp_path / 'timing.npz').write_bytes(content)
    with pytest.raises(DatasetError, match=r'timing\.npz'):
        ChunkRecording.load(tmp_path)


def test_a_truncated_file_is_a_dataset_error(tmp_path):
    stream([[1.0]], horizon=2).save(tmp_path)
    data = (tmp_path / 'chunks.npz').read_bytes()
    (tmp_path / 'chunks.npz').write_bytes(data[: len(data) // 2])
    with pytest.raises(DatasetError):
        ChunkRecording.load(tmp_path)


def test_pickled_objects_are_refused(tmp_path):
    np.savez(tmp_path / 'evil.npz', names=np.array([{'a': 1}], object))
    with pytest.raises(DatasetError):
        read_arrays(tmp_path / 'evil.npz')


@pytest.mark.parametrize('missing', ['actions', 'sequence', 'publish_stamp_ns'])
def test_a_missing_array_is_a_dataset_error(tmp_path, missing):
    stream([[1.0]], horizon=2).save(tmp_path)
    for name in ('chunks.npz', 'timing.npz'):
        arrays = read_arrays(tmp_path / name)
        arrays.pop(missing, None)
        (tmp_path / name).write_bytes(pack_arrays(arrays))
    with pytest.raises(DatasetError, match='belong together'):
        ChunkRecording.load(tmp_path)


def test_files_of_two_runs_are_refused(tmp_path):
    stream([[1.0]] * 2, horizon=2).save(tmp_path / 'a')
    stream([[1.0]] * 3, horizon=2).save(tmp_path / 'b')
    (tmp_path / 'a' / 'timing.npz').write_bytes((tmp_path / 'b' / 'timing.npz').read_bytes())
    with pytest.raises(DatasetError, match='belong together'):
        ChunkRecording.load(tmp_path / 'a')
