# SPDX-License-Identifier: Apache-2.0
"""From a float32 network to a strongly typed one in fp16 or bf16: precision belongs in the ONNX file.

TensorRT's newer versions take element types as they stand in the file and nothing else, so a lower precision is a change
of the file. One way makes both types. The converter that comes with ONNX Runtime knows fp16 only, clips what is out of
range without a word, keeps single operators by name and so splits an exported layer norm into rounded pieces, and holds a
network several times in memory. Here types are chosen from the operators' own schemas, by the rules of `precision_rules`.

Inputs and outputs of the network keep their types, with casts at the border: nothing around it has to change.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vla_policy_ros.core.errors import EngineError
from vla_policy_ros.core.specs import Array
from vla_policy_ros.export.element_types import LOW_TYPES, LowType
from vla_policy_ros.export.onnx_network import OnnxNetwork
from vla_policy_ros.export.precision_rules import FREE_INPUTS, Slots, choose_wide_nodes
from vla_policy_ros.export.retyping import Retyper

FloatPrecision = Literal['fp32', 'fp16', 'bf16']
"""Precisions that are a floating-point type and need no calibration."""

_SCALAR_ERROR = 0.01  # greatest relative error of a single number that counts as held


@dataclass(frozen=True, slots=True)
class KeptNode:
    """A node that stayed in float32.

    Attributes:
        name: Name of the node, or of its first output.
        operator: Its operator.
        reason: Why it stayed.
    """

    name: str
    operator: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionReport:
    """What a conversion did.

    Attributes:
        precision: The precision that was asked for.
        nodes: Number of nodes per type (`fp16`, `bf16`, `fp32`); casts, and nodes without floating-point numbers, are not in it.
        weights: Number of weights per type.
        kept: Nodes that stayed in float32.
        wide_weights: Initialisers that a 16-bit type does not hold, with the reason.
        casts: Number of casts that were added.
    """

    precision: str
    nodes: Mapping[str, int] = field(default_factory=dict)
    weights: Mapping[str, int] = field(default_factory=dict)
    kept: tuple[KeptNode, ...] = ()
    wide_weights: Mapping[str, str] = field(default_factory=dict)
    casts: int = 0

    def share(self, precision: str) -> float:
        """Return the share of the weights that have a type, 0 to 1."""
        return self.weights.get(precision, 0) / max(sum(self.weights.values()), 1)


def convert_precision(
    onnx_path: Path, out_path: Path, precision: FloatPrecision
) -> ConversionReport:
    """Write a network in another floating-point type.

    Args:
        onnx_path: The network; its float32 parts are converted, others stay.
        out_path: Where the result goes, in another folder or under another name; weights go into a data file beside it where the source has one.
        precision: The type; `fp32` writes the same network again.

    Raises:
        EngineError: It is no ONNX model, has subgraphs, its types do not fit together, or `out_path` is the source
            itself (`same_file`).
    """
    check_target(onnx_path, out_path)
    network = OnnxNetwork(onnx_path)
    report = lower_network(network, precision)
    network.save(out_path)
    return report


def lower_network(network: OnnxNetwork, precision: FloatPrecision) -> ConversionReport:
    """Change a network in hand; see `convert_precision`.

    Raises:
        EngineError: Its types do not fit together.
    """
    floats = network.float_tensors()
    nodes = list(network.graph.node)
    count = _count_nodes(nodes, floats)
    low = LOW_TYPES.get(precision)
    if low is None:
        return ConversionReport(
            precision=precision,
            nodes={'fp32': count},
            weights=_count_weights(network, floats, {}),
        )
    weights = {
        tensor.name: _why_wide(network.read(tensor), low)
        for tensor in network.graph.initializer
        if tensor.name in floats
    }
    opsets = {entry.domain: entry.version for entry in network.model.opset_import}
    slots = [Slots(node, opsets) for node in nodes]
    wide = choose_wide_nodes(nodes, floats=floats, weights=weights, slots=slots, low=low)
    retyper = Retyper(network, low, floats=floats, slots=slots, wide=wide.keys())
    retyper.run()
    kept = tuple(
        KeptNode(nodes[index].name or nodes[index].output[0], nodes[index].op_type, reason)
        for index, reason in sorted(wide.items())
        if nodes[index].op_type not in FREE_INPUTS
    )
    return ConversionReport(
        precision=precision,
        nodes={low.name: count - len(kept), 'fp32': len(kept)},
        weights=_count_weights(network, floats, dict.fromkeys(retyper.low_weights, low.name)),
        kept=kept,
        wide_weights={name: reason for name, reason in weights.items() if reason},
        casts=retyper.num_casts,
    )


def check_target(onnx_path: Path, out_path: Path) -> None:
    """Refuse to write a network over the one that is being read.

    Raises:
        EngineError: Both are one file (`same_file`).
    """
    if out_path.exists() and out_path.samefile(onnx_path):
        raise EngineError(
            str(out_path),
            got='the path of the network that is read',
            expected='another file',
            next_step='Write the result into another folder.',
            code='same_file',
        )


def _why_wide(values: Array, low: LowType) -> str:
    """Return why a constant stays in float32; empty when 16 bits hold it."""
    if not values.size:
        return ''
    largest = max((abs(float(end)) for end in _finite_ends(values)), default=0.0)
    if largest > low.largest:
        return f'{largest:.4g} is beyond {low.name}'
    if values.size == 1 and largest:
        held = abs(float(low.decode(low.encode(values)).reshape(-1)[0]))
        if abs(held - largest) > _SCALAR_ERROR * largest:
            return f'{largest:.4g} is too small for {low.name}'
    return ''


def _finite_ends(values: Array) -> tuple[float, ...]:
    """Return the least and the greatest finite value."""
    ends = values.min(), values.max()
    if not np.isfinite(ends).all():
        finite = values[np.isfinite(values)]
        ends = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    return float(ends[0]), float(ends[1])


def _count_nodes(nodes: list[Any], floats: set[str]) -> int:
    return sum(
        node.op_type not in FREE_INPUTS and not floats.isdisjoint([*node.input, *node.output])
        for node in nodes
    )


def _count_weights(
    network: OnnxNetwork, floats: set[str], low: Mapping[str, str]
) -> dict[str, int]:
    """Return the number of weights per type, of what is an initialiser now."""
    counts: Counter[str] = Counter()
    for tensor in network.graph.initializer:
        name = low.get(tensor.name) or ('fp32' if tensor.name in floats else '')
        if name:
            counts[name] += int(np.prod(tensor.dims))
    return dict(counts)
