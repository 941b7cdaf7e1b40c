# SPDX-License-Identifier: Apache-2.0
"""From every pixel format a camera sends to RGB, with the arithmetic of OpenCV, which is that of cv_bridge.

- YUV is converted with OpenCV's fixed-point form of BT.601, limited range (Y 16 to 235), chroma of the pixel pair or block.
- Bayer patterns are interpolated bilinearly.
- Formats of 16 bits per channel keep the high byte (`>> 8`), in the byte order that the frame declares.
- `8UC1` is taken as `mono8` and `8UC3` as `bgr8`, as cv_bridge does.
- Depth (`16UC1`, `32FC1`) is refused: it is no picture, and its bits would be scaled to nonsense.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from vla_policy_ros.core.errors import ImageError
from vla_policy_ros.core.frame import COMPRESSED_ENCODINGS, Frame
from vla_policy_ros.core.specs import Array, TensorSpec
from vla_policy_ros.preprocess.compressed import (
    decode_compressed,
    image_error,
    read_compressed_size,
)

MAX_EDGE_PX = 16384

# Encoding to bytes per pixel and OpenCV's conversion.
_PACKED = {
    'bgr8': (3, cv2.COLOR_BGR2RGB),
    '8UC3': (3, cv2.COLOR_BGR2RGB),
    'rgba8': (4, cv2.COLOR_RGBA2RGB),
    'bgra8': (4, cv2.COLOR_BGRA2RGB),
    'mono8': (1, cv2.COLOR_GRAY2RGB),
    '8UC1': (1, cv2.COLOR_GRAY2RGB),
    'yuv422': (2, cv2.COLOR_YUV2RGB_UYVY),
    'uyvy': (2, cv2.COLOR_YUV2RGB_UYVY),
    'yuv422_yuy2': (2, cv2.COLOR_YUV2RGB_YUY2),
    'yuyv': (2, cv2.COLOR_YUV2RGB_YUY2),
    'bayer_rggb8': (1, cv2.COLOR_BayerRGGB2RGB),
    'bayer_bggr8': (1, cv2.COLOR_BayerBGGR2RGB),
    'bayer_gbrg8': (1, cv2.COLOR_BayerGBRG2RGB),
    'bayer_grbg8': (1, cv2.COLOR_BayerGRBG2RGB),
}
# A plane of Y, below it half as many rows of interleaved chroma.
_SEMI_PLANAR = {'nv12': cv2.COLOR_YUV2RGB_NV12, 'nv21': cv2.COLOR_YUV2RGB_NV21}
# Encoding to channels and the step through them that gives RGB.
_DEEP = {'mono16': (1, 1), 'rgb16': (3, 1), 'bgr16': (3, -1)}

_DEPTH = ('16UC1', '32FC1')
_EVEN_WIDTH = ('yuv422', 'uyvy', 'yuv422_yuy2', 'yuyv', *_SEMI_PLANAR)

ENCODINGS = ('rgb8', *_PACKED, *_SEMI_PLANAR, *_DEEP, *COMPRESSED_ENCODINGS)
"""Every encoding that `decode_rgb` takes, under its ROS name."""


def compressed_encoding(format_text: str) -> str:
    """Return the encoding of a `sensor_msgs/CompressedImage` from its format field.

    The field is `jpeg`, `png`, or what image_transport writes: `rgb8; jpeg compressed bgr8`.

    Raises:
        ImageError: The format is another one, such as `16UC1; compressedDepth`.
    """
    words = format_text.lower().rpartition(';')[2].split()
    name = {'jpg': 'jpeg'}.get(words[0], words[0]) if words else ''
    if name in COMPRESSED_ENCODINGS:
        return name
    raise ImageError(
        'format of a compressed image',
        got=repr(format_text[:80]),
        expected='jpeg or png',
        next_step='Let the publisher compress to JPEG or PNG.',
        code='unknown_encoding',
    )


def checked_size(frame: Frame) -> tuple[int, int]:
    """Return height and width in pixels after every check that needs no decoding.

    Raises:
        ImageError: `unknown_encoding`, `bad_size`, `bad_step`, `short_data`, or a fault of a compressed file.
    """
    if frame.encoding not in ENCODINGS:
        raise _unknown_encoding(frame)
    if frame.encoding in COMPRESSED_ENCODINGS:
        height, width = read_compressed_size(frame)
        _check_size(frame, height, width)
        return height, width
    _check_size(frame, frame.height, frame.width)
    _check_data(frame)
    return frame.height, frame.width


def decode_rgb(frame: Frame, out: Array | None = None) -> Array:
    """Decode one frame to (H, W, 3) uint8 RGB in host memory.

    Args:
        frame: The frame; rows may be padded (`step_bytes`).
        out: (H, W, 3) uint8 buffer to write; then nothing of the image's size is allocated, but for
            compressed images, where OpenCV allocates one.

    Returns:
        `out`, or without one: for `rgb8` a view of the frame's own bytes (rows may be padded, may be read-only),
        else a new array.

    Raises:
        ImageError: The frame cannot be decoded; see `checked_size`.
        SpecMismatchError: `out` has another shape or element type.
    """
    size = checked_size(frame)
    if out is not None:
        TensorSpec('rgb', (*size, 3), 'uint8').validate(out)
    if frame.encoding in COMPRESSED_ENCODINGS:
        return decode_compressed(frame, out)
    view = _rows(frame)
    if frame.encoding == 'rgb8':
        return view if out is None else _copy(view, out)
    if frame.encoding in _DEEP:
        channels, order = _DEEP[frame.encoding]
        high = view.reshape(*size, channels, 2)[..., 0 if frame.is_bigendian else 1]
        return _copy(high[..., ::order], np.empty((*size, 3), np.uint8) if out is None else out)
    code = _SEMI_PLANAR.get(frame.encoding)
    rgb: Array = cv2.cvtColor(view, _PACKED[frame.encoding][1] if code is None else code, dst=out)
    return rgb


def _copy(image: Array, out: Array) -> Array:
    np.copyto(out, image)
    return out


def bytes_shape(encoding: str, height: int, width: int) -> tuple[int, ...]:
    """Return the shape of an uncompressed image's bytes: (rows, columns) or (rows, columns, bytes per pixel)."""
    if encoding in _SEMI_PLANAR:
        return height * 3 // 2, width
    if encoding in _DEEP:
        return height, width, 2 * _DEEP[encoding][0]
    pixel_bytes = 3 if encoding == 'rgb8' else _PACKED[encoding][0]
    return (height, width, pixel_bytes)[: 2 if pixel_bytes == 1 else 3]


