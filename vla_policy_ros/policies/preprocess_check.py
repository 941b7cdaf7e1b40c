# SPDX-License-Identifier: Apache-2.0
"""Preprocessing on the device is held against the CPU reference on this very machine, before any image counts."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack

import numpy as np

from vla_policy_ros.bundle.geometry import Resize
from vla_policy_ros.bundle.manifest import Camera
from vla_policy_ros.core.errors import GpuError, ImageError
from vla_policy_ros.core.frame import Frame
from vla_policy_ros.core.specs import Array
from vla_policy_ros.gpu.interfaces import Device
from vla_policy_ros.gpu.limits import resize_limit
from vla_policy_ros.gpu.preprocess import DevicePreprocessor, ImageJob
from vla_policy_ros.policies.inputs import least_source_size
from vla_policy_ros.preprocess.camera import CameraPreprocessor, make_tables
from vla_policy_ros.preprocess.decode import bytes_shape
from vla_policy_ros.preprocess.geometry import GeometryPlan

_USUAL_SIZE = (480, 640)
_ENCODINGS = ('rgb8', 'bgra8', 'mono8', 'yuyv', 'nv12', 'bayer_rggb8', 'rgb16')
"""One of every decoder."""
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
        largest = max(math.prod(bytes_shape(encoding, *size)) for encoding in _ENCODINGS)
        run = _runner(device, camera, largest, undo)
        for encoding in _ENCODINGS:
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
    shape = bytes_shape(encoding, *size)
    data = np.random.default_rng(0).integers(0, 256, math.prod(shape), np.uint8)
    return Frame(name, 0, encoding, *size, math.prod(shape[1:]), data)


def _limit(camera: Camera) -> float:
    """Return the greatest difference in the tensor's unit: levels of the resize rules, times a level's value."""
    levels = sum(resize_limit(step) for step in camera.geometry if isinstance(step, Resize))
    if camera.dtype == 'uint8':
        return float(levels)
    tables = make_tables(camera)
    values = tables if tables.dtype != np.uint16 else tables.view(camera.dtype)
    return levels * float(np.abs(np.diff(values.astype(np.float64), axis=-1)).max())


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
