# SPDX-License-Identifier: Apache-2.0
"""JPEG and PNG: size before decoding, and no image at all rather than half a one."""

from __future__ import annotations

import re

import cv2

from vla_policy_ros.core.errors import ImageError
from vla_policy_ros.core.frame import Frame
from vla_policy_ros.core.specs import Array

_START_OF_SCAN = 0xDA
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_END_OF_IMAGE = re.compile(rb'\xff\xd9')
_PNG_SIGNATURE = b'\x89PNG\r\n\x1a\n'
_PNG_END = re.compile(rb'IEND\xae\x42\x60\x82')

# The EXIF orientation is ignored, as image_transport does: pixels stay as the sensor has them.
_FLAGS = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION


def image_error(
    frame: Frame, code: str, *, got: object, expected: str, next_step: str
) -> ImageError:
    """Return the error of one frame; `where` names the camera and the stamp."""
    where = f'camera {frame.camera!r} at {frame.stamp_ns} ns'
    return ImageError(where, got=got, expected=expected, next_step=next_step, code=code)


def read_compressed_size(frame: Frame) -> tuple[int, int]:
    """Return height and width in pixels from the header, after a look at the end of the file.

    Raises:
        ImageError: The bytes are no such file (`bad_jpeg`, `bad_png`) or end too early (`truncated_jpeg`, `truncated_png`).
    """
    view = frame.data.data
    return _jpeg_size(frame, view) if frame.encoding == 'jpeg' else _png_size(frame, view)


def decode_compressed(frame: Frame, out: Array | None = None) -> Array:
    """Decode to (H, W, 3) uint8 RGB; OpenCV gives no way to decode into a buffer, so one image is allocated.

    Damage inside a JPEG's data that leaves its end in place cannot be told from a picture by libjpeg's own rules.

    Raises:
        ImageError: The file is whole by its markers, but cannot be decoded (`bad_jpeg`, `bad_png`).
    """
    try:
        image = cv2.imdecode(frame.data, _FLAGS)
    except cv2.error:
        image = None
    if image is None:
        raise _bad_file(frame, 'data that OpenCV cannot decode')
    rgb: Array = cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=out)
    return rgb


def _jpeg_size(frame: Frame, view: memoryview) -> tuple[int, int]:
    """Walk the segments of ITU-T T.81, annex B, up to the first scan, then look for the end-of-image marker."""
    if bytes(view[:2]) != b'\xff\xd8':
        raise _bad_file(frame, 'no start-of-image marker')
    size, position = (0, 0), 2
    while position + 9 <= len(view) and view[position] == 0xFF:
        marker = view[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if marker in _START_OF_FRAME:
            size = (_big_endian(view, position + 5, 2), _big_endian(view, position + 7, 2))
        position += 2 + _big_endian(view, position + 2, 2)
        if marker == _START_OF_SCAN and _END_OF_IMAGE.search(view, position):
            return size
    raise _truncated(frame)


def _png_size(frame: Frame, view: memoryview) -> tuple[int, int]:
    if bytes(view[:8]) != _PNG_SIGNATURE:
        raise _bad_file(frame, 'no PNG signature')
    if len(view) < 24 or not _PNG_END.search(view, 24):
        raise _truncated(frame)
    return _big_endian(view, 20, 4), _big_endian(view, 16, 4)


def _big_endian(view: memoryview, start: int, length: int) -> int:
    return int.from_bytes(view[start : start + length], 'big')


def _bad_file(frame: Frame, got: str) -> ImageError:
    return image_error(
        frame,
        f'bad_{frame.encoding}',
        got=got,
        expected=f'a {frame.encoding.upper()} file',
        next_step='Check the format field of the publisher.',
    )


def _truncated(frame: Frame) -> ImageError:
    return image_error(
        frame,
        f'truncated_{frame.encoding}',
        got=f'{len(frame.data)} bytes without the end of the image',
        expected=f'a whole {frame.encoding.upper()} file',
        next_step='Look for a lossy link or a full queue between the camera and this node.',
    )
