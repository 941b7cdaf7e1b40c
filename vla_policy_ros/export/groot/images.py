# SPDX-License-Identifier: Apache-2.0
"""The library's way from a camera's image to the size that the policy takes, as steps of `bundle.yaml`.

The steps are read from the transformation that the library itself has made, since its versions do different things with
the same checkpoint: some pad an image to a square first, some do so only when told.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vla_policy_ros.core.errors import BundleError
from vla_policy_ros.export.checkpoint_files import bad_checkpoint

Size = tuple[int, int]
"""Height and width in pixels."""
Steps = list[dict[str, Any]]
"""Entries of `geometry`."""
# OpenCV's numbers.
_OPENCV_FILTERS = {0: 'nearest', 1: 'bilinear', 2: 'bicubic', 3: 'area'}


def read_geometry(transform: Any, size: Size) -> tuple[Steps, Size]:
    """Return the steps of an evaluation transformation, and the size of what comes out.

    Args:
        transform: albumentations' or torchvision's `Compose`, as the library's processor holds it.
        size: Size of the camera's images.

    Raises:
        BundleError: It does something else (`unknown_transform`).
    """
    steps: Steps = []
    for part in transform.transforms:
        name = type(part).__name__
        if name not in _READERS:
            raise _unknown(name)
        made, size = _READERS[name](part, size)
        steps += made
    return steps, size


def _pad_to_square(_: Any, size: Size) -> tuple[Steps, Size]:
    """Black above and below, or left and right; an image of another size comes to that of the training first."""
    if size[0] == size[1]:
        return [], size
    edge = max(size)
    fit = _resize(size, library='opencv', filter='area', to='fit_inside')
    return [fit, {'kind': 'pad', 'height': edge, 'width': edge}], (edge, edge)


def _resize_shortest(part: Any, size: Size) -> tuple[Steps, Size]:
    """Scale the shorter edge; the other one is rounded, to the even number from the middle."""
    edge = part.max_size[0] if isinstance(part.max_size, list | tuple) else part.max_size
    scale = edge / min(size)
    target = (round(size[0] * scale), round(size[1] * scale))
    filter_name = _OPENCV_FILTERS.get(part.interpolation)
    if filter_name is None:
        raise _unknown(f'interpolation {part.interpolation}')
    return [_resize(target, library='opencv', filter=filter_name)], target


def _crop_share(part: Any, size: Size) -> tuple[Steps, Size]:
    target = (max(1, int(size[0] * part.crop_fraction)), max(1, int(size[1] * part.crop_fraction)))
    return [{'kind': 'center_crop', 'fraction': float(part.crop_fraction)}], target


def _resize_exactly(part: Any, _: Size) -> tuple[Steps, Size]:
    size, filter_name = tuple(part.size), part.interpolation.value
    if len(size) != 2 or filter_name != 'bilinear' or not part.antialias:
        raise _unknown(f'Resize to {list(size)}, {filter_name}, antialias {part.antialias}')
    return [_resize(size, library='torchvision', filter=filter_name)], size


def _crop_middle(part: Any, size: Size) -> tuple[Steps, Size]:
    height, width = part.size
    if height > size[0] or width > size[1]:
        raise _unknown(f'CenterCrop of {list(part.size)} from {list(size)} px')
    # torchvision rounds the half pixel to the even number.
    top, left = round((size[0] - height) / 2), round((size[1] - width) / 2)
    step = {'kind': 'crop', 'top': top, 'left': left, 'height': height, 'width': width}
    return [step], (height, width)


def _resize(size: Size, **rule: str) -> dict[str, Any]:
    return {'kind': 'resize', 'height': size[0], 'width': size[1], **rule}


def _unknown(got: str) -> BundleError:
    return bad_checkpoint(
        "the library's evaluation transformation",
        got=got,
        expected=f'one of {", ".join(_READERS)}, as the library uses them',
        next_step='Export with the released version of the library that the policy was trained with.',
        code='unknown_transform',
    )


_READERS: Mapping[str, Callable[[Any, Size], tuple[Steps, Size]]] = {
    'LetterBoxPad': _pad_to_square,
    'LetterBoxTransform': _pad_to_square,
    'SmallestMaxSize': _resize_shortest,
    'FractionalCenterCrop': _crop_share,
    'ToImage': lambda _, size: ([], size),
    'Resize': _resize_exactly,
    'CenterCrop': _crop_middle,
}
