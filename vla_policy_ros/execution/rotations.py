# SPDX-License-Identifier: Apache-2.0
"""Rotations as unit quaternions (x, y, z, w) and rotation vectors (axis times angle, rad), by components.

Components are floats or arrays of one shape: a control tick takes floats, which is several times faster for one
rotation, and a whole chunk takes arrays. Rotation vectors and angular velocities are seen from the fixed frame:
q = exp(r) p turns p by r about an axis that does not turn with p.

Formulas: J. Sola, J. Deray, D. Atchuthan, "A micro Lie theory for state estimation in robotics", arXiv 1812.01537,
appendix B (there Exp, Log and the left Jacobian of SO(3)).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Components = tuple[Any, ...]

# Keeps ratios such as sin(x) / x finite at zero; its root is the smallest angle that is told from none.
_TINY = 1e-300


@dataclass(frozen=True, slots=True)
class Functions:
    """The functions of one kind of number."""

    sqrt: Callable[[Any], Any]
    sin: Callable[[Any], Any]
    cos: Callable[[Any], Any]
    atan2: Callable[[Any, Any], Any]
    copysign: Callable[[Any, Any], Any]


FLOATS = Functions(math.sqrt, math.sin, math.cos, math.atan2, math.copysign)
ARRAYS = Functions(np.sqrt, np.sin, np.cos, np.arctan2, np.copysign)


def multiply(a: Components, b: Components) -> Components:
    """Return the quaternion a b: first b, then a."""
    ax, ay, az, aw = a
    bx, by, bz, bw = b
    return (
        aw * bx + ax * bw + ay * bz - az * by,
        aw * by - ax * bz + ay * bw + az * bx,
        aw * bz + ax * by - ay * bx + az * bw,
        aw * bw - ax * bx - ay * by - az * bz,
    )


def conjugate(q: Components) -> Components:
    """Return the inverse of a unit quaternion."""
    x, y, z, w = q
    return -x, -y, -z, w


def exponential(vector: Components, functions: Functions) -> Components:
    """Return the unit quaternion of a rotation vector."""
    x, y, z = vector
    half = 0.5 * functions.sqrt(x * x + y * y + z * z + _TINY)
    scale = 0.5 * functions.sin(half) / half
    return scale * x, scale * y, scale * z, functions.cos(half)


def logarithm(q: Components, functions: Functions) -> Components:
    """Return the rotation vector of a quaternion of any length and sign; its angle lies in [0, pi]."""
    x, y, z, w = q
    sine = functions.sqrt(x * x + y * y + z * z + _TINY)
    scale = functions.copysign(2.0 * functions.atan2(sine, abs(w)) / sine, w)
    return scale * x, scale * y, scale * z


def rotate(turn: Components, vector: Components) -> Components:
    """Return a vector turned by a rotation vector; floats only."""
    sinc, versine, _ = _coefficients(turn)
    return _series(turn, vector, sinc, versine)


def to_angular_velocity(turn: Components, rate: Components) -> Components:
    """Return the angular velocity of exp(turn) when turn changes at a rate (left Jacobian); floats only."""
    sinc, versine, square = _coefficients(turn)
    return _series(turn, rate, versine, (1.0 - sinc) / square)


def from_angular_velocity(turn: Components, velocity: Components) -> Components:
    """Return the rate of turn with which exp(turn) has an angular velocity (inverse left Jacobian); floats only."""
    x, y, z = turn
    square = x * x + y * y + z * z + _TINY
    half = 0.5 * math.sqrt(square)
    return _series(turn, velocity, -0.5, (1.0 - half * math.cos(half) / math.sin(half)) / square)


def _coefficients(turn: Components) -> tuple[float, float, float]:
    """Return sin(t) / t, (1 - cos(t)) / t^2 and t^2 for the angle t of a rotation vector."""
    x, y, z = turn
    square = x * x + y * y + z * z + _TINY
    angle = math.sqrt(square)
    half_sinc = math.sin(0.5 * angle) / (0.5 * angle)
    return math.sin(angle) / angle, 0.5 * half_sinc * half_sinc, square


def _series(turn: Components, vector: Components, first: float, second: float) -> Components:
    """Return v + first * (r x v) + second * (r x (r x v))."""
    once = _cross(turn, vector)
    twice = _cross(turn, once)
    return tuple(v + first * o + second * t for v, o, t in zip(vector, once, twice, strict=True))


def _cross(a: Components, b: Components) -> Components:
    ax, ay, az = a
    bx, by, bz = b
    return ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx
