# SPDX-License-Identifier: Apache-2.0
"""A policy around a policy: no chunk that breaks a limit leaves it. What warms it up is not checked."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np

from vla_policy_ros.core.chunk import ActionChunk
from vla_policy_ros.core.errors import ChunkRejectedError, ConfigurationError
from vla_policy_ros.core.observation import Observation
from vla_policy_ros.core.policy import Policy
from vla_policy_ros.core.specs import Array, PolicySpec
from vla_policy_ros.core.wrapped_policy import WrappedPolicy
from vla_policy_ros.execution.chunk_check import check_chunk, clamp, stretch
from vla_policy_ros.execution.kinds import ColumnMath
from vla_policy_ros.execution.limits import JointLimits
from vla_policy_ros.execution.motion import commanded_columns
from vla_policy_ros.execution.settings import LimitMode

_MEND = {'clamp': clamp, 'stretch': stretch}


class CheckedPolicy(WrappedPolicy):
    """Checks every whole chunk against limits; steps (`delta`) are added up from the observed state.

    Args:
        policy: The policy; it is closed with this one.
        limits: Limits of `commanded_columns` of its action.
        mode: `reject` refuses a chunk that breaks a limit, `clamp` bends it, `stretch` runs through it more slowly; what
            cannot be mended is refused.

    Raises:
        ConfigurationError: `no_state` for steps of a column that the state does not hold; `no_mode` for steps in another
            mode than `reject`.
    """

    def __init__(self, policy: Policy, limits: JointLimits, mode: LimitMode) -> None:
        spec = policy.spec
        super().__init__(policy)
        self._limits, self._mode = limits, mode
        self._math = ColumnMath(spec.action.columns)
        self._columns = commanded_columns(spec.action.columns)
        self._deltas = [int(place) for place in np.flatnonzero(self._math.is_delta)]
        self._sources = _find_sources(spec, self._deltas, mode)
        self._mended: Counter[str] = Counter()

    @property
    def mended(self) -> dict[str, int]:
        """Limit and column, such as `velocity_limit elbow`, to the chunks that were bent or stretched for it."""
        return dict(self._mended)

    def infer(self, observation: Observation) -> ActionChunk:
        """Return the policy's chunk when it is within the limits, or was brought there.

        Raises:
            ChunkRejectedError: As `check_chunk`, `clamp` or `stretch`, with column and row.
        """
        chunk = self._policy.infer(observation)
        commanded = self._command(chunk, observation) if self._deltas else chunk
        try:
            check_chunk(commanded, self._limits)
        except ChunkRejectedError as fault:
            if self._mode == 'reject':
                raise
            chunk = _MEND[self._mode](commanded, self._limits)
            self._mended[f'{fault.code} {fault.where.rpartition(" ")[2]}'] += 1
        return chunk

    def _command(self, chunk: ActionChunk, observation: Observation) -> ActionChunk:
        anchor: Array = np.zeros(len(self._columns))
        anchor[self._deltas] = observation.state[-1, self._sources]
        rows = self._math.accumulate(chunk.actions, anchor, first_row=0)
        return replace(chunk, actions=rows.astype(np.float32), columns=self._columns)


def _find_sources(spec: PolicySpec, deltas: list[int], mode: LimitMode) -> list[int]:
    """Return the place in the state of every column that is told in steps."""
    names = [spec.action.columns[place].name for place in deltas]
    held = spec.observation.state_names
    missing = [name for name in names if name not in held]
    if missing:
        raise ConfigurationError(
            'limits',
            got=f'steps (delta) of {", ".join(missing)}, which the state does not hold',
            expected='a state to add them to',
            next_step='Add the columns to the state of the bundle, or leave limits to the executor.',
            code='no_state',
        )
    if names and mode != 'reject':
        raise ConfigurationError(
            'limits.mode',
            got=f'{mode!r} with steps (delta) of {", ".join(names)}',
            expected='reject',
            next_step='Set mode: reject; the executor clamps and stretches the motion itself.',
            code='no_mode',
        )
    return [held.index(name) for name in names]
