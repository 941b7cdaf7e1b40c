# SPDX-License-Identifier: Apache-2.0
"""Messages of one recorded step, with the faults that were asked for."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from sensor_msgs.msg import CompressedImage, Image, JointState

from vla_policy_ros.core.specs import Array
from vla_policy_ros.ros.convert import to_time
from vla_policy_ros.ros.faults import ALL_JOINTS, Fault, kinds

_NS_PER_S = 1_000_000_000


def shifted_stamp(stamp_ns: int, faults: Sequence[Fault]) -> int:
    """Return the stamp a message carries after its faults."""
    for fault in faults:
        if fault.kind == 'zero_stamp':
            return 0
        if fault.kind == 'delay':
            stamp_ns -= int(fault.value_s * _NS_PER_S)
        if fault.kind == 'jump':
            stamp_ns += int(fault.value_s * _NS_PER_S)
    return stamp_ns


def image_message(
    image: Array, *, camera: str, stamp_ns: int, jpeg_quality: int | None, faults: Sequence[Fault]
) -> Any:
    """Return one picture as `Image` (rgb8), or as `CompressedImage` when a JPEG quality is given.

    Args:
        image: (H, W, 3) uint8 RGB; copied into the message.
        camera: Becomes the frame id.
        stamp_ns: Capture time.
        jpeg_quality: 1 to 100, or None for raw.
        faults: What goes wrong with it.
    """
    broken = kinds(faults)
    if jpeg_quality is None:
        height, width, _ = image.shape
        message = Image(height=height, width=width, encoding='rgb8', step=width * 3)
        data = np.ascontiguousarray(image).reshape(-1)
        if 'encoding' in broken:
            message.encoding = 'unknown16'
    else:
        bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        _, encoded = cv2.imencode('.jpg', bgr, (cv2.IMWRITE_JPEG_QUALITY, jpeg_quality))
        message = CompressedImage(format='rgb8; jpeg compressed bgr8')
        data = encoded.reshape(-1)
        if 'encoding' in broken:
            message.format = 'unknown'
    if 'truncate' in broken:
        data = data[: len(data) // 2]
    # An array of the field's own type is taken over as it is; bytes would be checked element by element on Humble.
    payload = array('B')
    payload.frombytes(data.data)
    message.data = payload
    message.header.frame_id = camera
    message.header.stamp = to_time(stamp_ns)
    return message


def joint_message(
    names: Sequence[str], positions: Array, *, stamp_ns: int, faults: Sequence[Fault]
) -> JointState:
    """Return one state row as `JointState`; joint faults are matched by their target."""

    def is_hit(name: str, kind: str) -> bool:
        return any(f.kind == kind and f.target in (name, *ALL_JOINTS) for f in faults)

    kept = [index for index, name in enumerate(names) if not is_hit(name, 'missing')]
    values = [np.nan if is_hit(names[index], 'nan') else float(positions[index]) for index in kept]
    message = JointState(name=[names[index] for index in kept], position=array('d', values))
    message.header.stamp = to_time(stamp_ns)
    return message
