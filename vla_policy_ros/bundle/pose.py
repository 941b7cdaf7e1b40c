# SPDX-License-Identifier: Apache-2.0
"""Poses as flat vectors, composed with and taken relative to a reference pose.

Formats: `xyz_rot6d` is (x, y, z) and the first two rows of the rotation matrix; `xyz_rotvec` is (x, y, z) and the
rotation vector (axis times angle in rad). A relative pose is the target seen from the reference: T_ref^-1 T_target.
Both conventions are GR00T's (`gr00t/data/state_action/pose.py`).
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from vla_policy_ros.core.specs import Array

PoseFormat = Literal['xyz_rot6d', 'xyz_rotvec']


def compose_poses(relative: Array, reference: Array, pose_format: PoseFormat) -> Array:
    """Return the absolute poses of poses relative to a reference: T_reference T_relative.

    Args:
        relative: (K, 9) for `xyz_rot6d`, (K, 6) for `xyz_rotvec`; metres and, for rotvec, radians.
        reference: (9,) or (6,), the same format.
        pose_format: The format of all of them.

    Returns:
        (K, 9) or (K, 6) float64; rotations are proper ones, also where the input's rows are not orthonormal.
    """
    base, turn = _rotation(reference, pose_format), _rotation(relative, pose_format)
    position = reference[:3] + relative[:, :3] @ base.T
    return _pack(position, base @ turn, pose_format)


def relate_poses(absolute: Array, reference: Array, pose_format: PoseFormat) -> Array:
    """Return absolute poses relative to a reference, the inverse of `compose_poses`; same shapes and units."""
    base, turn = _rotation(reference, pose_format), _rotation(absolute, pose_format)
    position = (absolute[:, :3] - reference[:3]) @ base
    return _pack(position, base.T @ turn, pose_format)


def _rotation(pose: Array, pose_format: PoseFormat) -> Array:
    to_matrix = _matrix_from_rot6d if pose_format == 'xyz_rot6d' else _matrix_from_rotvec
    return to_matrix(pose[..., 3:].astype(np.float64))


def _pack(position: Array, rotation: Array, pose_format: PoseFormat) -> Array:
    if pose_format == 'xyz_rot6d':
        numbers = rotation[:, :2].reshape(-1, 6)
    else:
        numbers = _rotvec_from_matrix(rotation)
    return np.concatenate([position, numbers], axis=1)


def _matrix_from_rot6d(rot6d: Array) -> Array:
    """(..., 6) to (..., 3, 3) by Gram-Schmidt; parallel or zero rows give NaN, which the chunk's check refuses."""
    first, second = rot6d[..., :3], rot6d[..., 3:]
    with np.errstate(invalid='ignore', divide='ignore'):
        first = first / np.linalg.norm(first, axis=-1, keepdims=True)
        second = second - (first * second).sum(axis=-1, keepdims=True) * first
        second = second / np.linalg.norm(second, axis=-1, keepdims=True)
    return np.stack([first, second, np.cross(first, second)], axis=-2)


def _matrix_from_rotvec(rotvec: Array) -> Array:
    """(..., 3) to (..., 3, 3) by Rodrigues' formula; sinc keeps it exact at zero."""
    angle = np.linalg.norm(rotvec, axis=-1)[..., None, None]
    x, y, z = np.moveaxis(rotvec, -1, 0)
    zero = np.zeros_like(x)
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=-1)
    cross = cross.reshape(*rotvec.shape[:-1], 3, 3)
    sine, versine = np.sinc(angle / np.pi), np.sinc(angle / (2 * np.pi)) ** 2 / 2
    matrix: Array = np.eye(3) + sine * cross + versine * (cross @ cross)
    return matrix


def _rotvec_from_matrix(matrix: Array) -> Array:
    """(K, 3, 3) to (K, 3) with angles in [0, pi], by way of the quaternion, which is stable at 0 and at pi."""
    m = np.moveaxis(matrix, 0, -1)
    trace = m[0, 0] + m[1, 1] + m[2, 2]
    # Four times the outer product of the quaternion (w, x, y, z) with itself, which is linear in the matrix.
    outer = np.empty((4, 4, len(matrix)))
    outer[0, 0] = 1 + trace
    outer[0, 1:] = outer[1:, 0] = m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]
    outer[1:, 1:] = m + m.transpose(1, 0, 2) + np.eye(3)[..., None] * (1 - trace)
    best = np.einsum('iik->ik', outer).argmax(axis=0)
    quaternion = outer[best, :, np.arange(len(matrix))]
    quaternion /= np.linalg.norm(quaternion, axis=1, keepdims=True)
    quaternion *= np.where(quaternion[:, :1] < 0, -1, 1)
    w, vector = quaternion[:, 0], quaternion[:, 1:]
    sine = np.linalg.norm(vector, axis=1)
    angle = 2 * np.arctan2(sine, w)
    scale = np.divide(angle, sine, out=np.full_like(sine, 2.0), where=sine > 0)
    rotvec: Array = vector * scale[:, None]
    return rotvec
