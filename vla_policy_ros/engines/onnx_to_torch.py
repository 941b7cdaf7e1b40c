# SPDX-License-Identifier: Apache-2.0
"""An ONNX network as a PyTorch module.

The converter is our own: `onnx2torch` 1.5.15, the newest on PyPI, stops at opset 16 (no reductions, `Constant`, `Cast`
of 18 and later, no `Gelu`, `GroupNormalization`, `QuantizeLinear`) and refuses the sample bundle's `Clip`.

A network is built for fixed input shapes. Its nodes are walked once: what depends on weights and shapes alone is
computed there and then, the rest runs on PyTorch's `meta` device, which yields shapes without data, and becomes a line
of a `torch.fx` graph. The generated module therefore holds no shape arithmetic, lets every intermediate tensor go after
its last use, and never asks the device for a value, so that it can be enqueued, compiled and captured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError
from onnx import inliner, numpy_helper

from vla_policy_ros.bundle.onnx_model import read_model
from vla_policy_ros.core.errors import BundleError, EngineError
from vla_policy_ros.core.specs import TensorSpec
from vla_policy_ros.engines.torch_grids import GRIDS
from vla_policy_ros.engines.torch_layers import LAYERS
from vla_policy_ros.engines.torch_ops import ARITHMETIC, TORCH_TYPES, Operator
from vla_policy_ros.engines.torch_shapes import SHAPES

OPERATORS: Mapping[str, Operator] = {**ARITHMETIC, **SHAPES, **LAYERS, **GRIDS}
"""Every operator that a network may use, besides `Shape` and `Size`."""
_FROM_SHAPE = ('Shape', 'Size')
_OLDEST_OPSET = 13  # the first whose softmax and axes are as the table has them
# Types that numpy does not have, by the integers of their width.
_RAW_TYPES = {
    onnx.TensorProto.BFLOAT16: np.uint16,
    onnx.TensorProto.FLOAT8E4M3FN: np.uint8,
    onnx.TensorProto.FLOAT8E5M2: np.uint8,
}
# What PyTorch and our table raise for what they cannot do; PyTorch has no base class of its own.
_FAULTS = (RuntimeError, TypeError, ValueError, IndexError, KeyError)


@dataclass(frozen=True, slots=True)
class _Node:
    """One node of the network."""

    label: str
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]


class OnnxNetwork:
    """An ONNX file in memory, its weights on a device in the element types of the file.

    Args:
        onnx_path: The ONNX file; weights beside it are read, too.
        device: Where the weights and the modules live.

    Raises:
        EngineError: The file cannot be read (`not_loadable`), is of an opset before 13, or has an operator that is not
            in the table (`unsupported_operator`) or an element type that PyTorch lacks (`unsupported_type`).
    """

    def __init__(self, onnx_path: Path, device: torch.device) -> None:
        self.name = onnx_path.name
        self.device = device
        try:
            facts = read_model(onnx_path, str(onnx_path))
            model = onnx.load(str(onnx_path))
        except (
            BundleError,
            DecodeError,
            OSError,
            ValueError,
            onnx.checker.ValidationError,
        ) as fault:
            got = fault.got if isinstance(fault, BundleError) else str(fault)
            raise _not_loadable(onnx_path, got.partition('\n')[0]) from fault
        if model.functions:
            model = inliner.inline_local_functions(model)
        self._check_operators(onnx_path, model)
        self.inputs = tuple(_spec(tensor, self.name) for tensor in facts.inputs)
        self.outputs = tuple(_spec(tensor, self.name) for tensor in facts.outputs)
        self._weights = {
            tensor.name: _read_tensor(tensor, self.name).to(device)
            for tensor in model.graph.initializer
        }
        self._nodes = [_read_node(node, self.name) for node in model.graph.node]

    def build(self, shapes: Mapping[str, Sequence[int]]) -> torch.fx.GraphModule:
        """Return a module for these input shapes: tensors in the order of `inputs` in, a tuple of `outputs` out.

        Weights are shared with every other module of this network; what is computed from them is not. Work on the
        device is enqueued on PyTorch's current stream.

        Raises:
            EngineError: A node cannot be run (`unsupported_operator`), for example because the shape of its result
                depends on data.
        """
        with torch.no_grad():
            builder = _Builder(self.name, self.device, self._weights)
            for spec in self.inputs:
                builder.add_input(spec, shapes[spec.name])
            for node in self._nodes:
                builder.add_node(node)
            return builder.finish([spec.name for spec in self.outputs])

    def _check_operators(self, onnx_path: Path, model: Any) -> None:
        opset = next((o.version for o in model.opset_import if o.domain in ('', 'ai.onnx')), 0)
        if opset < _OLDEST_OPSET:
            raise _not_loadable(onnx_path, f'opset {opset}')
        unknown: dict[str, str] = {}
        for node in model.graph.node:
            name = (
                node.op_type if node.domain in ('', 'ai.onnx') else f'{node.domain}.{node.op_type}'
            )
            if name not in OPERATORS and name not in _FROM_SHAPE:
                unknown.setdefault(name, node.name or node.output[0])
        if unknown:
            raise EngineError(
                f'network {self.name!r}',
                got='; '.join(f'operator {op} at node {node!r}' for op, node in unknown.items()),
                expected='operators that our PyTorch table has',
                next_step='Run this bundle with another engine, or add them to the table in engines/torch_*.py.',
                code='unsupported_operator',
            )


class _Builder:
    """The walk over the nodes: what is known by now, and the graph of the rest."""

    def __init__(
        self, network: str, device: torch.device, weights: Mapping[str, torch.Tensor]
    ) -> None:
        self._network = network
        self._device = device
        self._known = dict(weights)
        self._live: dict[str, tuple[torch.fx.Node, torch.Tensor]] = {}
        self._graph = torch.fx.Graph()
        self._root = torch.nn.Module()
        self._constants: dict[str, torch.fx.Node] = {}

    def add_input(self, spec: TensorSpec, shape: Sequence[int]) -> None:
        """Add a placeholder."""
        meta = torch.empty(tuple(shape), dtype=torch_type(spec.dtype), device='meta')
        self._live[spec.name] = (self._graph.placeholder(f'input_{len(self._live)}'), meta)

    def add_node(self, node: _Node) -> None:
        """Compute a node now where all its inputs are known, else add it to the graph."""
        if node.operator in _FROM_SHAPE:
            self._known[node.outputs[0]] = self._measure(node)
            return
        operator = OPERATORS[node.operator]
        keywords = dict(node.attributes)
        if operator.counts_outputs:
            keywords['num_outputs'] = len(node.outputs)
        is_known = all(name in self._known for name in node.inputs if name)
        try:
            arguments = [
                self._argument(node, operator, position, is_meta=not is_known)
                for position in range(len(node.inputs))
            ]
            results = operator.function(*arguments, **keywords)
        except _FAULTS as fault:
            raise self._unsupported(node, f'{type(fault).__name__}: {fault}') from fault
        results = results if isinstance(results, tuple) else (results,)
        if len(results) < len([name for name in node.outputs if name]):
            raise self._unsupported(node, f'{len(node.outputs)} outputs')
        if is_known:
            self._known.update(
                (name, value.to(self._device))
                for name, value in zip(node.outputs, results, strict=False)
            )
        else:
            self._emit(node, operator, keywords, results)

    def finish(self, outputs: Sequence[str]) -> torch.fx.GraphModule:
        """Return the module."""
        self._graph.output(tuple(self._node(name) for name in outputs))
        self._graph.eliminate_dead_code()
        return torch.fx.GraphModule(self._root, self._graph).eval()

    def _emit(
        self,
        node: _Node,
        operator: Operator,
        keywords: dict[str, Any],
        results: Sequence[torch.Tensor],
    ) -> None:
        arguments = []
        for position, name in enumerate(node.inputs):
            value = self._argument(node, operator, position, is_meta=True)
            arguments.append(self._node(name) if isinstance(value, torch.Tensor) else value)
        call = self._graph.call_function(operator.function, tuple(arguments), keywords)
        if len(node.outputs) == 1 and not operator.counts_outputs:
            self._live[node.outputs[0]] = (call, results[0])
            return
        for index, (name, meta) in enumerate(zip(node.outputs, results, strict=False)):
            item = self._graph.call_function(_take, (call, index))
            self._live[name] = (item, meta)

    def _argument(
        self, node: _Node, operator: Operator, position: int, *, is_meta: bool
    ) -> torch.Tensor | float | list[Any] | None:
        name = node.inputs[position]
        if not name:
            return None
        value = self._known.get(name)
        if position in operator.known:
            if value is None:
                raise self._unsupported(node, f'input {name!r}, whose value depends on data')
            return value.tolist()
        if value is None:
            return self._live[name][1]
        if position in operator.scalar and value.dim() == 0:
            return value.item()
        return value.to('meta') if is_meta else value

    def _node(self, name: str) -> torch.fx.Node:
        """Return the graph's node of a value; one that is known becomes a buffer of the module."""
        if name in self._live:
            return self._live[name][0]
        if name not in self._constants:
            buffer = f'constant_{len(self._constants)}'
            self._root.register_buffer(buffer, self._known[name], persistent=False)
            self._constants[name] = self._graph.get_attr(buffer)
        return self._constants[name]

    def _measure(self, node: _Node) -> torch.Tensor:
        name = node.inputs[0]
        value = self._known[name] if name in self._known else self._live[name][1]
        if node.operator == 'Size':
            return torch.tensor(value.numel(), device=self._device)
        start, end = node.attributes.get('start', 0), node.attributes.get('end')
        return torch.tensor(list(value.shape)[start:end], dtype=torch.int64, device=self._device)

    def _unsupported(self, node: _Node, got: str) -> EngineError:
        return EngineError(
            f'network {self._network!r}, node {node.label!r} ({node.operator})',
            got=got.partition('\n')[0],
            expected='an operator that PyTorch can run with shapes known beforehand',
            next_step='Export the stage with fixed shapes, or run it with another engine.',
            code='unsupported_operator',
        )


