# SPDX-License-Identifier: Apache-2.0
"""One camera's way from a frame to its place in the policy's tensor."""

from __future__ import annotations

import cv2
import numpy as np

from vla_policy_ros.bundle.manifest import Camera
from vla_policy_ros.core.frame import Frame
from vla_policy_ros.core.specs import Array, TensorSpec
from vla_policy_ros.preprocess.decode import checked_size, decode_rgb
from vla_policy_ros.preprocess.geometry import GeometryPlan


class CameraPreprocessor:
    """Decodes, resizes, crops, pads and normalises the frames of one camera.

    It keeps its buffers for as long as the frames keep their size, so that in steady state nothing of the image's size
    is allocated; the exceptions are OpenCV's image of a compressed frame and Pillow's result at the target's size.

    Threads: one at a time; every camera has its own preprocessor.
    """

    def __init__(self, camera: Camera) -> None:
        self.image_shape = camera.image_shape
        """Shape of one history entry."""
        self.dtype = np.dtype(camera.dtype)
        """Element type of the tensor."""
        self._camera = camera
        self._spec = TensorSpec(camera.tensor, self.image_shape, camera.dtype)
        self._order = (0, 1, 2) if camera.color == 'rgb' else (2, 1, 0)
        self._tables = make_tables(camera)
        self._levels = np.empty(camera.size, np.uint8)
        self._plane = np.empty(camera.size, self._tables.dtype)
        self._plan: GeometryPlan | None = None
        self._rgb = np.empty((0, 0, 3), np.uint8)

    def run(self, frame: Frame, out: Array) -> None:
        """Preprocess one frame into one history entry of the tensor.

        Args:
            frame: The frame as it arrived.
            out: Array of `image_shape` and `dtype`, C-contiguous, host memory.

        Raises:
            ImageError: The frame cannot be decoded, or a crop or pad does not fit its size.
            SpecMismatchError: `out` has another shape or element type.
        """
        self._spec.validate(out)
        plan = self._plan_for(checked_size(frame))
        image = decode_rgb(frame, None if frame.encoding == 'rgb8' else self._rgb)
        self._normalize(plan.run(image), out)

    def _plan_for(self, size: tuple[int, int]) -> GeometryPlan:
        if self._plan is None or self._plan.source_size != size:
            where = f'camera {self._camera.name!r}'
            self._plan = GeometryPlan(self._camera.geometry, size, where=where)
            self._rgb = np.empty((*size, 3), np.uint8)
        return self._plan

    def _normalize(self, image: Array, out: Array) -> None:
        """Look every level up in its channel's table: one pass per channel for any scale, mean, std and type."""
        out = out.view(self._tables.dtype)
        for channel, source in enumerate(self._order):
            cv2.extractChannel(image, source, dst=self._levels)
            table = self._tables[channel]
            if self._camera.layout == 'chw':
                cv2.LUT(self._levels, table, dst=out[channel])
                continue
            cv2.LUT(self._levels, table, dst=self._plane)
            if self._camera.layout == 'hwc':
                cv2.insertChannel(self._plane, out, channel)
            else:
                rows, plane = _patch_views(self._camera, out, self._plane)
                np.copyto(rows[..., channel, :, :, :], plane)


def _patch_views(camera: Camera, out: Array, plane: Array) -> tuple[Array, Array]:
    """Return views of the patches and of one channel's pixels whose dimensions stand for the same.

    The order is that of `_preprocess` in transformers' `Qwen2VLImageProcessor`: window row, window column, patch row,
    patch column, then in `out` the channel, then the repetition, pixel row, pixel column.
    """
    patch, merge = camera.patch_size, camera.merge_size
    assert patch  # refused by the manifest
    height, width = (edge // (patch * merge) for edge in camera.size)
    rows = out.reshape(height, width, merge, merge, 3, camera.temporal, patch, patch)
    pixels = plane.reshape(height, merge, patch, width, merge, patch)
    return rows, pixels.transpose(0, 3, 1, 4, 2, 5)[:, :, :, :, None]


def make_tables(camera: Camera) -> Array:
    """Return (3, 1, 256): the tensor's value of every level per channel, computed in float64 and rounded to float32.

    Types of 16 bits are rounded from there, to the nearest with ties to even, as training code that computes in float32 does.
    float16 and bfloat16 come as their bits in uint16, which OpenCV looks up in all its versions.
    """
    levels = np.broadcast_to(np.arange(256), (3, 1, 256))
    if camera.dtype == 'uint8':
        return np.ascontiguousarray(levels, np.uint8)
    mean, std = (np.array(values).reshape(3, 1, 1) for values in (camera.mean, camera.std))
    values: Array = ((levels * camera.scale - mean) / std).astype(np.float32)
    return values if camera.dtype == 'float32' else values.astype(camera.dtype).view(np.uint16)
