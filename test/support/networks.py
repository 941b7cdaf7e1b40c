# SPDX-License-Identifier: Apache-2.0
"""Small ONNX networks for conversions, and ways to run any network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper
from support.bundles import save_model
from support.requirements import require

WIDTH = 16
TOKENS = 6


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    """Return float32 normal numbers."""
    values = np.random.default_rng(seed).standard_normal(shape) * scale
    return values.astype(np.float32)


def run_onnx(path: Path, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Run a network in ONNX Runtime as it stands in the file: its optimiser breaks float8."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
    return session.run(None, inputs)


def example_inputs(path: Path, *, seed: int = 1) -> dict[str, np.ndarray]:
    """Return inputs for a network: normal numbers, and small whole ones."""
    random = np.random.default_rng(seed)
    inputs = {}
    for value in onnx.load(path, load_external_data=False).graph.input:
        kind = value.type.tensor_type
        shape = [d.dim_value or 1 for d in kind.shape.dim]
        is_float = kind.elem_type == onnx.TensorProto.FLOAT
        inputs[value.name] = (
            random.standard_normal(shape).astype(np.float32)
            if is_float
            else random.integers(0, 4, shape)
        )
    return inputs


def element_types(path: Path) -> dict[str, str]:
    """Return the element type of every tensor that a node makes or a file holds, by inference over the whole file."""
    graph = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True).graph
    name = onnx.TensorProto.DataType.Name
    types = {
        v.name: name(v.type.tensor_type.elem_type) for v in (*graph.value_info, *graph.output)
    }
    return types | {t.name: name(t.data_type) for t in graph.initializer}


def build_rtx(path: Path) -> int:
    """Parse and build a network with TensorRT-RTX, which needs no GPU for it; return the size of the plan."""
    require('tensorrt_rtx')
    import tensorrt_rtx as rtx

    logger = rtx.Logger(rtx.Logger.ERROR)
    builder = rtx.Builder(logger)
    network = builder.create_network(0)
    parser = rtx.OnnxParser(network, logger)
    assert parser.parse_from_file(str(path)), parser.get_error(0).desc()
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(rtx.ComputeCapability.SM89, 0)
    plan = builder.build_serialized_network(network, config)
    assert plan is not None
    return plan.nbytes


def save_attention(path: Path) -> Path:
    """Write one attention block: layer norm in single operators, softmax with a mask, residual, tokens by their ids."""
    nodes = [
        _node('Gather', ['table', 'ids'], 'embedded'),
        _node('Add', ['x', 'embedded'], 'h'),
        # Layer norm as an exporter of opset 16 or older writes it.
        _node('ReduceMean', ['h'], 'mean', axes=[-1]),
        _node('Sub', ['h', 'mean'], 'centered'),
        _node('Pow', ['centered', 'two'], 'squares'),
        _node('ReduceMean', ['squares'], 'variance', axes=[-1]),
        _node('Add', ['variance', 'epsilon'], 'shifted'),
        _node('Sqrt', ['shifted'], 'deviation'),
        _node('Div', ['centered', 'deviation'], 'normal'),
        _node('Mul', ['normal', 'gain'], 'scaled'),
        _node('MatMul', ['scaled', 'w_q'], 'q'),
        _node('MatMul', ['scaled', 'w_k'], 'k'),
        _node('MatMul', ['scaled', 'w_k'], 'v'),
        _node('Transpose', ['k'], 'k_t', perm=[0, 2, 1]),
        _node('MatMul', ['q', 'k_t'], 'scores'),
        _node('Mul', ['scores', 'factor'], 'soft_scores'),
        _node('Softmax', ['soft_scores'], 'shares', axis=-1),
        _node('MatMul', ['shares', 'v'], 'mixed'),
        _node('Add', ['h', 'mixed'], 'y'),
    ]
    weights = {
        'table': draw(5, WIDTH, seed=1),
        'two': np.array(2.0, np.float32),
        'epsilon': np.array(1e-6, np.float32),
        'factor': np.array(0.25, np.float32),
        'gain': draw(WIDTH, seed=2),
        'w_q': draw(WIDTH, WIDTH, seed=3, scale=0.2),
        'w_k': draw(WIDTH, WIDTH, seed=4, scale=0.2),
    }
    size = [1, TOKENS, WIDTH]
    inputs = [('x', 'FLOAT', size), ('ids', 'INT64', [1, TOKENS])]
    return save_model(path, nodes, inputs, [('y', 'FLOAT', size)], weights)


def save_convolution(path: Path) -> Path:
    """Write two convolutions with a pooling, a resize and a head."""
    nodes = [
        _node('Conv', ['image', 'kernel', 'bias'], 'edges', pads=[1, 1, 1, 1]),
        _node('Relu', ['edges'], 'positive'),
        _node('Resize', ['positive', '', 'scales'], 'large', mode='linear'),
        _node('Conv', ['large', 'kernel_2'], 'features'),
        _node('GlobalAveragePool', ['features'], 'pooled'),
        _node('Flatten', ['pooled'], 'flat'),
        _node('Gemm', ['flat', 'head', 'head_bias'], 'y', transB=1),
    ]
    weights = {
        'kernel': draw(8, 3, 3, 3, seed=1, scale=0.2),
        'bias': draw(8, seed=2),
        'scales': np.array([1, 1, 2, 2], np.float32),
        'kernel_2': draw(8, 8, 3, 3, seed=3, scale=0.1),
        'head': draw(4, 8, seed=4),
        'head_bias': draw(4, seed=5),
    }
    inputs = [('image', 'FLOAT', [1, 3, 12, 12])]
    return save_model(path, nodes, inputs, [('y', 'FLOAT', [1, 4])], weights)


def _node(kind: str, inputs: list[str], output: str, **settings: Any) -> Any:
    return helper.make_node(kind, inputs, [output], output, **settings)
