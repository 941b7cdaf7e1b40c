# SPDX-License-Identifier: Apache-2.0
"""TorchScript and torch.export files, in PyTorch; torch is imported when one is opened.

Loading runs no Python code of the file's author: both formats hold operators, not pickled objects.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vla_policy_ros.bundle.onnx_model import ModelTensor
from vla_policy_ros.core.errors import BundleError, EngineError
from vla_policy_ros.core.specs import Array
from vla_policy_ros.export.network.fixed_shapes import Shapes, fix_shapes
from vla_policy_ros.export.tracing import (
    OPSET,
    quiet_library,
    require_torch,
    trace_module,
)
from vla_policy_ros.policies.device_pool import fixed_shape


class TorchSource:
    """A network in PyTorch.

    Args:
        path: Its file.
        module: What runs it.
        inputs: Input to what the file says of it.
    """

    title = 'PyTorch'

    def __init__(
        self,
        path: Path,
        module: Any,
        inputs: Mapping[str, ModelTensor | None],
    ) -> None:
        self.inputs = inputs
        self._path = path
        self._module = module

    def write(self, path: Path, shapes: Shapes, *, opset: int | None) -> None:
        """Trace it.

        Raises:
            EngineError: It does not run on inputs of these shapes (`not_runnable`) or cannot be traced.
        """
        random = np.random.default_rng(0)
        examples = {
            name: random.uniform(0, 1, fixed_shape(shapes[name])).astype(shapes[name].dtype)
            for name in self.inputs
        }
        outputs = list(self.run(examples))
        opset = max(opset or 0, OPSET)
        trace_module(self._module, path, inputs=examples, outputs=outputs, opset=opset)
        fix_shapes(path, shapes)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return all outputs by name.

        Raises:
            EngineError: The network failed (`not_runnable`), or returns other things than tensors (`unsupported_type`).
        """
        torch = require_torch()
        tensors = [torch.from_numpy(inputs[name]) for name in self.inputs]
        try:
            with torch.inference_mode(), quiet_library():
                result = self._module(*tensors)
        except (RuntimeError, AssertionError) as fault:
            raise EngineError(
                str(self._path),
                got=str(fault).strip().rpartition('\n')[2],
                expected='a network that takes what the description says',
                next_step='Check shapes, order and element types of its inputs.',
                code='not_runnable',
            ) from fault
        return {name: tensor.numpy() for name, tensor in _named(result).items()}

    def close(self) -> None:
        """Free it; may be called twice."""
        self._module = None


def open_torch_source(path: Path) -> TorchSource:
    """Load a file with PyTorch, on the CPU.

    Raises:
        MissingDependencyError: torch is not installed.
        BundleError: It is something else than its name says (`not_torch`).
    """
    torch = require_torch()
    inputs: Mapping[str, ModelTensor | None]
    try:
        with quiet_library():
            if path.suffix.lower() == '.pt':
                module = torch.jit.load(str(path), map_location='cpu').eval()
                inputs = _script_inputs(module)
            else:
                program = torch.export.load(str(path))
                module, inputs = program.module(), _program_inputs(program)
    except (RuntimeError, ValueError, KeyError, AttributeError) as fault:
        raise BundleError(
            str(path),
            got=str(fault).strip().partition('. ')[0].partition('\n')[0] or type(fault).__name__,
            expected='TorchScript in a file .pt, an exported program in a file .pt2',
            next_step='Save the network with torch.jit.save or torch.export.save; weights alone are no network.',
            code='not_torch',
        ) from fault
    return TorchSource(path, module, inputs)


def _script_inputs(module: Any) -> dict[str, None]:
    """Return the names of the inputs: TorchScript keeps no shapes."""
    return dict.fromkeys(argument.name for argument in module.forward.schema.arguments[1:])


def _program_inputs(program: Any) -> dict[str, ModelTensor]:
    wanted = program.graph_signature.user_inputs
    found = {node.name: node.meta['val'] for node in program.graph.nodes if node.name in wanted}
    return {name: _tensor(name, found[name]) for name in wanted}


def _tensor(name: str, value: Any) -> ModelTensor:
    # A free dimension is a symbol that int() would fix.
    shape = tuple(size if isinstance(size, int) else str(size) for size in value.shape)
    return ModelTensor(name, str(value.dtype).removeprefix('torch.'), shape)


def _named(result: Any) -> dict[str, Any]:
    """Return the tensors of a result under the names that descriptions know them by."""
    if isinstance(result, Mapping):
        named = {str(name): value for name, value in result.items()}
    elif isinstance(result, tuple | list):
        named = {f'output_{index}': value for index, value in enumerate(result)}
    else:
        named = {'output': result}
    torch = require_torch()
    wrong = {
        name: value.dtype if isinstance(value, torch.Tensor) else type(value).__name__
        for name, value in named.items()
        # numpy, in which the bundle is compared with the source, has no bfloat16.
        if not isinstance(value, torch.Tensor) or value.dtype == torch.bfloat16
    }
    if wrong:
        raise EngineError(
            'network, outputs',
            got=', '.join(f'{name}: {kind}' for name, kind in wrong.items()),
            expected='tensors of another type than bfloat16, alone, in a tuple or in a dictionary',
            next_step='Export a network that returns float32 tensors; casts inside are free.',
            code='unsupported_type',
        )
    return named
