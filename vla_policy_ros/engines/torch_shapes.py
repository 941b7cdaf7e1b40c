# SPDX-License-Identifier: Apache-2.0
"""ONNX operators as PyTorch functions: shapes, choices and reductions; see `torch_ops.py` for the conventions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch

from vla_policy_ros.engines.torch_ops import Numbers, Operator, plain, with_host_inputs


def _reshape(x: torch.Tensor, shape: Numbers, *, allowzero: int = 0) -> torch.Tensor:
    if allowzero:
        return x.reshape(list(shape))
    return x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(shape)])


def _flatten(x: torch.Tensor, *, axis: int = 1) -> torch.Tensor:
    rows = math.prod(x.shape[: axis if axis >= 0 else x.dim() + axis])
    return x.reshape(rows, -1)


def _transpose(x: torch.Tensor, *, perm: Numbers | None = None) -> torch.Tensor:
    return x.permute(list(perm) if perm else list(range(x.dim()))[::-1])


def _squeeze(x: torch.Tensor, axes: Numbers | None = None) -> torch.Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


def _unsqueeze(x: torch.Tensor, axes: Numbers) -> torch.Tensor:
    rank = x.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _concat(*tensors: torch.Tensor, axis: int) -> torch.Tensor:
    return torch.cat(tensors, axis)


def _split(
    x: torch.Tensor, sizes: Numbers | None = None, *, num_outputs: int, axis: int = 0
) -> tuple[torch.Tensor, ...]:
    if sizes is None:
        largest = -(-x.shape[axis] // num_outputs)
        return tuple(x.split(largest, axis))
    return tuple(x.split(list(sizes), axis))


def _slice(
    x: torch.Tensor,
    starts: Numbers,
    ends: Numbers,
    axes: Numbers | None = None,
    steps: Numbers | None = None,
) -> torch.Tensor:
    axes = range(len(starts)) if axes is None else axes
    for axis, start, end, step in zip(axes, starts, ends, steps or [1] * len(starts), strict=True):
        size = x.shape[axis]
        chosen = range(*slice(start, end, step).indices(size))
        if step < 0:  # PyTorch has forward slices only
            x = x.flip(axis)
            chosen = range(size - 1 - chosen.start, size - 1 - chosen.stop, -step)
        index: list[Any] = [slice(None)] * x.dim()
        index[axis] = slice(chosen.start, max(chosen.start, chosen.stop), abs(step))
        x = x[tuple(index)]
    return x


def _positive(indices: torch.Tensor, size: int) -> torch.Tensor:
    """Count indices from the front: ONNX lets negative ones count from the back."""
    return torch.where(indices < 0, indices + size, indices)


def _gather(x: torch.Tensor, indices: torch.Tensor | int, *, axis: int = 0) -> torch.Tensor:
    if isinstance(indices, int):
        return x.select(axis, indices)
    axis %= x.dim()
    flat = _positive(indices, x.shape[axis]).reshape(-1)
    return x.index_select(axis, flat).reshape(
        *x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]
    )


def _gather_elements(x: torch.Tensor, indices: torch.Tensor, *, axis: int = 0) -> torch.Tensor:
    return x.gather(axis, _positive(indices, x.shape[axis]).long())


def _gather_nd(x: torch.Tensor, indices: torch.Tensor, *, batch_dims: int = 0) -> torch.Tensor:
    if batch_dims:
        raise NotImplementedError('batch_dims')
    return x[tuple(indices.unbind(-1))]


def _scatter_nd(
    x: torch.Tensor, indices: torch.Tensor, updates: torch.Tensor, *, reduction: str = 'none'
) -> torch.Tensor:
    if reduction not in ('none', 'add'):
        raise NotImplementedError(f'reduction {reduction!r}')
    return x.index_put(tuple(indices.unbind(-1)), updates, accumulate=reduction == 'add')


def _scatter_elements(
    x: torch.Tensor,
    indices: torch.Tensor,
    updates: torch.Tensor,
    *,
    axis: int = 0,
    reduction: str = 'none',
) -> torch.Tensor:
    if reduction != 'none':
        raise NotImplementedError(f'reduction {reduction!r}')
    return x.scatter(axis, _positive(indices, x.shape[axis]).long(), updates)


def _expand(x: torch.Tensor, shape: Numbers) -> torch.Tensor:
    return x.expand(torch.broadcast_shapes(x.shape, tuple(shape)))


def _tile(x: torch.Tensor, repeats: Numbers) -> torch.Tensor:
    return x.tile(tuple(repeats))


def _constant(
    *,
    value: torch.Tensor | None = None,
    value_float: float = 0.0,
    value_floats: Sequence[float] | None = None,
    value_int: int | None = None,
    value_ints: Numbers | None = None,
) -> torch.Tensor:
    if value is not None:
        return value
    if value_ints is not None or value_int is not None:
        return torch.tensor(value_int if value_ints is None else value_ints, dtype=torch.int64)
    return torch.tensor(value_floats or value_float, dtype=torch.float32)


def _constant_of_shape(shape: torch.Tensor, *, value: torch.Tensor | None = None) -> torch.Tensor:
    fill = torch.zeros(1, device=shape.device) if value is None else value.to(shape.device)
    return fill.reshape([1] * shape.numel()).expand(shape.tolist())


def _range(start: torch.Tensor, limit: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    ends = (start.item(), limit.item(), delta.item())
    return torch.arange(*ends, dtype=start.dtype, device=start.device)


def _trilu(x: torch.Tensor, k: int = 0, *, upper: int = 1) -> torch.Tensor:
    return x.triu(k) if upper else x.tril(k)


def _top_k(
    x: torch.Tensor,
    k: Numbers,
    *,
    axis: int = -1,
    largest: int = 1,
    sorted: int = 1,  # noqa: A002 - ONNX's name
) -> tuple[torch.Tensor, torch.Tensor]:
    values, indices = x.topk(k[0], axis, bool(largest), bool(sorted))
    return values, indices


def _one_hot(
    indices: torch.Tensor, depth: int | Numbers, values: torch.Tensor, *, axis: int = -1
) -> torch.Tensor:
    size = depth if isinstance(depth, int) else depth[0]
    axis = axis if axis >= 0 else indices.dim() + 1 + axis
    numbers = torch.arange(size, device=indices.device).reshape(
        [size if i == axis else 1 for i in range(indices.dim() + 1)]
    )
    is_hot = _positive(indices, size).unsqueeze(axis) == numbers
    return torch.where(is_hot, values[1], values[0])


def _extreme_index(
    find: Callable[..., torch.Tensor],
) -> Callable[..., torch.Tensor]:
    """Return ArgMax or ArgMin; ties go to the first index, as ONNX's default says."""

    def run(
        x: torch.Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0
    ) -> torch.Tensor:
        if select_last_index:
            return x.shape[axis] - 1 - find(x.flip(axis), axis, bool(keepdims))
        return find(x, axis, bool(keepdims))

    return run


