# SPDX-License-Identifier: Apache-2.0
"""What the policy node publishes: chunks, acknowledgements, status and diagnostics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.qos import QoSProfile

from vla_policy_ros.deployment.config import Deployment
from vla_policy_ros.msg import ActionChunk, ObservationAck, PolicyStatus, StreamStatus
from vla_policy_ros.ros.clock import NodeClock
from vla_policy_ros.ros.convert import chunk_to_message, to_time
from vla_policy_ros.ros.diagnostics import Diagnostics
from vla_policy_ros.ros.inputs import InputState
from vla_policy_ros.ros.qos import LATCHED, RELIABLE, unmatched_subscribers
from vla_policy_ros.runtime.outcome import Outcome, PipelineSnapshot

_LEVELS = {
    'running': DiagnosticStatus.OK,
    'waiting': DiagnosticStatus.WARN,
    'inactive': DiagnosticStatus.OK,
    'failed': DiagnosticStatus.ERROR,
}


class PolicyOutputs:
    """Publishers of one policy; they are silent unless the node is active.

    Args:
        node: A lifecycle node.
        deployment: Topics and output forms.
        policy_id: Name and content hash of the policy.
        execution: How it really runs: on the host, or on which GPU and in what graph.
    """

    def __init__(
        self, node: Any, *, deployment: Deployment, policy_id: str, execution: str
    ) -> None:
        self._node = node
        self._deployment = deployment
        self._policy_id = policy_id
        self._execution = execution
        output = deployment.output
        self._clock = NodeClock(node)

        def publisher(message_class: Any, topic: str, profile: QoSProfile = RELIABLE) -> Any:
            return node.create_lifecycle_publisher(message_class, topic, profile)

        self._chunks = publisher(ActionChunk, output.chunk_topic)
        self._acks = publisher(ObservationAck, 'observation_ack')
        # Status must also be seen while inactive, so these two are plain publishers.
        self._status = node.create_publisher(PolicyStatus, 'policy_status', LATCHED)
        self._diagnostics = Diagnostics(node, 'policy')

    def close(self) -> None:
        """Remove every publisher."""
        for publisher in (self._chunks, self._acks):
            self._node.destroy_lifecycle_publisher(publisher)
        self._node.destroy_publisher(self._status)
        self._diagnostics.close()

    def publish_outcome(self, outcome: Outcome) -> None:
        """Publish the chunk, if there is one, and acknowledge the reference sample."""
        if outcome.chunk is not None:
            now_ns = self._clock.now_ns()
            self._chunks.publish(chunk_to_message(outcome.chunk, publish_stamp_ns=now_ns))
        ack = ObservationAck(
            accepted=outcome.chunk is not None,
            sequence=outcome.sequence,
            epoch=outcome.epoch,
            stream=outcome.stream,
            cause=outcome.cause,
            detail=outcome.detail,
        )
        ack.header.stamp = to_time(outcome.stamp_ns)
        self._acks.publish(ack)

    def publish_status(
        self,
        snapshot: PipelineSnapshot,
        inputs: Sequence[InputState],
        *,
        mended: Mapping[str, int],
    ) -> None:
        """Publish status and diagnostics; `mended` tells for which limits how many chunks were bent or stretched."""
        problems = [problem for item in inputs for problem in item.problems]
        problems += unmatched_subscribers(
            self._node, self._deployment.output.chunk_topic, RELIABLE
        )
        status = self._status_message(snapshot, inputs)
        self._status.publish(status)
        self._publish_diagnostics(status, problems, mended)

    def _status_message(
        self, snapshot: PipelineSnapshot, inputs: Sequence[InputState]
    ) -> PolicyStatus:
        policy = self._deployment.policy
        status = PolicyStatus(
            policy_id=self._policy_id,
            engine=policy.engine,
            preprocess=policy.preprocess,
            state=snapshot.state,
            detail=snapshot.detail,
            epoch=snapshot.epoch,
            instruction_id=snapshot.instruction.instruction_id,
            instruction=snapshot.instruction.text,
            observations=snapshot.observations,
            chunks=snapshot.chunks,
            refused=snapshot.refused,
            reset_reasons=list(snapshot.resets),
            reset_counts=list(snapshot.resets.values()),
            refusal_causes=list(snapshot.causes),
            refusal_counts=list(snapshot.causes.values()),
            stage_names=list(snapshot.latencies),
        )
        status.header.stamp = to_time(self._clock.now_ns())
        for name in ('p50_ms', 'p95_ms', 'p99_ms', 'max_ms'):
            values = [getattr(summary, name) for summary in snapshot.latencies.values()]
            setattr(status, f'stage_{name}', values)
        found = {item.name: item for item in inputs}
        for name, stream in snapshot.streams.items():
            entry = StreamStatus(
                name=name,
                received=stream.received,
                used=stream.used,
                missing=stream.missing,
                filled=stream.filled,
                refused=stream.refused,
                newest_age_ns=stream.newest_age_ns,
                rate_hz=stream.rate_hz,
                newest_stamp=to_time(max(stream.newest_stamp_ns, 0)),
            )
            if name in found:
                entry.topic = found[name].topic
                entry.publishers = found[name].num_publishers
                entry.qos_compatible = not found[name].problems
            status.streams.append(entry)
        return status

    def _publish_diagnostics(
        self, status: PolicyStatus, problems: Sequence[str], mended: Mapping[str, int]
    ) -> None:
        values: dict[str, object] = {
            'policy': status.policy_id,
            'engine': status.engine,
            'execution': self._execution,
            'preprocess': status.preprocess,
            'instruction': status.instruction,
            'observations': status.observations,
            'chunks': status.chunks,
            'refused': status.refused,
        }
        causes = zip(status.refusal_causes, status.refusal_counts, strict=True)
        values.update({f'refused {cause}': count for cause, count in causes})
        values.update({f'mended {cause}': count for cause, count in mended.items()})
        for stream in status.streams:
            values[f'{stream.name} rate_hz'] = f'{stream.rate_hz:.1f}'
            values[f'{stream.name} missing'] = stream.missing
            values[f'{stream.name} filled'] = stream.filled
        for index, name in enumerate(status.stage_names):
            values[f'{name} p99_ms'] = f'{status.stage_p99_ms[index]:.3f}'
        told = status.state + (f': {status.detail}' if status.detail else '')
        self._diagnostics.publish(
            DiagnosticStatus.ERROR if problems else _LEVELS[status.state],
            '; '.join([told, *problems]),
            values,
            stamp=status.header.stamp,
            hardware_id=status.policy_id,
        )
