# SPDX-License-Identifier: Apache-2.0
"""Reads images straight from their serialised form, so that the pixels are never copied into Python objects.

Layout: Common Data Representation (OMG DDS-XTypes, 7.4.1) of `sensor_msgs/Image` and `sensor_msgs/CompressedImage`:
a four-byte header that tells the byte order, then the fields in order, each aligned to its own size.
"""

from __future__ import annotations

import struct

import numpy as np

from vla_policy_ros.core.errors import ImageError
from vla_policy_ros.core.frame import Frame
from vla_policy_ros.core.specs import Array

_HEADER_BYTES = 4


class _Reader:
    """Walks over one serialised message."""

    def __init__(self, message: bytes) -> None:
        self._message = message
        self._order = '<' if message[1] & 1 else '>'
        self._offset = 0

    def _take(self, code: str, size: int) -> int:
        self._offset += -self._offset % size
        (value,) = struct.unpack_from(
            self._order + code, self._message, _HEADER_BYTES + self._offset
        )
        self._offset += size
        return int(value)

    def uint32(self) -> int:
        return self._take('I', 4)

    def int32(self) -> int:
        return self._take('i', 4)

    def uint8(self) -> int:
        return self._take('B', 1)

    def string(self) -> str:
        length = self.uint32()
        start = _HEADER_BYTES + self._offset
        self._offset += length
        return self._message[start : start + length - 1].decode('utf-8', 'replace')

    def stamp_ns(self) -> int:
        return self.int32() * 1_000_000_000 + self.uint32()

    def uint8_sequence(self) -> Array:
        length = self.uint32()
        return np.frombuffer(self._message, np.uint8, length, _HEADER_BYTES + self._offset)


def read_image(message: bytes, camera: str) -> Frame:
    """Return a serialised `sensor_msgs/Image` as a frame whose data is a view of `message`.

    Raises:
        ImageError: The message is shorter than it says (code `bad_message`).
    """
    try:
        reader = _Reader(message)
        stamp_ns = reader.stamp_ns()
        reader.string()  # frame_id
        height, width = reader.uint32(), reader.uint32()
        encoding = reader.string()
        is_bigendian = bool(reader.uint8())
        step_bytes = reader.uint32()
        data = reader.uint8_sequence()
    except (struct.error, ValueError, IndexError) as fault:
        raise _broken(camera, message, 'sensor_msgs/Image') from fault
    return Frame(camera, stamp_ns, encoding, height, width, step_bytes, data, is_bigendian)


def read_compressed_image(message: bytes, camera: str) -> tuple[int, str, Array]:
    """Return stamp in nanoseconds, format text and data of a serialised `sensor_msgs/CompressedImage`.

    Raises:
        ImageError: The message is shorter than it says (code `bad_message`).
    """
    try:
        reader = _Reader(message)
        stamp_ns = reader.stamp_ns()
        reader.string()  # frame_id
        return stamp_ns, reader.string(), reader.uint8_sequence()
    except (struct.error, ValueError, IndexError) as fault:
        raise _broken(camera, message, 'sensor_msgs/CompressedImage') from fault


def _broken(camera: str, message: bytes, kind: str) -> ImageError:
    return ImageError(
        f'camera {camera!r}',
        got=f'a message of {len(message)} bytes that ends early',
        expected=f'a whole {kind} in CDR',
        next_step='Check that the publisher and this node use the same message definition.',
        code='bad_message',
    )
