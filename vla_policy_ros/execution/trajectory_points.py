# SPDX-License-Identifier: Apache-2.0
"""The points of a joint trajectory, as a message holds them and as a curve through them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from vla_policy_ros.core.specs import Array

_NS_PER_S = 1_000_000_000


class CurveLike(Protocol):
    """Position and velocity as functions of time, known from `start_ns` to `end_ns`."""

    @property
    def start_ns(self) -> int:
        """First time it is known at."""

    @property
    def end_ns(self) -> int:
        """Last time it is known at."""

    def evaluate(self, time_ns: int, position_out: Array, velocity_out: Array) -> None:
        """Write the (D,) position and velocity (per second) at a time."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrajectoryPoints:
    """N points for one controller with J joints; as a curve, it moves as the controller does between them.

    Attributes:
        names: The controller's J joints in the order of the arrays.
        times_ns: (N,) int64, strictly increasing. The header's stamp is the first of them.
        positions: (N, J) float64.
        velocities: (N, J) float64, per second.
    """

    names: tuple[str, ...]
    times_ns: Array
    positions: Array
    velocities: Array

    @classmethod
    def still(cls, names: Sequence[str], position: Array, *, now_ns: int) -> TrajectoryPoints:
        """Return what a robot does that stands at a (J,) position: the motion to start the first trajectory from."""
        place = np.array(position, np.float64)[None]
        times_ns = np.array([now_ns], np.int64)
        return cls(
            names=tuple(names), times_ns=times_ns, positions=place, velocities=np.zeros_like(place)
        )

    @property
    def stamp_ns(self) -> int:
        """Stamp of the message's header; never 0, which would mean the time of arrival."""
        return int(self.times_ns[0])

    @property
    def after_ns(self) -> Array:
        """(N,) `time_from_start` of the points."""
        after: Array = self.times_ns - self.times_ns[0]
        return after

    @property
    def start_ns(self) -> int:
        """Time of the first point."""
        return int(self.times_ns[0])

    @property
    def end_ns(self) -> int:
        """Time of the last point."""
        return int(self.times_ns[-1])

    def evaluate(self, time_ns: int, position_out: Array, velocity_out: Array) -> None:
        """Write the (J,) position and velocity at a time: cubic between the points, at rest outside of them."""
        after = int(np.searchsorted(self.times_ns, time_ns, side='right'))
        if after in (0, len(self.times_ns)) and time_ns != self.end_ns:
            position_out[:] = self.positions[min(after, len(self.times_ns) - 1)]
            velocity_out[:] = 0.0
            return
        after = min(max(after, 1), len(self.times_ns) - 1)
        before = max(after - 1, 0)
        span_s = (int(self.times_ns[after]) - int(self.times_ns[before])) / _NS_PER_S or 1.0
        share = (time_ns - int(self.times_ns[before])) / _NS_PER_S / span_s
        way = self.positions[after] - self.positions[before]
        first, last = self.velocities[before] * span_s, self.velocities[after] * span_s
        square, cube = 3 * way - 2 * first - last, first + last - 2 * way
        position_out[:] = self.positions[before] + share * (
            first + share * (square + share * cube)
        )
        velocity_out[:] = (first + share * (2 * square + share * 3 * cube)) / span_s


def sample(curve: CurveLike, times_ns: Array, *, num_columns: int) -> tuple[Array, Array]:
    """Return the (N, D) positions and velocities of a curve at (N,) times."""
    positions = np.empty((len(times_ns), num_columns))
    velocities = np.empty_like(positions)
    for row, time_ns in enumerate(times_ns.tolist()):
        curve.evaluate(time_ns, positions[row], velocities[row])
    return positions, velocities
