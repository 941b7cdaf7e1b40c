# SPDX-License-Identifier: Apache-2.0
"""Sample frames of a run, small enough for a report; PNG needs no image library."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import numpy as np

from vla_policy_ros.core.dataset import DatasetInfo, Episode
from vla_policy_ros.core.specs import Array

_MAX_WIDTH_PX = 240


@dataclass(frozen=True, slots=True, eq=False)
class SampleFrame:
    """One image of a run: (H, W, 3) uint8 RGB, its camera and its capture time."""

    camera: str
    stamp_ns: int
    image: Array


@dataclass(frozen=True, slots=True)
class EncodedFrame:
    """A sample frame as PNG."""

    camera: str
    stamp_ns: int
    png: bytes


def take_sample_frames(
    info: DatasetInfo, episode: Episode, *, count: int = 3
) -> tuple[SampleFrame, ...]:
    """Return `count` frames per camera, spread evenly over an episode, shrunk for a report.

    Raises:
        DatasetError: An image cannot be read.
    """
    last = len(episode.stamps_ns) - 1
    steps = sorted({round(last * share) for share in np.linspace(0.0, 1.0, count + 2)[1:-1]})
    return tuple(
        SampleFrame(camera.name, int(episode.stamps_ns[step]), shrink(image))
        for camera in info.cameras
        for step in steps
        for image in episode.images(camera.name, step, step + 1)
    )


def shrink(image: Array) -> Array:
    """Return a copy of a (H, W, 3) uint8 image, reduced by a whole factor until it is at most 240 pixels wide."""
    factor = -(-image.shape[1] // _MAX_WIDTH_PX)
    height, width = (size // factor for size in image.shape[:2])
    cut = image[: height * factor, : width * factor]
    blocks = cut.reshape(height, factor, width, factor, 3)
    reduced: Array = blocks.mean(axis=(1, 3)).round().astype(np.uint8)
    return reduced


def encode_png(image: Array) -> bytes:
    """Return a (H, W, 3) uint8 RGB image as PNG (W3C PNG specification, filter type 1: difference to the left)."""
    height, width, _ = image.shape
    rows = np.zeros((height, 1 + width * 3), np.uint8)
    rows[:, 0] = 1
    differences = image.copy()
    differences[:, 1:] -= image[:, :-1]  # wraps modulo 256, as the filter asks
    rows[:, 1:] = differences.reshape(height, -1)
    header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    parts = ((b'IHDR', header), (b'IDAT', zlib.compress(rows.tobytes(), 9)), (b'IEND', b''))
    return b'\x89PNG\r\n\x1a\n' + b''.join(_png_part(name, data) for name, data in parts)


def _png_part(name: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(name + data)
    return struct.pack('>I', len(data)) + name + data + struct.pack('>I', checksum)
