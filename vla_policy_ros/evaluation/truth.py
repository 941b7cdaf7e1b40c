# SPDX-License-Identifier: Apache-2.0
"""The recorded actions as chunks: what a perfect policy would have said."""

from __future__ import annotations

import numpy as np

from vla_policy_ros.core.chunk import ActionChunk
from vla_policy_ros.core.dataset import DatasetInfo, Episode
from vla_policy_ros.core.errors import DatasetError
from vla_policy_ros.core.observation import Instruction
from vla_policy_ros.core.specs import Array

TRUTH_ID = 'recorded'


def recorded_chunk(action: Array, step: int, horizon: int) -> Array:
    """Return the rows [step, step + horizon) of an episode's actions; past its end the last row is repeated.

    The rule of GR00T's ReplayPolicy (gr00t/policy/replay_policy.py).

    Args:
        action: (N, D) actions of the episode.
        step: First row; may lie past the end.
        horizon: K, the number of rows.

    Returns:
        (K, D) float32, a copy.

    Raises:
        DatasetError: The episode holds no actions, the step is negative, or the horizon is below 1.
    """
    if not action.size or step < 0 or horizon < 1:
        raise DatasetError(
            f'recorded actions, step {step}',
            got=f'actions of shape {list(action.shape)}, horizon {horizon}',
            expected='recorded actions, a step of at least 0 and a horizon of at least 1',
            next_step='Use a dataset with actions, or run without the truth.',
            code='no_actions',
        )
    rows = np.minimum(np.arange(step, step + horizon), len(action) - 1)
    return action[rows].astype(np.float32)


def truth_chunk(
    info: DatasetInfo,
    episode: Episode,
    *,
    step: int,
    horizon: int,
    instruction_id: int = 0,
    epoch: int = 0,
) -> ActionChunk:
    """Return the recorded chunk of one step, as a policy would publish it for the observation of that step.

    Give every episode an epoch of its own: the end of an epoch tells `compare` which rows are mere repetition.

    Raises:
        DatasetError: The episode holds no actions, or there is no such step.
    """
    stamps_ns = episode.stamps_ns
    if not 0 <= step < len(stamps_ns):
        raise DatasetError(
            f'dataset {info.name}, episode {episode.index}',
            got=f'step {step}',
            expected=f'a step from 0 to {len(stamps_ns) - 1}',
            next_step='Choose a step of the episode.',
            code='no_such_step',
        )
    return ActionChunk(
        actions=recorded_chunk(episode.action, step, horizon),
        columns=info.action,
        step_ns=info.step_ns,
        start_ns=int(stamps_ns[step]),
        observation_stamp_ns=int(stamps_ns[step]),
        sequence=step,
        epoch=epoch,
        instruction=Instruction(episode.instructions[step], instruction_id),
        policy_id=TRUTH_ID,
    )
