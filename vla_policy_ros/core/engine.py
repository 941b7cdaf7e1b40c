# SPDX-License-Identifier: Apache-2.0
"""The engine: named tensors in and out, into buffers that the caller owns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol, runtime_checkable

from vla_policy_ros.core.specs import Array, TensorSpec

Memory = Literal['host', 'device']
"""Where an engine reads and writes its tensors."""


class DeviceTensor(Protocol):
    """A tensor in device memory, C-contiguous; its owner keeps the memory alive."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Size of every dimension."""

    @property
    def dtype(self) -> str:
        """Element type under its name in `TensorSpec`, such as `float32` or `bfloat16`."""

    @property
    def address(self) -> int:
        """Device address of the first element."""


Tensor = Array | DeviceTensor
"""A numpy array for engines on the host, a device tensor for engines on a device."""


class Execution(Protocol):
    """One network bound to one set of buffers, ready to run again and again."""

    def enqueue(self, stream: int = 0) -> None:
        """Read the bound inputs and write the bound outputs; allocates nothing.

        Stream: engines on a device order the work on the CUDA stream of this handle and return at once; engines on the
        host ignore it and return when the outputs are written.

        Raises:
            EngineError: The network failed.
        """

    def close(self) -> None:
        """Release the binding; the buffers stay the caller's; may be called twice."""


@runtime_checkable
class DifferentiableExecution(Execution, Protocol):
    """An execution whose network can be differentiated; not every engine has it."""

    def bind_gradient(
        self, *, output_name: str, seed: Tensor, input_name: str, gradient: Tensor
    ) -> Execution:
        """Bind the product of a row vector with the network's Jacobian: gradient = seed * d(output) / d(input).

        Each run takes the bound inputs as they are then and computes the network anew, forward and back. It is closed
        before this execution.

        Args:
            output_name: Output of the network.
            seed: The row vector, of the output's shape and element type.
            input_name: Input of the network.
            gradient: Written, of the input's shape and element type.

        Raises:
            EngineError: The execution is closed (`closed`).
            SpecMismatchError: A tensor is unknown, or of another shape or element type.
        """


class Engine(Protocol):
    """One loaded network. It knows tensors, not robots."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Input tensors; a free dimension is None."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Output tensors; a free dimension is None."""

    @property
    def workspace_bytes(self) -> int:
        """Device memory that one run needs beside its tensors; networks that run one after another may share it."""

    def bind(
        self, tensors: Mapping[str, Tensor], *, workspace: DeviceTensor | None = None
    ) -> Execution:
        """Bind every input and output by its name to a buffer of the caller's, for as long as the execution lives.

        Args:
            tensors: Buffer per input and output.
            workspace: Device memory of at least `workspace_bytes`; without it the engine takes its own.

        Raises:
            SpecMismatchError: A tensor is missing, unknown, or of another shape or element type.
        """

    def close(self) -> None:
        """Free the network; its executions must be closed first; may be called twice."""
