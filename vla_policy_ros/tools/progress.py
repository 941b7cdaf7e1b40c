# SPDX-License-Identifier: Apache-2.0
"""A policy around a policy that tells how far an evaluation is."""

from __future__ import annotations

import threading
from collections.abc import Callable

from vla_policy_ros.core.chunk import ActionChunk
from vla_policy_ros.core.observation import Observation
from vla_policy_ros.core.policy import Policy
from vla_policy_ros.core.wrapped_policy import WrappedPolicy


class Tally:
    """Counts begun episodes and finished observations; any thread may add.

    Args:
        on_change: Called with both counts after each change, by one thread at a time.
    """

    def __init__(self, on_change: Callable[[int, int], None]) -> None:
        self._on_change = on_change
        self._lock = threading.Lock()
        self._episodes = self._observations = 0

    def add(self, *, episodes: int = 0, observations: int = 0) -> None:
        """Add to the counts."""
        with self._lock:
            self._episodes += episodes
            self._observations += observations
            self._on_change(self._episodes, self._observations)


class CountedPolicy(WrappedPolicy):
    """Does what another policy does and counts: a reset begins an episode, an inference ends an observation; a warm-up counts nothing."""

    def __init__(self, policy: Policy, tally: Tally) -> None:
        super().__init__(policy)
        self._tally = tally

    def infer(self, observation: Observation) -> ActionChunk:
        """Compute the chunk of one observation."""
        chunk = super().infer(observation)
        self._tally.add(observations=1)
        return chunk

    def reset(self) -> None:
        """Forget earlier observations."""
        super().reset()
        self._tally.add(episodes=1)
