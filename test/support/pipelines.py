# SPDX-License-Identifier: Apache-2.0
"""A pipeline around a fake policy, with the words that tests of it use."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from support.clocks import TickClock
from support.policies import PATIENCE_S, FakePolicy, make_frame

from vla_policy_ros.core.clock import ManualClock
from vla_policy_ros.core.specs import PolicySpec
from vla_policy_ros.deployment.config import Deployment, default_deployment
from vla_policy_ros.runtime.outcome import Outcome
from vla_policy_ros.runtime.pipeline import PolicyPipeline

MS = 1_000_000


class Bench:
    """A started pipeline; stamps and times are in milliseconds.

    Args:
        spec: Spec of the fake policy; one camera `front` and two joints by default.
        change: Changes the default deployment's document.
    """

    def __init__(
        self,
        spec: PolicySpec | None = None,
        change: Callable[[dict[str, Any]], None] = lambda document: None,
    ) -> None:
        self.policy = FakePolicy(spec)
        self.clock = ManualClock(1000 * MS)
        self.duration_clock = TickClock()
        self.outcomes: list[Outcome] = []
        self.threads: set[str] = set()
        document = default_deployment(self.policy.spec, bundle='sample').model_dump()
        change(document)
        self.pipeline = PolicyPipeline(
            self.policy,
            Deployment.model_validate(document),
            clock=self.clock,
            on_outcome=self._on_outcome,
            duration_clock=self.duration_clock,
        )
        self.pipeline.start()

    def _on_outcome(self, outcome: Outcome) -> None:
        self.threads.add(threading.current_thread().name)
        self.outcomes.append(outcome)

    def frame(self, stamp_ms: float, camera: str = 'front', *, brightness: int = 1) -> None:
        """Offer one image and wait until it is prepared."""
        self.pipeline.offer_frame(make_frame(camera, round(stamp_ms * MS), brightness))
        self.settle()

    def joints(
        self,
        stamp_ms: float,
        positions: Sequence[float] = (0.25, 0.5),
        *,
        source: int = 0,
        names: Sequence[str] = ('shoulder', 'elbow'),
    ) -> None:
        """Offer one joint state."""
        self.pipeline.offer_joints(source, round(stamp_ms * MS), names, positions)
        self.settle()

    def step(self, stamp_ms: float) -> None:
        """Offer one image and one joint state of the same stamp."""
        self.frame(stamp_ms)
        self.joints(stamp_ms)

    def wait(self, duration_ms: float) -> None:
        """Let time pass on both clocks and poll."""
        self.clock.advance(round(duration_ms * MS))
        self.duration_clock.advance(round(duration_ms * MS))
        self.pipeline.poll()
        self.settle()

    def settle(self) -> None:
        """Wait for the threads, unless a gate of the policy is closed."""
        if self.policy.infer_gate.is_open and self.policy.prepare_gate.is_open:
            assert self.pipeline.drain(PATIENCE_S)

    @property
    def told(self) -> list[tuple[float, str]]:
        """Stamp and result per outcome: `epoch.sequence` of a chunk, or `stream/cause`."""
        return [
            (
                outcome.stamp_ns / MS,
                f'{outcome.epoch}.{outcome.sequence}'
                if outcome.chunk is not None
                else f'{outcome.stream}/{outcome.cause}',
            )
            for outcome in self.outcomes
        ]

    def close(self) -> None:
        """Open all gates and stop."""
        self.policy.infer_gate.open()
        self.policy.prepare_gate.open()
        assert self.pipeline.stop(PATIENCE_S)
