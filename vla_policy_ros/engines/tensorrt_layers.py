# SPDX-License-Identifier: Apache-2.0
"""Which precision the layers of a plan really got."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from vla_policy_ros.engines.plan_facts import LayerGroup
from vla_policy_ros.engines.tensorrt_library import Library

# In the order of the search: the narrowest type that a layer reads or writes is the one it computes in.
_PRECISIONS = (
    ('fp4', re.compile(r'FP4', re.IGNORECASE)),
    ('int4', re.compile(r'INT4', re.IGNORECASE)),
    ('fp8', re.compile(r'FP8|E4M3', re.IGNORECASE)),
    ('int8', re.compile(r'\bU?INT8', re.IGNORECASE)),
    ('bf16', re.compile(r'BF16|BFLOAT16', re.IGNORECASE)),
    ('fp16', re.compile(r'FP16|\bHALF|\bFLOAT16', re.IGNORECASE)),
    ('fp32', re.compile(r'FP32|\bFLOAT(32)?\b', re.IGNORECASE)),
)
OTHER = 'other'
"""Precision of layers that move integers and truth values only, or whose types the library does not say."""


def plan_layers(library: Library, engine: Any) -> tuple[LayerGroup, ...]:
    """Return the fused layers of a deserialised plan, from the engine inspector.

    Args:
        library: The library of the engine.
        engine: An `ICudaEngine`; one that was built with detailed profiling verbosity tells types.
    """
    inspector = engine.create_engine_inspector()
    text = inspector.get_engine_information(library.module.LayerInformationFormat.JSON)
    return group_layers(json.loads(text).get('Layers', []))


def group_layers(layers: Iterable[dict[str, Any] | str]) -> tuple[LayerGroup, ...]:
    """Group the layers of the inspector's JSON; a layer is a mere name where types were not kept.

    Format: TensorRT developer guide, "Engine Inspector". A tensor's type is under `Datatype` or, before TensorRT-RTX
    and 11, under `Format/Datatype` (`Half`, `Row major linear FP16 format`, ...).
    """
    return _count(
        (OTHER, 'unknown')
        if isinstance(layer, str)
        else (precision_of(_tensor_types(layer)), str(layer.get('LayerType', 'unknown')))
        for layer in layers
    )


def network_layers(network: Any) -> tuple[LayerGroup, ...]:
    """Return the layers of a strongly typed `INetworkDefinition`, before fusion; constants are left out."""
    layers = (network.get_layer(index) for index in range(network.num_layers))
    return _count(
        (precision_of(_layer_types(layer)), layer.type.name)
        for layer in layers
        if layer.type.name != 'CONSTANT'
    )


def precision_of(types: Iterable[str]) -> str:
    """Return the narrowest floating-point or quantised type that is named, or `OTHER`."""
    text = ' '.join(types)
    return next((name for name, pattern in _PRECISIONS if pattern.search(text)), OTHER)


def _tensor_types(layer: dict[str, Any]) -> Iterator[str]:
    for tensor in (*layer.get('Inputs', []), *layer.get('Outputs', [])):
        yield str(tensor.get('Datatype') or tensor.get('Format/Datatype', ''))


def _layer_types(layer: Any) -> Iterator[str]:
    tensors = [layer.get_input(index) for index in range(layer.num_inputs)]
    tensors += [layer.get_output(index) for index in range(layer.num_outputs)]
    yield from (tensor.dtype.name for tensor in tensors if tensor is not None)


def _count(layers: Iterable[tuple[str, str]]) -> tuple[LayerGroup, ...]:
    return tuple(
        LayerGroup(precision, kind, count)
        for (precision, kind), count in Counter(layers).most_common()
    )