def _reduction(
    reduce: Callable[[torch.Tensor, list[int], bool], torch.Tensor],
) -> Callable[..., torch.Tensor]:
    """Return a reduction over axes given as an attribute or as an input."""

    def run(
        x: torch.Tensor,
        axes: Numbers | None = None,
        *,
        keepdims: int = 1,
        noop_with_empty_axes: int = 0,
    ) -> torch.Tensor:
        if not axes and noop_with_empty_axes:
            return x
        return reduce(x, list(axes) if axes else list(range(x.dim())), bool(keepdims))

    return run


def _product(x: torch.Tensor, axes: list[int], keepdims: bool) -> torch.Tensor:  # noqa: FBT001 - as torch's
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keepdims, dtype=x.dtype)
    return x


_REDUCTIONS = {
    'ReduceL1': lambda x, axes, keep: x.abs().sum(axes, keep, dtype=x.dtype),
    'ReduceL2': lambda x, axes, keep: x.square().sum(axes, keep).sqrt(),
    'ReduceLogSum': lambda x, axes, keep: x.sum(axes, keep).log(),
    'ReduceLogSumExp': torch.logsumexp,
    'ReduceMax': torch.amax,
    'ReduceMean': torch.mean,
    'ReduceMin': torch.amin,
    'ReduceProd': _product,
    'ReduceSum': lambda x, axes, keep: x.sum(axes, keep, dtype=x.dtype),
    'ReduceSumSquare': lambda x, axes, keep: x.square().sum(axes, keep, dtype=x.dtype),
}

SHAPES: dict[str, Operator] = {
    **{
        name: with_host_inputs(_reduction(cast('Any', reduce)), 'known', 1)
        for name, reduce in _REDUCTIONS.items()
    },
    **plain(
        ArgMax=_extreme_index(torch.argmax),
        ArgMin=_extreme_index(torch.argmin),
        Concat=_concat,
        Constant=_constant,
        ConstantOfShape=_constant_of_shape,
        Flatten=_flatten,
        GatherElements=_gather_elements,
        GatherND=_gather_nd,
        Range=_range,
        ScatterElements=_scatter_elements,
        ScatterND=_scatter_nd,
        Transpose=_transpose,
    ),
    'Expand': with_host_inputs(_expand, 'known', 1),
    'Gather': with_host_inputs(_gather, 'scalar', 1),
    'OneHot': with_host_inputs(_one_hot, 'known', 1),
    'Reshape': with_host_inputs(_reshape, 'known', 1),
    'Slice': with_host_inputs(_slice, 'known', 1, 2, 3, 4),
    'Split': Operator(_split, known=frozenset({1}), counts_outputs=True),
    'Squeeze': with_host_inputs(_squeeze, 'known', 1),
    'Tile': with_host_inputs(_tile, 'known', 1),
    'TopK': with_host_inputs(_top_k, 'known', 1),
    'Trilu': with_host_inputs(_trilu, 'known', 1),
    'Unsqueeze': with_host_inputs(_unsqueeze, 'known', 1),
}
"""Shapes, choices and reductions."""
