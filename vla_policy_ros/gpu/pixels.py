# SPDX-License-Identifier: Apache-2.0
"""How the bytes of every pixel format lie, as the preprocessing kernel takes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from vla_policy_ros.core.errors import ImageError

Decoder = Literal['PACKED', 'YUV422', 'SEMI_PLANAR', 'BAYER']


@dataclass(frozen=True, slots=True)
class PixelFormat:
    """A way to decode, which is compiled in, and where it finds its bytes, which is not: so kernels are shared."""

    decoder: Decoder
    places: tuple[int, int, int, int]
    """As the functions `read_pixel` of `kernels/preprocess.cu` take them."""

    selectors: tuple[int, int, int] = (0, 0, 0)
    """`PACKED`, of 4 bytes at most: how `read_run` sorts the bytes of four pixels, for red, green and blue."""


def _packed(pixel_bytes: int, red: int, green: int, blue: int) -> PixelFormat:
    """Return the format of pixels of so many bytes, which hold the colours at the given places."""
    first, second, third = (
        _selector([place + i * pixel_bytes for i in range(4)]) for place in (red, green, blue)
    )
    return PixelFormat('PACKED', (pixel_bytes, red, green, blue), (first, second, third))


def _selector(places: Sequence[int]) -> int:
    """Return two selectors of `__byte_perm`: of the bytes within 8; above, of the first or the second result."""
    within = sum(place % 8 << 4 * i for i, place in enumerate(places))
    half = sum((i + place // 8 % 2 * 4) << 4 * i for i, place in enumerate(places))
    return half << 16 | within


RGB = _packed(3, 0, 1, 2)
"""Three bytes per pixel, red first."""
_BGR = _packed(3, 2, 1, 0)
_MONO = _packed(1, 0, 0, 0)
_UYVY = PixelFormat('YUV422', (1, 0, 2, 0))
_YUYV = PixelFormat('YUV422', (0, 1, 3, 0))

_FORMATS: Mapping[str, PixelFormat] = MappingProxyType(
    {
        'rgb8': RGB,
        'bgr8': _BGR,
        '8UC3': _BGR,
        'rgba8': _packed(4, 0, 1, 2),
        'bgra8': _packed(4, 2, 1, 0),
        'mono8': _MONO,
        '8UC1': _MONO,
        'yuv422': _UYVY,
        'uyvy': _UYVY,
        'yuv422_yuy2': _YUYV,
        'yuyv': _YUYV,
        'nv12': PixelFormat('SEMI_PLANAR', (0, 0, 1, 0)),
        'nv21': PixelFormat('SEMI_PLANAR', (0, 1, 0, 0)),
        'bayer_rggb8': PixelFormat('BAYER', (0, 0, 0, 0)),
        'bayer_grbg8': PixelFormat('BAYER', (0, 1, 0, 0)),
        'bayer_gbrg8': PixelFormat('BAYER', (1, 0, 0, 0)),
        'bayer_bggr8': PixelFormat('BAYER', (1, 1, 0, 0)),
        # The high byte of little-endian values.
        'mono16': _packed(2, 1, 1, 1),
        'rgb16': _packed(6, 1, 3, 5),
        'bgr16': _packed(6, 5, 3, 1),
    }
)
DEVICE_ENCODINGS = tuple(_FORMATS)
"""Every encoding that is decoded on the device, under its ROS name: all but the compressed ones."""
_DEEP = ('mono16', 'rgb16', 'bgr16')


def pixel_format(encoding: str, *, is_bigendian: bool = False, where: str) -> PixelFormat:
    """Return the format of an encoding.

    Raises:
        ImageError: The kernel does not decode it (`unknown_encoding`).
    """
    found = _FORMATS.get(encoding)
    if found is None:
        raise ImageError(
            where,
            got=f'{encoding!r}',
            expected=f'one of {", ".join(DEVICE_ENCODINGS)}',
            next_step='Decode the image first.',
            code='unknown_encoding',
        )
    if encoding in _DEEP and is_bigendian:
        pixel_bytes, red, green, blue = found.places
        return _packed(pixel_bytes, red - 1, green - 1, blue - 1)
    return found
