# SPDX-License-Identifier: Apache-2.0
"""ONNX operators as PyTorch functions: how an operator is described, and arithmetic.

Every function takes the operator's inputs in their order and its attributes by their ONNX names, as the operator
reference of opset 13 to 23 defines them (https://onnx.ai/onnx/operators). An input that must be known before the first
run comes as a Python number or list instead of a tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import onnx
import torch

TORCH_TYPES = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.DOUBLE: torch.float64,
    onnx.TensorProto.FLOAT16: torch.float16,
    onnx.TensorProto.BFLOAT16: torch.bfloat16,
    onnx.TensorProto.UINT8: torch.uint8,
    onnx.TensorProto.INT8: torch.int8,
    onnx.TensorProto.INT16: torch.int16,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.INT64: torch.int64,
    onnx.TensorProto.BOOL: torch.bool,
    onnx.TensorProto.FLOAT8E4M3FN: torch.float8_e4m3fn,
    onnx.TensorProto.FLOAT8E5M2: torch.float8_e5m2,
}
"""Element types of ONNX that networks may use, as PyTorch's."""

Numbers = Sequence[int]


@dataclass(frozen=True, slots=True)
class Operator:
    """How one ONNX operator runs.

    Attributes:
        function: Takes inputs and attributes, returns a tensor or several.
        known: Positions of inputs that come as Python numbers or lists, and must be known before the first run.
        scalar: Positions of inputs that come as a Python number when they are known and of rank 0.
        counts_outputs: Whether the function is told the number of outputs as `num_outputs`.
    """

    function: Callable[..., Any]
    known: frozenset[int] = frozenset()
    scalar: frozenset[int] = frozenset()
    counts_outputs: bool = False


def cast_to(x: torch.Tensor, *, to: int, saturate: int = 1) -> torch.Tensor:  # noqa: ARG001
    """Cast; values beyond an 8-bit float become its largest one, as `saturate` asks."""
    dtype = TORCH_TYPES[to]
    return saturating(x, dtype) if _is_float8(dtype) else x.to(dtype)


def saturating(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Cast with values beyond the range of `dtype` at its ends."""
    limits = torch.finfo(dtype) if dtype.is_floating_point else torch.iinfo(dtype)
    return x.clamp(limits.min, limits.max).to(dtype)


def _is_float8(dtype: torch.dtype) -> bool:
    return bool(dtype.is_floating_point and dtype.itemsize == 1)


def _cast_like(x: torch.Tensor, like: torch.Tensor, *, saturate: int = 1) -> torch.Tensor:  # noqa: ARG001
    return x.to(like.dtype)


def _divide(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.div(a, b) if a.is_floating_point() else torch.div(a, b, rounding_mode='trunc')


def _power(base: torch.Tensor, exponent: torch.Tensor | float) -> torch.Tensor:
    return torch.pow(base, exponent).to(base.dtype)


def _modulo(a: torch.Tensor, b: torch.Tensor, *, fmod: int = 0) -> torch.Tensor:
    return torch.fmod(a, b) if fmod else torch.remainder(a, b)


def _fold(pair: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Return the operator of any number of inputs made of one of two."""

    def run(first: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        for other in others:
            first = pair(first, other)
        return first

    return run


def _mean(*tensors: torch.Tensor) -> torch.Tensor:
    return sum(tensors[1:], tensors[0]) / len(tensors)


def _identity(x: torch.Tensor) -> torch.Tensor:
    return x


def _einsum(*tensors: torch.Tensor, equation: str) -> torch.Tensor:
    return torch.einsum(equation, *tensors)


def _clip(
    x: torch.Tensor,
    min: torch.Tensor | float | None = None,  # noqa: A002 - ONNX's name
    max: torch.Tensor | float | None = None,  # noqa: A002
) -> torch.Tensor:
    return x if min is None and max is None else torch.clamp(x, cast('Any', min), cast('Any', max))


def _is_inf(
    x: torch.Tensor, *, detect_negative: int = 1, detect_positive: int = 1
) -> torch.Tensor:
    wanted = torch.zeros_like(x, dtype=torch.bool)
    if detect_negative:
        wanted = wanted | torch.isneginf(x)
    return wanted | torch.isposinf(x) if detect_positive else wanted


def _cumulative_sum(
    x: torch.Tensor, axis: int, *, exclusive: int = 0, reverse: int = 0
) -> torch.Tensor:
    x = x.flip(axis) if reverse else x
    total = x.cumsum(axis, dtype=x.dtype)
    total = total - x if exclusive else total
    return total.flip(axis) if reverse else total


def plain(**functions: Callable[..., Any]) -> dict[str, Operator]:
    """Return operators all of whose inputs are tensors."""
    return {name: Operator(function) for name, function in functions.items()}


def with_host_inputs(
    function: Callable[..., Any], kind: Literal['known', 'scalar'], *at: int
) -> Operator:
    """Return an operator with inputs at these positions that come as Python values."""
    positions = frozenset(at)
    if kind == 'known':
        return Operator(function, known=positions)
    return Operator(function, scalar=positions)


ARITHMETIC: dict[str, Operator] = {
    **plain(
        Abs=torch.abs,
        Acos=torch.acos,
        Add=torch.add,
        And=torch.logical_and,
        Asin=torch.asin,
        Atan=torch.atan,
        Cast=cast_to,
        CastLike=_cast_like,
        Ceil=torch.ceil,
        Cos=torch.cos,
        Cosh=torch.cosh,
        Div=_divide,
        Einsum=_einsum,
        Equal=torch.eq,
        Erf=torch.erf,
        Exp=torch.exp,
        Floor=torch.floor,
        Greater=torch.gt,
        GreaterOrEqual=torch.ge,
        Identity=_identity,
        IsInf=_is_inf,
        IsNaN=torch.isnan,
        Less=torch.lt,
        LessOrEqual=torch.le,
        Log=torch.log,
        MatMul=torch.matmul,
        Max=_fold(torch.maximum),
        Mean=_mean,
        Min=_fold(torch.minimum),
        Mod=_modulo,
        Mul=torch.mul,
        Neg=torch.neg,
        Not=torch.logical_not,
        Or=torch.logical_or,
        Reciprocal=torch.reciprocal,
        Round=torch.round,
        Sigmoid=torch.sigmoid,
        Sign=torch.sign,
        Sin=torch.sin,
        Sinh=torch.sinh,
        Sqrt=torch.sqrt,
        Sub=torch.sub,
        Sum=_fold(torch.add),
        Tan=torch.tan,
        Tanh=torch.tanh,
        Where=torch.where,
        Xor=torch.logical_xor,
    ),
    'Clip': with_host_inputs(_clip, 'scalar', 1, 2),
    'Pow': with_host_inputs(_power, 'scalar', 1),
    'CumSum': with_host_inputs(_cumulative_sum, 'known', 1),
}
"""Element by element, products and sums."""
