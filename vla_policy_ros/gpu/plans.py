# SPDX-License-Identifier: Apache-2.0
"""The passes of a camera's geometry for images of one size, ready to launch: tables on the device, numbers packed."""

from __future__ import annotations

import struct
from contextlib import ExitStack
from typing import NamedTuple

import numpy as np

from vla_policy_ros.bundle.manifest import Camera
from vla_policy_ros.core.specs import Array
from vla_policy_ros.gpu.interfaces import Device, DeviceBuffer, Stream
from vla_policy_ros.gpu.layout import Layout, camera_layout, interleaved
from vla_policy_ros.gpu.passes import WEIGHT_WORDS, Pass, choose_tiling, plan_passes
from vla_policy_ros.gpu.pixels import RGB, PixelFormat
from vla_policy_ros.gpu.quads import axis_tables
from vla_policy_ros.gpu.taps import Arithmetic
from vla_policy_ros.preprocess.resize import Size

# Structs of kernels/preprocess.cu, whose parts fall on their natural alignment.
_HEAD = struct.Struct('<QqQQ')
_AXIS = struct.Struct('<Q4i')
_SOURCE = struct.Struct('<6i3I')
_TAIL = struct.Struct('<11i2f')
JOB_BYTES = _HEAD.size + 2 * _AXIS.size + _SOURCE.size + _TAIL.size
"""Size of one image's part of the launch."""
Tiles = tuple[int, int]
"""Tiles of an output: across, down."""


class Surface(NamedTuple):
    """Pixels to read: an address, and how they lie there."""

    address: int
    step_bytes: int
    size: Size
    format: PixelFormat


class PassPlan:
    """One pass with its tables on the device.

    Args:
        device: The device; it must be current.
        step: The pass.
        layout: Where the pixels of the result lie in its tensor.
        where: Start of error messages.
        setup: A stream for the upload of the tables.

    Raises:
        ImageError: The resize shrinks too much (`resize_too_strong`).
        GpuError: There is not enough memory (`out_of_memory`).
    """

    def __init__(
        self, device: Device, step: Pass, layout: Layout, *, where: str, setup: Stream
    ) -> None:
        resampling = step.resampling
        self.arithmetic: Arithmetic = resampling.arithmetic
        self.size = step.size
        """Height and width of the result in pixels."""
        tiling = choose_tiling(resampling, where=where)
        tile = tiling.tile
        down, across = (-(-edge // lines) for edge, lines in zip(step.size, tile, strict=True))
        self.tiles: Tiles = across, down
        """Number of blocks of a launch for one image."""
        words = WEIGHT_WORDS[self.arithmetic]
        rows = axis_tables(resampling.rows, layout.rows, tile=tile[0], words=words[0])
        columns = axis_tables(resampling.columns, layout.columns, tile=tile[1], words=words[1])
        both = np.concatenate([rows.tables.reshape(-1), columns.tables.reshape(-1)])
        self._tables = upload_array(device, both, setup)
        begin = self._tables.address
        self._axes = b''.join(
            _AXIS.pack(address, axis.table_quads, axis.line_quads, size, lines)
            for address, axis, size, lines in zip(
                (begin, begin + rows.tables.nbytes), (rows, columns), step.size, tile, strict=True
            )
        )
        self._tail = _TAIL.pack(
            *layout.channels,
            tiling.columns_at,
            tiling.partials_at,
            tiling.levels_at,
            tiling.chunk,
            layout.repeats,
            layout.repeat_offset,
            step.border or 0,
            resampling.shift,
            resampling.bias,
            resampling.scale,
        )

    def pack(self, source: Surface, *, target: int, values: int) -> bytes:
        """Return the struct `Job` for one image.

        Args:
            source: The image.
            target: Address of the tensor.
            values: Address of the (3, 256) values of all levels, red first, in the tensor's type.
        """
        return b''.join(
            (
                _HEAD.pack(source.address, source.step_bytes, target, values),
                self._axes,
                _SOURCE.pack(*source.size, *source.format.places, *source.format.selectors),
                self._tail,
            )
        )

    def free(self) -> None:
        """Free the tables; the device must be done with them."""
        self._tables.free()


class SizePlan:
    """All passes for images of one size, and memory for what they write in between.

    Args:
        device: The device; it must be current here and in every call.
        camera: The camera's settings in the bundle.
        size: Height and width of the images in pixels.
        setup: A stream for the upload of the tables.

    Raises:
        ImageError: A step of the geometry does not fit images of this size.
        GpuError: There is not enough memory (`out_of_memory`).
    """

    def __init__(self, device: Device, camera: Camera, size: Size, *, setup: Stream) -> None:
        self._device = device
        self._between: dict[tuple[int, int, int], DeviceBuffer] = {}
        where = f'camera {camera.name!r}'
        passes = plan_passes(camera.geometry, size, where=where)
        layouts = [*(interleaved(step.size) for step in passes[:-1]), camera_layout(camera)]
        with ExitStack() as undo:
            made = []
            for step, layout in zip(passes, layouts, strict=True):
                made.append(PassPlan(device, step, layout, where=where, setup=setup))
                undo.callback(made[-1].free)
            self._undo = undo.pop_all()
        self.passes = tuple(made)
        """In order, at least one; the last one writes the camera's tensor, the others (h, w, 3) uint8 RGB."""

    def buffer(self, stream: Stream, slot: int, index: int) -> Surface:
        """Return memory for what a pass writes for another one to read; allocated once for every stream and slot."""
        key = stream.handle, slot, index
        size = self.passes[index].size
        if key not in self._between:
            self._between[key] = self._device.allocate((*size, 3), 'uint8')
            self._undo.callback(self._between[key].free)
        address = self._between[key].address
        return Surface(address=address, step_bytes=3 * size[1], size=size, format=RGB)

    def free(self) -> None:
        """Free all memory; the device must be done with it. May be called twice."""
        self._undo.close()
        self._between.clear()


def upload_array(device: Device, array: Array, stream: Stream) -> DeviceBuffer:
    """Return a copy of an array in device memory; blocks until it is there. The device must be current.

    Raises:
        GpuError: There is not enough memory (`out_of_memory`).
    """
    pinned = device.allocate_pinned(array.shape, array.dtype.name)
    try:
        pinned.array[...] = array
        target = device.allocate(array.shape, array.dtype.name)
        device.upload(target, pinned, stream)
        stream.synchronize()
    finally:
        pinned.free()
    return target
