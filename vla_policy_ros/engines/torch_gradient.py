# SPDX-License-Identifier: Apache-2.0
"""Gradients of a network in PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from vla_policy_ros.core.errors import SpecMismatchError
from vla_policy_ros.core.specs import TensorSpec


class VectorJacobian:
    """A module that multiplies a row vector with the Jacobian of another module.

    It takes the inputs of the other module, and after them the row vector, of the output's shape; it returns a tuple of
    one tensor, of the input's shape. An output that does not depend on the input gives zeros.

    Args:
        module: The other module; called with tensors, returns a tuple of tensors.
        output_place: Which of its outputs.
        input_place: Which of its inputs.
    """

    def __init__(self, module: Any, *, output_place: int, input_place: int) -> None:
        self._module = module
        self._output_place = output_place
        self._input_place = input_place

    def __call__(self, *tensors: torch.Tensor) -> tuple[torch.Tensor]:
        """Run forward and back."""
        *inputs, seed = tensors
        with torch.inference_mode(mode=False), torch.enable_grad():
            moving = inputs[self._input_place].detach().requires_grad_()
            inputs[self._input_place] = moving
            result = self._module(*inputs)[self._output_place]
            if not result.requires_grad:
                return (torch.zeros_like(moving),)
            (gradient,) = torch.autograd.grad(
                result, moving, seed, allow_unused=True, materialize_grads=True
            )
            return (gradient,)


def bound_spec(name: str, tensors: Mapping[str, torch.Tensor], network: str) -> TensorSpec:
    """Return the spec of a bound tensor.

    Raises:
        SpecMismatchError: There is none of that name (`wrong_names`).
    """
    if name not in tensors:
        raise SpecMismatchError(
            f'network {network!r}',
            got=f'a gradient by the name {name!r}',
            expected=f'one of {", ".join(tensors)}',
            next_step='Name an output and an input of the network.',
            code='wrong_names',
        )
    tensor = tensors[name]
    return TensorSpec(name, tuple(tensor.shape), str(tensor.dtype).removeprefix('torch.'))
