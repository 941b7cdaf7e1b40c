# SPDX-License-Identifier: Apache-2.0
"""A whole chunk against the limits, before any of it is used: refused, bent, or run through more slowly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from vla_policy_ros.core.chunk import ActionChunk
from vla_policy_ros.core.errors import ChunkRejectedError
from vla_policy_ros.core.specs import Array, ColumnKind
from vla_policy_ros.execution.curve import ActionCurve
from vla_policy_ros.execution.kinds import ColumnMath
from vla_policy_ros.execution.limiter import MotionLimiter
from vla_policy_ros.execution.limits import JointLimits

# A float32 value lies this near to the number it stands for, relative to it; differences add up several of them.
_EPSILON = float(np.finfo(np.float32).eps)
_MAX_STRETCHES = 40
_LEAST_STRETCH = 1.01
_NAMES = ('velocity', 'acceleration', 'jerk')


@dataclass(frozen=True, slots=True)
class _Motion:
    """Magnitudes of one derivative of the motion: (N, D), its limit (D,), rounding (D,), first row it belongs to."""

    name: str
    values: Array
    limit: Array
    rounding: Array
    first_row: int


def check_chunk(chunk: ActionChunk, limits: JointLimits) -> None:
    """Refuse a chunk that breaks a limit by more than its float32 values are rounded.

    Positions are looked at row by row; velocity, acceleration and jerk as differences of rows, of rotations by their
    angle. The speed of grippers is left to the limiter: they may jump in a chunk. That actions are finite
    `ActionChunk` itself sees to.

    Args:
        chunk: K rows of D columns.
        limits: Limits of the same columns.

    Raises:
        ChunkRejectedError: `wrong_columns`, `position_limit`, `velocity_limit`, `acceleration_limit` or `jerk_limit`,
            with column, row, value and limit.
    """
    _check_columns(chunk, limits)
    _check_positions(chunk, limits)
    for motion in _motions(chunk, limits):
        excess = motion.values - motion.limit - motion.rounding
        if excess.max(initial=0.0) > 0.0:
            row, column = _worst(excess)
            raise _refusal(
                chunk,
                f'{motion.name}_limit',
                row=row + motion.first_row,
                column=column,
                got=f'{motion.name} {motion.values[row, column]:.6g}',
                expected=f'at most {motion.limit[column]:.6g}',
                next_step='Check scale and step of the actions, or let the limits clamp or stretch them.',
            )


def stretch(chunk: ActionChunk, limits: JointLimits) -> ActionChunk:
    """Return as much of the same path as fits into the chunk's time at a pace that the limits allow.

    Rows and step stay, as executors ask for both; twists get smaller by the same factor, so that they go the same way.
    A chunk that fits is returned itself.

    Raises:
        ChunkRejectedError: `wrong_columns`; `position_limit`, which no time can mend; or a limit that is broken at
            every pace.
    """
    _check_columns(chunk, limits)
    _check_positions(chunk, limits)
    slower, slowness = chunk, 1.0
    for _ in range(_MAX_STRETCHES):
        more = _find_slowness(slower, limits)
        if more == 1.0:
            return slower
        slowness *= max(more, _LEAST_STRETCH)
        slower = _run_through(chunk, slowness)
    check_chunk(slower, limits)
    return slower


def clamp(chunk: ActionChunk, limits: JointLimits) -> ActionChunk:
    """Return the chunk that follows a chunk as near as the limits allow, and could always stop; itself when it fits.

    Raises:
        ChunkRejectedError: `wrong_columns`.
    """
    _check_columns(chunk, limits)
    try:
        check_chunk(chunk, limits)
    except ChunkRejectedError:
        math = ColumnMath(chunk.columns)
        rows = math.to_unit(chunk.actions)
        velocities = np.zeros_like(rows)
        velocities[:-1] = math.difference(rows[1:], rows[:-1]) * (1e9 / chunk.step_ns)
        velocities[-1] = velocities[max(len(rows) - 2, 0)]
        limiter = MotionLimiter(limits, math, period_ns=chunk.step_ns)
        low, high = limits.orders()[:2]
        bent = [np.minimum(np.maximum(rows[0], low), high)]
        limiter.start(bent[0], velocity=velocities[0])
        for row, velocity in zip(rows[1:], velocities[1:], strict=True):
            bent.append(limiter.step(_Wanted(row, velocity)).position.copy())
        return replace(chunk, actions=np.array(bent, np.float32))
    return chunk


@dataclass(frozen=True, slots=True)
class _Wanted:
    position: Array
    velocity: Array


def _find_slowness(chunk: ActionChunk, limits: JointLimits) -> float:
    """Return how many times slower a chunk must run for its rows, were they kept, to fit; 1 when they do."""
    slowness = 1.0
    for order, motion in enumerate(_motions(chunk, limits), 1):
        excess = np.maximum(motion.values - motion.rounding, 0.0) / motion.limit
        slowness = max(slowness, float(excess.max(initial=0.0)) ** (1.0 / order))
    return slowness


def _run_through(chunk: ActionChunk, slowness: float) -> ActionChunk:
    """Return the rows of a chunk's path at a slower pace."""
    math = ColumnMath(chunk.columns)
    curve = ActionCurve(chunk, math)
    rows, velocity = np.zeros(chunk.actions.shape), np.zeros(len(chunk.columns))
    for place, row in enumerate(rows):
        time_ns = chunk.start_ns + round(place * chunk.step_ns / slowness)
        curve.evaluate(time_ns, row, velocity)
    rows[:, [column.kind is ColumnKind.TWIST for column in chunk.columns]] /= slowness
    return replace(chunk, actions=rows.astype(np.float32))


