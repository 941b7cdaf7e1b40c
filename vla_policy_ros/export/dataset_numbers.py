# SPDX-License-Identifier: Apache-2.0
"""All numbers of a dataset, for statistics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from vla_policy_ros.core.dataset import Dataset
from vla_policy_ros.core.errors import DatasetError
from vla_policy_ros.core.specs import Array


@dataclass(frozen=True, slots=True, eq=False)
class DatasetNumbers:
    """All states (N, S) and actions (N, D) of a dataset, one step after another, and the texts that occur."""

    state: Array
    action: Array
    texts: frozenset[str]


def read_episodes(dataset: Dataset) -> Iterator[tuple[Array, Array]]:
    """Yield states (T, S) and actions (T, D) of each episode; without recorded actions, they are the states."""
    for index in range(dataset.info.num_episodes):
        with closing(dataset.episode(index)) as episode:
            yield episode.state, episode.action if dataset.info.action else episode.state


def read_numbers(dataset: Dataset) -> DatasetNumbers:
    """Read all states, actions and texts; without recorded actions, they are the states.

    Raises:
        DatasetError: The dataset has no episode, or neither state nor action (`no_columns`).
    """
    info = dataset.info
    if not info.num_episodes or not (info.state or info.action):
        raise DatasetError(
            info.name,
            got=f'{info.num_episodes} episodes with {len(info.state)} state columns',
            expected='at least one episode, with a state or actions',
            next_step='Record joint states, or choose another dataset.',
            code='no_columns',
        )
    states: list[Array] = []
    actions: list[Array] = []
    texts: set[str] = set()
    for index in range(info.num_episodes):
        with closing(dataset.episode(index)) as episode:
            states.append(episode.state)
            actions.append(episode.action)
            texts.update(episode.instructions)
    state = np.concatenate(states)
    action = np.concatenate(actions) if info.action else state
    return DatasetNumbers(state, action, frozenset(texts))
