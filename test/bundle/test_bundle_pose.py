# SPDX-License-Identifier: Apache-2.0
"""Poses against homogeneous matrices built with OpenCV's Rodrigues."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_policy_ros.bundle.pose import compose_poses, relate_poses

FORMATS = ('xyz_rot6d', 'xyz_rotvec')
seeds = st.integers(0, 10_000)


def make_rotvecs(rng, count, *, largest=np.pi - 1e-3):
    axes = rng.normal(size=(count, 3))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    return axes * rng.uniform(0, largest, (count, 1))


def pack(position, rotvec, pose_format):
    if pose_format == 'xyz_rotvec':
        return np.concatenate([position, rotvec])
    return np.concatenate([position, cv2.Rodrigues(rotvec)[0][:2].reshape(-1)])


def to_matrix(position, rotvec):
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = cv2.Rodrigues(rotvec)[0], position
    return matrix


@pytest.mark.parametrize('pose_format', FORMATS)
@given(seed=seeds)
def test_composition_is_the_product_of_matrices(pose_format, seed):
    rng = np.random.default_rng(seed)
    positions, rotvecs = rng.normal(size=(4, 3)), make_rotvecs(rng, 4)
    packed = [pack(p, r, pose_format) for p, r in zip(positions, rotvecs, strict=True)]
    matrices = [to_matrix(p, r) for p, r in zip(positions, rotvecs, strict=True)]

    got = compose_poses(np.array(packed[1:]), packed[0], pose_format)

    for pose, matrix in zip(got, matrices[1:], strict=True):
        expected = matrices[0] @ matrix
        if pose_format == 'xyz_rotvec':  # near pi the axis may point either way
            np.testing.assert_allclose(to_matrix(pose[:3], pose[3:]), expected, atol=1e-6)
        else:
            packed_expected = np.concatenate([expected[:3, 3], expected[:2, :3].reshape(-1)])
            np.testing.assert_allclose(pose, packed_expected, atol=1e-9)


@pytest.mark.parametrize('pose_format', FORMATS)
@given(seed=seeds)
def test_relating_undoes_composing(pose_format, seed):
    rng = np.random.default_rng(seed)
    rotvecs, positions = make_rotvecs(rng, 5), rng.normal(size=(5, 3))
    poses = np.array([pack(p, r, pose_format) for p, r in zip(positions, rotvecs, strict=True)])
    absolute = compose_poses(poses[1:], poses[0], pose_format)
    np.testing.assert_allclose(relate_poses(absolute, poses[0], pose_format), poses[1:], atol=1e-9)


@pytest.mark.parametrize('angle', [0.0, 1e-12, 1e-7, 1e-3, 3.0, np.pi - 1e-7, np.pi])
@pytest.mark.parametrize(
    'axis', [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0.6, 0, 0.8), (0.48, 0.6, 0.64)]
)
def test_rotation_vectors_survive_at_zero_and_at_pi(axis, angle):
    pose = np.array([[1, 2, 3, *(angle * np.array(axis))]])
    identity = np.zeros(6)
    np.testing.assert_allclose(
        compose_poses(pose, identity, 'xyz_rotvec'), pose, rtol=0, atol=1e-9
    )


def test_rot6d_holds_the_first_two_rows():
    quarter_turn = pack(np.zeros(3), np.array([0, 0, np.pi / 2]), 'xyz_rot6d')
    np.testing.assert_allclose(quarter_turn[3:], [0, -1, 0, 1, 0, 0], atol=1e-12)
    forward = np.array([[1, 0, 0, 1, 0, 0, 0, 1, 0]])
    moved = compose_poses(forward, quarter_turn, 'xyz_rot6d')
    np.testing.assert_allclose(moved[0], [0, 1, 0, 0, -1, 0, 1, 0, 0], atol=1e-12)


def test_rows_of_a_network_are_made_orthonormal():
    sloppy = np.array([[0, 0, 0, 2, 0.1, 0, 0.3, 1.5, 0.1]])
    identity = np.array([0, 0, 0, 1, 0, 0, 0, 1, 0])
    first, second = compose_poses(sloppy, identity, 'xyz_rot6d')[0, 3:].reshape(2, 3)
    np.testing.assert_allclose(
        [first @ first, second @ second, first @ second], [1, 1, 0], atol=1e-12
    )
    np.testing.assert_allclose(np.cross(first, [2, 0.1, 0]), 0, atol=1e-12)


def test_degenerate_rows_come_out_as_nan_for_the_chunk_check():
    identity = np.array([0, 0, 0, 1, 0, 0, 0, 1, 0])
    assert np.isnan(compose_poses(np.zeros((1, 9)), identity, 'xyz_rot6d')[0, 3:]).all()
