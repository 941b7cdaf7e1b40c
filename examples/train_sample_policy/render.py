# SPDX-License-Identifier: Apache-2.0
"""A small software renderer: perspective, one light with soft shadows, quads painted from far to near."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from arm import Array, link_frames
from shapes import Mesh

Image = npt.NDArray[np.uint8]

HEIGHT_PX, WIDTH_PX = 240, 320
SUPERSAMPLING = 2
NEAR_M = 0.01
TABLE_M = (-0.3, 0.6, -0.6, 0.6)
TEXELS_PER_M = 900
SHIFT = 4
"""Fractional bits of the corners that OpenCV fills between."""
LIGHT = np.array([0.35, -0.45, 1.0]) / np.linalg.norm([0.35, -0.45, 1.0])


@dataclass(frozen=True)
class View:
    """A pinhole camera: (3,) position, (3, 3) rows right, down, forward, and the horizontal field of view."""

    position: Array
    axes: Array
    fov_rad: float

    @classmethod
    def looking_at(cls, position: Array, target: Array, up: Array, *, fov_deg: float) -> View:
        """Return a camera at a place that looks at a target; `up` points to the top of the image."""
        forward = (target - position) / np.linalg.norm(target - position)
        right = np.cross(forward, up)
        right /= np.linalg.norm(right)
        axes = np.stack([right, np.cross(forward, right), forward])
        return cls(position, axes, math.radians(fov_deg))

    @property
    def focal_px(self) -> float:
        """Focal length in supersampled pixels."""
        return SUPERSAMPLING * WIDTH_PX / 2 / math.tan(self.fov_rad / 2)

    def to_camera(self, points: Array) -> Array:
        """Return (..., 3) world points as right, down, forward."""
        moved: Array = (points - self.position) @ self.axes.T
        return moved

    def project(self, camera_points: Array) -> Array:
        """Return (..., 2) supersampled pixels of points in the camera's frame, all before the camera."""
        center = np.array([WIDTH_PX, HEIGHT_PX]) * SUPERSAMPLING / 2
        plane: Array = camera_points[..., :2] / camera_points[..., 2:] * self.focal_px + center
        return plane


def front_view() -> View:
    """Return the camera that stands before the table and does not move."""
    position, target = np.array([0.5, 0.19, 0.4]), np.array([0.1, 0.0, 0.08])
    return View.looking_at(position, target, np.array([0.0, 0.0, 1.0]), fov_deg=58)


def wrist_view(joints: Array) -> View:
    """Return the camera on the hand for (6,) joints: it looks along the fingers and turns with the wrist."""
    hand = link_frames(joints)['hand']
    position = hand[:3, :3] @ np.array([0.035, 0.0, 0.062]) + hand[:3, 3]
    target = hand[:3, :3] @ np.array([0.17, 0.0, 0.012]) + hand[:3, 3]
    return View.looking_at(position, target, hand[:3, 2], fov_deg=82)


def render(view: View, solids: list[Mesh], *, brightness: float = 1.0) -> Image:
    """Return the (240, 320, 3) uint8 RGB image of solids on the table."""
    size = (HEIGHT_PX * SUPERSAMPLING, WIDTH_PX * SUPERSAMPLING)
    image = _backdrop(*size).copy()
    _paint_table(image, view, solids)
    _paint_solids(image, view, solids)
    small = cv2.resize(image, (WIDTH_PX, HEIGHT_PX), interpolation=cv2.INTER_AREA)
    lit: Any = cv2.convertScaleAbs(small, alpha=brightness)
    return np.asarray(lit, np.uint8)


@lru_cache(maxsize=1)
def _backdrop(height: int, width: int) -> Image:
    """Return a wall in a soft vertical gradient."""
    top, bottom = np.array([150, 165, 180.0]), np.array([214, 220, 224.0])
    share = np.linspace(0, 1, height)[:, None, None]
    wall = top * (1 - share) + bottom * share
    return np.ascontiguousarray(np.broadcast_to(wall, (height, width, 3)).astype(np.uint8))


@lru_cache(maxsize=1)
def _table_texture() -> Image:
    """Return the table from above: wood with a light grain, and a checked mat before the arm."""
    x0, x1, y0, y1 = TABLE_M
    rows, columns = round((x1 - x0) * TEXELS_PER_M), round((y1 - y0) * TEXELS_PER_M)
    noise = np.random.default_rng(7).normal(size=(rows, columns)).astype(np.float32)
    grain = cv2.GaussianBlur(noise, (0, 0), sigmaX=60, sigmaY=1.6) * 26
    texture = np.array([196, 168, 132], np.float32) + grain[..., None] * [1.0, 0.95, 0.85]
    x = x0 + (np.arange(rows) + 0.5) / TEXELS_PER_M
    y = y0 + (np.arange(columns) + 0.5) / TEXELS_PER_M
    check = (np.floor(x / 0.05)[:, None] + np.floor(y / 0.05)[None, :]) % 2
    mat = np.where(check[..., None] > 0, [226.0, 227, 226], [206.0, 208, 209])
    on_mat = ((x >= 0.1) & (x < 0.35))[:, None] & (np.abs(y) < 0.3)[None, :]
    texture = np.where(on_mat[..., None], mat, texture)
    away = np.hypot(x[:, None] - 0.15, y[None, :])[..., None]
    return np.clip(texture * (1.04 - 0.45 * away**1.5), 0, 255).astype(np.uint8)


