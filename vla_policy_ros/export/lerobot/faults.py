# SPDX-License-Identifier: Apache-2.0
"""The error of a checkpoint that cannot be exported."""

from __future__ import annotations

from vla_policy_ros.core.errors import BundleError


def bad_checkpoint(
    where: object, *, got: object, expected: str, next_step: str, code: str = 'bad_checkpoint'
) -> BundleError:
    """Return the error; arguments as those of `VlaPolicyError`."""
    return BundleError(str(where), got=got, expected=expected, next_step=next_step, code=code)
