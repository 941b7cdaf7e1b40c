# SPDX-License-Identifier: Apache-2.0
"""A ring of slots that carry frames to the device: pinned host memory, and its place on the device."""

from __future__ import annotations

import logging
from contextlib import ExitStack

from vla_policy_ros.core.specs import Array
from vla_policy_ros.gpu.interfaces import Device, DeviceBuffer, Event, PinnedBuffer, Stream

_LOG = logging.getLogger(__name__)
_NUM_SLOTS = 3  # one is filled, one is copied; the third takes up frames that come at once


class StagingSlot:
    """Pinned host memory for the bytes of one frame, and device memory of the same size where the device needs it.

    Args:
        device: The device.
        num_bytes: Size of both.
        on_device: Whether the bytes are copied to device memory; else the device reads the mapped host memory.
    """

    def __init__(self, device: Device, num_bytes: int, *, on_device: bool) -> None:
        self._device = device
        self._event: Event = device.new_event()
        self._raw: DeviceBuffer | None = None
        with ExitStack() as undo:
            self._pinned: PinnedBuffer = device.allocate_pinned((num_bytes,), 'uint8')
            undo.callback(self._pinned.free)
            if on_device:
                self._raw = device.allocate((num_bytes,), 'uint8')
            undo.pop_all()

    @property
    def bytes(self) -> Array:
        """(n,) uint8 pinned host memory, to be filled after `wait`."""
        return self._pinned.array

    @property
    def device_bytes(self) -> DeviceBuffer:
        """(n,) uint8 device memory, for a decoder that writes there; `on_device` only."""
        assert self._raw is not None
        return self._raw

    def upload(self, num_bytes: int, stream: Stream) -> int:
        """Enqueue the copy of the first bytes, if one is needed; return where the device finds them."""
        if self._raw is None:
            return self._pinned.device_address
        self._device.upload(self._raw, self._pinned, stream, num_bytes)
        return self._raw.address

    def release(self, stream: Stream) -> None:
        """Let the slot be used again once the work enqueued so far is done."""
        self._event.record(stream)

    def wait(self) -> None:
        """Block until the device is done with what the slot held last; returns at once when it is."""
        if not self._event.is_done():
            self._event.synchronize()

    def free(self) -> None:
        """Wait, and give the memory back; may be called twice."""
        self.wait()
        self._pinned.free()
        if self._raw is not None:
            self._raw.free()


class StagingRing:
    """Slots in turn, made when the first frame's size is known; one thread at a time.

    Args:
        device: The device; it is current in every call.
        name: Whose frames, for the log.
        on_device: Whether frames are copied to device memory before they are read.
    """

    def __init__(self, device: Device, name: str, *, on_device: bool) -> None:
        self.num_growths = 0
        """How often the slots were made anew because a frame did not fit."""
        self._device = device
        self._name = name
        self._on_device = on_device
        self._slots: list[StagingSlot] = []
        self._next = 0

    def take(self, num_bytes: int) -> StagingSlot:
        """Return the slot that was used longest ago, free to be filled.

        Blocks only when all slots are in flight. Allocates for the first frame, and when a larger one comes.

        Raises:
            GpuError: There is not enough memory (`out_of_memory`).
        """
        if not self._slots or num_bytes > len(self._slots[0].bytes):
            self._grow(num_bytes)
        slot = self._slots[self._next]
        self._next = (self._next + 1) % len(self._slots)
        slot.wait()
        return slot

    def free(self) -> None:
        """Wait for the slots and give their memory back; may be called twice."""
        while self._slots:
            self._slots.pop().free()
        self._next = 0

    def _grow(self, num_bytes: int) -> None:
        if self._slots:
            self.num_growths += 1
            _LOG.info(
                '%s: a frame of %d bytes, more than any before; memory is allocated anew',
                self._name,
                num_bytes,
            )
        self.free()
        for _ in range(_NUM_SLOTS):
            self._slots.append(StagingSlot(self._device, num_bytes, on_device=self._on_device))
