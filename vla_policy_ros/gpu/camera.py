# SPDX-License-Identifier: Apache-2.0
"""One camera's way from a frame to a preprocessed image on the device, on a stream of its own."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from dataclasses import dataclass
from typing import NamedTuple, TypeGuard

import numpy as np

from vla_policy_ros.bundle.manifest import Camera
from vla_policy_ros.core.errors import EngineError
from vla_policy_ros.core.frame import COMPRESSED_ENCODINGS, Frame, PreparedFrame
from vla_policy_ros.core.slots import SlotHold, SlotRing
from vla_policy_ros.gpu.interfaces import Device, DeviceBuffer, Event, Stream
from vla_policy_ros.gpu.jpeg import JpegDecoder
from vla_policy_ros.gpu.pixels import DEVICE_ENCODINGS
from vla_policy_ros.gpu.preprocess import DevicePreprocessor, ImageJob
from vla_policy_ros.gpu.staging import StagingRing, StagingSlot
from vla_policy_ros.preprocess.compressed import image_error
from vla_policy_ros.preprocess.decode import checked_size, decode_rgb


@dataclass(frozen=True, slots=True)
class DeviceSlot:
    """Where one image is prepared, and the mark behind the work that prepares it."""

    target: DeviceBuffer
    event: Event


class DevicePreparedImage(SlotHold[DeviceSlot]):
    """One image on the device, prepared once its event is reached.

    The slot is free again when the last reference is gone. Whoever reads `target` on another stream makes that stream
    wait for `event`, and keeps the reference until the read is done.
    """

    __slots__ = ()

    @property
    def target(self) -> DeviceBuffer:
        """The image, of the shape of one history entry."""
        return self.slot.target

    @property
    def event(self) -> Event:
        """Reached when `target` is written."""
        return self.slot.event


class DeviceCamera:
    """Uploads and preprocesses the frames of one camera. Any thread may call it.

    The frame is copied once, to pinned memory; upload and kernel follow on the camera's stream, and nothing waits for
    them. On an integrated GPU the kernel reads the pinned memory itself.

    Args:
        device: The device; its methods make it current themselves.
        camera: The camera's settings in the bundle.
        slots: Number of images that may be prepared and not yet let go.
        jpeg: `cpu` decodes JPEG and PNG with OpenCV; `nvjpeg` decodes JPEG on the device and refuses PNG.

    Raises:
        GpuError: There is not enough memory, or a kernel or nvJPEG is not to be had.
    """

    def __init__(self, device: Device, camera: Camera, *, slots: int, jpeg: str = 'cpu') -> None:
        self._device = device
        self._name = camera.name
        self._lock = threading.Lock()
        self._is_open = True
        with ExitStack() as undo, device.current():
            self._preprocessor = DevicePreprocessor(device, camera)
            undo.callback(self._preprocessor.close)
            self._stream = device.new_stream()
            self._decoder = _open_decoder(device, undo) if jpeg == 'nvjpeg' else None
            # nvJPEG writes device memory, also where the host's is mapped.
            self._staging = StagingRing(
                device,
                f'camera {camera.name!r}',
                on_device=self._decoder is not None or not device.is_integrated,
            )
            undo.callback(self._staging.free)
            self._ring = SlotRing(self._make_slots(slots, undo))
            undo.callback(self._stream.synchronize)
            self._undo = undo.pop_all()

    @property
    def num_free(self) -> int:
        """Number of free slots."""
        return self._ring.num_free

    @property
    def num_growths(self) -> int:
        """How often memory was allocated anew because a frame was larger than all before."""
        return self._staging.num_growths

    def prepare_formats(self) -> None:
        """Compile the kernels of all encodings, or take them from the cache on disk, before the first frame comes.

        Raises:
            GpuError: A kernel is not in the cache and there is no compiler, or it does not compile.
        """
        with self._lock, self._device.current():
            self._preprocessor.prepare_formats(DEVICE_ENCODINGS)

    def prepare(self, frame: Frame) -> DevicePreparedImage:
        """Begin to preprocess one image into a free slot, on the camera's stream.

        Does not block on the device unless all staging slots are in flight; then it waits for the oldest one.

        Raises:
            ImageError: No slot is free (`no_free_slot`), or the image cannot be used.
            EngineError: The camera is closed (`closed`).
            GpuError: The device failed, or has not enough memory for the frame.
        """
        slot = self._ring.take(frame)
        with ExitStack() as undo:
            undo.callback(self._ring.give_back, slot)
            with self._device.current():
                self._enqueue(frame, slot.target, stream=self._stream, done=slot.event)
            undo.pop_all()
        return DevicePreparedImage(frame, slot, self._ring)

    def owns(self, image: PreparedFrame) -> TypeGuard[DevicePreparedImage]:
        """Tell whether an image lies in one of these slots."""
        return isinstance(image, DevicePreparedImage) and image.ring is self._ring

    def enqueue(self, frame: Frame, target: DeviceBuffer, stream: Stream) -> None:
        """Enqueue upload and preprocessing of one image into a buffer of the caller's; the device must be current.

        Stream: the caller's. Blocks as `prepare` does.

        Raises:
            ImageError: The image cannot be used.
            EngineError: The camera is closed (`closed`).
            GpuError: The device failed, or has not enough memory for the frame.
        """
        self._enqueue(frame, target, stream=stream, done=None)

    def close(self) -> None:
        """Wait for the camera's stream and free all memory; may be called twice."""
        with self._lock, self._device.current():
            self._is_open = False
            self._undo.close()

    def _make_slots(self, count: int, undo: ExitStack) -> list[DeviceSlot]:
        slots = []
        for _ in range(count):
            target = self._device.allocate(
                self._preprocessor.image_shape, self._preprocessor.dtype
            )
            undo.callback(target.free)
            slots.append(DeviceSlot(target, self._device.new_event()))
        return slots

    def _enqueue(
        self, frame: Frame, target: DeviceBuffer, *, stream: Stream, done: Event | None
    ) -> None:
        with self._lock:
            if not self._is_open:
                raise _closed(self._name)
            size = checked_size(frame)
            if frame.encoding not in COMPRESSED_ENCODINGS:
                slot, source = self._stage_raw(frame, stream)
            elif self._decoder is None:
                slot, source = self._stage_decoded(frame, size, stream)
            else:
                slot, source = self._stage_jpeg(self._decoder, frame, size, stream)
            job = ImageJob(
                source_address=source.address,
                encoding=source.encoding,
                height=size[0],
                width=size[1],
                step_bytes=source.step_bytes,
                is_bigendian=frame.is_bigendian,
                target_address=target.address,
            )
            self._preprocessor.enqueue(stream, [job])
            slot.release(stream)
            if done is not None:
                done.record(stream)

    def _stage_raw(self, frame: Frame, stream: Stream) -> tuple[StagingSlot, _Source]:
        num_bytes = len(frame.data)
        slot = self._staging.take(num_bytes)
        np.copyto(slot.bytes[:num_bytes], frame.data)
        return slot, _Source(slot.upload(num_bytes, stream), frame.encoding, frame.step_bytes)

    def _stage_decoded(
        self, frame: Frame, size: tuple[int, int], stream: Stream
    ) -> tuple[StagingSlot, _Source]:
        num_bytes = 3 * size[0] * size[1]
        slot = self._staging.take(num_bytes)
        decode_rgb(frame, slot.bytes[:num_bytes].reshape(*size, 3))
        return slot, _Source(slot.upload(num_bytes, stream), 'rgb8', 3 * size[1])

    def _stage_jpeg(
        self, decoder: JpegDecoder, frame: Frame, size: tuple[int, int], stream: Stream
    ) -> tuple[StagingSlot, _Source]:
        if frame.encoding != 'jpeg':
            raise image_error(
                frame,
                'unsupported_encoding',
                got=frame.encoding,
                expected='JPEG, which is all that nvJPEG decodes',
                next_step='Set jpeg: cpu, which decodes PNG too, or let the publisher compress to JPEG.',
            )
        slot = self._staging.take(3 * size[0] * size[1])
        decoder.enqueue(frame.data, slot.device_bytes, stream)
        return slot, _Source(slot.device_bytes.address, 'rgb8', 3 * size[1])


class _Source(NamedTuple):
    """Where the device finds the pixels, and how they lie there."""

    address: int
    encoding: str
    step_bytes: int


def _open_decoder(device: Device, undo: ExitStack) -> JpegDecoder:
    decoder = JpegDecoder(device)
    undo.callback(decoder.close)
    return decoder


def _closed(name: str) -> EngineError:
    return EngineError(
        f'camera {name!r}',
        got='a call after close()',
        expected='an open policy',
        next_step='Load the policy again.',
        code='closed',
    )
