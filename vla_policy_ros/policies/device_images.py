# SPDX-License-Identifier: Apache-2.0
"""From prepared images on the device to the pool, on the policy's stream."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

from vla_policy_ros.bundle.bundle import Bundle
from vla_policy_ros.core.frame import Frame, PreparedFrame
from vla_policy_ros.gpu.camera import DeviceCamera, DevicePreparedImage
from vla_policy_ros.gpu.interfaces import Device, DeviceBuffer, Stream
from vla_policy_ros.policies.device_pool import DevicePool
from vla_policy_ros.policies.inputs import CameraInput


class DeviceSlots:
    """One camera's slots, read on the policy's stream.

    A slot may be written again as soon as its image is let go. That is safe: a caller holds its images until the
    inference has returned, and that waits for the copies below. Where an inference fails before its end, the copy of
    an image that is let go early may read what comes next into the slot; but then nobody reads the copy.

    Args:
        device: The device.
        camera: The camera.
        stream: The policy's stream.
    """

    def __init__(self, device: Device, camera: DeviceCamera, stream: Stream) -> None:
        self._device = device
        self._camera = camera
        self._stream = stream

    def prepare(self, frame: Frame) -> DevicePreparedImage:
        """Begin to preprocess one image into a free slot, on the camera's own stream; any thread may call it."""
        return self._camera.prepare(frame)

    def copy(self, image: PreparedFrame, out: DeviceBuffer) -> bool:
        """Enqueue the copy of a prepared image to the pool; return whether it lies in one of these slots."""
        if not self._camera.owns(image):
            return False
        self._stream.wait(image.event)
        self._device.copy(out, image.target, self._stream)
        return True

    def run(self, frame: Frame, out: DeviceBuffer) -> None:
        """Enqueue upload and preprocessing of one image straight to the pool."""
        self._camera.enqueue(frame, out, self._stream)


def open_cameras(
    bundle: Bundle, *, device: Device, slots: int, jpeg: str, undo: ExitStack
) -> dict[str, DeviceCamera]:
    """Make all cameras; `undo` takes what frees them."""
    cameras = {}
    for settings in bundle.manifest.cameras:
        camera = DeviceCamera(device, settings, slots=slots, jpeg=jpeg)
        undo.callback(camera.close)
        cameras[settings.name] = camera
    return cameras


def device_cameras(
    bundle: Bundle,
    cameras: Mapping[str, DeviceCamera],
    pool: DevicePool,
    *,
    device: Device,
    stream: Stream,
) -> dict[str, CameraInput[DeviceBuffer]]:
    """Make the inputs of all cameras, preprocessed on the device and copied to the pool on the policy's stream."""
    inputs = {}
    for settings in bundle.manifest.cameras:
        tensor, frames = pool.tensors[settings.tensor], len(settings.history_ns)
        entry_bytes = tensor.num_bytes // frames
        entries = [
            tensor.view(index * entry_bytes, settings.image_shape, settings.dtype)
            for index in range(frames)
        ]
        slots = DeviceSlots(device, cameras[settings.name], stream)
        inputs[settings.name] = CameraInput(settings.name, slots, entries)
    return inputs
