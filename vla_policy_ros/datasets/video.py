# SPDX-License-Identifier: Apache-2.0
"""Frames of video files, decoded one after another with PyAV; a file is open only while its frames are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av

from vla_policy_ros.core.errors import DatasetError
from vla_policy_ros.core.specs import Array
from vla_policy_ros.datasets.faults import broken_file, missing_file

TOLERANCE_S = 1e-4
"""How far a frame may lie from the time it is looked up at (LeRobot's default)."""


@dataclass(frozen=True, slots=True)
class VideoFacts:
    """What the container says of its video, without decoding it."""

    num_frames: int
    height: int
    width: int
    end_s: float


def probe_video(path: Path) -> VideoFacts:
    """Read the facts of a video file.

    Raises:
        DatasetError: The file is missing or broken.
    """
    with _open_video(path) as (container, stream):
        # Counting packets reads the index of an MP4 only; a missing frame count is 0 in other containers.
        num_frames = stream.frames or len(_frame_times(container, stream))
        duration = stream.duration or 0
        end_s = float((stream.start_time or 0) + duration) * float(stream.time_base)
        return VideoFacts(num_frames, stream.height, stream.width, end_s)


def iter_frames(path: Path, steps: range) -> Iterator[Array]:
    """Yield frames by number, each (H, W, 3) uint8 RGB; a start above 0 is reached through its key frame.

    Raises:
        DatasetError: The file is missing or broken, or ends before the last frame (`missing_frames`).
    """
    got = steps.start
    with _open_video(path) as (container, stream):
        first_pts = None
        if steps.start:
            times = _frame_times(container, stream)
            if len(times) <= steps.start:
                raise _missing_frames(path, f'{len(times)} frames', f'{steps.stop} frames')
            first_pts = times[steps.start]
        for frame in _decode_from(container, stream, first_pts):
            if got >= steps.stop:
                return
            yield frame.to_ndarray(format='rgb24')
            got += 1
    if got < steps.stop:
        raise _missing_frames(path, f'{got} frames', f'{steps.stop} frames')


def iter_frames_at(path: Path, times_s: Array) -> Iterator[Array]:
    """Yield the frame at each of the growing times within `TOLERANCE_S`, each (H, W, 3) uint8 RGB.

    Raises:
        DatasetError: The file is missing or broken, or has no frame at one of the times (`missing_frames`).
    """
    wanted = iter(float(time_s) for time_s in times_s)
    time_s = next(wanted, None)
    if time_s is None:
        return
    with _open_video(path) as (container, stream):
        first_pts = max(0, round((time_s - TOLERANCE_S) / stream.time_base))
        for frame in _decode_from(container, stream, first_pts):
            if frame.time < time_s - TOLERANCE_S:
                continue
            if frame.time > time_s + TOLERANCE_S:
                break
            yield frame.to_ndarray(format='rgb24')
            time_s = next(wanted, None)
            if time_s is None:
                return
    raise _missing_frames(path, 'none', f'a frame at {time_s:.4f} s')


@contextmanager
def _open_video(path: Path) -> Iterator[tuple[Any, Any]]:
    """Open a file and its first video stream; PyAV keeps the memory of a container until it is closed."""
    if not path.is_file():
        raise missing_file(path, 'a video file')
    # torchvision lets PyAV log through Python: a decoder's thread then waits for the interpreter, which waits for it when
    # a half-read file is closed.
    av.logging.set_level(None)
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise broken_file(path, 'a video', 'no video stream', 'broken_video')
            stream = container.streams.video[0]
            stream.thread_type = 'AUTO'
            yield container, stream
    except av.FFmpegError as fault:
        raise broken_file(path, 'a readable video', fault, 'broken_video') from fault


def _frame_times(container: Any, stream: Any) -> list[int]:
    """Return the presentation times of all frames in order, in the stream's time base; decodes nothing."""
    return sorted(packet.pts for packet in container.demux(stream) if packet.pts is not None)


def _decode_from(container: Any, stream: Any, first_pts: int | None) -> Iterator[Any]:
    """Decode from the frame at `first_pts` on; None decodes from the start without a seek."""
    if first_pts is None:
        yield from container.decode(stream)
        return
    container.seek(first_pts, stream=stream)
    frames = container.decode(stream)
    frame = next(frames, None)
    if frame is None or frame.pts > first_pts:
        # With reordered frames a container may land on a key frame that is shown later than asked for.
        container.seek(0, stream=stream)
        frames = container.decode(stream)
        frame = next(frames, None)
    while frame is not None:
        if frame.pts >= first_pts:
            yield frame
        frame = next(frames, None)


def _missing_frames(path: Path, got: str, expected: str) -> DatasetError:
    return DatasetError(
        str(path),
        got=got,
        expected=expected,
        next_step='Copy the file again, or leave this episode out.',
        code='missing_frames',
    )
