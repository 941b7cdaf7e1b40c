# SPDX-License-Identifier: Apache-2.0
"""The pool: one host buffer per tensor that stages, loop and runtime exchange."""

from __future__ import annotations

import numpy as np

from vla_policy_ros.bundle.bundle import Bundle
from vla_policy_ros.core.specs import Array


def make_pool(bundle: Bundle) -> dict[str, Array]:
    """Make every buffer of a bundle, zeroed, and fill in the constants."""
    pool = {
        name: np.zeros([size or 1 for size in spec.shape], spec.dtype)
        for name, spec in bundle.tensors.items()
    }
    for constant in bundle.manifest.constants:
        pool[constant.tensor].fill(constant.value)
    return pool
