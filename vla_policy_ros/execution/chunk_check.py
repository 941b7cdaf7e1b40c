# SPDX-License-Identifier: Apache-2.0
"""A whole chunk against the limits, before any of it is used; and the same path in more time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from vla_policy_ros.core.chunk import ActionChunk
from vla_policy_ros.core.errors import ChunkRejectedError
from vla_policy_ros.core.specs import Array, ColumnKind
from vla_policy_ros.execution.kinds import ColumnMath
from vla_policy_ros.execution.limits import JointLimits

# A float32 value lies this near to the number it stands for, relative to it; differences add up several of them.
_EPSILON = float(np.finfo(np.float32).eps)
_NAMES = ('velocity', 'acceleration', 'jerk')


@dataclass(frozen=True, slots=True)
class _Motion:
    """Magnitudes of one derivative of the motion: (N, D), its limit (D,), rounding (D,), first row it belongs to."""

    name: str
    values: Array
    limit: Array
    rounding: Array
    first_row: int


def check_chunk(chunk: ActionChunk, limits: JointLimits, *, state: Array | None = None) -> None:
    """Refuse a chunk that breaks a limit by more than its float32 values are rounded.

    Positions are looked at row by row; velocity, acceleration and jerk as differences of rows, of rotations by their
    angle. The speed of grippers is left to the limiter: they may jump in a chunk. That actions are finite
    `ActionChunk` itself sees to.

    Args:
        chunk: K rows of D columns.
        limits: Limits of the same columns.
        state: (D,) where the robot is when the chunk begins: row 0 may be as far away as one step allows; None: not
            looked at. Values of twists and steps in it are ignored.

    Raises:
        ChunkRejectedError: `wrong_columns`, `position_limit`, `velocity_limit`, `acceleration_limit`, `jerk_limit`,
            `state_not_finite` or `state_jump`, with column, row, value and limit.
    """
    _check_columns(chunk, limits)
    _check_positions(chunk, limits)
    if state is not None:
        _check_state(chunk, limits, np.asarray(state, np.float64))
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
                next_step='Stretch the chunk in time, or check the scale and the step of the actions.',
            )


def stretch(chunk: ActionChunk, limits: JointLimits) -> ActionChunk:
    """Return the same path in so much time that velocity, acceleration and jerk fit; the chunk itself when they do.

    The rows stay, their step grows; twists get smaller by the same factor, so that they go the same way.

    Raises:
        ChunkRejectedError: `wrong_columns`, or `position_limit`, which no time can mend.
    """
    _check_columns(chunk, limits)
    factor = 1.0
    for order, motion in enumerate(_motions(chunk, limits), 1):
        excess = np.maximum(motion.values - motion.rounding, 0.0) / motion.limit
        factor = max(factor, float(excess.max(initial=0.0)) ** (1.0 / order))
    if factor > 1.0:
        step_ns = int(np.ceil(chunk.step_ns * factor))
        is_twist = np.array([column.kind is ColumnKind.TWIST for column in chunk.columns], bool)
        slower = np.where(is_twist, np.float32(chunk.step_ns / step_ns), np.float32(1.0))
        chunk = replace(chunk, actions=chunk.actions * slower, step_ns=step_ns)
    _check_positions(chunk, limits)
    return chunk


def check_first(
    measured: Array, target: Array, limits: JointLimits, *, max_jump: float | Array
) -> str | None:
    """Return why a robot may not start towards its first target; None when it may.

    Args:
        measured: (D,) where the robot is.
        target: (D,) first target.
        limits: Limits of the D columns.
        max_jump: Largest distance between the two, in each column's unit (a rotation's in rad); scalar or (D,). Twists
            and steps, which have no place, are not looked at.

    Returns:
        `not_finite`, `measured_outside_limits`, `target_outside_limits` or `too_far`.
    """
    measured, target = np.asarray(measured, np.float64), np.asarray(target, np.float64)
    if not (np.isfinite(measured).all() and np.isfinite(target).all()):
        return 'not_finite'
    for name, position in (('measured', measured), ('target', target)):
        rounding = _EPSILON * np.abs(position)
        if (_outside(position, limits) > rounding).any():
            return f'{name}_outside_limits'
    math = ColumnMath(limits.columns)
    distance = _lengths(math.difference(target, measured), math)
    return 'too_far' if (distance > max_jump)[~limits.is_value].any() else None


def _motions(chunk: ActionChunk, limits: JointLimits) -> Iterator[_Motion]:
    """Give the derivatives of the motion in order, 0 where the rows do not tell them."""
    math, step_s = ColumnMath(chunk.columns), 1e-9 * chunk.step_ns
    rows = chunk.actions.astype(np.float64)
    rounding = _EPSILON * np.abs(rows).max(axis=0)
    is_value = limits.is_value
    is_free = _is_gripper(chunk) & ~is_value
    motion = np.full(rows.shape, np.nan)
    motion[1:] = math.difference(rows[1:], rows[:-1]) / step_s
    motion[:, is_value] = rows[:, is_value]
    for order, name in enumerate(_NAMES):
        yield _Motion(
            name,
            values=np.nan_to_num(_lengths(motion, math)),
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


def _check_state(chunk: ActionChunk, limits: JointLimits, state: Array) -> None:
    math, step_s = ColumnMath(chunk.columns), 1e-9 * chunk.step_ns
    is_checked = ~limits.is_value
    if not np.isfinite(state[is_checked]).all():
        raise _refusal(
            chunk,
            'state_not_finite',
            row=0,
            column=int((is_checked & ~np.isfinite(state)).argmax()),
            got='a measured state that is not finite',
            expected='a finite state',
            next_step='Check the joint states.',
        )
    distance = _lengths(math.difference(chunk.actions[0].astype(np.float64), state), math)
    limit = np.where(is_checked & ~_is_gripper(chunk), limits.velocity * step_s, np.inf)
    excess = (distance - limit - 2.0 * _EPSILON * np.abs(state))[None]
    excess[:, ~is_checked] = 0.0
    if excess.max() > 0.0:
        _, column = _worst(excess)
        raise _refusal(
            chunk,
            'state_jump',
            row=0,
            column=column,
            got=f'{distance[column]:.6g} away from the measured {state[column]:.6g}',
            expected=f'at most {limit[column]:.6g}, one step at the velocity limit',
            next_step='Check stamps and delay: the policy must have seen where the robot is.',
        )


def _outside(positions: Array, limits: JointLimits) -> Array:
    """Return how far positions lie outside of their range, below 0 inside."""
    result: Array = np.maximum(limits.position_min - positions, positions - limits.position_max)
    return result


def _lengths(vectors: Array, math: ColumnMath) -> Array:
    """Return magnitudes (..., D); the four columns of a rotation all hold the length of its vector."""
    result: Array = np.abs(vectors)
    for first in math.quaternions:
        turn = vectors[..., first : first + 3]
        result[..., first : first + 4] = np.sqrt((turn * turn).sum(axis=-1, keepdims=True))
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
