# SPDX-License-Identifier: Apache-2.0
"""Gives chosen nodes of a network a 16-bit type, with casts where two types meet and weights stored in the type they are read in."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

from onnx import TensorProto, helper

from vla_policy_ros.core.specs import Array
from vla_policy_ros.export.element_types import LowType
from vla_policy_ros.export.onnx_network import OnnxNetwork
from vla_policy_ros.export.precision_rules import FREE_INPUTS, Slots


class Retyper:
    """Changes one network, once.

    Args:
        network: The network.
        low: The 16-bit type.
        floats: Names of its float32 tensors.
        slots: Type constraints of each node.
        wide: Indices of the nodes that stay in float32.
    """

    def __init__(
        self,
        network: OnnxNetwork,
        low: LowType,
        *,
        floats: set[str],
        slots: Sequence[Slots],
        wide: Collection[int],
    ) -> None:
        self.low_weights: set[str] = set()
        self.num_casts = 0
        self._network = network
        self._low = low
        self._low_code = int(getattr(TensorProto, low.onnx_name))
        self._floats = floats
        self._slots = slots
        self._wide = wide
        graph = network.graph
        self._weights = {t.name: t for t in graph.initializer if t.name in floats}
        self._outputs = {value.name for value in graph.output}
        self._is_low: set[str] = set()  # computed tensors that are made in the low type
        self._casts: dict[tuple[str, bool], str] = {}
        self._nodes: list[Any] = []
        self._taken = {name for node in graph.node for name in (*node.input, *node.output)}
        self._taken |= {tensor.name for tensor in graph.initializer}

    def run(self) -> None:
        """Retype the nodes, convert the weights, and drop those that nothing reads any more."""
        graph = self._network.graph
        for index, node in enumerate(list(graph.node)):
            self._retype(node, self._slots[index], is_low=index not in self._wide)
        for name in self._outputs & self._is_low:
            self._as_type(name, low=False)
        del graph.node[:]
        graph.node.extend(self._nodes)
        used = {name for node in self._nodes for name in node.input} | self._outputs
        self._network.keep_weights(used)

    def _retype(self, node: Any, slots: Slots, *, is_low: bool) -> None:
        for place, name in enumerate(node.input):
            if name not in self._floats:
                continue
            if node.op_type in FREE_INPUTS:
                low = name in self._is_low
            else:
                low = is_low and slots.input_takes(place, self._low.schema_name)
            node.input[place] = self._as_type(name, low=low)
        for place, name in enumerate(node.output):
            if (
                is_low
                and name in self._floats
                and slots.output_takes(place, self._low.schema_name)
            ):
                self._is_low.add(name)
                node.output[place] = self._low_name(name)
        self._nodes.append(node)

    def _as_type(self, name: str, *, low: bool) -> str:
        """Return the name under which a float32 tensor is there in one of the two types."""
        if (name in self._is_low) == low:
            return self._low_name(name) if low else name
        if (name, low) not in self._casts:
            self._casts[name, low] = self._convert(name, low=low)
        return self._casts[name, low]

    def _low_name(self, name: str) -> str:
        """Return the name of a tensor that is made in the low type; a network's output keeps its own for the cast."""
        if name not in self._outputs:
            return name
        if (name, True) not in self._casts:
            self._casts[name, True] = self._new_name(name, self._low.name)
        return self._casts[name, True]

    def _convert(self, name: str, *, low: bool) -> str:
        if name in self._weights:
            return self._convert_weight(self._weights[name])
        source = self._low_name(name) if name in self._is_low else name
        target = name if name in self._outputs else ''
        if low or not target:
            target = self._new_name(name, self._low.name if low else 'fp32')
        code = self._low_code if low else int(TensorProto.FLOAT)
        self._nodes.append(helper.make_node('Cast', [source], [target], f'{target}_cast', to=code))
        self.num_casts += 1
        return target

    def _convert_weight(self, tensor: Any) -> str:
        name = self._new_name(tensor.name, self._low.name)
        read = partial(self._encode, tensor)
        self._network.add_weight(name, self._low_code, tuple(tensor.dims), read)
        self.low_weights.add(name)
        return name

    def _encode(self, tensor: Any) -> Array:
        return self._low.encode(self._network.read(tensor))

    def _new_name(self, name: str, suffix: str) -> str:
        found = f'{name}_{suffix}'
        while found in self._taken:
            found += '_'
        self._taken.add(found)
        return found
