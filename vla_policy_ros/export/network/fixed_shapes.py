# SPDX-License-Identifier: Apache-2.0
"""ONNX files whose inputs are given fixed shapes, and the outputs that follow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx.shape_inference import InferenceError, infer_shapes

from vla_policy_ros.bundle.onnx_model import ModelFacts, ModelTensor, read_model
from vla_policy_ros.core.errors import EngineError
from vla_policy_ros.core.specs import TensorSpec
from vla_policy_ros.export.network.faults import describe
from vla_policy_ros.export.tracing import check_onnx
from vla_policy_ros.policies.device_pool import fixed_shape

Shapes = Mapping[str, TensorSpec]
"""Input to its fixed shape."""


def fix_shapes(path: Path, shapes: Shapes) -> ModelFacts:
    """Give a file's inputs fixed shapes, in place, and its outputs those that follow.

    Raises:
        EngineError: What comes out breaks the rules of ONNX (`bad_types`), or an output's shape does not follow
            (`free_dimension`).
    """
    model = onnx.load(path, load_external_data=False)
    for value in model.graph.input:
        if value.name in shapes:
            _set_shape(value, fixed_shape(shapes[value.name]))
    for value in model.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            if not dim.HasField('dim_value'):
                dim.Clear()
    del model.graph.value_info[:]  # with symbols that are numbers now
    try:
        inferred = infer_shapes(model, data_prop=True)
    except InferenceError as fault:
        raise EngineError(
            str(path),
            got=str(fault).strip().partition('\n')[0],
            expected='shapes that go together',
            next_step='Export the network with fixed shapes.',
            code='bad_types',
        ) from fault
    del model.graph.output[:]
    model.graph.output.extend(inferred.graph.output)
    path.write_bytes(model.SerializeToString(deterministic=True))
    check_onnx(path)
    return read_model(path, str(path))


def as_spec(tensor: ModelTensor) -> TensorSpec:
    """Return an output with its fixed shape.

    Raises:
        EngineError: A dimension is free (`free_dimension`).
    """
    if not all(isinstance(size, int) for size in tensor.shape):
        raise EngineError(
            'network, output',
            got=describe(tensor.name, tensor.dtype, tensor.shape),
            expected='a shape that follows from those of the inputs',
            next_step='Export the network with fixed shapes, and without outputs whose size depends on values.',
            code='free_dimension',
        )
    return TensorSpec(tensor.name, tuple(np.array(tensor.shape, int).tolist()), tensor.dtype)


def _set_shape(value: Any, shape: tuple[int, ...]) -> None:
    dims = value.type.tensor_type.shape
    dims.Clear()
    for size in shape:
        dims.dim.add(dim_value=size)
