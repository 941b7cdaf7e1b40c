# SPDX-License-Identifier: Apache-2.0
"""What all engines share: how they tell their tensors, what they check before they bind buffers, and errors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from vla_policy_ros.core.engine import DeviceTensor, Tensor
from vla_policy_ros.core.errors import EngineError, SpecMismatchError
from vla_policy_ros.core.specs import Array, TensorSpec


class NamedTensors:
    """What every engine tells of its network.

    Args:
        inputs: Its input tensors.
        outputs: Its output tensors.
    """

    def __init__(self, inputs: Iterable[TensorSpec], outputs: Iterable[TensorSpec]) -> None:
        self._inputs = tuple(inputs)
        self._outputs = tuple(outputs)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Input tensors; a free dimension is None."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Output tensors; a free dimension is None."""
        return self._outputs

    @property
    def workspace_bytes(self) -> int:
        """0: the library takes its memory itself."""
        return 0


def check_names(network: str, specs: Sequence[TensorSpec], tensors: Mapping[str, Tensor]) -> None:
    """Make sure that there is a buffer for every tensor, and no other.

    Raises:
        SpecMismatchError: One is missing or unknown (`wrong_names`).
    """
    known = {spec.name for spec in specs}
    if known == set(tensors):
        return
    raise SpecMismatchError(
        f'network {network!r}',
        got=f'buffers for {", ".join(sorted(tensors)) or "nothing"}',
        expected=f'one for each of {", ".join(sorted(known))}',
        next_step='Map every input and output in bundle.yaml.',
        code='wrong_names',
    )


def host_array(spec: TensorSpec, tensor: Tensor) -> Array:
    """Return a host buffer that fits a spec.

    Raises:
        SpecMismatchError: It is no host array (`wrong_memory`), of another shape or element type, or not C-contiguous
            (`not_contiguous`).
    """
    if not isinstance(tensor, np.ndarray):
        raise _wrong_memory(spec, got='a tensor on a device', expected='a host array')
    spec.validate(tensor)
    if not tensor.flags.c_contiguous:
        raise SpecMismatchError(
            f'tensor {spec.name!r}',
            got='a buffer with gaps',
            expected='a C-contiguous one',
            next_step='Bind a whole array, not a slice of one.',
            code='not_contiguous',
        )
    return tensor


def device_tensor(spec: TensorSpec, tensor: Tensor) -> DeviceTensor:
    """Return a device buffer that fits a spec.

    Raises:
        SpecMismatchError: It is a host array (`wrong_memory`), or of another shape or element type.
    """
    if isinstance(tensor, np.ndarray):
        raise _wrong_memory(spec, got='a host array', expected='a tensor on the device')
    wanted = (spec.dtype, len(spec.shape))
    fits = wanted == (tensor.dtype, len(tensor.shape)) and all(
        size in (None, got) for size, got in zip(spec.shape, tensor.shape, strict=True)
    )
    if not fits:
        raise SpecMismatchError(
            f'tensor {spec.name!r}',
            got=f'{tensor.dtype}{list(tensor.shape)}',
            expected=f'{spec.dtype}{list(spec.shape)}',
            next_step='Check the preprocessing and the stage order in bundle.yaml.',
        )
    return tensor


def closed_error(network: str) -> EngineError:
    """Return the error of a call to a closed engine or execution."""
    return EngineError(
        f'network {network!r}',
        got='a call after close()',
        expected='an open engine',
        next_step='Load the engine again.',
        code='closed',
    )


def failed_run(network: str, fault: Exception) -> EngineError:
    """Return the error of a run that the library broke off."""
    return EngineError(
        f'network {network!r}',
        got=first_line(fault),
        expected='outputs of the bound shapes',
        next_step='Run `vla-policy check` on the bundle.',
    )


def first_line(fault: Exception) -> str:
    """Return the first line of a library's message; the rest is its call stack."""
    return str(fault).strip().partition('\n')[0]


def _wrong_memory(spec: TensorSpec, *, got: str, expected: str) -> SpecMismatchError:
    return SpecMismatchError(
        f'tensor {spec.name!r}',
        got=got,
        expected=expected,
        next_step='Bind buffers where `engine_memory` says that the engine has them.',
        code='wrong_memory',
    )
