# SPDX-License-Identifier: Apache-2.0
"""The file that a bundle is made of, run as it is: ONNX Runtime for ONNX, PyTorch for TorchScript and torch.export."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

from vla_policy_ros.bundle.files import escapes
from vla_policy_ros.bundle.onnx_model import ModelTensor, read_model
from vla_policy_ros.core.errors import BundleError
from vla_policy_ros.core.specs import Array, TensorSpec
from vla_policy_ros.engines.registry import load_engine
from vla_policy_ros.export.network.faults import misfit
from vla_policy_ros.export.network.fixed_shapes import Shapes, as_spec, fix_shapes
from vla_policy_ros.export.onnx_network import OnnxNetwork
from vla_policy_ros.export.proof import ENGINE


class Source(Protocol):
    """A network file of any kind."""

    @property
    def title(self) -> str:
        """What runs it."""

    @property
    def inputs(self) -> Mapping[str, ModelTensor | None]:
        """Inputs by name, in their order; None for one of which the file only says the name."""

    def write(self, path: Path, shapes: Shapes, *, opset: int | None) -> None:
        """Write it as ONNX with inputs of these shapes, and weights beside it where the source has some there."""

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return all outputs by name."""

    def close(self) -> None:
        """Free it."""


def open_source(path: Path) -> Source:
    """Open a network by the ending of its name: `.onnx`, `.pt` (TorchScript) or `.pt2` (torch.export).

    Raises:
        ConfigurationError: Another ending (`unknown_format`).
        BundleError: It is no ONNX file (`not_onnx`), TorchScript or exported program (`not_torch`).
        MissingDependencyError: torch is not installed.
    """
    suffix = path.suffix.lower()
    if suffix in ('.onnx', '.pt', '.pt2') and not path.is_file():
        raise BundleError(
            str(path), got='no such file', expected='a network', next_step='Check the path.'
        )
    if suffix == '.onnx':
        return OnnxSource(path)
    if suffix in ('.pt', '.pt2'):
        from vla_policy_ros.export.network.torch_source import open_torch_source

        return open_torch_source(path)
    raise misfit(
        'NETWORK',
        got=path.name,
        expected='a file .onnx, .pt (TorchScript) or .pt2 (torch.export)',
        next_step='Save the network with torch.onnx.export, torch.jit.save or torch.export.save.',
        code='unknown_format',
    )


class OnnxSource:
    """An ONNX file."""

    title = 'ONNX Runtime on the untouched file'

    def __init__(self, path: Path) -> None:
        self._path = path
        self._facts = read_model(path, str(path))
        self._undo = ExitStack()
        self._engine: Any = None
        self._outputs: dict[str, TensorSpec] = {}

    @property
    def inputs(self) -> Mapping[str, ModelTensor | None]:
        """Inputs by name."""
        return {tensor.name: tensor for tensor in self._facts.inputs}

    def write(self, path: Path, shapes: Shapes, *, opset: int | None) -> None:
        """Write it with fixed shapes; weights in files of their own are copied.

        Raises:
            EngineError: It breaks the rules of ONNX (`bad_types`), or cannot be translated to the opset.
            BundleError: Weights lie in another folder (`escaping_path`).
        """
        if opset and self._facts.opset < opset:
            network = OnnxNetwork(self._path)
            network.raise_opset(opset)
            network.save(path)
        else:
            for name in self._facts.weight_files:
                self._copy_weights(name, path.parent)
            shutil.copyfile(self._path, path)
        facts = fix_shapes(path, shapes)
        self._outputs = {tensor.name: as_spec(tensor) for tensor in facts.outputs}

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return all outputs by name.

        Raises:
            EngineError: The network cannot be loaded or failed.
        """
        if self._engine is None:
            self._engine = load_engine(ENGINE, self._path)
            self._undo.callback(self._engine.close)
        outputs = {name: spec.empty() for name, spec in self._outputs.items()}
        execution = self._engine.bind({**inputs, **outputs})
        execution.enqueue()
        execution.close()
        return outputs

    def close(self) -> None:
        """Free it; may be called twice."""
        self._undo.close()

    def _copy_weights(self, name: str, folder: Path) -> None:
        if escapes(name):
            raise BundleError(
                str(self._path),
                got=f'weights in {name!r}, outside of its folder',
                expected='weights beside the file',
                next_step='Save the network again, with its weights beside it.',
                code='escaping_path',
            )
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self._path.parent / name, folder / name)
