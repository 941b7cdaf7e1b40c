# SPDX-License-Identifier: Apache-2.0
"""Resize, crop and pad: which pixels go where, with the rounding of the code the policies were trained with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from vla_policy_ros.bundle.geometry import CenterCrop, Crop, GeometryStep, Pad, Resize
from vla_policy_ros.core.errors import ImageError
from vla_policy_ros.core.specs import Array
from vla_policy_ros.preprocess.resize import Size, make_resizer

Step = Callable[[Array], Array]


class GeometryPlan:
    """The geometry of one camera for images of one size; its buffers are made once. One thread at a time.

    Args:
        steps: Steps of the manifest, in order.
        size: Height and width of the images in pixels.
        where: Start of error messages, such as the camera's name.

    Raises:
        ImageError: `crop_outside` or `pad_too_small`: a step does not fit the image it gets.
    """

    def __init__(self, steps: Sequence[GeometryStep], size: Size, *, where: str) -> None:
        self.source_size = size
        self._steps: list[Step] = []
        for index, step in enumerate(steps):
            place = f'{where}, geometry[{index}]'
            if isinstance(step, Resize):
                target = resized_size(step, size)
                made = _make_resize(step, size, target)
            elif isinstance(step, Pad):
                target = (step.height, step.width)
                made = _make_pad(step, pad_offset(step, size, where=place), size)
            else:
                top, left, *target_list = crop_box(step, size, where=place)
                target = (target_list[0], target_list[1])
                made = _make_crop(top, left, target)
            if target != size:  # every step leaves an image of the right size as it is
                self._steps.append(made)
            size = target
        self.size = size
        """Height and width of the result in pixels."""

    def run(self, image: Array) -> Array:
        """Return the (h, w, 3) result for an (H, W, 3) uint8 image: a view of it, or of the plan's buffers.

        The result is valid until the next run.
        """
        for step in self._steps:
            image = step(image)
        return image


def resized_size(rule: Resize, size: Size) -> Size:
    """Return height and width after a resize, in pixels, at least 1.

    `fit_inside` truncates as openpi's `resize_with_pad` does; `shortest_edge` truncates the long edge as torchvision's
    `Resize(size)` does.
    """
    height, width = size
    if rule.to == 'exact':
        return rule.height, rule.width
    if rule.to == 'fit_inside':
        ratio = max(width / rule.width, height / rule.height)
        return max(1, int(height / ratio)), max(1, int(width / ratio))
    long_edge = int(rule.height * max(size) / min(size))
    return (rule.height, long_edge) if height <= width else (long_edge, rule.height)


def crop_box(step: CenterCrop | Crop, size: Size, *, where: str) -> tuple[int, int, int, int]:
    """Return top, left, height and width of a crop in pixels.

    `center_crop` keeps int(fraction * edge) pixels and puts the odd pixel to the bottom right, as GR00T does.

    Raises:
        ImageError: `crop_outside`: the rectangle does not lie within the image.
    """
    if isinstance(step, CenterCrop):
        height, width = (max(1, int(edge * step.fraction)) for edge in size)
        return (size[0] - height) // 2, (size[1] - width) // 2, height, width
    if step.top + step.height > size[0] or step.left + step.width > size[1]:
        raise ImageError(
            where,
            got=f'an image of {size[1]} x {size[0]} px',
            expected=f'{step.left + step.width} x {step.top + step.height} px or more for the crop',
            next_step='Check the resolution of the camera, or the crop in bundle.yaml.',
            code='crop_outside',
        )
    return step.top, step.left, step.height, step.width


def pad_offset(step: Pad, size: Size, *, where: str) -> tuple[int, int]:
    """Return top and left of an image in its padding, in pixels.

    Raises:
        ImageError: `pad_too_small`: the image is larger than the padded one.
    """
    free = (step.height - size[0], step.width - size[1])
    if min(free) < 0:
        raise ImageError(
            where,
            got=f'an image of {size[1]} x {size[0]} px',
            expected=f'at most {step.width} x {step.height} px',
            next_step='Put a resize before the pad in bundle.yaml, or check the resolution of the camera.',
            code='pad_too_small',
        )
    if step.align == 'center':
        return free[0] // 2, free[1] // 2
    return free if step.align == 'bottom_right' else (0, 0)


def _make_resize(rule: Resize, size: Size, target: Size) -> Step:
    resize, out = make_resizer(rule, size, target), np.empty((*target, 3), np.uint8)

    def run(image: Array) -> Array:
        resize(image, out)
        return out

    return run


def _make_crop(top: int, left: int, target: Size) -> Step:
    rows, columns = slice(top, top + target[0]), slice(left, left + target[1])
    return lambda image: image[rows, columns]


def _make_pad(step: Pad, offset: tuple[int, int], size: Size) -> Step:
    canvas = np.full((step.height, step.width, 3), step.value, np.uint8)
    inner = canvas[offset[0] : offset[0] + size[0], offset[1] : offset[1] + size[1]]

    def run(image: Array) -> Array:
        np.copyto(inner, image)
        return canvas

    return run
