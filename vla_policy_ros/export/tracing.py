# SPDX-License-Identifier: Apache-2.0
"""From a PyTorch function to an ONNX file; torch is imported when one is traced."""

from __future__ import annotations

import importlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from vla_policy_ros.core.errors import EngineError, MissingDependencyError
from vla_policy_ros.core.specs import Array

OPSET = 18
"""The first one of PyTorch's exporter; ONNX Runtime 1.18 takes up to 21, TensorRT 10 up to 20."""
_MAX_FILE_BYTES = 2**31 - 2**20  # of one ONNX file; more goes into a data file beside it


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TracedStage:
    """One stage of a policy while it is still PyTorch.

    Attributes:
        name: Name of the stage, and of its file.
        owner: The `torch.nn.Module` whose weights the function uses, in evaluation mode, on the CPU.
        function: Takes one tensor per input in their order, returns one tensor.
        inputs: Pool tensor to example values, as arrays of the shapes and types that the stage will always get.
        output: Pool tensor of the result.
        in_loop: Whether it runs once per denoise step.
    """

    name: str
    owner: Any
    function: Callable[..., Any]
    inputs: Mapping[str, Array]
    output: str
    in_loop: bool = False

    @property
    def file(self) -> str:
        """Name of its ONNX file."""
        return f'{self.name}.onnx'

    def run(self) -> Array:
        """Return what PyTorch makes of the example values."""
        torch = require_torch()
        with torch.inference_mode():
            result: Array = self.function(*_tensors(self.inputs)).numpy()
        return result

    def as_dict(self) -> dict[str, Any]:
        """Return the entry of `bundle.yaml`; inputs and outputs of the network are called as in the pool."""
        return {
            'name': self.name,
            'onnx': self.file,
            'inputs': {name: name for name in self.inputs},
            'outputs': {self.output: self.output},
            'in_loop': self.in_loop,
        }


def require_torch() -> Any:
    """Return the module torch.

    Raises:
        MissingDependencyError: It, or the onnxscript that its exporter needs, is not installed.
    """
    try:
        import torch

        importlib.import_module('onnxscript')  # torch itself misses it only when it exports
    except ImportError as fault:
        raise MissingDependencyError(
            'export',
            got=str(fault),
            expected='torch 2.5 or later, and onnxscript, in this Python environment',
            next_step="Run the export where the policy's own library is installed: pip install torch onnxscript",
        ) from fault
    return torch


@contextmanager
def quiet_library() -> Iterator[None]:
    """Keep what a library prints off stdout, which is the command's, and keep back its warnings about its own parts."""
    # Of the root too, which LeRobot logs to and most others inherit from; errors still come through.
    loggers = [logging.getLogger(name) for name in ('', 'torch.onnx', 'onnxscript')]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def replaced(module: Any, **values: Any) -> Iterator[None]:
    """Put values into a library's module for a `with` block, under names that it has."""
    before = {name: getattr(module, name) for name in values}
    vars(module).update(values)
    try:
        yield
    finally:
        vars(module).update(before)


def as_module(function: Callable[..., Any], owner: Any = None) -> Any:
    """Return a function as a `torch.nn.Module` in evaluation mode; the weights are those of `owner`."""
    torch = require_torch()

    class Wrapped(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.owner = owner

        def forward(self, *tensors: Any) -> Any:
            return function(*tensors)

    return Wrapped().eval()


def trace(stage: TracedStage, folder: Path) -> Path:
    """Write a stage's ONNX file, with a data file beside it when it is larger than one file may be, and check it.

    Raises:
        EngineError: The function cannot be traced (`not_traceable`), or what was made breaks the rules of ONNX
            (`bad_types`).
    """
    path = folder / stage.file
    module = as_module(stage.function, stage.owner)
    trace_module(module, path, inputs=stage.inputs, outputs=[stage.output])
    return path


def trace_module(
    module: Any,
    path: Path,
    *,
    inputs: Mapping[str, Array],
    outputs: Sequence[str],
    opset: int = OPSET,
) -> None:
    """Write the ONNX file of a module, as `trace` does.

    Args:
        module: A `torch.nn.Module` in evaluation mode, or a TorchScript module, which only PyTorch's older exporter takes.
        path: The ONNX file.
        inputs: Name of each input, in the order of `forward`, to example values.
        outputs: Name of each output.
        opset: Version of the standard operators.

    Raises:
        EngineError: The module cannot be traced (`not_traceable`), or what was made breaks the rules of ONNX
            (`bad_types`).
    """
    torch = require_torch()
    num_bytes = sum(value.nbytes for value in module.state_dict().values())
    with torch.no_grad(), quiet_library():
        try:
            torch.onnx.export(
                module,
                tuple(_tensors(inputs)),
                str(path),
                input_names=list(inputs),
                output_names=list(outputs),
                opset_version=opset,
                dynamo=not isinstance(module, torch.jit.ScriptModule),
                external_data=num_bytes > _MAX_FILE_BYTES,
                verbose=False,
            )
        except RuntimeError as fault:  # the base of the exporter's own errors
            raise _not_traceable(path, fault) from fault
    check_onnx(path)


def _not_traceable(path: Path, fault: Exception) -> EngineError:
    return EngineError(
        f'network {path.stem!r}',
        got=str(fault).strip().partition('\n')[0],
        expected='a network that PyTorch can trace',
        next_step='Use the versions of torch and of the model library that doc/howto/export_a_policy.md names.',
        code='not_traceable',
    )


def _tensors(inputs: Mapping[str, Array]) -> list[Any]:
    torch = require_torch()
    return [torch.from_numpy(value) for value in inputs.values()]


def check_onnx(path: Path) -> None:
    """Hold a file against the rules of ONNX, shapes and element types included.

    Raises:
        EngineError: It breaks them (`bad_types`).
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as fault:
        raise EngineError(
            str(path),
            got=str(fault).strip().partition('\n')[0],
            expected='a network that keeps the rules of ONNX',
            next_step='Export the network again, with another version of its exporter.',
            code='bad_types',
        ) from fault
