# SPDX-License-Identifier: Apache-2.0
"""What a strategy executes: curves one after another, each from a time on, the seam between two faded out."""

from __future__ import annotations

import numpy as np

from vla_policy_ros.core.specs import Array
from vla_policy_ros.execution.curve import ActionCurve


class Fade:
    """The difference of two motions at a seam, led to zero within a window.

    A quintic in time: it begins with the difference in position and velocity and no acceleration, and ends with all
    three at zero. Twist columns fade in value and slope.

    Args:
        separation: (2, D) difference and its rate, from `ColumnMath.separation`.
        begin_ns: Time of the seam.
        window_ns: How long it takes.
    """

    def __init__(self, separation: Array, *, begin_ns: int, window_ns: int) -> None:
        self._separation = separation
        self._begin_ns = begin_ns
        self._window_ns = window_ns
        self._weights = np.zeros((2, 2))
        self._now = np.zeros_like(separation)

    def find(self, time_ns: int) -> Array | None:
        """Return the (2, D) difference and its rate that are left at a time, in a reused array; None: nothing."""
        elapsed_ns = time_ns - self._begin_ns
        if elapsed_ns >= self._window_ns:
            return None
        u = max(elapsed_ns, 0) / self._window_ns
        window_s = 1e-9 * self._window_ns
        weights = self._weights
        weights[0, 0] = 1.0 + u**3 * (-10.0 + u * (15.0 - 6.0 * u))
        weights[0, 1] = window_s * (u + u**3 * (-6.0 + u * (8.0 - 3.0 * u)))
        weights[1, 0] = -30.0 * (u * (1.0 - u)) ** 2 / window_s
        weights[1, 1] = 1.0 + u**2 * (-18.0 + u * (32.0 - 15.0 * u))
        np.dot(weights, self._separation, out=self._now)
        return self._now


class Leg:
    """A curve that is executed from a time on, until another leg begins or its rows end.

    Args:
        curve: The curve.
        begin_ns: When it takes over.
        shift_ns: How much later than its own time it is executed.
        fade: What is left of the motion before it; None: nothing.
    """

    def __init__(
        self, curve: ActionCurve, begin_ns: int, *, shift_ns: int = 0, fade: Fade | None = None
    ) -> None:
        self.curve = curve
        self.begin_ns = begin_ns
        self.end_ns = curve.end_ns + shift_ns
        self._shift_ns = shift_ns
        self._fade = fade

    def evaluate(self, time_ns: int, position_out: Array, velocity_out: Array) -> None:
        """Write position and velocity at a time, (D,) float64 each; after the end the robot stands still."""
        moving_ns = min(time_ns, self.end_ns)
        self.curve.evaluate(moving_ns - self._shift_ns, position_out, velocity_out)
        separation = self._fade.find(moving_ns) if self._fade is not None else None
        if separation is not None:
            self.curve.math.displace(position_out, velocity_out, separation)
        if time_ns > self.end_ns:
            self.curve.math.rest(position_out, velocity_out)


def fade_from(before: Leg, curve: ActionCurve, *, begin_ns: int, window_ns: int) -> Fade:
    """Return the fade with which a curve goes on from a leg without a step in position or velocity."""
    size = len(curve.math.columns)
    old, new = np.empty((2, size)), np.empty((2, size))
    # Velocities that step at rows, such as those of a slerp, step after the seam: what counts is the velocity before.
    before.evaluate(max(begin_ns - 1, before.begin_ns), old[0], old[1])
    velocity = old[1].copy()
    before.evaluate(begin_ns, old[0], old[1])
    curve.evaluate(begin_ns, new[0], new[1])
    separation = curve.math.separation((old[0], velocity), (new[0], new[1]))
    return Fade(separation, begin_ns=begin_ns, window_ns=window_ns)
