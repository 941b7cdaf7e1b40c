# SPDX-License-Identifier: Apache-2.0
"""Images preprocessed on the CPU ahead of their inference, in slots that are made once and used again and again."""

from __future__ import annotations

import threading
from contextlib import ExitStack

import numpy as np

from vla_policy_ros.bundle.manifest import Camera
from vla_policy_ros.core.frame import Frame, PreparedFrame
from vla_policy_ros.core.slots import SlotHold, SlotRing
from vla_policy_ros.core.specs import Array
from vla_policy_ros.preprocess.camera import CameraPreprocessor


class PreparedImage(SlotHold[Array]):
    """One preprocessed image in host memory."""

    __slots__ = ()

    @property
    def image(self) -> Array:
        """The result, of the shape of one history entry."""
        return self.slot


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
        self._ring = SlotRing(np.zeros(shape, dtype) for _ in range(slots))

    @property
    def num_free(self) -> int:
        """Number of free slots."""
        return self._ring.num_free

    def prepare(self, frame: Frame) -> PreparedImage:
        """Preprocess one image into a free slot.

        Raises:
            ImageError: No slot is free (`no_free_slot`), or the image cannot be decoded.
        """
        slot = self._ring.take(frame)
        with ExitStack() as undo:
            undo.callback(self._ring.give_back, slot)
            self.run(frame, slot)
            undo.pop_all()
        return PreparedImage(frame, slot, self._ring)

    def copy(self, image: PreparedFrame, out: Array) -> bool:
        """Copy a prepared image to its place in the pool; return whether it lies in one of these slots."""
        if not (isinstance(image, PreparedImage) and image.ring is self._ring):
            return False
        np.copyto(out, image.image)
        return True

    def run(self, frame: Frame, out: Array) -> None:
        """Preprocess one image into `out`, of the shape of one history entry.

        Raises:
            ImageError: The image cannot be decoded.
        """
        with self._lock:
            self._preprocessor.run(frame, out)
