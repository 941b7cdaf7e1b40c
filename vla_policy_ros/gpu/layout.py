# SPDX-License-Identifier: Apache-2.0
"""Where a pixel lies in a tensor: a part from its row, a part from its column and a part from its channel, added up."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vla_policy_ros.bundle.manifest import Camera
from vla_policy_ros.core.specs import Array
from vla_policy_ros.preprocess.resize import Size


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Elements from the start of a tensor to every pixel."""

    rows: Array
    """(h,) int32: part of each row."""
    columns: Array
    """(w,) int32: part of each column."""
    channels: tuple[int, int, int]
    """Part of red, green and blue."""
    repeats: int = 1
    """How often the image stands in the tensor."""
    repeat_offset: int = 0
    """Elements between two of them."""


def interleaved(size: Size) -> Layout:
    """Return the layout of (h, w, 3), red first."""
    return _strided(size, row=3 * size[1], column=3, channels=(0, 1, 2))


def camera_layout(camera: Camera) -> Layout:
    """Return the layout of a camera's tensor for one image; `Camera.layout` and `Camera.color` say which."""
    order = (0, 1, 2) if camera.color == 'rgb' else (2, 1, 0)
    height, width = camera.size
    if camera.layout == 'hwc':
        return _strided(camera.size, row=3 * width, column=3, channels=order)
    if camera.layout == 'chw':
        red, green, blue = (place * height * width for place in order)
        return _strided(camera.size, row=width, column=1, channels=(red, green, blue))
    return _patches(camera, order)


def _strided(size: Size, *, row: int, column: int, channels: tuple[int, int, int]) -> Layout:
    rows, columns = (
        np.arange(edge, dtype=np.int32) * stride
        for edge, stride in zip(size, (row, column), strict=True)
    )
    return Layout(rows, columns, channels)


def _patches(camera: Camera, order: tuple[int, int, int]) -> Layout:
    patch, merge = camera.patch_size, camera.merge_size
    assert patch  # refused by the manifest
    height, width = camera.size
    area = patch * patch
    line = 3 * camera.temporal * area  # of the tensor: one patch
    window = merge * merge * line
    rows = _patch_part(
        height, patch, merge, (width // (patch * merge) * window, merge * line, patch)
    )
    columns = _patch_part(width, patch, merge, (window, line, 1))
    red, green, blue = (place * camera.temporal * area for place in order)
    return Layout(rows, columns, (red, green, blue), camera.temporal, area)


def _patch_part(edge: int, patch: int, merge: int, strides: tuple[int, int, int]) -> Array:
    """Return the part of every line, from its window, its patch in there, and its pixel in that one."""
    line = np.arange(edge, dtype=np.int32)
    places = line // (patch * merge), line // patch % merge, line % patch
    part = sum(place * stride for place, stride in zip(places, strides, strict=True))
    return np.asarray(part, np.int32)
