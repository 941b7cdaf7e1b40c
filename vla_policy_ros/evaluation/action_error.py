# SPDX-License-Identifier: Apache-2.0
"""How far a policy's chunks are from recorded actions, as one number that two precisions can be compared by."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from vla_policy_ros.core.dataset import Dataset
from vla_policy_ros.core.policy import Policy
from vla_policy_ros.core.specs import Array, Column
from vla_policy_ros.evaluation.alignment import wrap
from vla_policy_ros.evaluation.metrics import compare
from vla_policy_ros.evaluation.open_loop import OpenLoop, evaluate_episode
from vla_policy_ros.evaluation.recording import ChunkRecording


@dataclass(frozen=True, slots=True, eq=False)
class ActionError:
    """Chunks of some episodes against the recorded actions.

    Attributes:
        episodes: The episodes.
        columns: The C columns that policy and recording share.
        actions: (N, K, C) actions of the N chunks.
        mean_squares: (C,) mean squared error, in the unit of the column.
        variances: (C,) variance of the recorded actions; 1 where they never changed.
    """

    episodes: tuple[int, ...]
    columns: tuple[Column, ...]
    actions: Array
    mean_squares: Array
    variances: Array

    @property
    def relative(self) -> float:
        """Mean squared error in parts of the recorded variance, over all columns: units do not matter."""
        return float((self.mean_squares / self.variances).mean())

    def growth(self, unquantised: ActionError) -> float:
        """Return by what part the error is larger than that of the unquantised policy; below 0 where it is smaller.

        Args:
            unquantised: Error of that policy over the same episodes.
        """
        return (self.relative - unquantised.relative) / _at_least_tiny(unquantised.relative)

    def difference(self, unquantised: ActionError) -> float:
        """Return the mean squared difference of the two policies' actions, in parts of the unquantised one's error.

        This is what `growth` comes to over many chunks, when rounding has nothing to do with the error that was there. Over
        few chunks `growth` may be small, or below 0, by chance alone.

        Args:
            unquantised: Error of that policy over the same episodes.
        """
        between = wrap(self.actions - unquantised.actions, self.columns)
        relative = float((np.square(between).mean(axis=(0, 1)) / self.variances).mean())
        return relative / _at_least_tiny(unquantised.relative)


def measure_action_error(
    policy: Policy, dataset: Dataset, *, episodes: Iterable[int], min_chunks: int | None = None
) -> ActionError | None:
    """Run a policy open loop, a chunk after another, and hold its chunks against the recorded actions.

    Args:
        policy: The policy.
        dataset: The recording.
        episodes: Which episodes.
        min_chunks: Number of chunks after which no further episode is begun; None takes them all.

    Returns:
        The error; None where the recording holds no actions that the policy gives.

    Raises:
        VlaPolicyError: An episode cannot be read or does not fit the policy, or the policy failed.
    """
    used: list[int] = []
    parts: list[_EpisodeError] = []
    for index in episodes:
        part = _measure(evaluate_episode(policy, dataset, episode_index=index))
        if part is None:
            return None
        used.append(index)
        parts.append(part)
        if min_chunks is not None and sum(len(done.actions) for done in parts) >= min_chunks:
            break
    return _join(parts, used) if parts else None


@dataclass(frozen=True, slots=True, eq=False)
class _EpisodeError:
    """Of C columns: chunks (N, K, C), sums of squares (C,), numbers of values (C,), recorded actions (steps, C)."""

    columns: tuple[Column, ...]
    actions: Array
    squares: Array
    counts: Array
    recorded: Array


def _join(parts: Sequence[_EpisodeError], episodes: Sequence[int]) -> ActionError:
    """Put episodes together; rows after the end of one are not known, so each counts by its known rows."""
    counts = np.sum([part.counts for part in parts], axis=0)
    recorded = np.concatenate([part.recorded for part in parts]).astype(np.float64)
    variances = recorded.var(axis=0)
    return ActionError(
        episodes=tuple(episodes),
        columns=parts[0].columns,
        actions=np.concatenate([part.actions for part in parts]),
        mean_squares=np.sum([part.squares for part in parts], axis=0) / counts,
        variances=np.where(variances > 0, variances, 1.0),
    )


def _measure(result: OpenLoop) -> _EpisodeError | None:
    joints = [joint for joint in compare(result.policy, result.truth).joints if joint.whole]
    if not joints:
        return None
    names = [joint.name for joint in joints]
    known = [joint.whole for joint in joints if joint.whole]
    return _EpisodeError(
        columns=tuple(column for column in result.policy.columns if column.name in names),
        actions=_pick(result.policy, names).astype(np.float64),
        squares=np.array([errors.mse * errors.count for errors in known]),
        counts=np.array([errors.count for errors in known]),
        recorded=_pick(result.truth, names)[:, 0],
    )


def _pick(recording: ChunkRecording, names: Sequence[str]) -> Array:
    held = [column.name for column in recording.columns]
    picked: Array = recording.actions[:, :, [held.index(name) for name in names]]
    return picked


def _at_least_tiny(value: float) -> float:
    """Return a number to divide by: a policy that repeats the recording has no error to speak of."""
    return max(value, float(np.finfo(np.float32).tiny))