def _paint_table(image: Image, view: View, solids: list[Mesh]) -> None:
    """Paint the table with the shadows of the solids on it."""
    x0, x1, y0, y1 = TABLE_M
    corners = np.array([[x0, y0, 0], [x1, y0, 0], [x1, y1, 0], [x0, y1, 0.0]])
    outline = _clip_near(view.to_camera(corners))
    if len(outline) < 3:
        return
    height, width = image.shape[:2]
    mask = np.zeros((height, width), np.uint8)
    cv2.fillPoly(mask, [_fixed(view.project(outline))], 255, cv2.LINE_AA, SHIFT)
    texture = _shadowed(_table_texture(), solids)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    warped = cv2.warpPerspective(
        texture,
        _pixel_to_texel(view),
        (width, height),
        flags=flags,
        borderMode=cv2.BORDER_REPLICATE,
    )
    cv2.copyTo(warped, mask, image)


def _pixel_to_texel(view: View) -> Array:
    """Return the (3, 3) homography from supersampled pixels to texels of the table."""
    center = np.array([WIDTH_PX, HEIGHT_PX]) * SUPERSAMPLING / 2
    inverse = np.diag([1 / view.focal_px, 1 / view.focal_px, 1.0])
    inverse[:2, 2] = -center / view.focal_px
    ray = view.axes.T @ inverse
    point = -view.position[2] * ray[:2] + view.position[:2, None] * ray[2]
    homography = np.stack([point[1] - TABLE_M[2] * ray[2], point[0] - TABLE_M[0] * ray[2], ray[2]])
    texel: Array = np.diag([TEXELS_PER_M, TEXELS_PER_M, 1.0]) @ homography
    return texel


def _shadowed(texture: Image, solids: list[Mesh]) -> Image:
    """Return the table's texture with the soft shadows of the solids."""
    quads = np.concatenate([mesh.quads for mesh in solids])
    ground = quads[..., :2] - LIGHT[:2] / LIGHT[2] * quads[..., 2:]
    scale = 4
    texel = (ground - [TABLE_M[0], TABLE_M[2]])[..., ::-1] * (TEXELS_PER_M / scale)
    shadow = np.zeros((texture.shape[0] // scale, texture.shape[1] // scale), np.uint8)
    for quad in _fixed(texel):
        cv2.fillConvexPoly(shadow, quad, 120, cv2.LINE_8, SHIFT)
    shadow = cv2.GaussianBlur(shadow, (0, 0), 1.6)
    x, y, width, height = cv2.boundingRect(shadow)
    dark = texture.copy()
    part = dark[y * scale : (y + height) * scale, x * scale : (x + width) * scale]
    wide = cv2.resize(shadow[y : y + height, x : x + width], part.shape[1::-1])
    part[:] = cv2.multiply(part, cv2.merge([255 - wide] * 3), scale=1 / 255)
    return dark


def _paint_solids(image: Image, view: View, solids: list[Mesh]) -> None:
    """Paint all quads that face the camera, far ones first."""
    quads = np.concatenate([mesh.quads for mesh in solids])
    normal = np.cross(quads[:, 1] - quads[:, 0], quads[:, 2] - quads[:, 0])
    normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-12
    color = _shade(
        quads.mean(axis=1),
        normal,
        view,
        np.concatenate([mesh.color for mesh in solids]),
        np.concatenate([mesh.gloss for mesh in solids]),
    )
    facing = np.einsum('pi,pi->p', view.position - quads[:, 0], normal) > 0
    placed = view.to_camera(quads)
    seen = np.flatnonzero(facing & (placed[..., 2] > NEAR_M).all(axis=1))
    seen = seen[np.argsort(-np.linalg.norm(placed[seen].mean(axis=1), axis=1))]
    corners = _fixed(view.project(placed[seen]))
    for quad, paint in zip(corners, color[seen].tolist(), strict=True):
        cv2.fillConvexPoly(image, quad, paint, cv2.LINE_8, SHIFT)


def _shade(center: Array, normal: Array, view: View, color: Array, gloss: Array) -> Array:
    """Return (P, 3) RGB of faces: light from the sky and the table, a lamp, and its highlight."""
    lamp = np.clip(normal @ LIGHT, 0, None)
    sky = 0.5 + 0.5 * normal[:, 2]
    eye = view.position - center
    eye /= np.linalg.norm(eye, axis=1, keepdims=True)
    half = eye + LIGHT
    half /= np.linalg.norm(half, axis=1, keepdims=True)
    shine = gloss * np.clip(np.einsum('pi,pi->p', normal, half), 0, None) ** 24
    lit = color * (0.38 + 0.22 * sky + 0.45 * lamp)[:, None] + 150 * shine[:, None]
    return np.clip(lit, 0, 255)


def _clip_near(polygon: Array) -> Array:
    """Return a polygon in the camera's frame without what lies behind the near plane."""
    kept = []
    for here, after in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if here[2] > NEAR_M:
            kept.append(here)
        if (here[2] > NEAR_M) != (after[2] > NEAR_M):
            kept.append(here + (after - here) * (NEAR_M - here[2]) / (after[2] - here[2]))
    return np.array(kept)


def _fixed(pixels: Array) -> npt.NDArray[np.int32]:
    """Return pixels as the fixed-point numbers that OpenCV's fill functions take."""
    bounded = np.clip(pixels - 0.5, -8000, 8000)
    return np.round(bounded * (1 << SHIFT)).astype(np.int32)
