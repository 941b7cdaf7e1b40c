# SPDX-License-Identifier: Apache-2.0
"""A chunk as a function of time: position and velocity of every column at any moment."""

from __future__ import annotations

from math import cos, sin

import numpy as np

from vla_policy_ros.core.chunk import ActionChunk
from vla_policy_ros.core.errors import ChunkRejectedError
from vla_policy_ros.core.specs import Array
from vla_policy_ros.execution.kinds import ColumnMath, unwrap
from vla_policy_ros.execution.rotations import ARRAYS, conjugate, logarithm, multiply

# Per quaternion: half the turn to the next row, this row, and the quaternion at a right angle to it on the way there.
_Arc = tuple[float, list[float], list[float]]


class ActionCurve:
    """Runs through the rows of a chunk exactly, and stands still before the first and after the last.

    | kind | between two rows | continuous |
    | --- | --- | --- |
    | linear, angle | cubic Hermite; angles are unwrapped from row 0 | position, velocity |
    | quaternion | slerp | orientation; the angular velocity steps at the rows |
    | twist, gripper `linear` | straight; the velocity is the slope | value; the slope steps at the rows |
    | gripper `snap` | the earlier row | nothing; the velocity is 0 |

    The cubic's velocities at the rows are those of Catmull and Rom, limited so that the curve never leaves the range
    of two neighbouring rows (F. N. Fritsch, R. E. Carlson, "Monotone piecewise cubic interpolation", SIAM J. Numer.
    Anal. 17, 1980): rows within the position limits give a curve within them. Still means that positions hold and
    twists, which are velocities, are 0.

    Args:
        chunk: The chunk.
        math: Arithmetic of its columns.
        rows: (K, D) absolute rows to run through in place of the chunk's own; needed when it has delta columns.

    Attributes:
        chunk: The chunk.
        math: Arithmetic of its columns.
        rows: (K, D) float64, absolute, angles unwrapped, quaternions of length 1 and of one sign.
        start_ns: Time of row 0.
        step_ns: Time between two rows.
        end_ns: Time of the last row.
        horizon: K.

    Raises:
        ChunkRejectedError: `wrong_columns`, `zero_quaternion`, or `missing_anchor` for delta columns without rows.
    """

    def __init__(self, chunk: ActionChunk, math: ColumnMath, *, rows: Array | None = None) -> None:
        check_columns(chunk, math)
        if rows is None and math.is_delta.any():
            raise _missing_anchor(chunk)
        self.chunk = chunk
        self.math = math
        self.start_ns = chunk.start_ns
        self.step_ns = chunk.step_ns
        self.horizon = chunk.horizon
        self.end_ns = chunk.start_ns + (chunk.horizon - 1) * chunk.step_ns
        self.rows = _unwrap(math.to_unit(chunk.actions if rows is None else rows), math)
        self._weights = np.zeros((2, 4))
        self._weights[0, 0] = 1.0
        self._steps_per_second = 1e9 / chunk.step_ns
        self._pieces = list(_fit(self.rows, math))
        self._arcs = _fit_arcs(self.rows, math)

    @classmethod
    def anchored(
        cls, chunk: ActionChunk, math: ColumnMath, *, command: Array, now_ns: int
    ) -> ActionCurve:
        """Return the curve of a chunk that may have delta columns.

        Their steps start from the command at the time of the first executed row, which is the first one that is not
        past; see `ColumnMath.accumulate`.

        Args:
            chunk: The chunk.
            math: Arithmetic of its columns.
            command: (D,) the last command, or the measured state before the first.
            now_ns: When the chunk is first used.

        Raises:
            ChunkRejectedError: As the constructor; `late_chunk` when all rows are past.
        """
        first_row = max(0, -((chunk.start_ns - now_ns) // chunk.step_ns))
        if first_row >= chunk.horizon:
            raise late_chunk(chunk, now_ns)
        return cls(chunk, math, rows=math.accumulate(chunk.actions, command, first_row=first_row))

    def evaluate(self, time_ns: int, position_out: Array, velocity_out: Array) -> None:
        """Write position and velocity at a time; no array is allocated.

        At a row the velocity is that of the piece that begins there.

        Args:
            time_ns: Any time.
            position_out: (D,) float64, contiguous.
            velocity_out: (D,) float64, contiguous; per second, rad/s in the first three columns of a quaternion.
        """
        elapsed_ns = min(max(time_ns, self.start_ns), self.end_ns) - self.start_ns
        row, rest_ns = divmod(elapsed_ns, self.step_ns)
        u = rest_ns / self.step_ns
        rate = self._steps_per_second
        position_weights, velocity_weights = self._weights
        position_weights[1], position_weights[2], position_weights[3] = u, u * u, u * u * u
        velocity_weights[1] = rate
        velocity_weights[2], velocity_weights[3] = 2.0 * u * rate, 3.0 * u * u * rate
        piece = self._pieces[row]
        np.dot(position_weights, piece, out=position_out)
        np.dot(velocity_weights, piece, out=velocity_out)
        for first, (half, start, side) in zip(self.math.quaternions, self._arcs[row], strict=True):
            cosine, sine = cos(u * half), sin(u * half)
            for axis in range(4):
                position_out[first + axis] = start[axis] * cosine + side[axis] * sine
        if not self.start_ns <= time_ns <= self.end_ns:
            self.math.rest(position_out, velocity_out)


def check_columns(chunk: ActionChunk, math: ColumnMath) -> None:
    """Raise ChunkRejectedError `wrong_columns` when a chunk has other columns than the arithmetic."""
    if chunk.columns != math.columns:
        raise ChunkRejectedError(
            f'chunk {chunk.sequence}',
            got=f'columns {", ".join(chunk.names)}',
            expected=f'{", ".join(column.name for column in math.columns)} of the same kinds',
            next_step='Run the policy that the executor is configured for.',
            code='wrong_columns',
        )


def late_chunk(chunk: ActionChunk, now_ns: int) -> ChunkRejectedError:
    """Return the error for a chunk whose rows have all passed before their turn."""
    late_ns = now_ns - int(chunk.times_ns()[-1])
    return ChunkRejectedError(
        f'chunk {chunk.sequence}',
        got=f'a last row {late_ns / 1e6:.1f} ms before its turn',
        expected='rows that are still to come',
        next_step='Compare latency and horizon of the policy, and the clocks of the machines.',
        code='late_chunk',
    )


def _missing_anchor(chunk: ActionChunk) -> ChunkRejectedError:
    return ChunkRejectedError(
        f'chunk {chunk.sequence}',
        got='delta columns without a command to start from',
        expected='a command or a measured state',
        next_step='Make the curve with ActionCurve.anchored.',
        code='missing_anchor',
    )


def _unwrap(rows: Array, math: ColumnMath) -> Array:
    """Bring angles to one branch and quaternions to one sign, in place."""
    is_angle = math.is_angle
    rows[:, is_angle] = unwrap(rows[:, is_angle], math.turn[is_angle])
    for first in math.quaternions:
        place = slice(first, first + 4)
        dots = np.einsum('kj,kj->k', rows[1:, place], rows[:-1, place])
        rows[1:, place] *= np.cumprod(np.where(dots < 0.0, -1.0, 1.0))[:, None]
    return rows


def _fit(rows: Array, math: ColumnMath) -> Array:
    """Return (K, 4, D) coefficients of 1, u, u^2, u^3, u from 0 to 1 per step; the last piece is the last row."""
    pieces = np.zeros((len(rows), 4, rows.shape[1]))
    pieces[:, 0] = rows
    if len(rows) == 1:
        return pieces
    steps = np.diff(rows, axis=0)
    slopes = _row_slopes(steps)
    is_smooth, is_continuous = math.is_smooth, math.is_continuous
    pieces[:, 1] = np.where(is_smooth, slopes, np.concatenate([steps, steps[-1:]]) * is_continuous)
    pieces[:-1, 2] = (3.0 * steps - 2.0 * slopes[:-1] - slopes[1:]) * is_smooth
    pieces[:-1, 3] = (slopes[:-1] + slopes[1:] - 2.0 * steps) * is_smooth
    for first in math.quaternions:
        turns = _turns(rows[:, first : first + 4])
        pieces[:-1, 1, first : first + 3] = turns
        pieces[-1, 1, first : first + 3] = turns[-1]
        pieces[:, 1, first + 3] = 0.0
    return pieces


def _row_slopes(steps: Array) -> Array:
    """Return (K, D) slopes per step at the rows: mean of both sides, at most three times the smaller, 0 at a peak."""
    left, right = steps[:-1], steps[1:]
    limit = 3.0 * np.minimum(np.abs(left), np.abs(right)) * (left * right > 0.0)
    inner = np.clip(0.5 * (left + right), -limit, limit)
    slopes: Array = np.concatenate([steps[:1], inner, steps[-1:]])
    return slopes


def _turns(rows: Array) -> Array:
    """Return (K - 1, 3) rotation vectors from each of (K, 4) quaternions to the next, in the fixed frame."""
    later, earlier = tuple(rows[1:].T), tuple(rows[:-1].T)
    return np.stack(logarithm(multiply(later, conjugate(earlier)), ARRAYS), axis=1)


def _fit_arcs(rows: Array, math: ColumnMath) -> list[list[_Arc]]:
    """Return for each of the K rows the arc of every quaternion to the next row; the last row has no way to go."""
    arcs: list[list[_Arc]] = [[] for _ in rows]
    for first in math.quaternions:
        start = rows[:, first : first + 4]
        end = np.concatenate([start[1:], start[-1:]])
        cosine = np.einsum('kj,kj->k', start, end)[:, None]
        side = end - cosine * start
        sine = np.linalg.norm(side, axis=1, keepdims=True)
        side = np.divide(side, sine, out=np.zeros_like(side), where=sine > 0.0)
        half = np.arctan2(sine, cosine)[:, 0]
        for row, arc in enumerate(zip(half.tolist(), start.tolist(), side.tolist(), strict=True)):
            arcs[row].append(arc)
    return arcs
