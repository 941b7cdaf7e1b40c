# SPDX-License-Identifier: Apache-2.0
"""How LeRobot's flow-matching policies are told the time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from vla_policy_ros.core.specs import Array
from vla_policy_ros.export.tracing import require_torch

# With the 12 of a frequency fewer than the 24 of float32, so that their product is exact.
_TIME_BITS = 11


def embed_time(timestep: Any, width: int, config: Any) -> Any:
    """Return the (1, width) sine and cosine embedding of a (1,) time, in float32 as exact as LeRobot's in float64.

    At hundreds of turns float32 has lost the digits of the angle. So time and frequency are split into a part of few bits,
    whose product is exact, and a small rest; whole turns are taken off before the rest is added.

    Args:
        timestep: (1,) float32, from 0 to 1.
        width: Even.
        config: LeRobot's configuration, for its periods.
    """
    torch = require_torch()
    periods = np.geomspace(config.min_period, config.max_period, width // 2)
    coarse, fine, whole = (torch.from_numpy(part) for part in _split_bits(1.0 / periods))
    steps = 2.0**_TIME_BITS
    time = torch.round(timestep * steps) / steps
    turns = time * coarse
    turns = turns - torch.round(turns) + (time * fine + (timestep - time) * whole)
    angles = (2 * math.pi * turns)[None]
    return torch.cat([torch.sin(angles), torch.cos(angles)], dim=1)


def _split_bits(values: Array) -> tuple[Array, Array, Array]:
    """Return float32 arrays: the upper 12 bits of float64 values, what is left, and all of it."""
    mantissa, exponent = np.frexp(values)
    coarse = np.ldexp(np.round(mantissa * 2**12) / 2**12, exponent)
    return (
        coarse.astype(np.float32),
        (values - coarse).astype(np.float32),
        values.astype(np.float32),
    )
