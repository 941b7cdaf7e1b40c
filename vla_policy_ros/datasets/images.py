# SPDX-License-Identifier: Apache-2.0
"""Single images of a dataset: raw pixels under their ROS names, JPEG and PNG."""

from __future__ import annotations

import cv2
import numpy as np

from vla_policy_ros.core.errors import DatasetError
from vla_policy_ros.core.specs import Array

# Encoding to bytes per pixel and OpenCV's conversion; the same pixels as `preprocess.decode` makes of a live camera.
_TO_RGB = {
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
_PAIRED = ('yuv422', 'uyvy', 'yuv422_yuy2', 'yuyv')
RAW_ENCODINGS = ('rgb8', *_TO_RGB)
"""Raw pixel formats that are decoded, under their ROS names."""

_JPEG_START, _JPEG_END = b'\xff\xd8', b'\xff\xd9'
_PNG_START, _PNG_END = b'\x89PNG\r\n\x1a\n', b'IEND\xaeB`\x82'


class ImageDecoder:
    """Decodes images of one stream into one reused buffer; a result stays valid until the next call.

    Args:
        where: Topic or file that the images come from, for messages.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._rgb = np.empty((0, 0, 3), np.uint8)

    def decode_file(self, data: bytes | Array) -> Array:
        """Decode a JPEG or PNG file in memory; return (H, W, 3) uint8 RGB. Orientation tags are not applied.

        Raises:
            DatasetError: The data is something else (`unknown_encoding`), truncated or broken (`broken_image`).
        """
        content = bytes(data)
        if not content.startswith((_JPEG_START, _PNG_START)):
            raise self._unknown_encoding(f'data that starts with {content[:8].hex(" ")}', 'jpeg')
        end = _JPEG_END if content.startswith(_JPEG_START) else _PNG_END
        is_whole = content.rstrip(b'\0').endswith(end)
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        bgr = cv2.imdecode(np.frombuffer(content, np.uint8), flags) if is_whole else None
        if bgr is None:
            raise self._broken(f'{len(content)} bytes that end early or do not decode')
        return self._convert(np.asarray(bgr), 'bgr8')

    def decode_raw(
        self, encoding: str, data: Array, *, height: int, width: int, step_bytes: int
    ) -> Array:
        """Decode raw pixels; return (H, W, 3) uint8 RGB.

        Args:
            encoding: One of `RAW_ENCODINGS`.
            data: (n,) uint8, n >= height * step_bytes.
            height: Rows in pixels.
            width: Columns in pixels.
            step_bytes: Bytes from one row to the next; padding at the end of a row is skipped.

        Raises:
            DatasetError: The encoding is not decoded here (`unknown_encoding`), or the sizes do not fit the data.
        """
        if encoding not in RAW_ENCODINGS:
            raise self._unknown_encoding(repr(encoding), ', '.join(RAW_ENCODINGS))
        channels = 3 if encoding == 'rgb8' else _TO_RGB[encoding][0]
        if (
            min(height, width) < 1
            or step_bytes < width * channels
            or data.size < height * step_bytes
            or (encoding in _PAIRED and width % 2)
        ):
            raise self._broken(
                f'{data.size} bytes for {height} rows of {step_bytes} bytes, {width} px wide'
            )
        content = np.ascontiguousarray(data)
        pixels: Array = np.ndarray(
            (height, width, channels), np.uint8, content.data, 0, (step_bytes, channels, 1)
        )
        return self._convert(pixels, encoding)

    def _convert(self, pixels: Array, encoding: str) -> Array:
        height, width = pixels.shape[:2]
        if self._rgb.shape[:2] != (height, width):
            self._rgb = np.empty((height, width, 3), np.uint8)
        if encoding == 'rgb8':
            np.copyto(self._rgb, pixels)
        else:
            cv2.cvtColor(pixels, _TO_RGB[encoding][1], self._rgb)
        return self._rgb

    def _unknown_encoding(self, got: str, known: str) -> DatasetError:
        return DatasetError(
            self._where,
            got=got,
            expected=f'one of {known}, png' if known == 'jpeg' else f'one of {known}',
            next_step='Leave this camera out, or convert its images.',
            code='unknown_encoding',
        )

    def _broken(self, got: str) -> DatasetError:
        return DatasetError(
            self._where,
            got=got,
            expected='a whole image',
            next_step='Record or copy the data again.',
            code='broken_image',
        )
