# SPDX-License-Identifier: Apache-2.0
"""The error of a description that does not fit its network, and how tensors are told in it."""

from __future__ import annotations

from collections.abc import Sequence

from vla_policy_ros.core.errors import ConfigurationError
from vla_policy_ros.core.specs import describe_tensor

Dims = Sequence[int | str | None]


def misfit(
    where: str, *, got: object, expected: str, next_step: str, code: str
) -> ConfigurationError:
    """Return the error; arguments as those of `VlaPolicyError`."""
    return ConfigurationError(where, got=got, expected=expected, next_step=next_step, code=code)


def describe(name: str, dtype: str, shape: Dims) -> str:
    """Return a tensor as text; a free dimension is its symbol or a star."""
    return f'{name!r}: {describe_tensor(dtype, shape)}'
