# SPDX-License-Identifier: Apache-2.0
"""Images preprocessed ahead of their inference, in slots that are made once and used again and again."""

from __future__ import annotations

import threading
from collections import deque
from contextlib import ExitStack

import numpy as np

from vla_policy_ros.bundle.manifest import Camera
from vla_policy_ros.core.errors import ImageError
from vla_policy_ros.core.frame import Frame
from vla_policy_ros.core.specs import Array
from vla_policy_ros.preprocess.camera import CameraPreprocessor


class PreparedImage:
    """One preprocessed image in a slot of a ring; the slot is free again when the last reference is gone."""

    __slots__ = ('camera', 'home', 'image', 'stamp_ns')

    def __init__(self, frame: Frame, image: Array, home: deque[Array]) -> None:
        self.camera = frame.camera
        self.stamp_ns = frame.stamp_ns
        self.image = image
        self.home = home

    def __del__(self) -> None:
        # The only place that returns a slot: no caller can forget it, and none can do it too early.
        self.home.append(self.image)


class CameraSlots:
    """One camera's preprocessor and its ring of slots. Any thread may call it.

    Args:
        camera: Its settings in the bundle.
        slots: Number of images that may be prepared and not yet let go.
    """

    def __init__(self, camera: Camera, slots: int) -> None:
        self._preprocessor = CameraPreprocessor(camera)
        self._lock = threading.Lock()  # the preprocessor has scratch buffers of its own
        shape, dtype = self._preprocessor.image_shape, self._preprocessor.dtype
        # A deque's append and popleft are atomic, which matters: a slot may come back on any thread.
        self._free = deque(np.zeros(shape, dtype) for _ in range(slots))
        self._count = slots

    @property
    def num_free(self) -> int:
        """Number of free slots."""
        return len(self._free)

    def prepare(self, frame: Frame) -> PreparedImage:
        """Preprocess one image into a free slot.

        Raises:
            ImageError: No slot is free (`no_free_slot`), or the image cannot be decoded.
        """
        try:
            slot = self._free.popleft()
        except IndexError:
            raise ImageError(
                f'camera {frame.camera!r}',
                got=f'{self._count} prepared images still in use',
                expected='a free slot',
                next_step='Let prepared images go, or give the policy more slots.',
                code='no_free_slot',
            ) from None
        with ExitStack() as undo:
            undo.callback(self._free.append, slot)
            self.run(frame, slot)
            undo.pop_all()
        return PreparedImage(frame, slot, self._free)

    def owns(self, image: PreparedImage) -> bool:
        """Tell whether an image lies in one of these slots."""
        return image.home is self._free

    def run(self, frame: Frame, out: Array) -> None:
        """Preprocess one image into `out`, of the shape of one history entry.

        Raises:
            ImageError: The image cannot be decoded.
        """
        with self._lock:
            self._preprocessor.run(frame, out)
