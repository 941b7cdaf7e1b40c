# SPDX-License-Identifier: Apache-2.0
"""Fixed shapes for a network's inputs: what its file says, and where that is free, what the description says."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vla_policy_ros.bundle.onnx_model import ModelTensor
from vla_policy_ros.export.network.faults import Dims, describe, misfit

Size = int | str | None
"""One dimension: a number, a symbol, or None for a free one without a symbol."""


class Symbols:
    """The size that each free dimension has taken, so that one symbol has one size."""

    def __init__(self) -> None:
        self._sizes: dict[str, tuple[int, str]] = {}

    def settle(self, tensor: ModelTensor, shape: Sequence[int]) -> None:
        """Note the sizes of an input.

        Raises:
            ConfigurationError: A symbol has another size in another input (`shape_mismatch`).
        """
        for symbol, size in zip(tensor.shape, shape, strict=True):
            if not isinstance(symbol, str):
                continue
            known, first = self._sizes.setdefault(symbol, (size, tensor.name))
            if known != size:
                raise misfit(
                    f'input {tensor.name!r}',
                    got=f'{size} for the dimension {symbol!r}, which is {known} in {first!r}',
                    expected='one size of a dimension in all inputs',
                    next_step='Export the network with a batch of its own for each input.',
                    code='shape_mismatch',
                )


def image_layout(tensor: ModelTensor, layout: str, where: str) -> tuple[Dims, tuple[Size, Size]]:
    """Return the dimensions of an image input that count images and channels, and those of rows and columns.

    Raises:
        ConfigurationError: It has too few dimensions (`wrong_rank`) or other channels than 3 (`wrong_channels`).
    """
    dims = tensor.shape
    wanted = '[..., 3, height, width]' if layout == 'chw' else '[..., height, width, 3]'
    if len(dims) < 3:
        raise misfit(
            where,
            got=describe(tensor.name, tensor.dtype, dims),
            expected=f'an image of {wanted}',
            next_step='Name the input that takes the image.',
            code='wrong_rank',
        )
    place = -3 if layout == 'chw' else -1
    channels = dims[place]
    # Images of a history may lie behind one another in the channels.
    if isinstance(channels, int) and (channels % 3 if layout == 'chw' else channels != 3):
        other = 'hwc' if layout == 'chw' else 'chw'
        raise misfit(
            where,
            got=f'{describe(tensor.name, tensor.dtype, dims)}, {channels} channels',
            expected=f'{wanted}: three channels',
            next_step=f'Name another input, or set `layout: {other}` when its images lie so.',
            code='wrong_channels',
        )
    if layout == 'chw':
        return dims[:-2], (dims[-2], dims[-1])
    return dims[:-3], (dims[-3], dims[-2])


def image_shape(
    tensor: ModelTensor,
    *,
    layout: str,
    images: tuple[int, int],
    size: tuple[int, int],
    where: str,
) -> tuple[int, ...]:
    """Return the fixed shape of an image input.

    Args:
        tensor: The input.
        layout: `chw` or `hwc`.
        images: Number of cameras, and of images of each.
        size: Rows and columns in pixels.
        where: Place in the description.

    Raises:
        ConfigurationError: It takes another number of images (`wrong_batch`).
    """
    cameras, history = images
    head, _ = image_layout(tensor, layout, where)
    if layout == 'chw':
        channels = head[-1] if isinstance(head[-1], int) else 3 * history
        head = (*head[:-1], channels)
    fixed = fill(head, cameras * history * (3 if layout == 'chw' else 1))
    if fixed is None:
        raise misfit(
            where,
            got=f'{describe(tensor.name, tensor.dtype, tensor.shape)} for {cameras} camera(s) of {history} image(s)',
            expected='as many images as the cameras that name this input give',
            next_step='Name one camera for each image of the batch, in their order.',
            code='wrong_batch',
        )
    return (*fixed, *size) if layout == 'chw' else (*fixed, *size, 3)


def fill(dims: Dims, total: int) -> tuple[int, ...] | None:
    """Fix free dimensions so that all multiply to `total`: the last free one counts, others are 1; None when none fit."""
    free = [index for index, size in enumerate(dims) if not isinstance(size, int)]
    sizes = [size if isinstance(size, int) else 1 for size in dims]
    if free:
        known = math.prod(sizes)
        sizes[free[-1]] = total // known
    return tuple(sizes) if math.prod(sizes) == total else None
