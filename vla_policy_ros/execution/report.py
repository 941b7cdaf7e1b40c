# SPDX-License-Identifier: Apache-2.0
"""What the executor hands out: commands, answers to requests, and a snapshot of how it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vla_policy_ros.core.latency import LatencySummary
from vla_policy_ros.core.specs import Array
from vla_policy_ros.execution.delay import DelaySummary
from vla_policy_ros.execution.states import State


@dataclass(frozen=True, slots=True, eq=False)
class Command:
    """What the robot gets at one tick; its arrays are the limiter's and hold until the next tick.

    Attributes:
        time_ns: Time of the tick.
        position: (D,) float64, in the unit of each column.
        velocity: (D,) float64, per second.
        acceleration: (D,) float64, per second squared.
        is_limited: (D,) bool: columns where a limit has changed what the policy wanted.
        state: State of the executor after the tick.
        sequence: The policy's number of the chunk that is executed, or was executed last.
        epoch: Its epoch.
        instruction_id: The instruction it follows.
        is_seam: Whether this tick is the first one after a change of the chunk.
    """

    time_ns: int
    position: Array
    velocity: Array
    acceleration: Array
    is_limited: Array
    state: State
    sequence: int
    epoch: int
    instruction_id: int
    is_seam: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """Whether a request was carried out; if not, why: a cause in snake_case and a sentence for a person."""

    cause: str = ''
    detail: str = ''

    @property
    def is_done(self) -> bool:
        """Whether the request was carried out."""
        return not self.cause


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """How the executor is; every offered chunk is used, waiting, refused or discarded.

    Attributes:
        state: Its state.
        cause: Why it is in that state.
        is_still: Whether the last command was one of rest, or nothing goes out.
        is_dry_run: Whether commands are told and not sent.
        strategy: Name of the strategy.
        epoch: The policy's epoch; None before the first chunk.
        instruction_id: The instruction of the newest chunk; None before the first.
        delay: Delays in executed steps.
        chunk_age_ms: Age of the newest observation that has become a chunk; None before the first.
        remaining_ms: How long the rows at hand last.
        time_scale: How fast motion runs, 1 where nothing is stretched.
        seams: Changes of the chunk while it ran.
        starvations: How often no row was left.
        violations: Cause to how often the delay did not fit the execution horizon, or a target was rejected.
        limited: Column to number of ticks in which a limit has changed its command; only columns with any.
        offered: Chunks offered.
        used: Chunks of which at least one target was executed.
        waiting: Chunks taken and not yet used.
        refused: Cause to chunks that were not taken.
        discarded: Cause to chunks that were taken and never used.
        alarms: Causes of the alarms that are on.
        lateness: Lateness of the ticks as the node has measured it.
    """

    state: State
    cause: str
    is_still: bool
    is_dry_run: bool
    strategy: str
    epoch: int | None
    instruction_id: int | None
    delay: DelaySummary
    chunk_age_ms: float | None
    remaining_ms: float
    time_scale: float
    seams: int
    starvations: int
    violations: Mapping[str, int]
    limited: Mapping[str, int]
    offered: int
    used: int
    waiting: int
    refused: Mapping[str, int]
    discarded: Mapping[str, int]
    alarms: tuple[str, ...]
    lateness: LatencySummary | None
