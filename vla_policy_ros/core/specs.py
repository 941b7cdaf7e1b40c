# SPDX-License-Identifier: Apache-2.0
"""What a policy takes and gives, said before the first array exists."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import ml_dtypes  # noqa: F401 - gives numpy the element type bfloat16
import numpy as np
import numpy.typing as npt

from vla_policy_ros.core.errors import SpecMismatchError

Array = npt.NDArray[Any]


class ColumnKind(str, Enum):
    """How a state or action column may be interpolated and blended."""

    LINEAR = 'linear'
    ANGLE = 'angle'
    QUATERNION = 'quaternion'
    GRIPPER = 'gripper'
    TWIST = 'twist'


class Representation(str, Enum):
    """What an action value means: a target, a step from the last target, or an offset from the observed state."""

    ABSOLUTE = 'absolute'
    DELTA = 'delta'
    RELATIVE_TO_OBSERVATION = 'relative_to_observation'


def describe_tensor(dtype: str, shape: Sequence[int | str | None]) -> str:
    """Return element type and shape as text; a free dimension is its symbol or a star."""
    return f'{dtype}[{", ".join("*" if size is None else str(size) for size in shape)}]'


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, shape and element type of an engine's tensor; a free dimension is None.

    `dtype` is a numpy name; `bfloat16`, which numpy itself does not have, comes from ml_dtypes.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str

    def validate(self, value: Array) -> Array:
        """Return `value` when it fits; raise SpecMismatchError when it does not."""
        fits = len(value.shape) == len(self.shape) and all(
            wanted is None or wanted == got
            for wanted, got in zip(self.shape, value.shape, strict=True)
        )
        if not fits or value.dtype.name != self.dtype:
            raise SpecMismatchError(
                f'tensor {self.name!r}',
                got=f'{value.dtype.name}{list(value.shape)}',
                expected=f'{self.dtype}{list(self.shape)}',
                next_step='Check the preprocessing and the stage order in bundle.yaml.',
            )
        return value

    def empty(self) -> Array:
        """Return an uninitialised host array of this spec; free dimensions become 1."""
        return np.empty([1 if size is None else size for size in self.shape], self.dtype)


@dataclass(frozen=True, slots=True)
class Column:
    """One number of a state or action vector; the unit is empty where nobody says it."""

    name: str
    unit: str
    kind: ColumnKind = ColumnKind.LINEAR
    representation: Representation = Representation.ABSOLUTE

    @property
    def turn(self) -> float:
        """A full turn of an angle, in its unit; 0 for every other kind."""
        if self.kind is not ColumnKind.ANGLE:
            return 0.0
        return 360.0 if self.unit.startswith('deg') else math.tau


@dataclass(frozen=True, slots=True)
class CameraSpec:
    """One camera of a policy; `history_ns` holds offsets to the observation's stamp (0 is now), oldest first."""

    name: str
    history_ns: tuple[int, ...] = (0,)


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservationSpec:
    """What a policy must be given."""

    cameras: tuple[CameraSpec, ...]
    state: tuple[Column, ...]
    state_history_ns: tuple[int, ...] = (0,)
    needs_instruction: bool = False

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the state columns in the order of the vector."""
        return tuple(column.name for column in self.state)


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionSpec:
    """What a policy gives: K rows of D columns, `step_ns` apart; row 0 lies `offset_ns` after the observation."""

    columns: tuple[Column, ...]
    horizon: int
    step_ns: int
    offset_ns: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the action columns in the order of the vector."""
        return tuple(column.name for column in self.columns)


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySpec:
    """Everything a caller must know of a policy; `policy_id` is `name@` and a short content hash."""

    policy_id: str
    observation: ObservationSpec
    action: ActionSpec
