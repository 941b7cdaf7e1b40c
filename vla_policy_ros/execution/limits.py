# SPDX-License-Identifier: Apache-2.0
"""Limits per action column: what each kind must have, and which numbers are refused."""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vla_policy_ros.core.errors import ConfigurationError
from vla_policy_ros.core.specs import Array, Column, ColumnKind, Representation

FIELDS = ('position_min', 'position_max', 'velocity', 'acceleration', 'jerk')


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnLimits:
    """What somebody says about one column, in its unit and seconds; None where nothing is said.

    Attributes:
        position_min: Smallest position; -inf says that there is none, as for a continuous joint.
        position_max: Largest position; inf says that there is none.
        velocity: Largest speed; for a twist or a step (`delta`) the largest magnitude of the value itself.
        acceleration: Largest acceleration; for a twist or a step the largest change of the value per second.
        jerk: Largest jerk; for a twist or a step the largest second derivative of the value.
    """

    position_min: float | None = None
    position_max: float | None = None
    velocity: float | None = None
    acceleration: float | None = None
    jerk: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class JointLimits:
    """Checked limits of D columns: (D,) float64 each, read-only, infinite where a column has none.

    Attributes:
        columns: The D columns.
        position_min: Smallest position.
        position_max: Largest position.
        velocity: As in `ColumnLimits`; for quaternions the angular speed (rad/s), the same for all four.
        acceleration: As in `ColumnLimits`; for quaternions the angular acceleration.
        jerk: As in `ColumnLimits`.

    Raises:
        ConfigurationError: As `check_limits`.
    """

    columns: tuple[Column, ...]
    position_min: Array
    position_max: Array
    velocity: Array
    acceleration: Array
    jerk: Array

    def __post_init__(self) -> None:
        for name in FIELDS:
            values = np.array(getattr(self, name), np.float64)
            if values.shape != (len(self.columns),):
                raise ConfigurationError(
                    f'limits.{name}',
                    got=f'shape {list(values.shape)}',
                    expected=f'[{len(self.columns)}], one number per column',
                    next_step='Give one number for every column.',
                    code='wrong_shape',
                )
            values.flags.writeable = False
            object.__setattr__(self, name, values)
        for index, column in enumerate(self.columns):
            said = ColumnLimits(**{name: float(getattr(self, name)[index]) for name in FIELDS})
            _check_column(column, said, f'limits.{column.name}')
        self._check_quaternions()

    @property
    def is_value(self) -> Array:
        """(D,) bool: columns whose value is itself a motion (twists, steps): no position, at rest when it is 0."""
        return np.array([is_value(column) for column in self.columns], bool)

    def orders(self) -> tuple[Array, Array, Array, Array, Array]:
        """Return (D,) smallest and largest value, and largest first, second and third derivative of the value.

        A twist or a step enters one order lower than a position: its value is limited by the velocity limit.
        """
        shifted = self.is_value
        none = np.full(len(self.columns), np.inf)
        return (
            np.where(shifted, -self.velocity, self.position_min),
            np.where(shifted, self.velocity, self.position_max),
            np.where(shifted, self.acceleration, self.velocity),
            np.where(shifted, self.jerk, self.acceleration),
            np.where(shifted, none, self.jerk),
        )

    def _check_quaternions(self) -> None:
        """Refuse different limits for the four columns of one rotation."""
        kinds = [column.kind for column in self.columns]
        places = [index for index, kind in enumerate(kinds) if kind is ColumnKind.QUATERNION]
        for begin in range(0, len(places), 4):
            group = places[begin : begin + 4]
            for name in ('velocity', 'acceleration'):
                values = getattr(self, name)[group]
                if (values != values[0]).any():
                    raise ConfigurationError(
                        f'limits.{self.columns[group[0]].name}.{name}',
                        got=', '.join(f'{value:g}' for value in values),
                        expected='the same limit for the four columns of a rotation',
                        next_step='Give the angular limit for x, y, z and w alike.',
                        code='unequal_quaternion',
                    )


def is_value(column: Column) -> bool:
    """Whether a column's value is itself a motion, so that its velocity limit applies to the value."""
    return column.kind is ColumnKind.TWIST or column.representation is Representation.DELTA


def check_limits(
    columns: Sequence[Column], said: Mapping[str, ColumnLimits], *, where: str = 'limits'
) -> JointLimits:
    """Return the limits of the columns out of what is said about them by name.

    Positions need velocity and acceleration, and a range unless they are angles; quaternions need an angular velocity
    and acceleration; twists and steps a velocity and an acceleration; grippers a range only.

    Args:
        columns: The D columns.
        said: Column name to its limits.
        where: What the names in an error stand under.

    Raises:
        ConfigurationError: `unknown_column`, `duplicate_column`, `missing_limit`, `bad_limit` (not a number, not above
            0), `swapped_limits`, `unused_limit` (one that the kind cannot have) or `unequal_quaternion`.
    """
    names = [column.name for column in columns]
    _check_names(names, said, where)
    for column in columns:
        place = f'{where}.{column.name}'
        own = said.get(column.name, ColumnLimits())
        _check_missing(column, own, place)
        _check_column(column, own, place)
    return JointLimits(
        columns=tuple(columns),
        **{
            field: np.array([_number(said.get(name), field) for name in names], np.float64)
            for field in FIELDS
        },
    )


