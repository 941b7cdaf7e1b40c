# SPDX-License-Identifier: Apache-2.0
"""Explicit quantisation to int8 or fp8: QuantizeLinear and DequantizeLinear in the ONNX file, as TensorRT wants them.

What is quantised: the products with stored weights (MatMul, Gemm, Conv), symmetrically and with zero point 0; the activation
with one scale, the weight with one scale per output channel and stored in 8 bits. Products of two activations (attention)
and all else stay as they are and can go to 16 bits afterwards (`precision.lower_network`).

Scales are largest magnitude / greatest code (127, or 448 for float8e4m3fn), rounded up to a number that fp16 and bf16 hold
exactly: going to 16 bits afterwards changes no code. Activations get room above what calibration saw, since what lies
beyond is cut off: on one of two sets of 20 episodes that no calibration saw (288 observations each) that took the worst
chunk of the sample policy to a cosine of 0.9983 in int8 and 0.9986 in fp8; with room for 1.2 and 2 times as much it is
0.9994 and 0.9998, and on the other set nothing changes (0.9995 to 0.9997 in both). In fp8 room costs no digits.

ONNX Runtime's own `quantize_static` was measured on the sample policy's velocity network first: in int8 it comes equally
near, in fp8 it sets scales by the standard deviation and cuts outliers off (cosine 0.9977, here 0.9998); it also takes no
ranges from a file and loads a network whole.

Other ranges of activations were measured on the whole sample policy (94 observations of held-out episodes; first, last and
small products left out) by the squared difference of the actions, in parts of the policy's squared error. Largest magnitude:
0.38 % in int8, 1.0 % in fp8; least squared error: 0.38 %, 0.65 %, with a worse worst observation in both; percentile 99.99:
0.43 %, 0.76 %; percentile 99.9: 1.6 %, 2.2 %. None is better on all counts, so it is the simplest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal

import numpy as np
from onnx import TensorProto, helper

from vla_policy_ros.core.errors import EngineError
from vla_policy_ros.core.specs import Array
from vla_policy_ros.export.element_types import FP8_MAX, encode_fp8
from vla_policy_ros.export.onnx_network import OnnxNetwork
from vla_policy_ros.export.precision import check_target

QuantizedPrecision = Literal['int8', 'fp8']
"""Precisions that need calibration."""

OPSET: Final = 19  # the first with float8, and with scales in 16 bits
_LEAST_SCALE: Final = 2.0**-20
_FP16_STEP: Final = -24  # exponent of the distance of fp16's smallest numbers
_KEPT_BITS: Final = 7  # bfloat16's, after the leading one


@dataclass(frozen=True, slots=True)
class _Code:
    """An 8-bit type.

    Attributes:
        onnx_name: Its name in ONNX.
        largest: Greatest code.
        headroom: Factor on the largest magnitude of an activation that calibration saw.
    """

    onnx_name: str
    largest: float
    headroom: float


_CODES = {
    'int8': _Code('INT8', 127.0, headroom=1.2),
    'fp8': _Code('FLOAT8E4M3FN', FP8_MAX, headroom=2.0),
}


@dataclass(frozen=True, slots=True)
class Product:
    """A product of an activation with a stored weight.

    Attributes:
        name: Name of the node, or of its output.
        node: The node.
        weight: Initialiser of the weight.
        axis: Dimension of the weight that counts output channels.
    """

    name: str
    node: Any
    weight: Any
    axis: int

    @property
    def activation(self) -> str:
        """Name of the tensor that is multiplied."""
        return str(self.node.input[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationReport:
    """What was quantised.

    Attributes:
        precision: The 8-bit type.
        products: Names of the quantised products.
        left_out: Names of products that were left out on demand, with the reason.
        weights: Number of weights stored in 8 bits.
    """

    precision: str
    products: tuple[str, ...]
    left_out: Mapping[str, str]
    weights: int


def quantize(
    onnx_path: Path,
    out_path: Path,
    *,
    precision: QuantizedPrecision,
    ranges: Mapping[str, float],
    leave_out: Mapping[str, str] = MappingProxyType({}),
) -> QuantizationReport:
    """Write a network with its products in 8 bits; the rest stays in its type.

    Args:
        onnx_path: The network, float32.
        out_path: Where the result goes.
        precision: `int8` or `fp8` (float8e4m3fn).
        ranges: Largest magnitude of every activation that is multiplied, see `calibration`.
        leave_out: Names of products that stay in their type, with the reason; see `quantize_rules`.

    Raises:
        EngineError: The network cannot be read or raised to opset 19, an activation has no range (`no_range`), a name
            in `leave_out` is unknown (`unknown_product`), or `out_path` is the source (`same_file`).
    """
    check_target(onnx_path, out_path)
    network = OnnxNetwork(onnx_path)
    report = quantize_network(network, precision, ranges=ranges, leave_out=leave_out)
    network.save(out_path)
    return report


def quantize_network(
    network: OnnxNetwork,
    precision: QuantizedPrecision,
    *,
    ranges: Mapping[str, float],
    leave_out: Mapping[str, str] = MappingProxyType({}),
) -> QuantizationReport:
    """Quantise a network in hand; see `quantize`.

    Raises:
        EngineError: As quantize().
    """
    network.raise_opset(OPSET)
    products = list(find_products(network))
    unknown = sorted(leave_out.keys() - {product.name for product in products})
    if unknown:
        raise EngineError(
            str(network.path),
            got=f'{", ".join(unknown)} to leave out',
            expected=f'some of {", ".join(product.name for product in products) or "(none)"}',
            next_step='Name products as the network does.',
            code='unknown_product',
        )
    chosen = [product for product in products if product.name not in leave_out]
    quantizer = _Quantizer(network, _CODES[precision], ranges)
    quantizer.run(chosen)
    return QuantizationReport(
        precision=precision,
        products=tuple(product.name for product in chosen),
        left_out=dict(leave_out),
        weights=quantizer.num_weights,
    )


def find_products(network: OnnxNetwork) -> Iterator[Product]:
    """Yield the products of an activation with a stored float32 weight, in the order of the network."""
    floats = {t.name: t for t in network.graph.initializer if t.data_type == TensorProto.FLOAT}
    for node in network.graph.node:
        if node.domain or len(node.input) < 2 or node.input[0] in floats:
            continue
        weight = floats.get(node.input[1])
        axis = None if weight is None else _channel_axis(node, len(weight.dims))
        if axis is not None:
            yield Product(node.name or node.output[0], node, weight, axis)


def round_scale(scale: Array) -> Array:
    """Return the next number, at least 2^-20, that fp16 and bf16 hold exactly: 8 significant bits, multiples of 2^-24."""
    scale = np.maximum(scale.astype(np.float64), _LEAST_SCALE)
    exponents = np.floor(np.log2(scale)).astype(np.int64)
    steps = np.ldexp(1.0, np.maximum(exponents - _KEPT_BITS, _FP16_STEP))
    rounded: Array = (np.ceil(scale / steps) * steps).astype(np.float32)
    return rounded


def _channel_axis(node: Any, rank: int) -> int | None:
    """Return the dimension of the output channels; None for what is not quantised."""
    settings = {
        attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute
    }
    if node.op_type == 'Conv':
        return 0
    if rank != 2:
        return None
    if node.op_type == 'MatMul':
        return 1
    if node.op_type == 'Gemm' and not settings.get('transA', 0):
        return 0 if settings.get('transB', 0) else 1
    return None


class _Quantizer:
    """Puts quantisers into one network, once; activations and weights that several products share get one each."""

    def __init__(self, network: OnnxNetwork, code: _Code, ranges: Mapping[str, float]) -> None:
        self.num_weights = 0
        self._network = network
        self._code = code
        self._element_type = int(getattr(TensorProto, code.onnx_name))
        self._ranges = ranges
        self._activations: dict[str, str] = {}
        self._weights: dict[tuple[str, int], str] = {}
        self._nodes: list[Any] = []

    def run(self, products: Sequence[Product]) -> None:
        """Quantise the products and drop weights that nothing reads any more."""
        graph = self._network.graph
        by_output = {product.node.output[0]: product for product in products}
        for node in list(graph.node):
            product = by_output.get(node.output[0])
            if product:
                activation, weight = (
                    self._quantize_activation(product),
                    self._quantize_weight(product),
                )
                node.input[0], node.input[1] = activation, weight
            self._nodes.append(node)
        del graph.node[:]
        graph.node.extend(self._nodes)
        outputs = {value.name for value in graph.output}
        self._network.keep_weights({n for node in graph.node for n in node.input} | outputs)

    def _quantize_activation(self, product: Product) -> str:
        name = product.activation
        if name in self._activations:
            return self._activations[name]
        if name not in self._ranges:
            raise EngineError(
                f'{self._network.path.name}, tensor {name!r}',
                got='no range',
                expected='the largest magnitude of every activation that is multiplied',
                next_step='Calibrate again with this very network.',
                code='no_range',
            )
        scale = round_scale(
            np.array(self._ranges[name] * self._code.headroom / self._code.largest)
        )
        self._add_constant(f'{name}_scale', int(TensorProto.FLOAT), scale)
        self._add_constant(f'{name}_zero', self._element_type, np.zeros((), np.uint8))
        # The zero point says which type the codes have.
        codes, back = f'{name}_codes', f'{name}_dequantized'
        self._add_node('QuantizeLinear', [name, f'{name}_scale', f'{name}_zero'], codes)
        self._add_node('DequantizeLinear', [codes, f'{name}_scale', f'{name}_zero'], back)
        self._activations[name] = back
        return back

    def _quantize_weight(self, product: Product) -> str:
        weight, axis = product.weight, product.axis
        name = f'{weight.name}_axis{axis}'
        if (weight.name, axis) in self._weights:
            return self._weights[weight.name, axis]
        values = self._network.read(weight)
        others = tuple(index for index in range(values.ndim) if index != axis)
        scale = round_scale(np.abs(values).max(axis=others) / self._code.largest)
        self._add_constant(f'{name}_scale', int(TensorProto.FLOAT), scale)
        encode = partial(self._encode_weight, weight, np.expand_dims(scale, others))
        self._network.add_weight(f'{name}_codes', self._element_type, values.shape, encode)
        self.num_weights += values.size
        back = f'{name}_dequantized'
        self._add_node('DequantizeLinear', [f'{name}_codes', f'{name}_scale'], back, axis=axis)
        self._weights[weight.name, axis] = back
        return back

    def _encode_weight(self, weight: Any, scale: Array) -> Array:
        scaled = self._network.read(weight) / scale
        if self._code.onnx_name == 'INT8':
            codes: Array = np.rint(scaled, out=scaled).astype(np.int8)
            return codes
        return encode_fp8(scaled)

    def _add_constant(self, name: str, element_type: int, values: Array) -> None:
        self._network.add_weight(name, element_type, values.shape, lambda: values)

    def _add_node(self, kind: str, inputs: list[str], output: str, **settings: int) -> None:
        self._nodes.append(helper.make_node(kind, inputs, [output], output, **settings))
