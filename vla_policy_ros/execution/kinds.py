# SPDX-License-Identifier: Apache-2.0
"""Arithmetic of action vectors, column by column: angles wrap, quaternions turn, grippers snap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from vla_policy_ros.core.errors import ChunkRejectedError, ConfigurationError
from vla_policy_ros.core.specs import Array, Column, ColumnKind, Representation
from vla_policy_ros.execution.grippers import GripperRule
from vla_policy_ros.execution.rotations import (
    ARRAYS,
    FLOATS,
    Components,
    Functions,
    conjugate,
    exponential,
    from_angular_velocity,
    logarithm,
    multiply,
    rotate,
    to_angular_velocity,
)

# A quaternion shorter than this has no direction to speak of.
_SHORTEST = 1e-3


class ColumnMath:
    """Differences, sums and blends of (D,) vectors, or of rows of them (..., D), in float64.

    Angles: a difference is the shorter way round. A sum stays on the branch of its first term and is not wrapped, so
    that a motion through +-pi has no step. Quaternions stand in four consecutive columns (x, y, z, w); their
    difference is the rotation vector of a b^-1, seen from the fixed frame, in the first three of the four, and 0 in
    the fourth; velocities likewise (rad/s). A gripper that snaps is never mixed.

    Args:
        columns: The D columns.
        grippers: Gripper column to its rule; one that is not named snaps.

    Attributes:
        columns: The D columns.
        grippers: Place of each gripper column to its rule.
        quaternions: Place of the first column of each quaternion.
        is_continuous: (D,) bool, False for grippers that snap.
        is_smooth: (D,) bool, True for linear columns and angles: their curves are cubic.
        is_angle: (D,) bool, True for angles.
        turn: (D,) a full turn of an angle in its unit, 0 for the others.
        is_delta: (D,) bool, True where rows are steps from the row before.

    Raises:
        ConfigurationError: `bad_quaternion`: quaternion columns do not come in fours of one representation;
            `unknown_gripper`: a rule is for a column that is no gripper.
    """

    def __init__(
        self, columns: Sequence[Column], *, grippers: Mapping[str, GripperRule] | None = None
    ) -> None:
        self.columns = tuple(columns)
        self.grippers = _find_grippers(self.columns, grippers or {})
        self.quaternions = _find_quaternions(self.columns)
        snapping = [place for place, rule in self.grippers.items() if rule.motion == 'snap']
        self.is_continuous = np.ones(len(self.columns), bool)
        self.is_continuous[snapping] = False
        self.is_smooth = self._is_one_of(ColumnKind.LINEAR, ColumnKind.ANGLE)
        self.is_delta = np.array(
            [column.representation is Representation.DELTA for column in self.columns], bool
        )
        self._is_position = ~self._is_one_of(ColumnKind.TWIST)
        self.is_angle = self._is_one_of(ColumnKind.ANGLE)
        self.turn = np.array([column.turn for column in self.columns])
        self._turns_per_unit = (
            np.divide(1.0, self.turn, out=np.zeros_like(self.turn), where=self.is_angle)
            if self.is_angle.any()
            else None
        )

    def difference(self, a: Array, b: Array, *, out: Array | None = None) -> Array:
        """Return a minus b, angles within half a turn; `out` must be neither of them."""
        result: Array = np.subtract(a, b, out=out)
        if self._turns_per_unit is not None:
            result -= self.turn * np.floor(result * self._turns_per_unit + 0.5)
        for first in self.quaternions:
            turn = multiply(_read(a, first, 4), conjugate(_read(b, first, 4)))
            _write(result, first, (*logarithm(turn, _functions(result)), 0.0))
        return result

    def add(self, a: Array, difference: Array, *, out: Array | None = None) -> Array:
        """Return a moved by a difference; `out` must be neither of them."""
        result: Array = np.add(a, difference, out=out)
        for first in self.quaternions:
            turn = exponential(_read(difference, first, 3), _functions(result))
            _write(result, first, multiply(turn, _read(a, first, 4)))
        return result

    def blend(self, a: Array, b: Array, weight_of_b: float | Array) -> Array:
        """Return the point that lies the weight's share of the way from a to b.

        A gripper that snaps is b's as soon as b has any weight.

        Args:
            a: (..., D).
            b: (..., D).
            weight_of_b: 0 for a to 1 for b; a scalar, or an array that broadcasts to (..., D), equal for the four
                columns of a quaternion.
        """
        blended = self.add(a, weight_of_b * self.difference(b, a))
        snapped = np.where(np.asarray(weight_of_b) > 0.0, b, a)
        result: Array = np.where(self.is_continuous, blended, snapped)
        return result

    def separation(self, a: tuple[Array, Array], b: tuple[Array, Array]) -> Array:
        """Return the (2, D) offset and its rate with which `displace` brings b onto a; 0 for what snaps.

        Args:
            a: Position and velocity, (D,) each.
            b: Position and velocity, (D,) each.
        """
        offset = self.difference(a[0], b[0])
        rate = a[1] - b[1]
        for first in self.quaternions:
            turn = _read(offset, first, 3)
            turned = rotate(turn, _read(b[1], first, 3))
            extra = [w - v for w, v in zip(_read(a[1], first, 3), turned, strict=True)]
            _write(rate, first, (*from_angular_velocity(turn, tuple(extra)), 0.0))
        separation: Array = np.stack([offset, rate]) * self.is_continuous
        return separation

    def displace(self, position: Array, velocity: Array, separation: Array) -> None:
        """Add a (2, D) offset and its rate to a moving (D,) position and its (D,) velocity, in place."""
        turned = [self._turn(position, velocity, separation, first) for first in self.quaternions]
        position += separation[0]
        velocity += separation[1]
        for first, (orientation, spin) in zip(self.quaternions, turned, strict=True):
            _write(position, first, orientation)
            _write(velocity, first, spin)

    def rest(self, position: Array, velocity: Array) -> None:
        """Bring a (D,) position and velocity to rest in place: what is a position holds, what is a velocity is 0."""
        position *= self._is_position
        velocity.fill(0.0)

    def to_unit(self, rows: Array) -> Array:
        """Return a float64 copy of (K, D) rows with quaternions of length 1.

        Raises:
            ChunkRejectedError: `zero_quaternion`.
        """
        result = np.array(rows, np.float64)
        for first in self.quaternions:
            lengths = np.linalg.norm(result[:, first : first + 4], axis=1, keepdims=True)
            if lengths.min() < _SHORTEST:
                raise ChunkRejectedError(
                    f'quaternion {self.columns[first].name}',
                    got=f'length {lengths.min():.3g} in row {lengths.argmin()}',
                    expected='quaternions (x, y, z, w) of about length 1',
                    next_step='Check the order of the action columns and their normalisation.',
                    code='zero_quaternion',
                )
            result[:, first : first + 4] /= lengths
        return result

    def accumulate(self, rows: Array, anchor: Array, *, first_row: int) -> Array:
        """Return (K, D) float64 rows in which delta columns are absolute; the others stay as they are.

        The anchor is the command when the first executed row is due: row `first_row` is the anchor moved by its own
        step, the rows after it go on from there. The rows before it are those steps that would have led to the
        anchor. A quaternion's step is a turn in the fixed frame.

        Args:
            rows: (K, D).
            anchor: (D,) the command.
            first_row: Place of the first executed row.

        Raises:
            ChunkRejectedError: `zero_quaternion`.
        """
        steps = self.to_unit(rows)
        is_delta = self.is_delta
        sums = np.cumsum(steps[:, is_delta], axis=0)
        before = sums[first_row - 1] if first_row else 0.0
        result: Array = steps.copy()
        result[:, is_delta] = anchor[is_delta] + sums - before
        for first in self.quaternions:
            if is_delta[first]:
                place = slice(first, first + 4)
                result[:, place] = _accumulate_turns(steps[:, place], anchor[place], first_row)
        return result

    def magnitudes(self, vectors: Array) -> Array:
        """Return magnitudes (..., D) of differences or rates; a rotation's four columns all hold the length of its vector."""
        result: Array = np.abs(vectors)
        for first in self.quaternions:
            turn = vectors[..., first : first + 3]
            result[..., first : first + 4] = np.linalg.norm(turn, axis=-1, keepdims=True)
        return result

    def _is_one_of(self, *kinds: ColumnKind) -> Array:
        return np.array([column.kind in kinds for column in self.columns], bool)

    def _turn(
        self, position: Array, velocity: Array, separation: Array, first: int
    ) -> tuple[Components, Components]:
        turn, rate = _read(separation[0], first, 3), _read(separation[1], first, 3)
        orientation = multiply(exponential(turn, FLOATS), _read(position, first, 4))
        own = rotate(turn, _read(velocity, first, 3))
        extra = to_angular_velocity(turn, rate)
        return orientation, tuple(v + w for v, w in zip(own, extra, strict=True))


