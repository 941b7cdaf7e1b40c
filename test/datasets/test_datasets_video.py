# SPDX-License-Identifier: Apache-2.0
"""Frames by number and by time, and files that are closed."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from vla_policy_ros.core.errors import DatasetError
from vla_policy_ros.datasets.synthetic import SyntheticDataset, read_step_index
from vla_policy_ros.datasets.video import iter_frames, iter_frames_at, probe_video
from vla_policy_ros.datasets.video_writer import VideoWriter

STEPS = 90


@pytest.fixture
def draw():
    dataset = SyntheticDataset(num_steps=STEPS, cameras={'c': (64, 96)})
    return lambda: dataset.episode(0).images('c')


@pytest.fixture
def long_gops(tmp_path, draw):
    """A video with reordered frames and few key frames, as cameras and other tools write them."""
    path = tmp_path / 'long.mp4'
    with av.open(str(path), 'w') as container:
        options = {'g': '40', 'bf': '3', 'x264-params': 'open-gop=1:keyint=40:scenecut=0'}
        stream = container.add_stream('libx264', rate=30, options=options)
        stream.width, stream.height, stream.pix_fmt = 96, 64, 'yuv420p'
        for image in draw():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format='rgb24')))
        container.mux(stream.encode(None))
    return path


def steps_of(frames):
    return [read_step_index(frame) for frame in frames]


def open_files(path):
    links = [link.resolve() for link in Path('/proc/self/fd').iterdir() if link.exists()]
    return links.count(path.resolve())


@pytest.mark.parametrize('start', [0, 1, 38, 39, 40, 41, 79, 80, 81, 89])
def test_every_start_is_exact(long_gops, start):
    assert steps_of(iter_frames(long_gops, range(start, STEPS))) == list(range(start, STEPS))
    times_s = np.arange(start, STEPS) / 30
    assert steps_of(iter_frames_at(long_gops, times_s)) == list(range(start, STEPS))


def test_times_may_skip_frames_but_must_hit_one(long_gops):
    assert steps_of(iter_frames_at(long_gops, np.array([10, 12, 50]) / 30)) == [10, 12, 50]
    with pytest.raises(DatasetError, match=r'a frame at 0\.3500 s') as fault:
        list(iter_frames_at(long_gops, np.array([10 / 30, 0.35])))
    assert fault.value.code == 'missing_frames'


@pytest.mark.parametrize('steps', [range(STEPS + 1), range(50, STEPS + 1), range(95, 96)])
def test_a_short_file_is_named_with_both_counts(long_gops, steps):
    with pytest.raises(DatasetError) as fault:
        list(iter_frames(long_gops, steps))
    assert fault.value.code == 'missing_frames'
    assert (fault.value.got, fault.value.expected) == ('90 frames', f'{steps.stop} frames')
    assert fault.value.where == str(long_gops)


def test_the_file_is_open_only_while_frames_are_asked_for(long_gops):
    frames = iter_frames(long_gops, range(STEPS))
    assert open_files(long_gops) == 0
    next(frames)
    assert open_files(long_gops) == 1
    frames.close()
    assert open_files(long_gops) == 0
    list(iter_frames_at(long_gops, np.zeros(1)))
    assert open_files(long_gops) == 0


def test_probe_decodes_nothing_and_tells_the_facts(long_gops):
    facts = probe_video(long_gops)
    assert (facts.num_frames, facts.height, facts.width) == (90, 64, 96)
    assert facts.end_s == pytest.approx(3.0)


def test_a_file_without_video_is_broken(tmp_path):
    path = tmp_path / 'sound.mp4'
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('aac', rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), 'fltp', 'mono')
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(DatasetError, match='no video stream') as fault:
        probe_video(path)
    assert fault.value.code == 'broken_video'


def test_a_writer_closes_twice_and_counts(tmp_path, draw):
    path = tmp_path / 'new' / 'a.mp4'
    writer = VideoWriter(path, 'h264', rate_hz=Fraction(15), height=64, width=96, crf=20)
    for image, _ in zip(draw(), range(7), strict=False):
        writer.write(image)
    writer.close()
    writer.close()
    assert writer.num_frames == probe_video(path).num_frames == 7
    assert probe_video(path).end_s == pytest.approx(7 / 15, abs=1e-3)
