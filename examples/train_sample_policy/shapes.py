# SPDX-License-Identifier: Apache-2.0
"""Meshes of the scene: every surface is a list of quads in metres, seen from outside counter-clockwise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from arm import Array, link_frames, rotation, translation

PLASTIC = (238, 235, 228)
SERVO = (52, 56, 64)
ACCENT = (244, 178, 48)
BLOCK_COLORS = {'red': (214, 50, 45), 'green': (54, 160, 72), 'blue': (48, 98, 206)}
BLOCK_SIZE = 0.03


@dataclass(frozen=True)
class Mesh:
    """Quads and what they look like.

    Attributes:
        quads: (P, 4, 3) corners in metres.
        color: (P, 3) RGB, 0 to 255.
        gloss: (P,) strength of the highlight, 0 to 1.
    """

    quads: Array
    color: Array
    gloss: Array

    def moved(self, frame: Array) -> Mesh:
        """Return the mesh placed at a frame, a (4, 4) transform."""
        quads = self.quads @ frame[:3, :3].T + frame[:3, 3]
        return Mesh(quads, self.color, self.gloss)


def join(meshes: list[Mesh]) -> Mesh:
    """Return one mesh that holds the quads of all."""
    return Mesh(
        np.concatenate([mesh.quads for mesh in meshes]),
        np.concatenate([mesh.color for mesh in meshes]),
        np.concatenate([mesh.gloss for mesh in meshes]),
    )


def _mesh(quads: Array, color: tuple[int, int, int], gloss: float) -> Mesh:
    count = len(quads)
    return Mesh(quads, np.tile(np.array(color, float), (count, 1)), np.full(count, gloss))


def box(
    size: tuple[float, float, float],
    color: tuple[int, int, int],
    *,
    taper: float = 1.0,
    gloss: float = 0.15,
) -> Mesh:
    """Return a box around the origin; its end at +x is `taper` times as wide and high as the one at -x."""
    x, y, z = (value / 2 for value in size)
    corner = {
        (i, j, k): (i * x, j * y * (taper if i > 0 else 1), k * z * (taper if i > 0 else 1))
        for i in (-1, 1)
        for j in (-1, 1)
        for k in (-1, 1)
    }
    faces = (
        ((1, -1, -1), (1, 1, -1), (1, 1, 1), (1, -1, 1)),
        ((-1, 1, -1), (-1, -1, -1), (-1, -1, 1), (-1, 1, 1)),
        ((1, 1, -1), (-1, 1, -1), (-1, 1, 1), (1, 1, 1)),
        ((-1, -1, -1), (1, -1, -1), (1, -1, 1), (-1, -1, 1)),
        ((-1, -1, 1), (1, -1, 1), (1, 1, 1), (-1, 1, 1)),
        ((-1, 1, -1), (1, 1, -1), (1, -1, -1), (-1, -1, -1)),
    )
    return _mesh(np.array([[corner[key] for key in face] for face in faces]), color, gloss)


def cylinder(
    radius: float,
    length: float,
    color: tuple[int, int, int],
    *,
    sides: int = 20,
) -> Mesh:
    """Return a cylinder around the origin with its axis along z; the number of sides is even."""
    angle = np.arange(sides) * 2 * math.pi / sides
    ring = np.stack([np.cos(angle), np.sin(angle), np.zeros(sides)], axis=1)
    low = ring * radius - [0, 0, length / 2]
    high = ring * radius + [0, 0, length / 2]
    after = np.roll(np.arange(sides), -1)
    side = np.stack([low, low[after], high[after], high], axis=1)
    fan = np.array([(0, i, i + 1, i + 2) for i in range(1, sides - 2, 2)])
    quads = np.concatenate([side, high[fan], low[fan[:, ::-1]]])
    return _mesh(quads, color, 0.35)


def _across(mesh: Mesh) -> Mesh:
    """Turn a mesh whose axis is z so that its axis is y, the axis of the arm's flexing joints."""
    return mesh.moved(rotation('x', math.pi / 2))


@lru_cache(maxsize=1)
def _arm_parts() -> dict[str, Mesh]:
    """Return the mesh of every link in its own frame; the moving jaw and the base are among them."""
    base = [
        box((0.11, 0.085, 0.045), PLASTIC).moved(translation(-0.005, 0, 0.0225)),
        box((0.03, 0.05, 0.03), SERVO).moved(translation(-0.066, 0, 0.02)),
    ]
    turret = [
        cylinder(0.04, 0.02, SERVO).moved(translation(0.005, 0, 0.055)),
        box((0.05, 0.056, 0.045), PLASTIC, taper=0.95).moved(translation(0.008, 0, 0.087)),
        _across(cylinder(0.023, 0.058, SERVO)).moved(translation(0.03, 0, 0.115)),
    ]
    upper = [
        box((0.088, 0.036, 0.034), PLASTIC).moved(translation(0.055, 0, 0)),
        box((0.03, 0.0365, 0.0345), ACCENT).moved(translation(0.055, 0, 0)),
        _across(cylinder(0.021, 0.05, SERVO)).moved(translation(0.116, 0, 0)),
    ]
    forearm = [
        box((0.1, 0.034, 0.032), PLASTIC, taper=0.8).moved(translation(0.066, 0, 0)),
        _across(cylinder(0.018, 0.042, SERVO)).moved(translation(0.135, 0, 0)),
    ]
    wrist = [
        cylinder(0.017, 0.03, PLASTIC).moved(translation(0.028, 0, 0) @ rotation('y', math.pi / 2))
    ]
    hand = [
        box((0.032, 0.06, 0.036), SERVO).moved(translation(0.056, -0.002, 0)),
        box((0.012, 0.024, 0.045), PLASTIC).moved(translation(0.045, 0, 0.035)),
        _jaw().moved(translation(0.07, 0.0225, 0)),
    ]
    return {
        'base': join(base),
        'turret': join(turret),
        'upper': join(upper),
        'forearm': join(forearm),
        'wrist': join(wrist),
        'hand': join(hand),
        'jaw': join([_jaw().moved(translation(0.005, 0.0015, 0)), cylinder(0.012, 0.03, ACCENT)]),
    }


def _jaw() -> Mesh:
    """Return one finger along +x, 14 mm thick at its root."""
    root = box((0.05, 0.014, 0.026), PLASTIC, taper=0.85).moved(translation(0.025, 0, 0))
    tip = box((0.042, 0.0118, 0.0215), ACCENT, taper=0.8).moved(translation(0.071, 0, 0))
    return join([root, tip])


def arm_mesh(joints: Array) -> Mesh:
    """Return the whole arm at (6,) joints."""
    frames = {'base': np.eye(4), **link_frames(joints)}
    return join([mesh.moved(frames[name]) for name, mesh in _arm_parts().items()])


def block_mesh(color: str, frame: Array) -> Mesh:
    """Return one block of a colour at a frame in its centre."""
    size = (BLOCK_SIZE, BLOCK_SIZE, BLOCK_SIZE)
    return box(size, BLOCK_COLORS[color], gloss=0.25).moved(frame)
