# SPDX-License-Identifier: Apache-2.0
"""A network without the nodes that compute what is known beforehand, or what another node computes; by onnxslim.

Engines do this when they load a network, each as far as it can. Done once in the file, what shapes are made of (Shape, Gather,
Concat ...) is gone before a converter, a quantiser or a parser meets it. Networks that PyTorch traces with fixed shapes
have little of it; those of its older exporter, with free dimensions that the bundle fixes, are half of it.

Left to itself, onnxslim folds what can be computed of weights, too, and joins MatMul and Add to Gemm between Reshapes. The
first made an ACT 28 % larger, and neither made a network faster on ONNX Runtime. So it gets no weights and no fusion:
weights stay bit for bit what was trained, and a network of any size takes little memory.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from vla_policy_ros.bundle.onnx_model import read_model
from vla_policy_ros.core.errors import EngineError, MissingDependencyError
from vla_policy_ros.export.onnx_network import OnnxNetwork
from vla_policy_ros.export.tracing import quiet_library


def simplify_network(onnx_path: Path, out_path: Path) -> bool:
    """Write a simpler network with the same inputs, outputs and weights, and hold it against the rules of ONNX.

    Args:
        onnx_path: The network.
        out_path: Where the result goes, with a data file beside it where the source has one.

    Returns:
        Whether a node went; if not, nothing is written.

    Raises:
        MissingDependencyError: onnxslim is not installed.
        EngineError: The network has nodes with subgraphs (`subgraph`), onnxslim fails (`not_simplified`), or what it makes
            breaks the rules of ONNX (`bad_types`).
    """
    slim = _require_onnxslim().slim
    network = OnnxNetwork(onnx_path)
    num_nodes = len(network.graph.node)
    try:
        with quiet_library():
            network.rewrite(lambda model: slim(model, skip_optimizations=['graph_fusion']))
    except Exception as fault:  # the library's border: it has no base for its errors
        raise EngineError(
            str(onnx_path),
            got=f'{type(fault).__name__}: {str(fault).strip().partition(chr(10))[0]}',
            expected='a network that onnxslim can simplify',
            next_step='Use it as it is.',
            code='not_simplified',
        ) from fault
    if len(network.graph.node) >= num_nodes:
        return False
    network.save(out_path)
    return True


def replace_network(onnx_path: Path, new_path: Path) -> None:
    """Put a network and its data file in the place of another one and its weight files.

    Args:
        onnx_path: The network that goes; no other one uses its weight files.
        new_path: The one that comes, of the same name, in a folder of its own on the same file system.
    """
    for name in read_model(onnx_path, str(onnx_path)).weight_files:
        (onnx_path.parent / name).unlink()
    for path in new_path.parent.iterdir():
        path.replace(onnx_path.parent / path.name)


def _require_onnxslim() -> Any:
    try:
        return importlib.import_module('onnxslim')
    except ImportError as fault:
        raise MissingDependencyError(
            'export',
            got='no library onnxslim',
            expected='onnxslim in this Python environment',
            next_step='Run `pip install onnxslim`.',
        ) from fault
