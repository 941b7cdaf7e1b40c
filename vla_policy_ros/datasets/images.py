# SPDX-License-Identifier: Apache-2.0
"""Single images of a dataset: raw pixels under their ROS names, JPEG and PNG."""

from __future__ import annotations

import cv2
import numpy as np

from vla_policy_ros.core.errors import DatasetError
from vla_policy_ros.core.specs import Array

_CHANNELS = {'rgb8': 3, 'bgr8': 3, 'rgba8': 4, 'bgra8': 4, 'mono8': 1}
_TO_RGB = {
    'bgr8': cv2.COLOR_BGR2RGB,
    'rgba8': cv2.COLOR_RGBA2RGB,
    'bgra8': cv2.COLOR_BGRA2RGB,
    'mono8': cv2.COLOR_GRAY2RGB,
}
RAW_ENCODINGS = tuple(_CHANNELS)
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
        channels = _CHANNELS.get(encoding)
        if channels is None:
            raise self._unknown_encoding(repr(encoding), ', '.join(RAW_ENCODINGS))
        if (
            min(height, width) < 1
            or step_bytes < width * channels
            or data.size < height * step_bytes
        ):
            raise self._broken(f'{data.size} bytes for {height} rows of {step_bytes} bytes')
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
            cv2.cvtColor(pixels, _TO_RGB[encoding], self._rgb)
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