def torch_type(name: str) -> torch.dtype:
    """Return PyTorch's type of a `TensorSpec`'s element type."""
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _take(results: Sequence[torch.Tensor], index: int) -> torch.Tensor:
    return results[index]


def _spec(tensor: Any, network: str) -> TensorSpec:
    known = {str(dtype).removeprefix('torch.') for dtype in TORCH_TYPES.values()}
    if tensor.dtype not in known:
        raise _unsupported_type(network, tensor.name, tensor.dtype)
    shape = tuple(size if isinstance(size, int) else None for size in tensor.shape)
    return TensorSpec(tensor.name, shape, tensor.dtype)


def _read_node(node: Any, network: str) -> _Node:
    attributes = {a.name: _read_attribute(a, network) for a in node.attribute}
    label = node.name or node.output[0]
    return _Node(label, node.op_type, tuple(node.input), tuple(node.output), attributes)


def _read_attribute(attribute: Any, network: str) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        return _read_tensor(value, network)
    if isinstance(value, bytes):
        return value.decode()
    return value if isinstance(value, int | float) else list(value)


def _read_tensor(tensor: Any, network: str) -> torch.Tensor:
    """Return a weight on the host in its own element type."""
    if tensor.data_type not in TORCH_TYPES:
        kind = onnx.TensorProto.DataType.Name(tensor.data_type)
        raise _unsupported_type(network, tensor.name, kind.lower())
    width = _RAW_TYPES.get(tensor.data_type)
    if width is None:
        return torch.from_numpy(np.array(numpy_helper.to_array(tensor)))
    if tensor.HasField('raw_data'):
        bits = np.frombuffer(tensor.raw_data, np.dtype(width).newbyteorder('<')).astype(width)
    else:
        bits = np.array(tensor.int32_data).astype(width)
    values = torch.from_numpy(bits.reshape(tuple(tensor.dims)))
    return values.view(TORCH_TYPES[tensor.data_type])


def _unsupported_type(network: str, tensor: str, dtype: str) -> EngineError:
    return EngineError(
        f'network {network!r}, tensor {tensor!r}',
        got=dtype,
        expected='an element type that PyTorch has',
        next_step='Export the network with float32 inputs and outputs; casts inside are free.',
        code='unsupported_type',
    )


def _not_loadable(path: Path, got: str) -> EngineError:
    return EngineError(
        str(path),
        got=got,
        expected=f'an ONNX network of opset {_OLDEST_OPSET} or later',
        next_step='Check the file with `vla-policy check`, or export it again.',
        code='not_loadable',
    )
