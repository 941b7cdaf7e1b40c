# SPDX-License-Identifier: Apache-2.0
"""The policy without a model: hold the observed state."""

from __future__ import annotations

import numpy as np

from vla_policy_ros.core.chunk import ActionChunk
from vla_policy_ros.core.errors import StateError
from vla_policy_ros.core.frame import Frame
from vla_policy_ros.core.observation import Observation
from vla_policy_ros.core.specs import PolicySpec, Representation


class HoldPolicy:
    """Answers at once with the newest state for K rows: a baseline, and the mock for measuring everything else.

    Absolute columns take the state column of the same name; all others are 0, which for a step or an offset is
    standing still too.
    """

    def __init__(self, spec: PolicySpec) -> None:
        self._spec = spec
        names = spec.observation.state_names
        pairs = [
            (index, names.index(column.name))
            for index, column in enumerate(spec.action.columns)
            if column.representation is Representation.ABSOLUTE and column.name in names
        ]
        self._targets = [target for target, _ in pairs]
        self._sources = [source for _, source in pairs]

    @property
    def spec(self) -> PolicySpec:
        """What it takes and what it gives: the spec it was made with."""
        return self._spec

    def prepares_at_once(self, frame: Frame) -> bool:  # noqa: ARG002 - the protocol
        """Tell that it does: nothing is prepared."""
        return True

    def prepare(self, frame: Frame) -> Frame:
        """Return the frame itself; images are not looked at."""
        return frame

    def warmup(self) -> None:
        """Do nothing: there is nothing to warm up."""

    def infer(self, observation: Observation) -> ActionChunk:
        """Return the observed state, held.

        Raises:
            StateError: The state has too few columns.
            ChunkRejectedError: The state is not finite.
        """
        action = self._spec.action
        actions = np.zeros((action.horizon, len(action.columns)), np.float32)
        if self._sources:
            width = len(self._spec.observation.state)
            if observation.state.ndim != 2 or observation.state.shape[1] != width:
                raise StateError(
                    'state',
                    got=f'shape {list(observation.state.shape)}',
                    expected=f'(T, {width})',
                    next_step='Give the columns of the spec in their order.',
                    code='wrong_shape',
                )
            actions[:, self._targets] = observation.state[-1, self._sources]
        return ActionChunk.answer(observation, actions, spec=self._spec)

    def reset(self) -> None:
        """Do nothing: nothing is remembered."""

    def close(self) -> None:
        """Do nothing: nothing is held."""
