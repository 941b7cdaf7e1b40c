# SPDX-License-Identifier: Apache-2.0
"""The policy: an observation in, a chunk out."""

from __future__ import annotations

from typing import Protocol

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

    def warmup(self) -> None:
        """Run once on made-up input, so that the first real call costs what every call costs."""

    def infer(self, observation: Observation) -> ActionChunk:
        """Compute the chunk of one observation; blocks; called by one thread at a time."""

    def reset(self) -> None:
        """Forget everything that came from earlier observations."""

    def close(self) -> None:
        """Free engines and buffers; may be called twice."""