def _rows(frame: Frame) -> Array:
    """Return a view of the frame's bytes with its row stride."""
    shape = bytes_shape(frame.encoding, frame.height, frame.width)
    strides = (frame.step_bytes, *((shape[2], 1) if len(shape) == 3 else (1,)))
    rows: Array = np.ndarray(shape, np.uint8, frame.data.data, 0, strides)
    return rows


def _check_size(frame: Frame, height: int, width: int) -> None:
    semi_planar, bayer = frame.encoding in _SEMI_PLANAR, frame.encoding.startswith('bayer')
    least = 3 if bayer else 1  # OpenCV gives black below
    expected = f'edges of {least} to {MAX_EDGE_PX} px'
    fits = least <= height <= MAX_EDGE_PX and least <= width <= MAX_EDGE_PX
    if frame.encoding in _EVEN_WIDTH:
        expected += ', an even width' + (' and height' if semi_planar else '')
        fits &= width % 2 == 0 and not (semi_planar and height % 2)
    if not fits:
        raise image_error(
            frame,
            'bad_size',
            got=f'{width} x {height} px of {frame.encoding}',
            expected=expected,
            next_step='Check width, height and encoding of the publisher.',
        )


def _check_data(frame: Frame) -> None:
    rows, *row = bytes_shape(frame.encoding, frame.height, frame.width)
    row_bytes = math.prod(row)
    if frame.step_bytes < row_bytes:
        raise image_error(
            frame,
            'bad_step',
            got=f'{frame.step_bytes} bytes per row',
            expected=f'{row_bytes} or more for {frame.width} px of {frame.encoding}',
            next_step='Check step, width and encoding of the publisher.',
        )
    needed = (rows - 1) * frame.step_bytes + row_bytes
    if len(frame.data) < needed:
        raise image_error(
            frame,
            'short_data',
            got=f'{len(frame.data)} bytes',
            expected=f'{needed} or more for {rows} rows of {frame.step_bytes} bytes',
            next_step='Check height and step of the publisher, and the link to it.',
        )


def _unknown_encoding(frame: Frame) -> ImageError:
    depth = frame.encoding in _DEPTH
    return image_error(
        frame,
        'unknown_encoding',
        got=f'{frame.encoding!r}{", which is depth and no picture" if depth else ""}',
        expected=f'one of {", ".join(ENCODINGS)}',
        next_step='Map the camera to its colour topic.'
        if depth
        else 'Let the driver publish one of these encodings.',
    )
