# SPDX-License-Identifier: Apache-2.0
"""Slots for prepared images: made once, taken and given back again and again, from any thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Generic, TypeVar

from vla_policy_ros.core.errors import ImageError
from vla_policy_ros.core.frame import Frame

SlotT = TypeVar('SlotT')


class SlotRing(Generic[SlotT]):
    """The free slots of one camera.

    Args:
        slots: All of them; they are taken in turn, the one that was given back first comes first.
    """

    def __init__(self, slots: Iterable[SlotT]) -> None:
        # A deque's append and popleft are atomic, which matters: a slot may come back on any thread.
        self._free = deque(slots)
        self._count = len(self._free)

    @property
    def num_free(self) -> int:
        """Number of free slots."""
        return len(self._free)

    def take(self, frame: Frame) -> SlotT:
        """Return a free slot for a frame.

        Raises:
            ImageError: There is none (`no_free_slot`).
        """
        try:
            return self._free.popleft()
        except IndexError:
            raise ImageError(
                f'camera {frame.camera!r}',
                got=f'{self._count} prepared images still in use',
                expected='a free slot',
                next_step='Let prepared images go, or give the policy more slots.',
                code='no_free_slot',
            ) from None

    def give_back(self, slot: SlotT) -> None:
        """Make a slot free again."""
        self._free.append(slot)


class SlotHold(Generic[SlotT]):
    """One prepared image in a slot; the slot is free again when the last reference to this is gone.

    Args:
        frame: The frame that was prepared.
        slot: Where its result lies.
        ring: Where the slot goes back to.
    """

    __slots__ = ('camera', 'ring', 'slot', 'stamp_ns')

    def __init__(self, frame: Frame, slot: SlotT, ring: SlotRing[SlotT]) -> None:
        self.camera = frame.camera
        self.stamp_ns = frame.stamp_ns
        self.slot = slot
        self.ring = ring

    def __del__(self) -> None:
        # The only place that returns a slot: no caller can forget it, and none can do it too early.
        self.ring.give_back(self.slot)
