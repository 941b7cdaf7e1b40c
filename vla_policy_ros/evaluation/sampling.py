# SPDX-License-Identifier: Apache-2.0
"""A few observations that stand for a whole dataset."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from itertools import islice

from vla_policy_ros.core.dataset import Dataset
from vla_policy_ros.core.observation import Observation
from vla_policy_ros.core.specs import PolicySpec
from vla_policy_ros.evaluation.observations import EpisodeObservations


def spread_episodes(total: int, count: int) -> list[int]:
    """Return `count` episodes of a dataset, or all, spread evenly over it."""
    used = min(count, total)
    return [place * total // used for place in range(used)]


def sample_observations(
    dataset: Dataset, spec: PolicySpec, *, count: int
) -> Iterator[Observation]:
    """Yield up to `count` observations, spread evenly over episodes and over the steps of each.

    An episode that is shorter than its share gives what it has.

    Raises:
        DatasetError: The dataset lacks what the policy wants, or an image cannot be read.
    """
    episodes = spread_episodes(dataset.info.num_episodes, count)
    for place, index in enumerate(episodes):
        share = count // len(episodes) + (place < count % len(episodes))
        with closing(dataset.episode(index)) as episode:
            steps = EpisodeObservations(dataset.info, episode, spec=spec)
            yield from islice(steps.iterate(stride=max(len(steps) // share, 1)), share)
