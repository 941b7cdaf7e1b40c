# SPDX-License-Identifier: Apache-2.0
"""Which nodes of a network stay in float32 when the rest goes to 16 bits, and why.

A node gains from float32 only where its operands or its inner values leave what 16 bits hold. So these stay:

- operators whose results span many orders of magnitude, or that add up many numbers (`_DELICATE`);
- what computes the argument of a sine or cosine, such as positions times frequencies: an angle of 1000 rad has no
  correct digit in bfloat16;
- a division by a computed value, and what computes the divisor: near zero its rounding is all there is of it, as in
  the `1 - time` of a flow-matching head that predicts the end of the way;
- arithmetic of a mean, a sum or what was made of it with the tensor it normalises (layer norms that were exported as
  single operators);
- simple operators whose computed inputs are all float32 already: going to 16 bits in between would gain nothing;
- nodes that use a constant which 16 bits do not hold, and nodes whose operator does not know the type.

LayerNormalization and RMSNormalization go to 16 bits: their `stash_type` says that they compute in float32 inside. So does
Softmax: its input is the rounded product of queries and keys anyway, and casts around it would keep engines from fusing the attention.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import onnx

from vla_policy_ros.export.element_types import LowType

FREE_INPUTS = frozenset({'Cast', 'CastLike', 'Shape', 'Size'})
"""Operators that read any element type and write one of their own."""

_TYPED = FREE_INPUTS | {
    'Bernoulli',
    'ConstantOfShape',
    'EyeLike',
    'Multinomial',
    'RandomNormal',
    'RandomNormalLike',
    'RandomUniform',
    'RandomUniformLike',
}  # the element type of the result is written in the node
_REDUCTIONS = frozenset(
    {'ReduceL1', 'ReduceL2', 'ReduceMean', 'ReduceProd', 'ReduceSum', 'ReduceSumSquare'}
)
_DELICATE = _REDUCTIONS | {
    'Acos',
    'Acosh',
    'Asin',
    'Asinh',
    'Atan',
    'Atanh',
    'Cos',
    'Cosh',
    'CumProd',
    'CumSum',
    'DFT',
    'Det',
    'Exp',
    'GroupNormalization',
    'InstanceNormalization',
    'Log',
    'LogSoftmax',
    'LpNormalization',
    'LpPool',
    'MeanVarianceNormalization',
    'Mod',
    'Pow',
    'Range',
    'ReduceLogSum',
    'ReduceLogSumExp',
    'STFT',
    'Sin',
    'Sinh',
    'Softplus',
    'Tan',
}
_PERIODIC = frozenset({'Sin', 'Cos', 'Tan', 'Mod'})
_ARITHMETIC = frozenset({'Add', 'Div', 'Mul', 'Sub'})
_MOVING = frozenset(
    {
        'Concat',
        'Expand',
        'Flatten',
        'Gather',
        'Identity',
        'Reshape',
        'Slice',
        'Split',
        'Squeeze',
        'Tile',
        'Transpose',
        'Unsqueeze',
    }
)
_SIMPLE = (_ARITHMETIC | _MOVING) | {
    'Abs',
    'Ceil',
    'Clip',
    'Erf',
    'Floor',
    'Max',
    'Min',
    'Neg',
    'Reciprocal',
    'Relu',
    'Round',
    'Sigmoid',
    'Sign',
    'Softmax',
    'Sqrt',
    'Sum',
    'Tanh',
    'Where',
}
_PRODUCTS = frozenset({'Einsum', 'Gemm', 'MatMul'})


class Slots:
    """The type constraints of one node, as its operator's schema states them.

    Args:
        node: The node.
        opsets: Version of each operator domain.
    """

    def __init__(self, node: Any, opsets: Mapping[str, int]) -> None:
        self._node = node
        self._schema: Any = None
        if onnx.defs.has(node.op_type, opsets.get(node.domain, 0), node.domain):
            version = opsets[node.domain]
            self._schema = onnx.defs.get_schema(node.op_type, version, node.domain)

    @property
    def is_known(self) -> bool:
        """Whether there is a schema."""
        return self._schema is not None

    def input_takes(self, index: int, type_name: str) -> bool:
        """Tell whether an input may have a type, such as `tensor(float16)`."""
        return self._takes(self._schema.inputs, index, type_name)

    def output_takes(self, index: int, type_name: str) -> bool:
        """Tell whether an output may have a type."""
        return self._takes(self._schema.outputs, index, type_name)

    def can_be(self, low: LowType, floats: set[str]) -> bool:
        """Tell whether the node can compute in a type: its first float32 output takes it, or its first such input."""
        for names, takes in (
            (self._node.output, self.output_takes),
            (self._node.input, self.input_takes),
        ):
            places = [index for index, name in enumerate(names) if name in floats]
            # The first one decides: the mean that LayerNormalization puts out second may stay in float32.
            if places:
                return takes(places[0], low.schema_name)
        return False

    def _takes(self, formals: Sequence[Any], index: int, type_name: str) -> bool:
        formal = formals[min(index, len(formals) - 1)]  # the last one may stand for many
        return type_name in formal.types


def choose_wide_nodes(
    nodes: Sequence[Any],
    *,
    floats: set[str],
    weights: Mapping[str, str],
    slots: Sequence[Slots],
    low: LowType,
) -> dict[int, str]:
    """Return the index of every node that stays in float32, with the reason; nodes without float32 tensors not.

    Args:
        nodes: Nodes in topological order.
        floats: Names of all float32 tensors.
        weights: Names of all initialisers, with the reason why one must stay in float32, or an empty text.
        slots: Constraints of each node.
        low: The 16-bit type.
    """
    wide = _sensitive_arguments(nodes, floats, weights)
    wide_tensors: set[str] = set()
    statistics: set[str] = set()
    for index, node in enumerate(nodes):
        inputs, outputs = (
            [n for n in names if n in floats] for names in (node.input, node.output)
        )
        if not (inputs or outputs):
            continue
        computed = [name for name in inputs if name not in weights]
        reason = (
            wide.get(index)
            or _own_reason(node, slots[index], floats, low)
            or _divisor_reason(node, weights)
            or next((weights[name] for name in inputs if weights.get(name)), '')
            or _inherited_reason(node, computed, wide_tensors, statistics)
        )
        if not reason:
            continue
        wide[index] = reason
        wide_tensors.update(outputs)
        if _is_statistic(node, computed, statistics):
            statistics.update(outputs)
    return wide


def _own_reason(node: Any, slots: Slots, floats: set[str], low: LowType) -> str:
    """Return what in the node itself keeps it in float32."""
    if not slots.is_known:
        return 'unknown operator'
    if node.op_type in _TYPED:
        return 'writes a type of its own'
    if node.op_type in _DELICATE:
        return 'delicate'
    if not slots.can_be(low, floats):
        return f'no {low.name} in this opset'
    return ''


def _is_statistic(node: Any, computed: Sequence[str], statistics: set[str]) -> bool:
    """Tell whether a node sums up, or works on nothing but such sums."""
    if node.op_type in _REDUCTIONS:
        return True
    return node.op_type in _SIMPLE and bool(computed) and statistics.issuperset(computed)


def _inherited_reason(
    node: Any, computed: Sequence[str], wide_tensors: set[str], statistics: set[str]
) -> str:
    """Return what in the node's inputs keeps it in float32."""
    if node.op_type in _SIMPLE and computed and wide_tensors.issuperset(computed):
        return 'between delicate ones'
    if node.op_type in _ARITHMETIC and not statistics.isdisjoint(computed):
        return 'normalisation'
    return ''


