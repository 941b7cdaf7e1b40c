# SPDX-License-Identifier: Apache-2.0
"""K future actions on the robot's time line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from vla_policy_ros.core.errors import ChunkRejectedError
from vla_policy_ros.core.observation import Instruction, Observation
from vla_policy_ros.core.specs import Array, Column, PolicySpec


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ActionChunk:
    """K actions of D columns: row k is meant for `start_ns + k * step_ns`.

    Attributes:
        actions: (K, D) float32, physical units, read-only.
        columns: The D columns: name, unit, kind, representation.
        step_ns: Time between two rows, > 0.
        start_ns: Time of row 0.
        observation_stamp_ns: Capture time of the observation (its reference stream).
        sequence: Counts the chunks of an epoch from 0.
        epoch: Number of resets before this chunk.
        instruction: The instruction it follows.
        policy_id: Name and short content hash of the policy.
        stream_ages_ns: Reference stamp minus stamp of each stream's newest sample.
        stage_latencies_ns: Wall time per stage in the order of execution.

    Raises:
        ChunkRejectedError: The array is not (K, D) with K >= 1 and D columns, holds a value that is not finite,
            or the step is not positive.
    """

    actions: Array
    columns: tuple[Column, ...]
    step_ns: int
    start_ns: int
    observation_stamp_ns: int
    sequence: int = 0
    epoch: int = 0
    instruction: Instruction = field(default_factory=Instruction)
    policy_id: str = ''
    stream_ages_ns: Mapping[str, int] = field(default_factory=dict)
    stage_latencies_ns: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._check()
        self.actions.flags.writeable = False

    @classmethod
    def answer(
        cls,
        observation: Observation,
        actions: Array,
        *,
        spec: PolicySpec,
        stage_latencies_ns: Mapping[str, int] | None = None,
    ) -> ActionChunk:
        """Return the chunk with which the policy of `spec` answers an observation.

        Raises:
            ChunkRejectedError: As the constructor.
        """
        return cls(
            actions=actions,
            columns=spec.action.columns,
            step_ns=spec.action.step_ns,
            start_ns=observation.stamp_ns + spec.action.offset_ns,
            observation_stamp_ns=observation.stamp_ns,
            sequence=observation.sequence,
            epoch=observation.epoch,
            instruction=observation.instruction,
            policy_id=spec.policy_id,
            stream_ages_ns=observation.stream_ages_ns(),
            stage_latencies_ns=stage_latencies_ns or {},
        )

    @property
    def horizon(self) -> int:
        """K, the number of rows."""
        return int(self.actions.shape[0])

    @property
    def names(self) -> tuple[str, ...]:
        """Column names in the order of the array."""
        return tuple(column.name for column in self.columns)

    def times_ns(self) -> Array:
        """Return the (K,) int64 times of the rows."""
        times: Array = self.start_ns + np.arange(self.horizon, dtype=np.int64) * self.step_ns
        return times

    def _check(self) -> None:
        shape = self.actions.shape
        if len(shape) != 2 or shape[0] < 1 or shape[1] != len(self.columns):
            raise ChunkRejectedError(
                f'chunk at {self.observation_stamp_ns} ns',
                got=f'actions of shape {list(shape)}',
                expected=f'[K >= 1, {len(self.columns)}]',
                next_step='Check action.columns and action.horizon in bundle.yaml.',
                code='wrong_shape',
            )
        if self.actions.dtype != np.float32 or self.step_ns <= 0:
            raise ChunkRejectedError(
                f'chunk at {self.observation_stamp_ns} ns',
                got=f'{self.actions.dtype} actions every {self.step_ns} ns',
                expected='float32 actions and a step above 0 ns',
                next_step='Check action.step_ns in bundle.yaml.',
                code='wrong_type',
            )
        if not np.isfinite(self.actions).all():
            row, column = (int(i) for i in np.argwhere(~np.isfinite(self.actions))[0])
            raise ChunkRejectedError(
                f'chunk at {self.observation_stamp_ns} ns',
                got=f'{self.actions[row, column]} for {self.columns[column].name} in row {row}',
                expected='finite actions',
                next_step='Run `vla-policy check` on the bundle; look for overflow in a low precision.',
                code='not_finite',
            )
