# SPDX-License-Identifier: Apache-2.0
"""Writes images into an MP4 as LeRobot does: H.264 or AV1, yuv420p, a key frame every second frame."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
from av.codec.codec import UnknownCodecError

from vla_policy_ros.core.errors import MissingDependencyError
from vla_policy_ros.core.specs import Array

VIDEO_CODECS = ('h264', 'av1')

_FRAMES_PER_KEY_FRAME = '2'
# x264's look-ahead is of no use between such near key frames, and makes its output differ from run to run (measured:
# 3 of 1000 short videos on a busy machine, none without it); the tuning turns it off.
_ENCODERS: dict[str, tuple[tuple[str, dict[str, str]], ...]] = {
    'h264': (('libx264', {'tune': 'zerolatency'}),),
    'av1': (('libsvtav1', {'preset': '8'}), ('libaom-av1', {'cpu-used': '6', 'b:v': '0'})),
}


class VideoWriter:
    """One MP4 file being written; the same images give the same bytes (with the same PyAV).

    Args:
        path: File to write; its folder is made.
        codec: One of `VIDEO_CODECS`.
        rate_hz: Frames per second.
        height: Rows in pixels, even.
        width: Columns in pixels, even.
        crf: Constant rate factor: lower is better and larger.

    Raises:
        MissingDependencyError: PyAV was built without an encoder for the codec.
    """

    def __init__(
        self, path: Path, codec: str, *, rate_hz: Fraction, height: int, width: int, crf: int
    ) -> None:
        name, options = _find_encoder(codec)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.num_frames = 0
        self._container = av.open(str(path), 'w', format='mp4')
        self._stream = self._container.add_stream(
            name, rate=rate_hz, options={**options, 'crf': str(crf), 'g': _FRAMES_PER_KEY_FRAME}
        )
        self._stream.height, self._stream.width = height, width
        self._stream.pix_fmt = 'yuv420p'
        self._stream.codec_context.thread_count = 1  # slices, and so the bytes, follow the threads
        self._time_base = 1 / rate_hz

    def write(self, image: Array) -> None:
        """Append one (H, W, 3) uint8 RGB image."""
        frame = av.VideoFrame.from_ndarray(image, format='rgb24')
        frame.pts = self.num_frames
        frame.time_base = self._time_base
        self._container.mux(self._stream.encode(frame))
        self.num_frames += 1

    def close(self) -> None:
        """Write what the encoder still holds and close the file; may be called twice."""
        if self._container is not None:
            self._container.mux(self._stream.encode(None))
            self._container.close()
            self._container = None


def _find_encoder(codec: str) -> tuple[str, dict[str, str]]:
    for name, options in _ENCODERS[codec]:
        try:
            av.Codec(name, 'w')
        except UnknownCodecError:
            continue
        return name, options
    raise MissingDependencyError(
        f'codec {codec}',
        got='a PyAV without an encoder for it',
        expected=' or '.join(name for name, _ in _ENCODERS[codec]),
        next_step='Install the PyAV wheel from PyPI (`pip install av`), or choose the codec png.',
    )
