# SPDX-License-Identifier: Apache-2.0
"""How the pool's tensors go into a network and its outputs become actions, as small stages and as the same in numpy.

An input is fed with pool tensors joined at the front (cameras of one batch), or with some columns of one (a part of the
state), brought into its shape and element type. Actions are outputs in rows, side by side. Where the pool's tensor
already is what the network takes, there is no stage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

from vla_policy_ros.core.specs import Array, TensorSpec
from vla_policy_ros.export.tracing import check_onnx
from vla_policy_ros.policies.device_pool import fixed_shape

_OPSET, _IR_VERSION = 17, 8  # old enough for every engine; nothing here has changed since


@dataclass(frozen=True, slots=True)
class Feed:
    """How one input is filled.

    Attributes:
        spec: The network's input.
        pool: Pool tensor that is handed to it.
        parts: Pool tensors that an observation fills; when there is one called `pool`, it is handed over as it is.
        columns: Which columns of the part; None for all.
    """

    spec: TensorSpec
    pool: str
    parts: tuple[TensorSpec, ...]
    columns: tuple[int, int] | None = None

    @property
    def is_direct(self) -> bool:
        """Whether the network takes the pool's tensor as it is."""
        return [part.name for part in self.parts] == [self.pool]

    def fill(self, tensors: Mapping[str, Array]) -> Array:
        """Return what the network is given."""
        joined = np.concatenate([tensors[part.name] for part in self.parts])
        if self.columns:
            joined = joined[..., slice(*self.columns)]
        shaped: Array = joined.reshape(fixed_shape(self.spec)).astype(self.spec.dtype)
        return np.ascontiguousarray(shaped)


@dataclass(frozen=True, slots=True)
class Reading:
    """What of the outputs is the action.

    Attributes:
        outputs: The network's outputs, side by side.
        pools: Pool tensor of each.
        widths: Columns of each.
        horizon: K, rows.
        pool: Pool tensor of the actions, (1, K, sum of widths) float32.
    """

    outputs: tuple[TensorSpec, ...]
    pools: tuple[str, ...]
    widths: tuple[int, ...]
    horizon: int
    pool: str

    @property
    def is_direct(self) -> bool:
        """Whether the only output is the actions as it is."""
        return self.pools == (self.pool,)

    def read(self, outputs: Mapping[str, Array]) -> Array:
        """Return the actions of the network's outputs."""
        rows = [
            outputs[spec.name].astype(np.float32).reshape(1, self.horizon, width)
            for spec, width in zip(self.outputs, self.widths, strict=True)
        ]
        return np.concatenate(rows, axis=2)


def write_feeds(feeds: Sequence[Feed], path: Path) -> None:
    """Write the stage that makes the network's inputs; its inputs and outputs are called as in the pool."""
    graph = _Graph()
    for feed in feeds:
        names = [graph.add_input(part) for part in feed.parts]
        name = graph.add('Concat', names, axis=0) if len(names) > 1 else names[0]
        if feed.columns:
            start, stop = (graph.add_constant([edge]) for edge in feed.columns)
            name = graph.add('Slice', [name, start, stop, graph.add_constant([-1])])
        name = graph.add('Reshape', [name, graph.add_constant(fixed_shape(feed.spec))])
        if feed.spec.dtype != feed.parts[0].dtype:
            graph.add('Cast', [name], to=_element_type(feed.spec.dtype))
        graph.end_with(TensorSpec(feed.pool, feed.spec.shape, feed.spec.dtype))
    graph.save(path, 'inputs')


def write_reading(reading: Reading, path: Path) -> None:
    """Write the stage that makes actions of the network's outputs; its inputs and outputs are called as in the pool."""
    graph, rows = _Graph(), []
    shape = (1, reading.horizon)
    for spec, pool, width in zip(reading.outputs, reading.pools, reading.widths, strict=True):
        name = graph.add_input(TensorSpec(pool, spec.shape, spec.dtype))
        if spec.dtype != 'float32':
            name = graph.add('Cast', [name], to=_element_type('float32'))
        rows.append(graph.add('Reshape', [name, graph.add_constant((*shape, width))]))
    if len(rows) > 1:
        graph.add('Concat', rows, axis=2)
    graph.end_with(TensorSpec(reading.pool, (*shape, sum(reading.widths)), 'float32'))
    graph.save(path, 'outputs')


class _Graph:
    """A graph in the making."""

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._inputs: dict[str, TensorSpec] = {}
        self._outputs: list[TensorSpec] = []
        self._constants: list[Any] = []

    def add_input(self, spec: TensorSpec) -> str:
        """Return the name of an input of the graph, which may be asked for again."""
        self._inputs[spec.name] = spec  # one tensor may feed several inputs
        return spec.name

    def add_constant(self, values: Sequence[int]) -> str:
        """Return the name of a new constant of int64."""
        name = f'constant_{len(self._constants)}'
        self._constants.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    def add(self, operator: str, inputs: Sequence[str], **attributes: int) -> str:
        """Return the name of a new operator's result."""
        name = f'value_{len(self._nodes)}'
        self._nodes.append(helper.make_node(operator, list(inputs), [name], name, **attributes))
        return name

    def end_with(self, spec: TensorSpec) -> None:
        """Make the newest value an output of this name."""
        self._outputs.append(spec)
        self._nodes[-1].output[0] = spec.name

    def save(self, path: Path, title: str) -> None:
        """Write the file and hold it against the rules of ONNX."""
        inputs = [_value(spec) for spec in self._inputs.values()]
        outputs = [_value(spec) for spec in self._outputs]
        graph = helper.make_graph(self._nodes, title, inputs, outputs, self._constants)
        opsets = [helper.make_opsetid('', _OPSET)]
        save(helper.make_model(graph, ir_version=_IR_VERSION, opset_imports=opsets), str(path))
        check_onnx(path)


def _value(spec: TensorSpec) -> Any:
    return helper.make_tensor_value_info(spec.name, _element_type(spec.dtype), list(spec.shape))


def _element_type(dtype: str) -> int:
    name = {'float32': 'FLOAT', 'float64': 'DOUBLE'}.get(dtype, dtype.upper())
    return int(TensorProto.DataType.Value(name))