def _accumulate_turns(steps: Array, anchor: Array, first_row: int) -> Array:
    turns = [tuple(step) for step in steps.tolist()]
    rows: list[Components] = []
    last: Components = tuple(anchor.tolist())
    for turn in reversed(turns[:first_row]):
        rows.insert(0, last)
        last = multiply(conjugate(turn), last)
    last = tuple(anchor.tolist())
    for turn in turns[first_row:]:
        last = multiply(turn, last)
        rows.append(last)
    return np.array(rows)


def _functions(values: Array) -> Functions:
    return FLOATS if values.ndim == 1 else ARRAYS


def _read(values: Array, first: int, count: int) -> Components:
    if values.ndim == 1:
        return tuple(values[first : first + count].tolist())
    return tuple(values[..., place] for place in range(first, first + count))


def _write(values: Array, first: int, components: Components) -> None:
    for place, component in enumerate(components, first):
        values[..., place] = component


def _find_grippers(
    columns: Sequence[Column], rules: Mapping[str, GripperRule]
) -> dict[int, GripperRule]:
    names = [column.name for column in columns if column.kind is ColumnKind.GRIPPER]
    unknown = [name for name in rules if name not in names]
    if unknown:
        raise ConfigurationError(
            'grippers',
            got=', '.join(unknown),
            expected=f'gripper columns: {", ".join(names) or "there are none"}',
            next_step='Name columns of the action whose kind is gripper.',
            code='unknown_gripper',
        )
    return {
        place: rules.get(column.name, GripperRule())
        for place, column in enumerate(columns)
        if column.kind is ColumnKind.GRIPPER
    }


def _find_quaternions(columns: Sequence[Column]) -> tuple[int, ...]:
    places = [p for p, column in enumerate(columns) if column.kind is ColumnKind.QUATERNION]
    firsts = tuple(places[::4])
    fours = [place for first in firsts for place in range(first, first + 4)]
    is_uniform = all(
        len({column.representation for column in columns[first : first + 4]}) == 1
        for first in firsts
    )
    if places != fours or not is_uniform:
        raise ConfigurationError(
            'action columns',
            got=f'quaternion columns {", ".join(columns[place].name for place in places)}',
            expected='four consecutive columns x, y, z, w of one representation per quaternion',
            next_step='Check kind and representation of the columns in bundle.yaml.',
            code='bad_quaternion',
        )
    return firsts


def unwrap(angles: Array, turn: Array) -> Array:
    """Return (K, A) angles on one branch each: no two rows are more than half a turn apart.

    Args:
        angles: Rows of angles.
        turn: (A,) a full turn of each, in its unit.
    """
    steps = np.diff(angles, axis=0)
    unwrapped: Array = angles.copy()
    unwrapped[1:] -= turn * np.cumsum(np.floor(steps / turn + 0.5), axis=0)
    return unwrapped
