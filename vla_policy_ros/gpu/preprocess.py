# SPDX-License-Identifier: Apache-2.0
"""Preprocessing on the device: one kernel from a camera's bytes to the policy's tensor, for several images at once.

`preprocess.camera.CameraPreprocessor` is the reference on the CPU; `limits.py` says how close this is to it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count, product, zip_longest
from typing import NamedTuple

import numpy as np

from vla_policy_ros.bundle.manifest import Camera
from vla_policy_ros.gpu.interfaces import Device, Kernel, Stream
from vla_policy_ros.gpu.passes import PICK_WORDS, SHARED_WORDS, is_one_pass, possible_arithmetics
from vla_policy_ros.gpu.pixels import RGB, Decoder, pixel_format
from vla_policy_ros.gpu.plans import JOB_BYTES, PassPlan, SizePlan, Surface, Tiles, upload_array
from vla_policy_ros.gpu.taps import Arithmetic
from vla_policy_ros.preprocess.camera import make_tables
from vla_policy_ros.preprocess.resize import Size

MAX_JOBS = 8
"""Images of one launch."""
_NUM_THREADS = 256
_MAX_SIZES = 4  # of images, for which tables are kept


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageJob:
    """One image to preprocess, taken as it is: `preprocess.decode.checked_size` checks a frame before."""

    source_address: int
    """Device address of the first pixel."""
    encoding: str
    """One of `gpu.pixels.DEVICE_ENCODINGS`."""
    height: int
    """Height in pixels."""
    width: int
    """Width in pixels."""
    step_bytes: int
    """Bytes from one row to the next."""
    target_address: int
    """Device address of the image in the tensor: `image_shape` elements of `dtype`, C-contiguous."""
    is_bigendian: bool = False
    """Byte order of encodings with 16 bits per channel."""


class Variant(NamedTuple):  # made and looked up for every image, which a tuple does fastest
    """What is compiled into a kernel."""

    decoder: Decoder
    arithmetic: Arithmetic
    element_bytes: int

    @property
    def defines(self) -> dict[str, str | int]:
        """Preprocessor names and values for `kernels/preprocess.cu`."""
        return {
            'PIXELS': self.decoder,
            'ARITHMETIC': self.arithmetic,
            'ELEMENT_BYTES': self.element_bytes,
            'MAX_JOBS': MAX_JOBS,
            'NUM_THREADS': _NUM_THREADS,
            'SHARED_WORDS': SHARED_WORDS if self.arithmetic != 'PICK' else PICK_WORDS,
        }


class KernelWork(NamedTuple):
    """One pass over one image, ready to launch."""

    variant: Variant
    kernel: Kernel
    tiles: Tiles
    job: bytes


class DevicePreprocessor:
    """Decodes, resizes, crops, pads and normalises the images of one camera on the device.

    Kernels are compiled for pixel format, arithmetic and element type, not for sizes. Tables for the sizes seen last
    are kept; an image of a new size costs their making, their upload and a wait for it. After that nothing is
    allocated.

    Threads: one at a time. Streams: any; what several passes write in between is kept per stream.

    Args:
        device: The device; it must be current here and in every call.
        camera: The camera's settings in the bundle.

    Raises:
        GpuError: There is not enough memory (`out_of_memory`).
    """

    def __init__(self, device: Device, camera: Camera) -> None:
        self.image_shape = camera.image_shape
        """Shape of one history entry."""
        self.dtype: str = camera.dtype
        """Element type of the tensor, as in `TensorSpec`."""
        self._device = device
        self._camera = camera
        self._where = f'camera {camera.name!r}'
        tables = make_tables(camera)
        self._element_bytes = tables.itemsize
        by_source = tables[:: 1 if camera.color == 'rgb' else -1]
        levels = np.tile(np.arange(256, dtype=np.uint8), 3)
        self._setup = device.new_stream()
        self._values = upload_array(device, np.ascontiguousarray(by_source), self._setup)
        self._levels = upload_array(device, levels, self._setup)
        self._kernels: dict[Variant, Kernel] = {}
        self._plans: OrderedDict[Size, SizePlan] = OrderedDict()

    def prepare_formats(self, encodings: Iterable[str]) -> None:
        """Compile every kernel that images of these encodings may need, or take them from the cache on disk.

        Raises:
            ImageError: An encoding is not decoded on the device (`unknown_encoding`).
            GpuError: A kernel is not in the cache and there is no compiler, or it does not compile.
        """
        decoders = {pixel_format(name, where=self._where).decoder for name in encodings}
        element_bytes = {self._element_bytes}
        if not is_one_pass(self._camera.geometry):
            decoders.add(RGB.decoder)
            element_bytes.add(1)
        arithmetics = possible_arithmetics(self._camera.geometry)
        for parts in product(sorted(decoders), sorted(arithmetics), sorted(element_bytes)):
            self._kernel(Variant(*parts))

    def enqueue(self, stream: Stream, jobs: Sequence[ImageJob]) -> None:
        """Enqueue the preprocessing of some images of this camera; see `enqueue_set`."""
        enqueue_set(stream, [(self, job) for job in jobs])

    def plan(self, stream: Stream, job: ImageJob, slot: int) -> list[KernelWork]:
        """Return the passes over one image, in order; they are to be launched on `stream`.

        Args:
            stream: The stream.
            job: The image.
            slot: Tells images apart whose passes run side by side.

        Raises:
            ImageError: The encoding is not decoded on the device, or a step of the geometry does not fit the image.
            GpuError: There is not enough memory, or no compiler for a kernel that is not in the cache.
        """
        size = job.height, job.width
        source = Surface(
            address=job.source_address,
            step_bytes=job.step_bytes,
            size=size,
            format=pixel_format(job.encoding, is_bigendian=job.is_bigendian, where=self._where),
        )
        plan = self._plan_for(size)
        *earlier, last = plan.passes
        work = []
        for index, step in enumerate(earlier):
            between = plan.buffer(stream, slot, index)
            packed = step.pack(source, target=between.address, values=self._levels.address)
            work.append(self._work(source, step, 1, packed))
            source = between
        packed = last.pack(source, target=job.target_address, values=self._values.address)
        return [*work, self._work(source, last, self._element_bytes, packed)]

    def trim(self, stream: Stream) -> None:
        """Forget the sizes that were not seen for longest; waits for the stream when there are any."""
        while len(self._plans) > _MAX_SIZES:
            stream.synchronize()
            self._plans.popitem(last=False)[1].free()

    def close(self) -> None:
        """Free all memory; the device must be done with it. May be called twice."""
        for plan in self._plans.values():
            plan.free()
        self._plans.clear()
        self._values.free()
        self._levels.free()

    def _work(
        self, source: Surface, step: PassPlan, element_bytes: int, packed: bytes
    ) -> KernelWork:
        variant = Variant(source.format.decoder, step.arithmetic, element_bytes)
        return KernelWork(variant, self._kernel(variant), step.tiles, packed)

    def _kernel(self, variant: Variant) -> Kernel:
        if variant not in self._kernels:
            self._kernels[variant] = self._device.load_kernel(
                'preprocess', 'preprocess', f'{MAX_JOBS * JOB_BYTES}s', variant.defines
            )
        return self._kernels[variant]

    def _plan_for(self, size: Size) -> SizePlan:
        if size not in self._plans:
            self._plans[size] = SizePlan(self._device, self._camera, size, setup=self._setup)
        self._plans.move_to_end(size)
        return self._plans[size]


def enqueue_set(stream: Stream, jobs: Sequence[tuple[DevicePreprocessor, ImageJob]]) -> None:
    """Enqueue the preprocessing of images of one or several cameras; those with the same kernel go in one launch.

    Stream: all work is ordered on it; the host does not wait, but for images of a new size. The tensors and images must
    stay until the work is done.

    Args:
        stream: The stream.
        jobs: Images, each with the preprocessor of its camera.

    Raises:
        ImageError: An encoding is not decoded on the device, or a step of a geometry does not fit its image.
        GpuError: There is not enough memory, or no compiler for a kernel that is not in the cache.
    """
    slots = count()
    work = [preprocessor.plan(stream, job, next(slots)) for preprocessor, job in jobs]
    for stage in zip_longest(*work):
        by_variant: dict[Variant, list[KernelWork]] = {}
        for item in stage:
            if item is not None:
                by_variant.setdefault(item.variant, []).append(item)
        for items in by_variant.values():
            for start in range(0, len(items), MAX_JOBS):
                _launch(stream, items[start : start + MAX_JOBS])
    for preprocessor, _ in jobs:
        preprocessor.trim(stream)


def _launch(stream: Stream, items: Sequence[KernelWork]) -> None:
    batch = b''.join(item.job for item in items).ljust(MAX_JOBS * JOB_BYTES, b'\0')
    across, down = (max(item.tiles[axis] for item in items) for axis in (0, 1))
    grid = (across, down, len(items))
    items[0].kernel.launch(stream, grid, (_NUM_THREADS, 1, 1), batch)
