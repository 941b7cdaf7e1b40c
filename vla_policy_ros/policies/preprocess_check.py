# SPDX-License-Identifier: Apache-2.0
"""Preprocessing on the device is held against the CPU reference on this very machine, before any image counts."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from types import MappingProxyType

import numpy as np

from vla_policy_ros.bundle.geometry import GeometryStep, Resize
from vla_policy_ros.bundle.manifest import Camera
from vla_policy_ros.core.errors import GpuError, ImageError
from vla_policy_ros.core.frame import Frame
from vla_policy_ros.core.specs import Array
from vla_policy_ros.gpu.interfaces import Device
from vla_policy_ros.gpu.limits import DEVICE_RESIZE_LIMITS
from vla_policy_ros.gpu.preprocess import DevicePreprocessor, ImageJob
from vla_policy_ros.policies.inputs import least_source_size
from vla_policy_ros.preprocess.camera import CameraPreprocessor, make_tables
from vla_policy_ros.preprocess.geometry import GeometryPlan

_USUAL_SIZE = (480, 640)
# One encoding of every decoder, with its bytes per pixel; nv12 has half as many rows of chroma below.
_PIXEL_BYTES = MappingProxyType(
    {'rgb8': 3, 'bgra8': 4, 'mono8': 1, 'yuyv': 2, 'nv12': 1, 'bayer_rggb8': 1, 'rgb16': 6}
)
_EVEN_ONLY = ('yuyv', 'nv12')


def check_preprocessing(device: Device, camera: Camera) -> None:
    """Compare noise of every kind of encoding after both ways; blocks, and allocates for as long as it runs.

    Args:
        device: The device, current on this thread.
        camera: The camera's settings in the bundle.

    Raises:
        GpuError: A value lies further from the reference than `gpu.limits` allows (`preprocess_differs`).
    """
    size = _source_size(camera)
    reference = CameraPreprocessor(camera)
    expected = np.empty(reference.image_shape, reference.dtype)
    limit = _limit(camera)
    with ExitStack() as undo:
        run = _runner(device, camera, math.prod(size) * max(_PIXEL_BYTES.values()), undo)
        for encoding in _PIXEL_BYTES:
            if encoding in _EVEN_ONLY and any(edge % 2 for edge in size):
                continue
            frame = _noise(camera.name, encoding, size)
            reference.run(frame, expected)
            _compare(camera, encoding, run(frame), expected, limit)


def _runner(
    device: Device, camera: Camera, num_bytes: int, undo: ExitStack
) -> Callable[[Frame], Array]:
    """Return what preprocesses one frame of at most so many bytes on the device, and waits for it."""
    preprocessor = DevicePreprocessor(device, camera)
    undo.callback(preprocessor.close)
    shape, dtype = preprocessor.image_shape, preprocessor.dtype
    pixels, raw = (
        device.allocate_pinned((num_bytes,), 'uint8'),
        device.allocate((num_bytes,), 'uint8'),
    )
    target, found = device.allocate(shape, dtype), device.allocate_pinned(shape, dtype)
    for buffer in (pixels, raw, target, found):
        undo.callback(buffer.free)
    stream = device.new_stream()

    def run(frame: Frame) -> Array:
        pixels.array[: len(frame.data)] = frame.data
        device.upload(raw, pixels, stream)
        job = ImageJob(
            source_address=raw.address,
            encoding=frame.encoding,
            height=frame.height,
            width=frame.width,
            step_bytes=frame.step_bytes,
            target_address=target.address,
        )
        preprocessor.enqueue(stream, [job])
        device.download(found, target, stream)
        stream.synchronize()
        return found.array

    return run


def _source_size(camera: Camera) -> tuple[int, int]:
    """Return a size in pixels that the camera's geometry takes: the usual one where it fits."""
    try:
        GeometryPlan(camera.geometry, _USUAL_SIZE, where='')
    except ImageError:
        return least_source_size(camera)
    return _USUAL_SIZE


def _noise(name: str, encoding: str, size: tuple[int, int]) -> Frame:
    height, width = size
    rows = height * 3 // 2 if encoding == 'nv12' else height
    step_bytes = width * _PIXEL_BYTES[encoding]
    data = np.random.default_rng(0).integers(0, 256, rows * step_bytes, np.uint8)
    return Frame(name, 0, encoding, height, width, step_bytes, data)


def _limit(camera: Camera) -> float:
    """Return the greatest difference in the tensor's unit: levels of the resize rules, times a level's value."""
    levels = sum(_levels(step) for step in camera.geometry)
    if camera.dtype == 'uint8':
        return float(levels)
    tables = make_tables(camera)
    values = tables if tables.dtype != np.uint16 else tables.view(camera.dtype)
    return levels * float(np.abs(np.diff(values.astype(np.float64), axis=-1)).max())


def _levels(step: GeometryStep) -> int:
    if not isinstance(step, Resize):
        return 0
    is_antialiased = step.library == 'torchvision' and step.antialias
    return DEVICE_RESIZE_LIMITS['pil' if is_antialiased else step.library][step.filter]


def _compare(camera: Camera, encoding: str, found: Array, expected: Array, limit: float) -> None:
    difference = np.abs(found.astype(np.float64) - expected.astype(np.float64))
    if difference.max() <= limit:
        return
    raise GpuError(
        f'camera {camera.name!r}, preprocessing of {encoding} on the GPU',
        got=f'{np.count_nonzero(difference > limit)} of {difference.size} values off, by {difference.max():.3g} at most',
        expected=f'at most {limit:.3g} from the CPU reference',
        next_step='Set preprocess: cpu, and report this with your GPU and driver.',
        code='preprocess_differs',
    )