def choose_limits(limits: JointLimits, index: Sequence[int]) -> JointLimits:
    """Return the limits of some of the columns, by their places."""
    chosen = np.array(index, np.intp)
    return JointLimits(
        columns=tuple(limits.columns[place] for place in index),
        **{name: getattr(limits, name)[chosen] for name in FIELDS},
    )


def _number(said: ColumnLimits | None, field: str) -> float:
    value = getattr(said, field) if said is not None else None
    if value is not None:
        return float(value)
    return -math.inf if field == 'position_min' else math.inf


def _check_names(names: Sequence[str], said: Mapping[str, ColumnLimits], where: str) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ConfigurationError(
            where,
            got=f'more than one column {", ".join(twice)}',
            expected='every column once',
            next_step='Rename the columns of the action in bundle.yaml.',
            code='duplicate_column',
        )
    for name in said:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            raise ConfigurationError(
                f'{where}.{name}',
                got='limits of a column that the action does not have',
                expected=f'one of {", ".join(names)}',
                next_step=f'Did you mean {close[0]!r}?' if close else 'Remove it.',
                code='unknown_column',
            )


def needed_fields(column: Column) -> tuple[str, ...]:
    """Return the limits that a column cannot go without."""
    if is_value(column) or column.kind in (ColumnKind.QUATERNION, ColumnKind.ANGLE):
        return ('velocity', 'acceleration')
    if column.kind is ColumnKind.GRIPPER:
        return ('position_min', 'position_max')
    return FIELDS[:4]


def _check_missing(column: Column, said: ColumnLimits, place: str) -> None:
    missing = [name for name in needed_fields(column) if getattr(said, name) is None]
    if missing:
        raise ConfigurationError(
            place,
            got=f'no {", ".join(missing)}',
            expected=f'{", ".join(needed_fields(column))} for a column of kind {column.kind.value}',
            next_step='Add it to the limits file; no limit is ever assumed.',
            code='missing_limit',
        )


def _check_column(column: Column, said: ColumnLimits, place: str) -> None:
    if column.kind is ColumnKind.QUATERNION and is_value(column):
        raise ConfigurationError(
            place,
            got='a rotation by steps (delta)',
            expected='an absolute rotation, or an angular velocity as three twist columns',
            next_step='Change the representation in bundle.yaml.',
            code='no_limits_for_kind',
        )
    for name in FIELDS[2:]:
        value = getattr(said, name)
        may_lack = name not in needed_fields(column)
        if value is not None and not (value > 0 and (may_lack or math.isfinite(value))):
            raise ConfigurationError(
                f'{place}.{name}',
                got=f'{value:g}',
                expected='a finite number above 0',
                next_step='Give the real limit of the joint; 0 is often a placeholder.',
                code='bad_limit',
            )
    for lower, higher in (('velocity', 'acceleration'), ('acceleration', 'jerk')):
        if math.isfinite(_number(said, higher)) and not math.isfinite(_number(said, lower)):
            raise ConfigurationError(
                place,
                got=f'{higher} without {lower}',
                expected=f'{lower} as well',
                next_step=f'Add {lower}: without it no time to stop can be told.',
                code='missing_limit',
            )
    _check_range(said, place)
    _check_unused(column, said, place)


def _check_range(said: ColumnLimits, place: str) -> None:
    low, high = _number(said, 'position_min'), _number(said, 'position_max')
    is_range = math.isfinite(low) and math.isfinite(high)
    if not is_range and not (low == -math.inf and high == math.inf):
        raise ConfigurationError(
            f'{place}.position_min, position_max',
            got=f'{low:g}, {high:g}',
            expected='two finite numbers, or none on both sides',
            next_step='Give both ends of the range.',
            code='bad_limit',
        )
    if low >= high:
        raise ConfigurationError(
            f'{place}.position_min, position_max',
            got=f'{low:g}, {high:g}',
            expected='position_min below position_max',
            next_step='Swap them, or give the real range.',
            code='swapped_limits',
        )


def _check_unused(column: Column, said: ColumnLimits, place: str) -> None:
    """Refuse limits that would be given and never kept."""
    is_quaternion = column.kind is ColumnKind.QUATERNION
    unused = [
        *(FIELDS[:2] if is_quaternion or is_value(column) else ()),
        *(FIELDS[4:] if is_quaternion else ()),
    ]
    given = [
        name
        for name in unused
        if getattr(said, name) is not None and math.isfinite(getattr(said, name))
    ]
    if given:
        raise ConfigurationError(
            place,
            got=', '.join(given),
            expected=f'none of these for a column of kind {column.kind.value}',
            next_step='Remove it: it would not be kept.',
            code='unused_limit',
        )