def _motions(chunk: ActionChunk, limits: JointLimits) -> Iterator[_Motion]:
    """Give the derivatives of the motion in order, 0 where the rows do not tell them."""
    math, step_s = ColumnMath(chunk.columns), 1e-9 * chunk.step_ns
    rows = chunk.actions.astype(np.float64)
    sizes = np.abs(rows).max(axis=0)
    for first in math.quaternions:
        sizes[first : first + 4] = 1.0  # the rounding of all four enters the angle
    rounding = _EPSILON * sizes
    is_value = limits.is_value
    is_free = _is_gripper(chunk) & ~is_value
    motion = np.full(rows.shape, np.nan)
    motion[1:] = math.difference(rows[1:], rows[:-1]) / step_s
    motion[:, is_value] = rows[:, is_value]
    for order, name in enumerate(_NAMES):
        yield _Motion(
            name,
            values=np.nan_to_num(math.magnitudes(motion)),
            limit=np.where(is_free, np.inf, getattr(limits, name)),
            rounding=rounding * (2.0 / step_s) ** np.where(is_value, order, order + 1),
            first_row=order,
        )
        motion = np.diff(motion, axis=0) / step_s


def _check_columns(chunk: ActionChunk, limits: JointLimits) -> None:
    if chunk.columns != limits.columns:
        raise ChunkRejectedError(
            f'chunk at {chunk.observation_stamp_ns} ns',
            got=f'columns {", ".join(chunk.names)}',
            expected=f'those of the limits: {", ".join(c.name for c in limits.columns)}',
            next_step='Make the limits from the columns of the policy.',
            code='wrong_columns',
        )


def _check_positions(chunk: ActionChunk, limits: JointLimits) -> None:
    rows = chunk.actions.astype(np.float64)
    excess = _outside(rows, limits) - _EPSILON * np.abs(rows)
    if excess.max() > 0.0:
        row, column = _worst(excess)
        low, high = limits.position_min[column], limits.position_max[column]
        raise _refusal(
            chunk,
            'position_limit',
            row=row,
            column=column,
            got=f'position {rows[row, column]:.6g}',
            expected=f'{low:.6g} to {high:.6g}',
            next_step='Check the calibration and the unit of the joint.',
        )


def _outside(positions: Array, limits: JointLimits) -> Array:
    """Return how far positions lie outside of their range, below 0 inside."""
    result: Array = np.maximum(limits.position_min - positions, positions - limits.position_max)
    return result


def _is_gripper(chunk: ActionChunk) -> Array:
    return np.array([column.kind is ColumnKind.GRIPPER for column in chunk.columns], bool)


def _worst(excess: Array) -> tuple[int, int]:
    row, column = np.unravel_index(int(excess.argmax()), excess.shape)
    return int(row), int(column)


def _refusal(
    chunk: ActionChunk,
    code: str,
    *,
    row: int,
    column: int,
    got: str,
    expected: str,
    next_step: str,
) -> ChunkRejectedError:
    return ChunkRejectedError(
        f'chunk at {chunk.observation_stamp_ns} ns, row {row}, {chunk.columns[column].name}',
        got=got,
        expected=expected,
        next_step=next_step,
        code=code,
    )
