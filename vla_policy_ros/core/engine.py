# SPDX-License-Identifier: Apache-2.0
"""The engine: named tensors in and out, into buffers that the caller owns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from vla_policy_ros.core.specs import Array, TensorSpec


class Execution(Protocol):
    """One network bound to one set of buffers, ready to run again and again."""

    def enqueue(self, stream: Any = None) -> None:
        """Read the bound inputs and write the bound outputs; allocates nothing.

        Stream: engines on a device order the work on `stream` and return at once; engines on the host ignore it
        and return when the outputs are written.

        Raises:
            EngineError: The network failed.
        """

    def close(self) -> None:
        """Release the binding; the buffers stay the caller's; may be called twice."""


class Engine(Protocol):
    """One loaded network. It knows tensors, not robots."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Input tensors; a free dimension is None."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Output tensors; a free dimension is None."""

    def bind(self, tensors: Mapping[str, Array]) -> Execution:
        """Bind every input and output by its name to a buffer of the caller's, for as long as the execution lives.

        Raises:
            SpecMismatchError: A tensor is missing, unknown, or of another shape or element type.
        """

    def close(self) -> None:
        """Free the network; its executions must be closed first; may be called twice."""
