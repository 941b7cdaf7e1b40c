# SPDX-License-Identifier: Apache-2.0
"""Everything between "message received" and "chunk ready", free of ROS."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from vla_policy_ros.bundle.strict import with_count
from vla_policy_ros.core.chunk import ActionChunk
from vla_policy_ros.core.clock import Clock, MonotonicClock
from vla_policy_ros.core.errors import StateError, VlaPolicyError
from vla_policy_ros.core.frame import Frame, PreparedFrame
from vla_policy_ros.core.observation import Instruction, Observation
from vla_policy_ros.core.policy import DelayAware, Policy
from vla_policy_ros.deployment.config import Deployment, check_deployment, to_ns
from vla_policy_ros.runtime.counters import PipelineCounters
from vla_policy_ros.runtime.lane import DETAILS, STALE_EPOCH, STOPPED, busy_error
from vla_policy_ros.runtime.observations import (
    Arrived,
    JointInput,
    JointSample,
    ObservationBuilder,
    blend,
    stream_rules,
)
from vla_policy_ros.runtime.outcome import Outcome, PipelineSnapshot, describe_state
from vla_policy_ros.runtime.prefetch import FramePreparer
from vla_policy_ros.runtime.worker import InferenceWorker
from vla_policy_ros.scheduling.matcher import MatchedSet, Refusal, StampMatcher, is_time_jump

_POLICY = 'policy'
_ENDINGS = (STALE_EPOCH, STOPPED)
_Payload = Frame | PreparedFrame | JointSample


@dataclass(frozen=True, slots=True)
class _Ticket:
    stream: str
    stamp_ns: int
    received_ns: int
    epoch: int


class PolicyPipeline:
    """Matches, prepares and infers; every reference sample has exactly one outcome.

    Any thread may call any method. One lock guards the state; preprocessing, inference and `on_outcome` run outside
    of it. Samples offered while the pipeline is not started are ignored.

    Args:
        policy: The policy; it stays the caller's to close.
        deployment: The streams, how they are matched, how much may wait.
        clock: The clock of the stamps.
        on_outcome: Called on the worker's thread, in order; it must not call `stop`.
        duration_clock: Measures latencies.

    Raises:
        ConfigurationError: The deployment does not fit the policy.
        ImageError: The policy cannot prepare a black image for an optional camera.
    """

    def __init__(
        self,
        policy: Policy,
        deployment: Deployment,
        *,
        clock: Clock,
        on_outcome: Callable[[Outcome], None],
        duration_clock: Clock | None = None,
    ) -> None:
        spec = policy.spec.observation
        faults = check_deployment(deployment, policy.spec)
        if faults:
            raise with_count(faults)
        self._policy = policy
        self._deployment = deployment
        self._clock = clock
        self._duration_clock = duration_clock or MonotonicClock()
        self._on_outcome = on_outcome
        self._lock = threading.RLock()
        self._reference = deployment.reference_stream(policy.spec)
        self._rules = stream_rules(deployment, spec)
        self._required = [
            rule.name
            for rule in self._rules
            if rule.fill == 'refuse' or rule.name == self._reference
        ]
        self._joints = [
            JointInput(spec.state, source.names, source.rename)
            for source in deployment.joint_states
        ]
        self._matcher = StampMatcher(
            self._reference,
            self._rules,
            patience_ns=to_ns(deployment.matching.patience_ms),
            interpolate=blend,
        )
        self._instruction = Instruction(deployment.instruction.text)
        self._builder = ObservationBuilder(policy, deployment, self._joints)
        self._epoch = 0
        self._num_observations = 0  # of this epoch
        self._is_running, self._has_ended = False, True
        self._begin()

    def start(self) -> None:
        """Start the threads and a fresh set of counters; the policy is reset before its first observation.

        Raises:
            EngineError: A thread that `stop` could not wait for is still at work with the policy (`still_busy`).
        """
        with self._lock:
            if self._is_running:
                return
            self._check_ended()
            self._begin()
            self._worker.start()
            self._worker.reset(self._epoch)
            self._preparer.start()
            self._is_running = True

    def stop(self, timeout_s: float = 5.0) -> bool:
        """End the epoch and join the threads; what is unfinished is refused as `stopped`.

        Returns:
            False when a thread did not end within the timeout, which bounds each of two waits.
        """
        with self._lock:
            if not self._is_running:
                return True
            self._is_running = False
            self._abandon(STOPPED)
        have_ended = [self._preparer.stop(timeout_s), self._worker.stop(timeout_s)]
        with self._lock:
            self._epoch += 1
            self._has_ended = all(have_ended)
        return self._has_ended

    def drain(self, timeout_s: float) -> bool:
        """Wait until all that is matched is inferred; return whether that came true."""
        return self._preparer.drain(timeout_s) and self._worker.drain(timeout_s)

    def reset(self, reason: str) -> None:
        """Begin an epoch: what is unfinished is refused as `stale_epoch`; the reason is counted."""
        with self._lock:
            if not self._is_running:
                return
            self._counters.resets[reason] += 1
            self._abandon(STALE_EPOCH)
            self._epoch += 1
            self._num_observations = 0
            for stream in self._counters.streams.values():
                stream.restart()
            self._preparer.shed(STALE_EPOCH)
            self._worker.reset(self._epoch)

    def offer_frame(self, frame: Frame) -> None:
        """Take one image; it is prepared on its camera's thread, or here where the policy prepares at once."""
        with self._lock:
            if not self._is_running:
                return
            ticket = self._receive(frame.camera, frame.stamp_ns)
            prepare = self._preparer.offer(frame, ticket)
        prepare()  # outside the lock: it may copy the image

    def offer_joints(
        self,
        source_index: int,
        stamp_ns: int,
        names: Sequence[str],
        positions: Sequence[float] | Any,
    ) -> None:
        """Take one joint state of the deployment's joint source `source_index`."""
        with self._lock:
            if not self._is_running:
                return
            stream = self._deployment.joint_streams[source_index]
            ticket = self._receive(stream, stamp_ns)
            try:
                sample = self._joints[source_index].read(names, positions)
            except StateError as error:
                self._on_refused(ticket, error.code, str(error))
            else:
                self._on_ready(ticket, sample)

    def refuse(self, stream: str, stamp_ns: int, error: VlaPolicyError) -> None:
        """Take note of a message that could not be read; its stamp is the best guess there is."""
        with self._lock:
            if not self._is_running:
                return
            now_ns = self._duration_clock.now_ns()
            self._counters.streams[stream].arrive_broken(now_ns)
            ticket = _Ticket(stream, stamp_ns, now_ns, self._epoch)
            if stream in self._deployment.cameras:
                self._preparer.refuse(stream, ticket, error)
            else:
                self._on_refused(ticket, error.code, str(error))

    def set_instruction(self, text: str) -> None:
        """Set the instruction of the observations to come; its id grows when the text changes."""
        with self._lock:
            if text != self._instruction.text:
                self._instruction = Instruction(text, self._instruction.instruction_id + 1)

    def poll(self) -> None:
        """Decide what can be decided by now; call it often, so that no sample waits longer than the patience."""
        with self._lock:
            if self._is_running:
                self._decide()

    def snapshot(self) -> PipelineSnapshot:
        """Return state and counts."""
        with self._lock:
            counters, now_ns = self._counters, self._clock.now_ns()
            silent = counters.find_silent(self._duration_clock.now_ns())
            state, detail = self._state(silent)
            return PipelineSnapshot(
                state=state,
                detail=detail,
                epoch=self._epoch,
                instruction=self._instruction,
                observations=counters.observations,
                chunks=counters.chunks,
                refused=counters.refused,
                causes=dict(counters.causes),
                resets=dict(counters.resets),
                streams=counters.snapshots(now_ns, silent),
                latencies=counters.latencies(),
            )

    def _check_ended(self) -> None:
        self._has_ended = self._has_ended or (self._preparer.stop(0.0) and self._worker.stop(0.0))
        if not self._has_ended:
            raise busy_error(self._policy.spec.policy_id)

    def _begin(self) -> None:
        policy, settings = self._policy, self._deployment.policy
        rates_hz = {name: camera.rate_hz for name, camera in self._deployment.cameras.items()}
        periods_ns = {name: round(1e9 / rate) for name, rate in rates_hz.items() if rate}
        self._counters = PipelineCounters(
            {rule.name: periods_ns.get(rule.name) for rule in self._rules}
        )
        self._num_observations = 0
        # When the last sample of a set was received, for the sets at the worker, by stamp.
        self._complete_ns: dict[int, int] = {}
        self._worker = InferenceWorker(
            policy,
            queue=settings.max_waiting,
            on_chunk=self._on_chunk,
            on_refused=self._on_refused_observation,
            clock=self._duration_clock,
        )
        self._preparer: FramePreparer[_Ticket] = FramePreparer(
            policy,
            list(self._deployment.cameras),
            queue=settings.queue,
            on_ready=self._on_ready,
            on_refused=self._on_refused,
        )

    def _receive(self, stream: str, stamp_ns: int) -> _Ticket:
        counter = self._counters.streams[stream]
        threshold_ns = to_ns(self._deployment.matching.time_jump_ms)
        if is_time_jump(counter.newest_ns, stamp_ns, threshold_ns):
            if stream == self._reference:
                self.reset('time_jump')
            else:
                counter.restart()
        now_ns = self._duration_clock.now_ns()
        counter.arrive(stamp_ns, now_ns)
        return _Ticket(stream, stamp_ns, now_ns, self._epoch)

    def _on_ready(self, ticket: _Ticket, sample: _Payload) -> None:
        with self._lock:
            if ending := self._ending(ticket):
                self._on_refused(ticket, ending, DETAILS[ending])
                return
            arrived = Arrived(sample, ticket.received_ns, self._duration_clock.now_ns())
            refusal = self._matcher.offer(
                ticket.stream, ticket.stamp_ns, arrived, now_ns=self._duration_clock.now_ns()
            )
            if refusal is not None:
                self._on_refused(ticket, refusal.cause, refusal.detail)
                return
            self._counters.streams[ticket.stream].fault = ''
            self._decide()

    def _on_refused(self, ticket: _Ticket, cause: str, detail: str) -> None:
        with self._lock:
            if cause not in _ENDINGS:
                self._counters.streams[ticket.stream].refuse(cause, detail)
            if ticket.stream != self._reference:
                if cause not in _ENDINGS:
                    self._counters.count_cause(ticket.stream, cause)
            elif self._ending(ticket) is None:
                self._matcher.refuse(ticket.stamp_ns, cause, detail)
                self._decide()
            else:
                refusal = Refusal(ticket.stamp_ns, ticket.stream, cause, detail)
                self._answer(refusal, ticket.epoch)

    def _ending(self, ticket: _Ticket) -> str | None:
        if not self._is_running:
            return STOPPED
        return None if ticket.epoch == self._epoch else STALE_EPOCH

    def _abandon(self, cause: str) -> None:
        for refusal in self._matcher.reset(cause, DETAILS[cause]):
            self._answer(refusal, self._epoch)

    def _decide(self) -> None:
        # Patience is real time: the clock of the stamps may stand still (lock-step, a paused bag).
        for result in self._matcher.poll(self._duration_clock.now_ns()):
            if isinstance(result, Refusal):
                is_own = result.stream == self._reference
                self._answer(result if is_own else self._counters.explain(result), self._epoch)
            else:
                self._infer(result)

    def _infer(self, matched: MatchedSet) -> None:
        observation = self._builder.build(
            matched,
            instruction=self._instruction,
            sequence=self._num_observations,
            epoch=self._epoch,
        )
        self._num_observations += 1
        self._counters.observations += 1
        for stream in matched.filled:
            self._counters.streams[stream].filled += 1
        newest: Arrived[_Payload] = matched.samples[self._reference][-1]
        stages_ns = {
            'prepare': newest.ready_ns - newest.received_ns,
            'match': self._duration_clock.now_ns() - newest.ready_ns,
        }
        found = [samples[-1] for samples in matched.samples.values() if samples[-1] is not None]
        self._complete_ns[observation.stamp_ns] = max(sample.received_ns for sample in found)
        self._worker.offer(observation, stages_ns=stages_ns)

    def _answer(self, refusal: Refusal, epoch: int) -> None:
        self._worker.call(partial(self._deliver_refusal, refusal, epoch))

    def _deliver_refusal(self, refusal: Refusal, epoch: int) -> None:
        with self._lock:
            self._counters.count_refusal(refusal.stream, refusal.cause)
        self._on_outcome(
            Outcome(
                stamp_ns=refusal.stamp_ns,
                stream=refusal.stream,
                cause=refusal.cause,
                detail=refusal.detail,
                epoch=epoch,
            )
        )

    def _on_refused_observation(self, observation: Observation, cause: str, detail: str) -> None:
        with self._lock:
            self._complete_ns.pop(observation.stamp_ns, None)
        refusal = Refusal(observation.stamp_ns, _POLICY, cause, detail)
        self._deliver_refusal(refusal, observation.epoch)

    def _on_chunk(self, observation: Observation, chunk: ActionChunk) -> None:
        published_from_ns = self._duration_clock.now_ns()
        with self._lock:
            complete_ns = self._complete_ns.pop(observation.stamp_ns, published_from_ns)
            capture_to_chunk_ns = self._clock.now_ns() - observation.stamp_ns
            self._counters.count_chunk(
                observation.stream_stamps_ns,
                {**chunk.stage_latencies_ns, 'capture_to_chunk': capture_to_chunk_ns},
            )
        stamp_ns = observation.stamp_ns
        self._on_outcome(
            Outcome(stamp_ns=stamp_ns, chunk=chunk, sequence=chunk.sequence, epoch=chunk.epoch)
        )
        published_ns = self._duration_clock.now_ns()
        delay_ns, policy = self._clock.now_ns() - stamp_ns, self._policy
        causes = policy.note_published(delay_ns) if isinstance(policy, DelayAware) else ()
        with self._lock:
            self._counters.count_published(
                publish_ns=published_ns - published_from_ns,
                receipt_ns=published_ns - complete_ns,
                causes=causes,
            )

    def _state(self, silent: frozenset[str]) -> tuple[str, str]:
        if not self._is_running:
            return 'inactive', ''
        failures = dict(self._preparer.failures)
        if self._worker.failure is not None:
            failures[_POLICY] = self._worker.failure
        needs_instruction = self._policy.spec.observation.needs_instruction
        return describe_state(
            failures,
            [name for name in self._required if name in silent],
            has_time=self._clock.now_ns() > 0,
            has_instruction=bool(self._instruction.text) or not needs_instruction,
        )
