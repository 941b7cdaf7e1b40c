# SPDX-License-Identifier: Apache-2.0
"""The policy: an observation in, a chunk out."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from vla_policy_ros.core.chunk import ActionChunk
from vla_policy_ros.core.frame import Frame, PreparedFrame
from vla_policy_ros.core.observation import Observation
from vla_policy_ros.core.specs import PolicySpec


class Policy(Protocol):
    """Turns one observation into one chunk; whatever adds behaviour is a policy around a policy."""

    @property
    def spec(self) -> PolicySpec:
        """What it takes and what it gives."""

    def prepare(self, frame: Frame) -> Frame | PreparedFrame:
        """Preprocess one image ahead of its inference, on the caller's thread, into a slot of the policy's own.

        Several threads may call it at once. A policy that preprocesses nothing returns the frame itself.

        Raises:
            ImageError: The image cannot be decoded, or no slot is free.
        """

    def prepares_at_once(self, frame: Frame) -> bool:
        """Tell whether `prepare` only hands this image on, so that a thread of its own would cost more than the call."""

    def warmup(self) -> None:
        """Run once on made-up input, so that the first real call costs what every call costs."""

    def infer(self, observation: Observation) -> ActionChunk:
        """Compute the chunk of one observation; blocks; called by one thread at a time."""

    def reset(self) -> None:
        """Forget everything that came from earlier observations."""

    def close(self) -> None:
        """Free engines and buffers; may be called twice."""


@runtime_checkable
class DelayAware(Protocol):
    """A policy that plans for the time until its chunk is there; a policy around one passes the call on."""

    def note_published(self, delay_ns: int) -> tuple[str, ...]:
        """Take the time from capture to publication of the newest chunk, on the clock of the stamps.

        Called by the thread that calls `infer`, after it.

        Returns:
            What was wrong with the chunk for this delay, as names in snake_case that are counted; the chunk counts.
        """
