# SPDX-License-Identifier: Apache-2.0
"""cv_bridge for the encodings that only it knows; ours stay zero-copy views."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

from vla_policy_ros.core.errors import ImageError
from vla_policy_ros.core.frame import Frame


def load_cv_bridge() -> Callable[[Frame], Frame] | None:
    """Return a converter to rgb8, or None where cv_bridge is not installed."""
    try:
        from cv_bridge import CvBridge, CvBridgeError
    except ImportError:
        return None
    bridge = CvBridge()

    def convert(frame: Frame) -> Frame:
        message = SimpleNamespace(
            encoding=frame.encoding,
            height=frame.height,
            width=frame.width,
            step=frame.step_bytes,
            is_bigendian=frame.is_bigendian,
            data=frame.data,
        )
        try:
            image = bridge.imgmsg_to_cv2(message, 'rgb8')
        except (CvBridgeError, KeyError, ValueError, TypeError) as fault:
            raise ImageError(
                f'camera {frame.camera!r}',
                got=f'encoding {frame.encoding!r} ({fault})',
                expected='an encoding that cv_bridge turns into rgb8',
                next_step='Publish rgb8, or one of the encodings in doc/reference.',
                code='unknown_encoding',
            ) from fault
        return Frame.from_rgb(frame.camera, frame.stamp_ns, image)

    return convert
