# SPDX-License-Identifier: Apache-2.0
"""How a chunk begins with the rows that are left of the one before it (real-time chunking): pure arithmetic.

Rows are counted from the chunk's own start. Row i of the new chunk lies on row i + e of the earlier one, where e is the
whole number of steps between both observations. Of n such rows the first `frozen` ones will be executed before the new
chunk is there, so they must not change; the rest is a transition to rows that are free.

Blend: the native rule of GR00T N1.7 (`get_action_with_features` in `gr00t/model/gr00t_n1d7/gr00t_n1d7.py`). The rows begin
the denoise loop in place of noise, and each row's velocity is multiplied by a gain: 0 for the frozen rows, then

    gain(j) = (1 - exp(-rate * t)) / (1 - exp(-rate)),  t = (j + 1) / (n - frozen + 1),  j = 0 .. n - frozen - 1

and 1 for the free rows. GR00T always takes the last rows of the earlier chunk; here they are those of the same time.

Guidance: weights of K. Black, M. Galliker, S. Levine, "Real-time execution of action chunking flow policies", arXiv
2506.07339, equation 5 (`exp`), and the other schedules that LeRobot has: `linear`, `ones` and `zeros`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import numpy as np

from vla_policy_ros.core.engine import Tensor
from vla_policy_ros.core.specs import Array, TensorSpec

GuidanceSchedule = Literal['zeros', 'ones', 'linear', 'exp']
"""How the weight of the guidance falls over the rows that are not frozen."""

TensorT = TypeVar('TensorT', bound=Tensor)


@dataclass(frozen=True, slots=True, eq=False)
class ChunkPrefix:
    """What a chunk begins with.

    Attributes:
        rows: (n, W) float32, 1 <= n <= K, in the numbers of the loop's sample.
        num_frozen: How many of them must not change, at most n.
    """

    rows: Array
    num_frozen: int


@dataclass(frozen=True, slots=True, eq=False)
class PrefixTensors(Generic[TensorT]):
    """The prefix of the next run as a denoise loop reads it; always there, so that a captured graph never changes.

    Attributes:
        actions: (K, W) float32, the rows of the prefix; what comes after them is not read.
        factors: (K,) float32, per row the gain of the velocity, or the weight of the guidance.
        num_rows: (1,) int32, how many rows begin the loop in place of noise.
    """

    actions: TensorT
    factors: TensorT
    num_rows: TensorT


def prefix_specs(num_rows: int, width: int) -> tuple[TensorSpec, TensorSpec, TensorSpec]:
    """Return the specs of `PrefixTensors` in the order of its attributes, for a sample of (1, num_rows, width)."""
    return (
        TensorSpec('actions', (num_rows, width), 'float32'),
        TensorSpec('factors', (num_rows,), 'float32'),
        TensorSpec('num_rows', (1,), 'int32'),
    )


def whole_steps(duration_ns: int, step_ns: int, *, tolerance: float) -> int | None:
    """Return a duration as a whole number of steps, or None where it is none within the tolerance.

    Rows can be moved by whole steps only: a row in between would be a new action, which the frozen rows must not be.

    Args:
        duration_ns: Any duration.
        step_ns: Time between two rows.
        tolerance: Largest distance to the whole number, in steps; 0.5 takes every duration.
    """
    steps = round(duration_ns / step_ns)
    return steps if abs(duration_ns - steps * step_ns) <= tolerance * step_ns else None


def write_gains(out: Array, *, num_rows: int, num_frozen: int, ramp_rate: float) -> None:
    """Fill `out` (K,) with the gain of each row's velocity.

    Args:
        out: Written.
        num_rows: n, rows that the prefix gives; 0 for none.
        num_frozen: How many of them must not change, at most n.
        ramp_rate: Above 0; the higher, the sooner a row follows the new chunk.
    """
    times = np.arange(1, num_rows - num_frozen + 1) / (num_rows - num_frozen + 1)
    out[:num_frozen] = 0
    out[num_frozen:num_rows] = np.expm1(-ramp_rate * times) / np.expm1(-ramp_rate)
    out[num_rows:] = 1


def write_weights(
    out: Array, *, num_rows: int, num_frozen: int, schedule: GuidanceSchedule
) -> None:
    """Fill `out` (K,) with the weight of the guidance on each row: 1 for the frozen ones, 0 after the prefix.

    Args:
        out: Written.
        num_rows: n, rows that the prefix gives; 0 for none.
        num_frozen: How many of them must not change, at most n.
        schedule: The weight in between.
    """
    fall = np.arange(num_rows - num_frozen, 0, -1) / (num_rows - num_frozen + 1)
    out[:num_frozen] = 1
    out[num_frozen:num_rows] = {
        'zeros': np.zeros_like(fall),
        'ones': np.ones_like(fall),
        'linear': fall,
        'exp': fall * np.expm1(fall) / np.expm1(1),
    }[schedule]
    out[num_rows:] = 0
