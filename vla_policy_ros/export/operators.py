# SPDX-License-Identifier: Apache-2.0
"""Whether an engine takes every operator of every stage: found out by loading each, not by a list."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from vla_policy_ros.bundle.bundle import Bundle
from vla_policy_ros.core.errors import ConfigurationError, VlaPolicyError
from vla_policy_ros.engines.registry import engine_memory
from vla_policy_ros.export.compare import Contender
from vla_policy_ros.policies.stage_probe import StageProbe


@dataclass(frozen=True, slots=True)
class StageSupport:
    """One stage on one engine.

    Attributes:
        stage: Its name.
        operators: Operator to the number of its nodes, that of another domain with the domain before it.
        fault: Why the engine does not take it; None when it does.
        named: Operators that the fault names.
    """

    stage: str
    operators: dict[str, int]
    fault: VlaPolicyError | None = None
    named: tuple[str, ...] = ()


def find_support(bundle: Bundle, contender: Contender) -> Iterator[StageSupport]:
    """Load and bind the stages one after another; each is freed before the next one.

    An engine that runs plans looks for them: building takes minutes and is `vla-policy build`'s.

    Raises:
        ConfigurationError: An option is wrong, such as 8 bits without a calibration.
        GpuError: There is no GPU or driver.
    """
    with ExitStack() as undo:
        device = contender.device
        if device is None and engine_memory(contender.engine) == 'device':
            from vla_policy_ros.gpu.device import open_device

            device = open_device()
            undo.callback(device.close)
        for stage in bundle.manifest.stages:
            operators = count_operators(bundle.folder / stage.onnx)
            fault: VlaPolicyError | None = None
            try:
                probe = StageProbe(
                    bundle,
                    stage,
                    engine=contender.engine,
                    settings=contender.settings,
                    device=device,
                    load=contender.load,
                )
                with closing(probe):
                    pass
            except ConfigurationError:  # an option is wrong, not a network
                raise
            except VlaPolicyError as raised:
                fault = raised
            named = _named(operators, fault) if fault else ()
            yield StageSupport(stage.name, operators, fault, named)


def count_operators(onnx_path: Path) -> dict[str, int]:
    """Return the operators of a network, those of its subgraphs and functions included, in the order of their names."""
    model = onnx.load(onnx_path, load_external_data=False)
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    return dict(sorted(Counter(_operators(nodes)).items()))


def _operators(nodes: Iterable[Any]) -> Iterator[str]:
    for node in nodes:
        yield f'{node.domain}:{node.op_type}' if node.domain else node.op_type
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _operators(graph.node)


def _named(operators: Iterable[str], fault: VlaPolicyError) -> tuple[str, ...]:
    """Return the operators whose names stand in a fault as words of their own."""
    words = set(re.findall(r'\w+', f'{fault.got} {fault.expected}'))
    return tuple(name for name in operators if name.rpartition(':')[2] in words)
