# SPDX-License-Identifier: Apache-2.0
"""A policy around a policy: hands everything on, so that one that adds behaviour says only what it adds."""

from __future__ import annotations

from vla_policy_ros.core.chunk import ActionChunk
from vla_policy_ros.core.frame import Frame, PreparedFrame
from vla_policy_ros.core.observation import Observation
from vla_policy_ros.core.policy import DelayAware, Policy
from vla_policy_ros.core.specs import PolicySpec


class WrappedPolicy:
    """Does what another policy does (`core.policy.Policy`, `DelayAware`).

    Args:
        policy: The policy; it is closed with this one.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    @property
    def spec(self) -> PolicySpec:
        """What the policy takes and gives."""
        return self._policy.spec

    def prepares_at_once(self, frame: Frame) -> bool:
        """Tell whether the policy does."""
        return self._policy.prepares_at_once(frame)

    def prepare(self, frame: Frame) -> Frame | PreparedFrame:
        """Prepare as the policy does."""
        return self._policy.prepare(frame)

    def warmup(self) -> None:
        """Warm the policy up."""
        self._policy.warmup()

    def infer(self, observation: Observation) -> ActionChunk:
        """Return the policy's chunk."""
        return self._policy.infer(observation)

    def note_published(self, delay_ns: int) -> tuple[str, ...]:
        """Tell the policy, where it plans for the delay."""
        policy = self._policy
        return policy.note_published(delay_ns) if isinstance(policy, DelayAware) else ()

    def reset(self) -> None:
        """Reset the policy."""
        self._policy.reset()

    def close(self) -> None:
        """Close the policy."""
        self._policy.close()
