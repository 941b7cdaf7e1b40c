# SPDX-License-Identifier: Apache-2.0
"""ONNX operators as PyTorch functions: convolutions, pooling, padding, resizing; see `torch_ops.py` for the conventions.

Tensors are (batch, channels, spatial dimensions...).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from vla_policy_ros.engines.torch_ops import Numbers, Operator

_CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}

_TRANSPOSED = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}

_MAX_POOLS = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}

_AVERAGE_POOLS: dict[int, Any] = {
    1: functional.avg_pool1d,
    2: functional.avg_pool2d,
    3: functional.avg_pool3d,
}

_LINEAR_MODES = {1: 'linear', 2: 'bilinear', 3: 'trilinear'}

_PYTORCH_CUBIC = -0.75  # the only coefficient that PyTorch has


def _padding(
    x: torch.Tensor, window: Sequence[int], pads: Numbers | None, auto_pad: str, strides: Numbers
) -> list[tuple[int, int]]:
    """Return the padding before and behind each spatial dimension; `window` is a kernel's reach."""
    rank = len(window)
    if auto_pad == 'VALID' or (auto_pad == 'NOTSET' and pads is None):
        return [(0, 0)] * rank
    if auto_pad == 'NOTSET':
        assert pads is not None
        return list(zip(pads[:rank], pads[rank:], strict=True))
    both = []
    for size, reach, stride in zip(x.shape[2:], window, strides, strict=True):
        total = max((-(-size // stride) - 1) * stride + reach - size, 0)
        small, large = total // 2, total - total // 2
        both.append((small, large) if auto_pad == 'SAME_UPPER' else (large, small))
    return both


def _pad_evenly(
    x: torch.Tensor, both: list[tuple[int, int]], value: float
) -> tuple[torch.Tensor, list[int]]:
    """Pad here what a layer cannot pad itself; return what is left to the layer."""
    if all(before == behind for before, behind in both):
        return x, [before for before, _ in both]
    flat = [size for pair in reversed(both) for size in pair]
    return functional.pad(x, flat, value=value), [0] * len(both)


def _reach(kernel: Sequence[int], dilations: Numbers) -> list[int]:
    return [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)]


def _convolve(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    auto_pad: str = 'NOTSET',
    dilations: Numbers | None = None,
    group: int = 1,
    kernel_shape: Numbers | None = None,  # noqa: ARG001 - the weight has it
    pads: Numbers | None = None,
    strides: Numbers | None = None,
) -> torch.Tensor:
    rank = x.dim() - 2
    strides, dilations = list(strides or [1] * rank), list(dilations or [1] * rank)
    both = _padding(x, _reach(weight.shape[2:], dilations), pads, auto_pad, strides)
    x, padding = _pad_evenly(x, both, 0.0)
    return _CONVOLUTIONS[rank](x, weight, bias, strides, padding, dilations, group)


def _convolve_transposed(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    auto_pad: str = 'NOTSET',
    dilations: Numbers | None = None,
    group: int = 1,
    kernel_shape: Numbers | None = None,  # noqa: ARG001 - the weight has it
    output_padding: Numbers | None = None,
    pads: Numbers | None = None,
    strides: Numbers | None = None,
) -> torch.Tensor:
    rank = x.dim() - 2
    pads = list(pads or [0] * 2 * rank)
    if auto_pad != 'NOTSET' or pads[:rank] != pads[rank:]:
        raise NotImplementedError('uneven or automatic padding')
    return _TRANSPOSED[rank](
        x,
        weight,
        bias,
        list(strides or [1] * rank),
        pads[:rank],
        list(output_padding or [0] * rank),
        group,
        list(dilations or [1] * rank),
    )


def _max_pool(
    x: torch.Tensor,
    *,
    kernel_shape: Numbers,
    auto_pad: str = 'NOTSET',
    ceil_mode: int = 0,
    dilations: Numbers | None = None,
    pads: Numbers | None = None,
    storage_order: int = 0,  # noqa: ARG001 - orders the second output, which is refused
    strides: Numbers | None = None,
) -> torch.Tensor:
    rank = len(kernel_shape)
    strides, dilations = list(strides or [1] * rank), list(dilations or [1] * rank)
    both = _padding(x, _reach(kernel_shape, dilations), pads, auto_pad, strides)
    x, padding = _pad_evenly(x, both, -math.inf)
    return _MAX_POOLS[rank](x, list(kernel_shape), strides, padding, dilations, bool(ceil_mode))


def _average_pool(
    x: torch.Tensor,
    *,
    kernel_shape: Numbers,
    auto_pad: str = 'NOTSET',
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Numbers | None = None,
    pads: Numbers | None = None,
    strides: Numbers | None = None,
) -> torch.Tensor:
    rank = len(kernel_shape)
    strides = list(strides or [1] * rank)
    both = _padding(x, list(kernel_shape), pads, auto_pad, strides)
    if any(before != behind for before, behind in both) or set(dilations or [1]) != {1}:
        raise NotImplementedError('uneven padding or dilations')
    padding = [before for before, _ in both]
    kernel = list(kernel_shape)
    pool = _AVERAGE_POOLS[rank]
    averages: torch.Tensor = pool(
        x, kernel, strides, padding, bool(ceil_mode), bool(count_include_pad)
    )
    return averages


def _global_average_pool(x: torch.Tensor) -> torch.Tensor:
    return x.mean(list(range(2, x.dim())), keepdim=True)


def _global_max_pool(x: torch.Tensor) -> torch.Tensor:
    return x.amax(list(range(2, x.dim())), keepdim=True)


def _pad(
    x: torch.Tensor,
    pads: Numbers,
    value: float | None = None,
    axes: Numbers | None = None,
    *,
    mode: str = 'constant',
) -> torch.Tensor:
    axes = list(range(x.dim())) if axes is None else [axis % x.dim() for axis in axes]
    both = [(0, 0)] * x.dim()
    for index, axis in enumerate(axes):
        both[axis] = (pads[index], pads[index + len(axes)])
    if mode == 'constant':
        flat = [size for pair in reversed(both) for size in pair]
        return functional.pad(x, flat, value=value or 0)
    first = next((axis for axis, pair in enumerate(both) if pair != (0, 0)), x.dim() - 1)
    flat = [size for pair in reversed(both[first:]) for size in pair]
    # These modes want one dimension of batch and one of channels before the padded ones.
    batched = x.reshape(1, -1, *x.shape[first:])
    padded = functional.pad(batched, flat, mode={'edge': 'replicate', 'reflect': 'reflect'}[mode])
    return padded.reshape(*x.shape[:first], *padded.shape[2:])


def _resize(
    x: torch.Tensor,
    roi: torch.Tensor | None = None,  # noqa: ARG001 - of a mode that is refused
    scales: Sequence[float] | None = None,
    sizes: Numbers | None = None,
    *,
    mode: str = 'nearest',
    antialias: int = 0,
    coordinate_transformation_mode: str = 'half_pixel',
    nearest_mode: str = 'round_prefer_floor',
    cubic_coeff_a: float = _PYTORCH_CUBIC,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,  # noqa: ARG001 - of a mode that is refused
    keep_aspect_ratio_policy: str = 'stretch',
) -> torch.Tensor:
    """Resize the spatial dimensions."""
    if exclude_outside or keep_aspect_ratio_policy != 'stretch':
        raise NotImplementedError('exclude_outside or keep_aspect_ratio_policy')
    name, align = _resize_mode(
        mode, coordinate_transformation_mode, nearest_mode, cubic_coeff_a, x.dim() - 2
    )
    target = {'size': list(sizes[2:])} if sizes else {'scale_factor': list((scales or ())[2:])}
    return functional.interpolate(
        x,
        mode=name,
        align_corners=align,
        antialias=bool(antialias),
        **target,
    )


def _resize_mode(
    mode: str, transform: str, nearest: str, coefficient: float, rank: int
) -> tuple[str, bool | None]:
    """Return PyTorch's mode and `align_corners` for what ONNX asks."""
    if mode == 'nearest' and (transform, nearest) == ('asymmetric', 'floor'):
        return 'nearest', None
    if mode == 'nearest' and transform == 'half_pixel' and nearest.startswith('round_prefer'):
        return 'nearest-exact', None
    aligned = {'align_corners': True, 'half_pixel': False, 'pytorch_half_pixel': False}
    if mode == 'linear' and transform in aligned:
        return _LINEAR_MODES[rank], aligned[transform]
    if mode == 'cubic' and transform in aligned and math.isclose(coefficient, _PYTORCH_CUBIC):
        return 'bicubic', aligned[transform]
    raise NotImplementedError(f'mode {mode} with {transform}, {nearest}')


def _depth_to_space(x: torch.Tensor, *, blocksize: int, mode: str = 'DCR') -> torch.Tensor:
    if mode == 'DCR':
        grouped = x.unflatten(1, (blocksize**2, -1)).transpose(1, 2).flatten(1, 2)
        return functional.pixel_shuffle(grouped, blocksize)
    return functional.pixel_shuffle(x, blocksize)


def _space_to_depth(x: torch.Tensor, *, blocksize: int) -> torch.Tensor:
    channels = x.shape[1]
    taken = functional.pixel_unshuffle(x, blocksize)
    return taken.unflatten(1, (channels, -1)).transpose(1, 2).flatten(1, 2)


GRIDS: dict[str, Operator] = {
    'AveragePool': Operator(_average_pool),
    'Conv': Operator(_convolve),
    'ConvTranspose': Operator(_convolve_transposed),
    'DepthToSpace': Operator(_depth_to_space),
    'GlobalAveragePool': Operator(_global_average_pool),
    'GlobalMaxPool': Operator(_global_max_pool),
    'MaxPool': Operator(_max_pool),
    'Pad': Operator(_pad, known=frozenset({1, 2, 3})),
    'Resize': Operator(_resize, known=frozenset({2, 3})),
    'SpaceToDepth': Operator(_space_to_depth),
}
"""Operators on images and sequences."""
