# SPDX-License-Identifier: Apache-2.0
"""The simulated table: three blocks, an arm that follows its commands with a lag, and a scripted expert."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from arm import (
    GRIP_HOLD,
    GRIP_OPEN,
    HOME,
    Array,
    grip_frame,
    joints_above,
    rotation,
    translation,
)
from render import Image, front_view, render, wrist_view
from shapes import BLOCK_COLORS, BLOCK_SIZE, arm_mesh, block_mesh

RATE_HZ = 15
STEP_NS = round(1e9 / RATE_HZ)
FOLLOW = 0.65
"""Share of the way to its command that the arm covers in one step."""
GRASP_M = 0.011
HOVER_M, LIFT_M = 0.075, 0.09
COLORS = tuple(BLOCK_COLORS)
PHRASES = (
    'pick up the {color} block',
    'grab the {color} block',
    'lift the {color} block',
    'take the {color} block',
    'please pick up the {color} block',
)


@dataclass
class World:
    """The table at one moment; `step` moves it on by one command.

    Attributes:
        joints: (6,) measured joints: radians, gripper 0 to 1.
        blocks: Color to (4, 4) frame of the block's centre.
        brightness: Strength of the light in this episode.
    """

    joints: Array
    blocks: dict[str, Array]
    brightness: float = 1.0
    _held: dict[str, Array] = field(default_factory=dict)

    @classmethod
    def random(cls, rng: np.random.Generator) -> World:
        """Return a table with the blocks at random places and the arm near its home pose."""
        spread = np.array([0.6, 0.2, 0.2, 0.25, 0.35, 0.2])
        joints = HOME + rng.uniform(-1, 1, 6) * spread
        places: list[Array] = []
        while len(places) < len(COLORS):
            reach, side = rng.uniform(0.15, 0.235), rng.uniform(-0.85, 0.85)
            place = np.array([reach * math.cos(side), reach * math.sin(side), BLOCK_SIZE / 2])
            if all(np.linalg.norm(place - other) > 0.062 for other in places):
                places.append(place)
        blocks = {}
        for color, place in zip(COLORS, places, strict=True):
            yaw = math.atan2(place[1], place[0]) + rng.uniform(-0.45, 0.45)
            blocks[color] = translation(*place) @ rotation('z', yaw)
        return cls(joints, blocks, rng.uniform(0.9, 1.06))

    def step(self, command: Array, disturbance: Array | float = 0.0) -> None:
        """Follow a (6,) command for one step; a closing gripper takes the block between its jaws."""
        self.joints = self.joints + FOLLOW * (command - self.joints) + disturbance
        grip = grip_frame(self.joints)
        if self.joints[5] > GRIP_HOLD + 0.12:
            self._release()
        elif not self._held:
            for color, frame in self.blocks.items():
                if np.linalg.norm(frame[:3, 3] - grip[:3, 3]) < GRASP_M:
                    self._held = {color: np.linalg.inv(grip) @ frame}
        for color, offset in self._held.items():
            self.joints[5] = max(self.joints[5], GRIP_HOLD)
            self.blocks[color] = grip @ offset

    def lifted(self) -> str | None:
        """Return the colour of the block that is held clear of the table, None when there is none."""
        for color in self._held:
            if self.blocks[color][2, 3] > BLOCK_SIZE / 2 + 0.03:
                return color
        return None

    def images(self) -> dict[str, Image]:
        """Return what the cameras `front` and `wrist` see, each (240, 320, 3) uint8 RGB."""
        solids = [arm_mesh(self.joints)]
        solids += [block_mesh(color, frame) for color, frame in self.blocks.items()]
        views = {'front': front_view(), 'wrist': wrist_view(self.joints)}
        return {
            name: render(view, solids, brightness=self.brightness) for name, view in views.items()
        }

    def _release(self) -> None:
        for color in self._held:
            self.blocks[color][2, 3] = BLOCK_SIZE / 2
        self._held = {}


@dataclass(frozen=True)
class EpisodeRecord:
    """One recorded pick of N steps, without its images.

    Attributes:
        worlds: N tables, as they were when the step's action was given.
        state: (N, 6) float32 measured joints.
        action: (N, 6) float32 commanded joints.
        instruction: What the arm was told.
        target: (3,) place of the block that was asked for, metres.
    """

    worlds: tuple[World, ...]
    state: np.ndarray[tuple[int, int], np.dtype[np.float32]]
    action: np.ndarray[tuple[int, int], np.dtype[np.float32]]
    instruction: str
    target: Array


def record_episode(seed: tuple[int, int], *, wander_rad: float = 0.0) -> EpisodeRecord:
    """Let the expert pick a random block up and record it.

    Args:
        seed: Seed of the dataset and index of the episode; together they fix everything.
        wander_rad: Size of slow disturbances while the arm moves freely, so that a policy sees how to come back.

    Raises:
        RuntimeError: The expert did not lift the block; the script would be at fault.
    """
    rng = np.random.default_rng(seed)
    world = World.random(rng)
    color = COLORS[seed[1] % len(COLORS)]
    instruction = PHRASES[rng.integers(len(PHRASES))].format(color=color)
    target = world.blocks[color][:3, 3].copy()
    action, is_free = plan_pick(world, color)
    drift = np.zeros(6)
    worlds, state = [], []
    for command, free in zip(action, is_free, strict=True):
        worlds.append(World(world.joints.copy(), dict(world.blocks), world.brightness))
        state.append(world.joints.copy())
        drift = 0.8 * drift + 0.6 * wander_rad * rng.normal(size=6) * [1, 1, 1, 1, 1, 0]
        world.step(command, drift * FOLLOW if free else 0.0)
    if world.lifted() != color:
        raise RuntimeError(f'episode {seed}: the expert did not lift the {color} block')
    return EpisodeRecord(tuple(worlds), np.float32(state), np.float32(action), instruction, target)


def plan_pick(
    world: World, color: str
) -> tuple[Array, np.ndarray[tuple[int], np.dtype[np.bool_]]]:
    """Return the expert's (N, 6) commands for a pick, and which of the N steps are far from the blocks."""
    frame = world.blocks[color]
    yaw = math.atan2(frame[1, 0], frame[0, 0])
    place = frame[:3, 3]
    above = place + np.array([0, 0, HOVER_M])
    hover = joints_above(above, yaw, GRIP_OPEN)
    down = joints_above(place, yaw, GRIP_OPEN)
    closed = joints_above(place, yaw, GRIP_HOLD - 0.08)
    lifted = joints_above(place + np.array([0, 0, LIFT_M]), yaw, GRIP_HOLD - 0.08)
    reach_steps = round(14 + 8 * min(2.0, float(np.abs(hover - world.joints)[:5].max())))
    legs = (
        (world.joints, hover, reach_steps),
        (hover, down, 13),
        (down, down, 2),
        (down, closed, 7),
        (closed, lifted, 16),
        (lifted, lifted, 6),
    )
    commands = np.concatenate([_min_jerk(start, end, steps) for start, end, steps in legs])
    return commands, np.arange(len(commands)) < reach_steps - 4


def _min_jerk(start: Array, end: Array, steps: int) -> Array:
    """Return (steps, D) points after `start` up to `end`: least jerk, still at both ends."""
    share = (np.arange(1, steps + 1) / steps)[:, None]
    path: Array = start + (end - start) * (10 * share**3 - 15 * share**4 + 6 * share**5)
    return path
