# SPDX-License-Identifier: Apache-2.0
"""Frames of every encoding, and their way through a `DevicePreprocessor`."""

from __future__ import annotations

import numpy as np

from vla_policy_ros.core.frame import Frame
from vla_policy_ros.gpu.preprocess import DevicePreprocessor, ImageJob, enqueue_set
from vla_policy_ros.preprocess.camera import CameraPreprocessor

_PIXEL_BYTES = {
    **dict.fromkeys(('rgb8', 'bgr8', '8UC3'), 3),
    **dict.fromkeys(('rgba8', 'bgra8'), 4),
    **dict.fromkeys(('yuv422', 'uyvy', 'yuv422_yuy2', 'yuyv', 'mono16'), 2),
    **dict.fromkeys(('rgb16', 'bgr16'), 6),
}


def make_frame(encoding, height, width, *, padding=0, seed=0, is_bigendian=False):
    """A frame of random bytes, `padding` bytes behind every row but the last."""
    rows = height * 3 // 2 if encoding in ('nv12', 'nv21') else height
    step_bytes = width * _PIXEL_BYTES.get(encoding, 1) + padding
    data = np.random.default_rng(seed).integers(0, 256, rows * step_bytes - padding, np.uint8)
    return Frame('front', 0, encoding, height, width, step_bytes, data, is_bigendian)


def make_image(kind, height, width, seed=0):
    """An (H, W, 3) picture: `noise`, a `ramp` of all levels, or a `board` of black and white pixels."""
    if kind == 'noise':
        return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    y, x = np.mgrid[:height, :width]
    levels = (x * 3 + y * 5) % 256 if kind == 'ramp' else (x + y) % 2 * 255
    return np.stack([levels, 255 - levels, levels // 2], axis=-1).astype(np.uint8)


def run_on_cpu(camera, frame):
    """What the CPU reference makes of a frame."""
    preprocessor = CameraPreprocessor(camera)
    out = np.empty(preprocessor.image_shape, preprocessor.dtype)
    preprocessor.run(frame, out)
    return out


class DeviceImages:
    """Frames and tensors in the memory of a device, for preprocessors of one camera each."""

    def __init__(self, device):
        self.device = device
        self.stream = device.new_stream()
        self._buffers = []

    def run(self, camera, *frames):
        """What the device makes of frames of one camera, in one call."""
        preprocessor = DevicePreprocessor(self.device, camera)
        try:
            return self.run_set([(preprocessor, frame) for frame in frames])
        finally:
            preprocessor.close()

    def run_set(self, items):
        """What the device makes of pairs of preprocessor and frame, in one call."""
        try:
            targets = [self.new_target(preprocessor) for preprocessor, _ in items]
            jobs = [
                (preprocessor, self.job(frame, target))
                for (preprocessor, frame), target in zip(items, targets, strict=True)
            ]
            enqueue_set(self.stream, jobs)
            return [self.read(target) for target in targets]
        finally:
            self.close()

    def new_target(self, preprocessor):
        return self._keep(self.device.allocate(preprocessor.image_shape, preprocessor.dtype))

    def job(self, frame, target):
        """A job for a frame, whose bytes are put on the device."""
        return ImageJob(
            source_address=self.put(frame.data).address,
            encoding=frame.encoding,
            height=frame.height,
            width=frame.width,
            step_bytes=frame.step_bytes,
            target_address=target.address,
            is_bigendian=frame.is_bigendian,
        )

    def put(self, array):
        pinned = self._keep(self.device.allocate_pinned(array.shape, array.dtype.name))
        pinned.array[...] = array
        target = self._keep(self.device.allocate(array.shape, array.dtype.name))
        self.device.upload(target, pinned, self.stream)
        self.stream.synchronize()
        return target

    def read(self, tensor):
        pinned = self._keep(self.device.allocate_pinned(tensor.shape, tensor.dtype))
        self.device.download(pinned, tensor, self.stream)
        self.stream.synchronize()
        return pinned.array.copy()

    def close(self):
        self.stream.synchronize()
        while self._buffers:
            self._buffers.pop().free()

    def _keep(self, buffer):
        self._buffers.append(buffer)
        return buffer
