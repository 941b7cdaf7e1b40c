# SPDX-License-Identifier: Apache-2.0
"""One camera image: as it arrived, and as the policy's network wants it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from vla_policy_ros.core.specs import Array

COMPRESSED_ENCODINGS = ('jpeg', 'png')


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One image as it arrived: a view of the message's bytes, nothing decoded or copied.

    Attributes:
        camera: Name of the camera in the policy.
        stamp_ns: Capture time.
        encoding: Pixel format under its ROS name (`sensor_msgs/image_encodings`), or `jpeg` / `png`.
        height: Rows in pixels; 0 for a compressed image.
        width: Columns in pixels; 0 for a compressed image.
        step_bytes: Bytes from one row to the next; 0 for a compressed image.
        data: (n,) uint8, host memory, C-contiguous; may be read-only.
        is_bigendian: Byte order of formats with more than 8 bits per channel.
    """

    camera: str
    stamp_ns: int
    encoding: str
    height: int
    width: int
    step_bytes: int
    data: Array
    is_bigendian: bool = False

    @classmethod
    def from_rgb(cls, camera: str, stamp_ns: int, image: Array) -> Frame:
        """Wrap a (H, W, 3) uint8 RGB array (copied only when it is not C-contiguous)."""
        height, width, channels = image.shape
        return cls(camera, stamp_ns, 'rgb8', height, width, width * channels, image.reshape(-1))


class PreparedFrame(Protocol):
    """One image preprocessed ahead of its inference; its slot is free again when the last reference is gone."""

    @property
    def camera(self) -> str:
        """Name of the camera in the policy."""

    @property
    def stamp_ns(self) -> int:
        """Capture time."""
