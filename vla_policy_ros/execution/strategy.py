# SPDX-License-Identifier: Apache-2.0
"""What all strategies share: which chunks are taken, the queue of legs, and the target of a tick."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Protocol

import numpy as np

from vla_policy_ros.core.chunk import ActionChunk
from vla_policy_ros.core.errors import ChunkRejectedError
from vla_policy_ros.core.specs import Array
from vla_policy_ros.execution.curve import ActionCurve, check_columns, late_chunk
from vla_policy_ros.execution.grippers import GripperLatch
from vla_policy_ros.execution.kinds import ColumnMath
from vla_policy_ros.execution.legs import Leg


@dataclass(slots=True, eq=False)
class Target:
    """What a strategy wants now; a strategy hands out one target again and again.

    Attributes:
        position: (D,) float64, in the columns' units.
        velocity: (D,) float64, per second; rad/s in the first three columns of a quaternion.
        sequence: Number of the chunk it comes from.
        seam: Whether it is the first one from that chunk, and another chunk came before.
    """

    position: Array
    velocity: Array
    sequence: int
    seam: bool


class Strategy(Protocol):
    """Decides which chunk is executed when, and how one gives way to the next. Pure: no clock, no threads."""

    name: ClassVar[str]

    def offer(self, curve: ActionCurve, now_ns: int) -> None:
        """Take a chunk; one that is refused leaves everything as it was.

        Raises:
            ChunkRejectedError: `wrong_columns`, `wrong_step`, `duplicate_chunk`, `out_of_order` (its observation is
                older than that of a chunk taken before), `late_chunk` (its rows are past before its turn comes),
                `early_chunk` (it begins more than a horizon from now).
        """

    def target(self, now_ns: int) -> Target | None:
        """Return what is wanted now, valid until the next call; None: there is no row for now.

        Times must not go back; when the clock has jumped, call `reset`.
        """

    def remaining_ns(self, now_ns: int) -> int:
        """Return the time until there is no row left, if nothing more is offered."""

    def reset(self) -> None:
        """Forget all chunks, their numbers, and what is open and closed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One parameter of a strategy: a name, a number, or a whole number of steps.

    Attributes:
        default: Its value when nobody says one.
        low: Smallest number.
        high: Largest number.
        share_of_horizon: It is a number of steps and at most this share of the horizon, to which its default is cut.
        choices: The names to choose from.
    """

    default: float | str
    low: float = 0.0
    high: float = 0.0
    share_of_horizon: float | None = None
    choices: tuple[str, ...] = ()

    def initial(self, horizon: int) -> float | str:
        """Return the default for chunks of a horizon."""
        if self.share_of_horizon is None or isinstance(self.default, str):
            return self.default
        return min(int(self.default), self._most(horizon))

    def allows(self, value: object, horizon: int) -> bool:
        """Whether a value may be used with chunks of a horizon."""
        if self.choices:
            return value in self.choices
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        if self.share_of_horizon is not None:
            return value == int(value) and self.low <= value <= self._most(horizon)
        return self.low <= value <= self.high

    def describe(self, horizon: int) -> str:
        """Return what is allowed, in words."""
        if self.choices:
            return f'one of {", ".join(self.choices)}'
        if self.share_of_horizon is not None:
            return f'whole steps from {self.low:g} to {self._most(horizon)}'
        return f'a number from {self.low:g} to {self.high:g}'

    def _most(self, horizon: int) -> int:
        assert self.share_of_horizon is not None
        return int(self.share_of_horizon * horizon)


class ChunkStrategy(ABC):
    """A queue of legs: the first is executed, the others wait for their time.

    A subclass says when a chunk's turn comes and what leg becomes of it. That is settled when the chunk is offered, so
    the plan is a function of time and does not depend on when the ticks are.

    Args:
        math: Arithmetic of the D columns.
        step_ns: Time between two rows of every chunk.
        horizon: K, the number of rows that is usual.
    """

    name: ClassVar[str]
    parameters: ClassVar[Mapping[str, Parameter]] = MappingProxyType({})
    promises_continuity: ClassVar[bool] = False

    def __init__(self, math: ColumnMath, *, step_ns: int, horizon: int) -> None:
        self.math = math
        self.step_ns = step_ns
        self.horizon = horizon
        self._legs: deque[Leg] = deque()
        self._given: Leg | None = None
        self._newest: ActionChunk | None = None
        self._latch = GripperLatch(math.grippers)
        size = len(math.columns)
        self._target = Target(np.zeros(size), np.zeros(size), sequence=0, seam=False)

    def offer(self, curve: ActionCurve, now_ns: int) -> None:
        """Take a chunk; see `Strategy`."""
        self._advance(now_ns)
        self._check(curve, now_ns)
        begin_ns = self._begin_ns(curve, now_ns)
        if curve.end_ns < begin_ns:
            raise late_chunk(curve.chunk, begin_ns)
        leg = self._make_leg(curve, begin_ns, now_ns)
        while self._legs and self._legs[-1].begin_ns >= begin_ns:
            self._legs.pop()
        self._legs.append(leg)
        self._newest = curve.chunk

    def target(self, now_ns: int) -> Target | None:
        """Return what is wanted now; see `Strategy`."""
        self._advance(now_ns)
        if not self._legs:
            return None
        leg, target = self._legs[0], self._target
        if not leg.begin_ns <= now_ns <= leg.end_ns:
            return None
        leg.evaluate(now_ns, target.position, target.velocity)
        self._latch.apply(target.position)
        target.sequence = leg.curve.chunk.sequence
        target.seam = self._given not in (None, leg)
        self._given = leg
        return target

    def remaining_ns(self, now_ns: int) -> int:
        """Return the time until there is no row left, if nothing more is offered."""
        return max(self._legs[-1].end_ns - now_ns, 0) if self._legs else 0

    def reset(self) -> None:
        """Forget all chunks, their numbers, and what is open and closed."""
        self._legs.clear()
        self._given = self._newest = None
        self._latch.reset()

    @abstractmethod
    def _begin_ns(self, curve: ActionCurve, now_ns: int) -> int:
        """Return when the turn of a chunk comes: not before now nor before its row 0."""

    def _make_leg(self, curve: ActionCurve, begin_ns: int, now_ns: int) -> Leg:  # noqa: ARG002
        """Return what is executed of a chunk from when its turn comes."""
        return Leg(curve, begin_ns)

    def _leg_at(self, time_ns: int) -> Leg | None:
        """Return the leg that is planned for a time; None before the first."""
        return next((leg for leg in reversed(self._legs) if leg.begin_ns <= time_ns), None)

    def _advance(self, now_ns: int) -> None:
        while len(self._legs) > 1 and self._legs[1].begin_ns <= now_ns:
            self._legs.popleft()

    def _check(self, curve: ActionCurve, now_ns: int) -> None:
        chunk = curve.chunk
        check_columns(chunk, self.math)
        where = f'chunk {chunk.sequence}'
        if chunk.step_ns != self.step_ns:
            raise ChunkRejectedError(
                where,
                got=f'a step of {chunk.step_ns} ns',
                expected=f'{self.step_ns} ns',
                next_step='Run the policy that the executor is configured for.',
                code='wrong_step',
            )
        self._check_order(chunk, where)
        if curve.end_ns < now_ns:
            raise late_chunk(chunk, now_ns)
        if curve.start_ns - now_ns > self.horizon * self.step_ns:
            raise ChunkRejectedError(
                where,
                got=f'a first row in {(curve.start_ns - now_ns) / 1e6:.1f} ms',
                expected=f'one within a horizon of {self.horizon} steps',
                next_step='Compare the clocks of the machines, and action.offset_ns in bundle.yaml.',
                code='early_chunk',
            )

    def _check_order(self, chunk: ActionChunk, where: str) -> None:
        newest = self._newest
        if newest is None:
            return
        if chunk.sequence == newest.sequence:
            raise ChunkRejectedError(
                where,
                got='a chunk that has been taken',
                expected='each chunk once',
                next_step='Look for a second publisher on the topic of the chunks.',
                code='duplicate_chunk',
            )
        if (
            chunk.observation_stamp_ns < newest.observation_stamp_ns
            or chunk.sequence < newest.sequence
        ):
            raise ChunkRejectedError(
                where,
                got=f'an observation at {chunk.observation_stamp_ns} ns',
                expected=f'one not before chunk {newest.sequence} at {newest.observation_stamp_ns} ns',
                next_step='Nothing: chunks may overtake each other on the way.',
                code='out_of_order',
            )
