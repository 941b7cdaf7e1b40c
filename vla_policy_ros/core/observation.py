# SPDX-License-Identifier: Apache-2.0
"""One matched set of inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vla_policy_ros.core.frame import Frame, PreparedFrame
from vla_policy_ros.core.specs import Array


@dataclass(frozen=True, slots=True)
class Instruction:
    """What the robot is told to do; the id grows with every change of the text."""

    text: str = ''
    instruction_id: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Observation:
    """One matched set: images per camera, state vector, instruction, and the stamps they were captured at.

    Attributes:
        images: Camera name to T images, oldest first (T is the length of the camera's history).
        state: (T, S) float32, physical units, columns in the order of the policy's spec, oldest row first.
        instruction: The instruction in force at the reference stamp.
        stamp_ns: Reference stamp, the capture time that the chunk will carry.
        stream_stamps_ns: Capture time of the newest sample used, per stream.
        sequence: Counts observations within the epoch from 0.
        epoch: Number of resets before this observation.
    """

    images: Mapping[str, tuple[Frame | PreparedFrame, ...]]
    state: Array
    instruction: Instruction
    stamp_ns: int
    stream_stamps_ns: Mapping[str, int] = field(default_factory=dict)
    sequence: int = 0
    epoch: int = 0

    def stream_ages_ns(self) -> dict[str, int]:
        """Reference stamp minus each stream's stamp: positive means older than the reference."""
        return {name: self.stamp_ns - stamp for name, stamp in self.stream_stamps_ns.items()}
