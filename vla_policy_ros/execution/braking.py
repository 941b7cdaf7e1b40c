# SPDX-License-Identifier: Apache-2.0
"""How fast one may be to stop in time: exact sums over the ticks of a command, not integrals.

A command is a row of positions, one per tick. Its speed u is the difference of two positions, its acceleration a the
difference of two speeds, its jerk the difference of two accelerations; all in units per tick. So what holds here holds
for the finite differences of what is published. Sums of k, k^2 and k (k + 1) give the closed forms.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vla_policy_ros.core.specs import Array


def brake_speed(distance: Array, acceleration: Array | float) -> Array:
    """Return the highest next speed from which one stops within a distance, braking from the tick after.

    The speeds w, w - A, w - 2 A ... down to the last positive one then add up to the distance exactly; with n of them
    after the first, w = distance / (n + 1) + A n / 2.

    Args:
        distance: >= 0.
        acceleration: A > 0, largest change of the speed per tick.
    """
    count = np.floor(np.sqrt(8.0 / acceleration * distance + 1.0) * 0.5 - 0.5)
    result: Array = distance / (count + 1.0) + 0.5 * acceleration * count
    return result


@dataclass(frozen=True, slots=True)
class Stop:
    """Where the fastest stop leads, relative to now: its end, and the largest way forwards and backwards."""

    end: Array
    high: Array
    low: Array


def stop_acceleration(speed: Array, acceleration: Array, limit: Array) -> Array:
    """Return the next acceleration of the fastest stop whose change per tick is at most 1.

    Args:
        speed: u now.
        acceleration: a now.
        limit: Largest |a|.
    """
    speed, acceleration, sign = _mirror(speed, acceleration)
    brake = np.minimum(brake_speed(np.maximum(speed, 0.0), 1.0), limit)
    result: Array = sign * np.maximum(acceleration - 1.0, -brake)
    return result


def find_stop(speed: Array, acceleration: Array, limit: Array) -> Stop:
    """Return where the stop of `stop_acceleration` leads, without going through its ticks.

    First a falls by 1 per tick until it meets the curve on which it may rise again (or its limit), then it stays at its
    limit, then it rises by 1 per tick: rest is reached with a = 0.

    Args:
        speed: u now.
        acceleration: a now, |a| <= limit.
        limit: Largest |a|.
    """
    speed, acceleration, sign = _mirror(speed, acceleration)
    first, dip = _count_fall(speed, acceleration, limit)
    rest = np.maximum(speed + first * (acceleration - 0.5 * (first + 1.0)), 0.0)
    end = _way(first, speed, acceleration)
    held = np.maximum(np.ceil((rest - _reach(limit)) / limit), 0.0)
    end += held * (rest - 0.5 * limit * (held + 1.0))
    rest = np.maximum(rest - held * limit, 0.0)
    last = np.floor(np.sqrt(8.0 * rest + 1.0) * 0.5 - 0.5)
    peak = rest / (last + 1.0) + 0.5 * last
    end += 0.5 * last * (last + 1.0) * (peak - (2.0 * last + 1.0) / 3.0)
    high, low = np.maximum(end, 0.0), np.minimum(_way(dip, speed, acceleration), 0.0)
    return Stop(sign * end, np.where(sign > 0.0, high, -low), np.where(sign > 0.0, low, -high))


def _mirror(speed: Array, acceleration: Array) -> tuple[Array, Array, Array]:
    """Turn the motion so that it ends forwards when nothing but its acceleration is brought to zero."""
    size = np.abs(acceleration)
    sign = np.where(speed + np.sign(acceleration) * _reach(size - 1.0) >= 0.0, 1.0, -1.0)
    return sign * speed, sign * acceleration, sign


def _reach(size: Array) -> Array:
    """Return s + (s - 1) + (s - 2) ... down to the last positive one; 0 for s <= 0."""
    size = np.maximum(size, 0.0)
    part = size - np.floor(size)
    result: Array = 0.5 * (size * (size + 1.0) + part * (1.0 - part))
    return result


def _way(count: Array, speed: Array, acceleration: Array) -> Array:
    """Return the way of `count` ticks in which a falls by 1 each."""
    pairs = 0.5 * count * (count + 1.0)
    result: Array = count * speed + pairs * (acceleration - (count + 2.0) / 3.0)
    return result


def _count_fall(speed: Array, acceleration: Array, limit: Array) -> tuple[Array, Array]:
    """Return the ticks in which a falls by 1, and those of them in which the motion still goes backwards."""
    part = acceleration - np.floor(acceleration)
    square = speed + 0.5 * (acceleration * (acceleration - 1.0) - part * (1.0 - part))
    fall = np.floor(acceleration + np.minimum(np.sqrt(np.maximum(square, 0.0)), limit))
    shift = acceleration - 0.5
    dip = np.floor(shift - np.sqrt(np.maximum(shift * shift + 2.0 * speed, 0.0)))
    return np.maximum(fall, 0.0), np.maximum(np.minimum(dip, fall), 0.0)