def _divisor_reason(node: Any, weights: Mapping[str, str]) -> str:
    """Return that a node divides by something that is computed."""
    is_computed = node.op_type == 'Div' and node.input[1] not in weights
    return 'divides by a computed value' if is_computed else ''


def _sensitive_arguments(
    nodes: Sequence[Any], floats: set[str], weights: Mapping[str, str]
) -> dict[int, str]:
    """Return the nodes whose results go into sines, cosines and divisors only."""
    readers: dict[str, list[str]] = defaultdict(
        list
    )  # of a tensor: what each needs all digits for
    wide: dict[int, str] = {}
    for index in reversed(range(len(nodes))):
        node = nodes[index]
        results = [name for name in node.output if name in floats]
        found = [reader for name in results for reader in readers[name]]
        if node.op_type in _SIMPLE | _PRODUCTS and found and all(found):
            wide[index] = found[0]
        for place, name in enumerate(node.input):
            if name not in weights:
                readers[name].append(wide.get(index, '') or _argument(node, place))
    return wide


def _argument(node: Any, place: int) -> str:
    """Return for what a node needs all digits of its input, or an empty text."""
    if node.op_type in _PERIODIC:
        return 'argument of a sine or cosine'
    return 'divisor' if node.op_type == 'Div' and place == 1 else ''
