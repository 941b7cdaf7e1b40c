# SPDX-License-Identifier: Apache-2.0
"""Kinematics of a small six-joint arm in the SO-101 layout: frames of its links, and joints for a grasp from above."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

JOINTS = ('shoulder_pan', 'shoulder_lift', 'elbow_flex', 'wrist_flex', 'wrist_roll', 'gripper')
SHOULDER_X, SHOULDER_Z = 0.03, 0.115
UPPER, FOREARM, HAND = 0.116, 0.135, 0.15
HOME = np.array([0.0, -1.2, 0.6, 1.5, 0.0, 0.25])
GRIP_OPEN, GRIP_HOLD = 0.9, 0.3
JAW_RAD = 0.9
"""Angle that the moving jaw turns through while the gripper goes from 0 to 1."""


def translation(x: float, y: float, z: float) -> Array:
    """Return the (4, 4) transform that moves by x, y, z metres."""
    matrix = np.eye(4)
    matrix[:3, 3] = x, y, z
    return matrix


def rotation(axis: str, angle_rad: float) -> Array:
    """Return the (4, 4) transform that turns about one axis of the frame, right-handed."""
    first, second = {'x': (1, 2), 'y': (2, 0), 'z': (0, 1)}[axis]
    matrix = np.eye(4)
    matrix[first, first] = matrix[second, second] = math.cos(angle_rad)
    matrix[second, first] = math.sin(angle_rad)
    matrix[first, second] = -math.sin(angle_rad)
    return matrix


def link_frames(joints: Array) -> dict[str, Array]:
    """Return the frame of every link in the world, x along the link, z up when the arm is level.

    Args:
        joints: (6,) radians, gripper 0 (closed) to 1 (open).
    """
    pan, lift, elbow, wrist, roll, gripper = (float(value) for value in joints)
    turret = rotation('z', pan)
    upper = turret @ translation(SHOULDER_X, 0, SHOULDER_Z) @ rotation('y', lift - math.pi / 2)
    forearm = upper @ translation(UPPER, 0, 0) @ rotation('y', math.pi / 2 + elbow)
    wrist_frame = forearm @ translation(FOREARM, 0, 0) @ rotation('y', wrist)
    hand = wrist_frame @ rotation('x', roll)
    jaw = hand @ translation(0.065, -0.024, 0) @ rotation('z', -(gripper - GRIP_HOLD) * JAW_RAD)
    return {
        'turret': turret,
        'upper': upper,
        'forearm': forearm,
        'wrist': wrist_frame,
        'hand': hand,
        'jaw': jaw,
    }


def grip_frame(joints: Array) -> Array:
    """Return the frame of the point between the jaws' tips: x out of the hand, y across the jaws."""
    return link_frames(joints)['hand'] @ translation(HAND, 0, 0)


def joints_above(point: Array, yaw_rad: float, gripper: float) -> Array:
    """Return the (6,) joints that hold the hand straight down at a point, jaws square to a block's sides.

    Args:
        point: (3,) where the grip point goes, metres.
        yaw_rad: Direction of one side of the block about the vertical.
        gripper: Opening, 0 to 1.
    """
    pan = math.atan2(point[1], point[0])
    reach = math.hypot(point[0], point[1]) - SHOULDER_X
    rise = point[2] + HAND - SHOULDER_Z
    distance = math.hypot(reach, rise)
    bend = _angle_between(UPPER, FOREARM, distance)
    shoulder = math.atan2(rise, reach) + _angle_between(UPPER, distance, FOREARM)
    lift = math.pi / 2 - shoulder
    elbow = math.pi / 2 - bend
    wrist = math.pi / 2 - lift - elbow
    quarter = math.pi / 2
    roll = (pan - yaw_rad + quarter / 2) % quarter - quarter / 2
    return np.array([pan, lift, elbow, wrist, roll, gripper])


def _angle_between(first: float, second: float, opposite: float) -> float:
    """Return the angle between two sides of a triangle (law of cosines)."""
    cosine = (first**2 + second**2 - opposite**2) / (2 * first * second)
    return math.acos(min(1.0, max(-1.0, cosine)))
