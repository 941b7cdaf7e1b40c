# SPDX-License-Identifier: Apache-2.0
"""The thread that runs the policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from vla_policy_ros.core.chunk import ActionChunk
from vla_policy_ros.core.clock import Clock
from vla_policy_ros.core.errors import VlaPolicyError
from vla_policy_ros.core.observation import Observation
from vla_policy_ros.core.policy import Policy
from vla_policy_ros.runtime.lane import (
    DETAILS,
    STALE_EPOCH,
    STOPPED,
    Answer,
    Lane,
    check_goes_on,
)


class InferenceWorker:
    """Runs observations through the policy, in order, one at a time.

    Every observation comes back exactly once, on the worker's thread and without its images, to `on_chunk` or to
    `on_refused`. An error of the package's own tree is a refusal with the error's code, and the worker goes on. Any
    other error, and the loss of the GPU, ends the inference: it is kept as `failure`, and what comes after is refused as `worker_failed`.

    Args:
        policy: The policy; `infer` and `reset` are called on the worker's thread only.
        queue: Observations that may wait; the oldest one is refused as `superseded` when there are more.
        on_chunk: Called with the observation and its chunk; sequence, epoch and stage latencies are filled in.
        on_refused: Called with the observation, a cause and a detail.
        clock: Measures how long an observation waits (`queue` among the stage latencies).
    """

    def __init__(
        self,
        policy: Policy,
        *,
        queue: int,
        on_chunk: Callable[[Observation, ActionChunk], None],
        on_refused: Callable[[Observation, str, str], None],
        clock: Clock,
    ) -> None:
        self._policy = policy
        self._on_chunk = on_chunk
        self._on_refused = on_refused
        self._clock = clock
        self._lane = Lane('vla-worker', capacity=queue)
        self._epoch = 0
        self._next_sequence = (0, 0)  # (epoch, sequence), used by the worker's thread only

    @property
    def failure(self) -> Exception | None:
        """The unexpected error that ended the inference, None while all is well."""
        return self._lane.failure

    def start(self) -> None:
        """Start the thread."""
        self._lane.start()

    def offer(
        self, observation: Observation, *, stages_ns: Mapping[str, int] | None = None
    ) -> None:
        """Queue one observation; `stages_ns` are the latencies of the stages before this one."""
        bare = replace(observation, images={})
        work = partial(self._infer, observation, bare, stages_ns or {}, self._clock.now_ns())
        self._lane.submit(work, partial(self._refuse, bare))

    def call(self, answer: Answer) -> None:
        """Call something on the worker's thread, after all that was queued before."""
        self._lane.call(answer)

    def reset(self, epoch: int) -> None:
        """Begin an epoch: what waits and what is in work is refused as `stale_epoch`; the policy is reset in turn."""
        self._epoch = epoch
        self._lane.shed(STALE_EPOCH)
        self._lane.call(self._policy.reset)

    def drain(self, timeout_s: float) -> bool:
        """Wait until no observation waits or is in work; return whether that came true."""
        return self._lane.drain(timeout_s)

    def stop(self, timeout_s: float) -> bool:
        """Refuse what waits and what is in work, join the thread; return False when it did not end in time."""
        return self._lane.stop(timeout_s)

    def _infer(
        self,
        observation: Observation,
        bare: Observation,
        stages_ns: Mapping[str, int],
        offered_ns: int,
    ) -> Answer:
        waited_ns = self._clock.now_ns() - offered_ns
        try:
            chunk = self._policy.infer(observation)
        except VlaPolicyError as error:
            check_goes_on(error)
            return partial(self._on_refused, bare, error.code, str(error))
        if observation.epoch != self._epoch:
            return partial(self._refuse, bare, STALE_EPOCH)
        if self._lane.is_stopping:
            return partial(self._refuse, bare, STOPPED)
        latencies_ns = {**stages_ns, 'queue': waited_ns, **chunk.stage_latencies_ns}
        epoch, sequence = self._next_sequence
        sequence = sequence if epoch == observation.epoch else 0
        self._next_sequence = (observation.epoch, sequence + 1)
        complete = replace(
            chunk,
            sequence=sequence,
            epoch=observation.epoch,
            stage_latencies_ns=latencies_ns,
        )
        return partial(self._on_chunk, bare, complete)

    def _refuse(self, observation: Observation, cause: str) -> None:
        self._on_refused(observation, cause, DETAILS[cause])
