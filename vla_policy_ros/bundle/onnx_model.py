# SPDX-License-Identifier: Apache-2.0
"""What an ONNX file says of itself: inputs, outputs and the weight files beside it. The weights are not read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_policy_ros.core.errors import BundleError


@dataclass(frozen=True, slots=True)
class ModelTensor:
    """Input or output of a network; a free dimension is its symbol, or None when it has none."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Inputs and outputs of one ONNX file, the names of the weight files it points to, and its version of the operators."""

    inputs: tuple[ModelTensor, ...]
    outputs: tuple[ModelTensor, ...]
    weight_files: tuple[str, ...]
    opset: int


def read_model(path: Path, where: str) -> ModelFacts:
    """Read the facts of one ONNX file; `where` is the dotted path for messages.

    Raises:
        BundleError: The file is no ONNX model (`not_onnx`), or has an input or output that is no dense tensor
            (`unsupported_type`).
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path, format='protobuf', load_external_data=False)
    except DecodeError as fault:
        raise _not_onnx(path, where, str(fault)) from fault
    graph = model.graph
    if not graph.output:
        raise _not_onnx(path, where, 'a model without outputs')
    weights = {tensor.name for tensor in graph.initializer}
    return ModelFacts(
        inputs=tuple(_tensor(v, where) for v in graph.input if v.name not in weights),
        outputs=tuple(_tensor(v, where) for v in graph.output),
        weight_files=tuple(sorted(set(_weight_files(model)))),
        opset=next((int(o.version) for o in model.opset_import if not o.domain), 1),
    )


def _not_onnx(path: Path, where: str, got: str) -> BundleError:
    return BundleError(
        where,
        got=f'{got} in {path.name}',
        expected='an ONNX model with at least one output',
        next_step='Export the stage again.',
        code='not_onnx',
    )


def _tensor(value: Any, where: str) -> ModelTensor:
    import onnx

    kind = value.type.WhichOneof('value')
    tensor = value.type.tensor_type
    if kind != 'tensor_type' or not tensor.HasField('shape'):
        raise BundleError(
            where,
            got=f'{value.name!r} as {kind or "nothing"}',
            expected='a dense tensor of known rank',
            next_step='Export the stage with tensors only and with their shapes.',
            code='unsupported_type',
        )
    dtype = str(onnx.TensorProto.DataType.Name(tensor.elem_type)).lower()
    dtype = {'float': 'float32', 'double': 'float64'}.get(dtype, dtype)
    shape = tuple(
        d.dim_value if d.dim_value > 0 else (d.dim_param or None) for d in tensor.shape.dim
    )
    return ModelTensor(value.name, dtype, shape)


def _weight_files(model: Any) -> Iterator[str]:
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data

    inside_functions = (t for function in model.functions for t in _node_tensors(function.node))
    for tensor in (*_tensors(model.graph), *inside_functions):
        if uses_external_data(tensor):
            yield ExternalDataInfo(tensor).location


def _tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Any) -> Iterator[Any]:
    for node in nodes:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for graph in (attribute.g, *attribute.graphs):
                yield from _tensors(graph)
