# SPDX-License-Identifier: Apache-2.0
"""Resizing with the arithmetic of the library a policy was trained with.

| library     | filter                      | done by                                                                |
|-------------|-----------------------------|------------------------------------------------------------------------|
| pil         | all                         | Pillow, columns before rows                                            |
| opencv      | all                         | OpenCV                                                                 |
| torchvision | antialiased                 | Pillow: same taps (triangle; cubic, a = -0.5), same passes             |
| torchvision | bilinear, not antialiased   | OpenCV: half-pixel centres                                             |
| torchvision | bicubic, not antialiased    | OpenCV, columns before rows: half-pixel centres, a = -0.75             |
| torchvision | nearest                     | source index floor(i * scale) in float32, as PyTorch's `nearest`       |

Every pass is rounded and clipped to uint8, so the order of passes shows. Pillow has always resized the columns first;
since 13.0 it takes the rows first where the height shrinks more (python-pillow/Pillow#9549), which moves values by one
level, and by up to 26 where a cubic overshoots. Policies were trained before that: here columns come first always.

Pillow allocates its result, at the target's size; everything else is written into buffers that are made once.
`limits.py` says how close each is.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image

from vla_policy_ros.bundle.geometry import Resize
from vla_policy_ros.core.specs import Array

Size = tuple[int, int]
Resizer = Callable[[Array, Array], None]
"""Resizes the first image (H, W, 3) uint8 into the second one (h, w, 3) uint8; rows of both may be padded."""

# Pillow's numbers; their names moved between its versions.
_PIL_FILTERS = {'nearest': 0, 'bilinear': 2, 'bicubic': 3}
_OPENCV_FILTERS = {
    'nearest': cv2.INTER_NEAREST,
    'bilinear': cv2.INTER_LINEAR,
    'bicubic': cv2.INTER_CUBIC,
    'area': cv2.INTER_AREA,
}


def make_resizer(rule: Resize, source: Size, target: Size) -> Resizer:
    """Return a function that resizes images of one size to another by the rule; one thread at a time.

    Args:
        rule: Library, filter and antialiasing.
        source: Height and width of the images in pixels.
        target: Height and width of the result in pixels.
    """
    if rule.library == 'torchvision' and rule.filter == 'nearest':
        return _torch_nearest(source, target)
    if rule.library == 'pil' or (rule.library == 'torchvision' and rule.antialias):
        return _pil(source, target, _PIL_FILTERS[rule.filter])
    interpolation = _OPENCV_FILTERS[rule.filter]
    if rule.library == 'torchvision' and rule.filter == 'bicubic':
        return _opencv_in_passes(source, target, interpolation)
    return _opencv(target, interpolation)


def _opencv(target: Size, interpolation: int) -> Resizer:
    def resize(image: Array, out: Array) -> None:
        cv2.resize(image, target[::-1], dst=out, interpolation=interpolation)

    return resize


def _opencv_in_passes(source: Size, target: Size, interpolation: int) -> Resizer:
    # In one call OpenCV keeps a cubic's overshoot between its passes; PyTorch clips it.
    half_way = np.empty((source[0], target[1], 3), np.uint8)

    def resize(image: Array, out: Array) -> None:
        cv2.resize(image, half_way.shape[1::-1], dst=half_way, interpolation=interpolation)
        cv2.resize(half_way, target[::-1], dst=out, interpolation=interpolation)

    return resize


def _pil(source: Size, target: Size, resample: int) -> Resizer:
    # Pillow maps a buffer of four channels where it lies, while it copies one of three.
    padded = np.empty((*source, 4), np.uint8)
    mapped = Image.frombuffer('RGBX', source[::-1], padded, 'raw', 'RGBX', 0, 1)
    half_way = (target[1], source[0])

    def resize(image: Array, out: Array) -> None:
        cv2.cvtColor(image, cv2.COLOR_RGB2RGBA, dst=padded)
        columns_done = mapped if half_way == mapped.size else mapped.resize(half_way, resample)
        resized = columns_done.resize(target[::-1], resample)
        cv2.cvtColor(np.asarray(resized), cv2.COLOR_RGBA2RGB, dst=out)

    return resize


def torch_nearest_indices(old: int, new: int) -> Array:
    """Return the (new,) int16 source index of every line as PyTorch's `nearest` computes it, in float32."""
    positions = np.arange(new, dtype=np.float32) * np.float32(old / new)
    indices: Array = np.minimum(positions, old - 1).astype(np.int16)
    return indices


def _torch_nearest(source: Size, target: Size) -> Resizer:
    rows, columns = map(torch_nearest_indices, source, target)
    pixels = np.empty((*target, 2), np.int16)
    pixels[..., 0], pixels[..., 1] = columns, rows[:, None]

    def resize(image: Array, out: Array) -> None:
        cv2.remap(image, pixels, None, cv2.INTER_NEAREST, dst=out)

    return resize
