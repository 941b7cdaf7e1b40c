# SPDX-License-Identifier: Apache-2.0
"""The three figures of a chunk stream's smoothness that NVIDIA's deployment guide for GR00T names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vla_policy_ros.core.specs import Array, Column
from vla_policy_ros.evaluation.alignment import interpolate, wrap
from vla_policy_ros.evaluation.recording import ChunkRecording

_STILL = 1e-9  # a row-to-row motion below this has no direction


@dataclass(frozen=True, slots=True, kw_only=True)
class Smoothness:
    """How smooth chunks are, and how well they join; over all columns, each in its own unit.

    Attributes:
        mean_acceleration: Mean over the chunks and their rows of the L2 norm of (a[k+1] - 2 a[k] + a[k-1]) / step^2, per
            second squared; None when chunks have fewer than three rows.
        mean_boundary_jump: Mean over the seams of the L2 distance between where the earlier chunk would be at the
            start of the later one and the later one's row 0; None without seams.
        max_boundary_jump: The largest of them.
        mean_direction_cosine: Mean over the seams of the cosine between the earlier chunk's motion towards the
            seam and the later chunk's first motion; 1 goes straight on, -1 turns round; None when nothing moves.
        num_boundaries: Number of seams.
    """

    mean_acceleration: float | None = None
    mean_boundary_jump: float | None = None
    max_boundary_jump: float | None = None
    mean_direction_cosine: float | None = None
    num_boundaries: int = 0


def measure_smoothness(
    recording: ChunkRecording, executed: Array, *, columns: Sequence[Column]
) -> Smoothness:
    """Measure the executed chunks of a stream.

    Between two rows a chunk is linear; in its last step it moves on with its last velocity, then it stands still.

    Args:
        recording: The stream.
        executed: (E,) positions of the chunks that follow one another in execution.
        columns: The columns that count.
    """
    if not len(executed) or not columns:
        return Smoothness()
    names = [column.name for column in recording.columns]
    wanted = [names.index(column.name) for column in columns]
    actions = recording.actions[executed][:, :, wanted].astype(np.float64)
    starts_ns, epochs = recording.starts_ns[executed], recording.epochs[executed]
    is_seam = (np.diff(starts_ns) > 0) & (np.diff(epochs) == 0)
    earlier, later = actions[:-1][is_seam], actions[1:][is_seam]
    positions = (np.diff(starts_ns)[is_seam] / recording.step_ns)[:, None]
    jumps = _jumps(earlier, later, positions, columns)
    cosines = _direction_cosines(earlier, later, positions, columns)
    return Smoothness(
        mean_acceleration=_mean_acceleration(actions, recording.step_ns, columns),
        mean_boundary_jump=float(jumps.mean()) if len(jumps) else None,
        max_boundary_jump=float(jumps.max()) if len(jumps) else None,
        mean_direction_cosine=float(cosines.mean()) if len(cosines) else None,
        num_boundaries=len(jumps),
    )


def _mean_acceleration(actions: Array, step_ns: int, columns: Sequence[Column]) -> float | None:
    if actions.shape[1] < 3:
        return None
    motions = wrap(np.diff(actions, axis=1), columns)
    accelerations = np.diff(motions, axis=1) / (step_ns / 1e9) ** 2
    return float(np.linalg.norm(accelerations, axis=2).mean())


def _jumps(earlier: Array, later: Array, positions: Array, columns: Sequence[Column]) -> Array:
    expected = interpolate(earlier, positions, columns)[:, 0]
    jumps: Array = np.linalg.norm(wrap(later[:, 0] - expected, columns), axis=1)
    return jumps


def _direction_cosines(
    earlier: Array, later: Array, positions: Array, columns: Sequence[Column]
) -> Array:
    horizon = earlier.shape[1]
    if horizon < 2:
        return np.zeros(0)
    rows = np.clip(np.ceil(positions[:, 0]).astype(np.int64) - 1, 0, horizon - 2)
    seams = np.arange(len(earlier))
    before = wrap(earlier[seams, rows + 1] - earlier[seams, rows], columns)
    after = wrap(later[:, 1] - later[:, 0], columns)
    lengths = np.linalg.norm(before, axis=1), np.linalg.norm(after, axis=1)
    is_moving = (lengths[0] > _STILL) & (lengths[1] > _STILL)
    products = (before * after).sum(axis=1)[is_moving]
    cosines: Array = products / (lengths[0] * lengths[1])[is_moving]
    return cosines
