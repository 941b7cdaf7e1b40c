# SPDX-License-Identifier: Apache-2.0
"""ONNX operators as PyTorch functions: layers and quantisation; see `torch_ops.py` for the conventions."""

from __future__ import annotations

import torch
from torch.nn import functional

from vla_policy_ros.engines.torch_ops import Operator, saturating


def _gemm(
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,  # noqa: N803 - ONNX's name
    transB: int = 0,  # noqa: N803
) -> torch.Tensor:
    a = a.t() if transA else a
    if transB and alpha == 1 and beta == 1 and (c is None or c.dim() == 1):
        return functional.linear(a, b, c)
    product = a @ (b.t() if transB else b)
    product = product if alpha == 1 else product * alpha
    if c is None:
        return product
    return product + (c if beta == 1 else c * beta)


def _normalize_batch(
    x: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    mean: torch.Tensor,
    variance: torch.Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,  # noqa: ARG001 - of training
    training_mode: int = 0,
) -> torch.Tensor:
    if training_mode:
        raise NotImplementedError('training_mode')
    return functional.batch_norm(x, mean, variance, scale, bias, eps=epsilon)


def _normalize_instance(
    x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, *, epsilon: float = 1e-5
) -> torch.Tensor:
    return functional.instance_norm(x, weight=scale, bias=bias, eps=epsilon)


def _normalize_layer(
    x: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,  # noqa: ARG001 - PyTorch, too, takes the moments in float32
) -> torch.Tensor:
    shape = x.shape[axis:]
    bias = None if bias is None else bias.expand(shape)
    return functional.layer_norm(x, shape, scale.expand(shape), bias, epsilon)


def _normalize_rms(
    x: torch.Tensor,
    scale: torch.Tensor,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,  # noqa: ARG001 - float32 here
) -> torch.Tensor:
    axes = list(range(axis % x.dim(), x.dim()))
    wide = x.float()
    root = torch.rsqrt(wide.square().mean(axes, keepdim=True) + epsilon)
    return (wide * root).to(x.dtype) * scale


def _normalize_groups(
    x: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    *,
    num_groups: int,
    epsilon: float = 1e-5,
    stash_type: int = 1,  # noqa: ARG001 - PyTorch, too, takes the moments in float32
) -> torch.Tensor:
    channels = x.shape[1]
    if scale.numel() != channels:  # opset 18 has one per group
        repeats = channels // num_groups
        scale, bias = scale.repeat_interleave(repeats), bias.repeat_interleave(repeats)
    return functional.group_norm(x, num_groups, scale, bias, epsilon)


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    is_causal: int = 0,
    scale: float | None = None,
    kv_num_heads: int = 0,
    q_num_heads: int = 0,
    softcap: float = 0.0,
    softmax_precision: int = 1,  # noqa: ARG001 - PyTorch's own
) -> torch.Tensor:
    """Attention of opset 23; (batch, rows, heads * size) with head counts, or (batch, heads, rows, size)."""
    if softcap:
        raise NotImplementedError('softcap')
    is_flat = query.dim() == 3
    if is_flat:
        query = query.unflatten(-1, (q_num_heads, -1)).transpose(1, 2)
        key, value = (x.unflatten(-1, (kv_num_heads, -1)).transpose(1, 2) for x in (key, value))
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = (x.repeat_interleave(repeats, 1) for x in (key, value))
    out = functional.scaled_dot_product_attention(
        query, key, value, mask, is_causal=bool(is_causal), scale=scale
    )
    return out.transpose(1, 2).flatten(2) if is_flat else out


def _dropout(x: torch.Tensor, *_: object, seed: int = 0) -> torch.Tensor:  # noqa: ARG001 - of training
    return x


def _softmax(x: torch.Tensor, *, axis: int = -1) -> torch.Tensor:
    return torch.softmax(x, axis)


def _log_softmax(x: torch.Tensor, *, axis: int = -1) -> torch.Tensor:
    return torch.log_softmax(x, axis)


def _celu(x: torch.Tensor, *, alpha: float = 1.0) -> torch.Tensor:
    return functional.celu(x, alpha)


def _elu(x: torch.Tensor, *, alpha: float = 1.0) -> torch.Tensor:
    return functional.elu(x, alpha)


def _leaky_relu(x: torch.Tensor, *, alpha: float = 0.01) -> torch.Tensor:
    return functional.leaky_relu(x, alpha)


def _gelu(x: torch.Tensor, *, approximate: str = 'none') -> torch.Tensor:
    return functional.gelu(x, approximate=approximate)


def _hard_sigmoid(x: torch.Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> torch.Tensor:
    return (x * alpha + beta).clamp(0, 1)


def _prelu(x: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    return torch.where(x < 0, x * slope, x)


def _along(values: torch.Tensor, x: torch.Tensor, axis: int) -> torch.Tensor:
    """Shape one value per slice of `axis` so that it broadcasts."""
    if values.numel() == 1:
        return values.reshape([])
    return values.reshape([-1 if i == axis % x.dim() else 1 for i in range(x.dim())])


def _quantize(
    x: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None = None,
    *,
    axis: int = 1,
    saturate: int = 1,  # noqa: ARG001 - always
) -> torch.Tensor:
    dtype = torch.uint8 if zero is None else zero.dtype
    steps = x / _along(scale, x, axis)
    if dtype.is_floating_point:
        return saturating(steps, dtype)
    shift = 0 if zero is None else _along(zero, x, axis).to(steps.dtype)
    return saturating(steps.round() + shift, dtype)


def _dequantize(
    x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None = None, *, axis: int = 1
) -> torch.Tensor:
    steps = x.to(scale.dtype)
    if zero is not None:
        steps = steps - _along(zero, x, axis).to(scale.dtype)
    return steps * _along(scale, x, axis)


LAYERS: dict[str, Operator] = {
    'Attention': Operator(_attend),
    'BatchNormalization': Operator(_normalize_batch),
    'Celu': Operator(_celu),
    'DequantizeLinear': Operator(_dequantize),
    'Dropout': Operator(_dropout),
    'Elu': Operator(_elu),
    'Gelu': Operator(_gelu),
    'Gemm': Operator(_gemm),
    'GroupNormalization': Operator(_normalize_groups),
    'HardSigmoid': Operator(_hard_sigmoid),
    'HardSwish': Operator(functional.hardswish),
    'InstanceNormalization': Operator(_normalize_instance),
    'LayerNormalization': Operator(_normalize_layer),
    'LeakyRelu': Operator(_leaky_relu),
    'LogSoftmax': Operator(_log_softmax),
    'Mish': Operator(functional.mish),
    'PRelu': Operator(_prelu),
    'QuantizeLinear': Operator(_quantize),
    'RMSNormalization': Operator(_normalize_rms),
    'Relu': Operator(torch.relu),
    'Selu': Operator(torch.selu),
    'Softmax': Operator(_softmax),
    'Softplus': Operator(functional.softplus),
    'Softsign': Operator(functional.softsign),
}
"""Layers and quantisation."""
