# SPDX-License-Identifier: Apache-2.0
"""Single images of a dataset: decoded as those of a live camera, with errors that name the recording."""

from __future__ import annotations

import numpy as np

from vla_policy_ros.core.errors import DatasetError, ImageError
from vla_policy_ros.core.frame import Frame
from vla_policy_ros.core.specs import Array
from vla_policy_ros.preprocess.decode import checked_size, decode_rgb

_FILE_STARTS = {'jpeg': b'\xff\xd8', 'png': b'\x89PNG\r\n\x1a\n'}


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
        for encoding, start in _FILE_STARTS.items():
            if content.startswith(start):
                pixels = np.frombuffer(content, np.uint8)
                return self._decode(Frame(self._where, 0, encoding, 0, 0, 0, pixels))
        raise self._fault(
            'unknown_encoding',
            got=f'data that starts with {content[:8].hex(" ")}',
            expected=f'one of {", ".join(_FILE_STARTS)}',
        )

    def decode_raw(
        self,
        encoding: str,
        data: Array,
        *,
        height: int,
        width: int,
        step_bytes: int,
        is_bigendian: bool = False,
    ) -> Array:
        """Decode raw pixels; return (H, W, 3) uint8 RGB.

        Args:
            encoding: One of `preprocess.decode.ENCODINGS`.
            data: (n,) uint8, as many bytes as the rows need.
            height: Rows in pixels.
            width: Columns in pixels.
            step_bytes: Bytes from one row to the next; padding at the end of a row is skipped.
            is_bigendian: Byte order of formats with more than 8 bits per channel.

        Raises:
            DatasetError: The encoding is not decoded here (`unknown_encoding`), or the sizes do not fit the data
                (`broken_image`).
        """
        pixels = np.ascontiguousarray(data)
        return self._decode(
            Frame(self._where, 0, encoding, height, width, step_bytes, pixels, is_bigendian)
        )

    def _decode(self, frame: Frame) -> Array:
        try:
            size = checked_size(frame)
            if self._rgb.shape[:2] != size:
                self._rgb = np.empty((*size, 3), np.uint8)
            decode_rgb(frame, self._rgb)
        except ImageError as fault:
            code = fault.code if fault.code == 'unknown_encoding' else 'broken_image'
            raise self._fault(code, got=fault.got, expected=fault.expected) from fault
        return self._rgb

    def _fault(self, code: str, *, got: object, expected: str) -> DatasetError:
        return DatasetError(
            self._where,
            got=got,
            expected=expected,
            next_step='Leave this camera out, or convert its images.'
            if code == 'unknown_encoding'
            else 'Record or copy the data again.',
            code=code,
        )
