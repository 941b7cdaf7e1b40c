# SPDX-License-Identifier: Apache-2.0
"""What the executor node says about itself: status, diagnostics, and every command to whoever listens."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus

from vla_policy_ros.execution.report import Command, Snapshot
from vla_policy_ros.msg import ExecutorStatus, MotionCommand
from vla_policy_ros.ros.convert import to_time
from vla_policy_ros.ros.diagnostics import Diagnostics
from vla_policy_ros.ros.qos import LATCHED, RELIABLE, hand_over


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """What only the node knows.

    Attributes:
        is_active: Whether it ticks.
        missing: Controllers that nobody listens for.
        scheduling: What the system permitted.
        missed: Ticks that were skipped.
        fault: Why the executor file does not fit the policy; empty when it does.
    """

    is_active: bool
    missing: tuple[str, ...]
    scheduling: str
    missed: int
    fault: str


class MotionPublisher:
    """Tells commands, while somebody listens; `publish` may run on a thread of its own.

    Args:
        node: A lifecycle node.
        is_dry_run: Whether the commands are told and not sent.
    """

    def __init__(self, node: Any, *, is_dry_run: bool) -> None:
        self._node = node
        self._publisher = node.create_lifecycle_publisher(
            MotionCommand, 'motion_command', RELIABLE
        )
        self._message = MotionCommand(is_dry_run=is_dry_run)
        self._is_heard = False

    def follow(self) -> None:
        """Look whether somebody listens; call now and then, as the question costs as much as a message."""
        self._is_heard = self._publisher.get_subscription_count() > 0

    def publish(self, command: Command, names: Sequence[str]) -> None:
        """Tell the command of a tick.

        Args:
            command: The command.
            names: The D columns.
        """
        if not self._is_heard:
            return
        message = self._message
        message.header.stamp = to_time(command.time_ns)
        message.state = command.state.value
        if len(message.names) != len(names):
            message.names = list(names)
        # An array of the field's own type is taken over without a check of every element.
        message.positions = array('d', command.position.tobytes())
        message.velocities = array('d', command.velocity.tobytes())
        message.accelerations = array('d', command.acceleration.tobytes())
        message.is_limited = command.is_limited.tolist()
        message.sequence = command.sequence
        message.epoch = command.epoch
        message.instruction_id = command.instruction_id
        message.is_seam = command.is_seam
        self._publisher.publish(message)

    def close(self) -> None:
        """Remove the publisher."""
        hand_over(self._publisher)
        self._node.destroy_lifecycle_publisher(self._publisher)


class StatusPublisher:
    """Publishes status and diagnostics, in every state of the node.

    Args:
        node: An rclpy node.
    """

    def __init__(self, node: Any) -> None:
        self._node = node
        self._status = node.create_publisher(ExecutorStatus, 'executor_status', LATCHED)
        self._diagnostics = Diagnostics(node, 'executor')

    def publish(self, snapshot: Snapshot, facts: NodeFacts) -> None:
        """Publish both."""
        status = status_message(snapshot, facts)
        status.header.stamp = self._node.get_clock().now().to_msg()
        self._status.publish(status)
        self._diagnostics.publish(*_summarise(status, facts), stamp=status.header.stamp)

    def close(self) -> None:
        """Remove both publishers."""
        self._node.destroy_publisher(self._status)
        self._diagnostics.close()


def status_message(snapshot: Snapshot, facts: NodeFacts) -> ExecutorStatus:
    """Return a snapshot as its message, without a stamp."""
    age_ms = snapshot.chunk_age_ms
    status = ExecutorStatus(
        state=snapshot.state.value if facts.is_active else 'inactive',
        cause=snapshot.cause,
        is_still=snapshot.is_still,
        is_dry_run=snapshot.is_dry_run,
        strategy=snapshot.strategy,
        epoch=snapshot.epoch or 0,
        instruction_id=snapshot.instruction_id or 0,
        offered=snapshot.offered,
        used=snapshot.used,
        waiting=snapshot.waiting,
        seams=snapshot.seams,
        starvations=snapshot.starvations,
        delay_mean_steps=snapshot.delay.mean_steps,
        delay_p95_steps=snapshot.delay.p95_steps,
        delay_max_steps=snapshot.delay.max_steps,
        chunk_age_ms=-1.0 if age_ms is None else age_ms,
        remaining_ms=snapshot.remaining_ms,
        time_scale=snapshot.time_scale,
        alarms=list(snapshot.alarms),
        missing=list(facts.missing),
        scheduling=facts.scheduling,
    )
    _put_counts(status, 'refusal_causes', 'refusal_counts', snapshot.refused)
    _put_counts(status, 'discard_causes', 'discard_counts', snapshot.discarded)
    _put_counts(status, 'violation_causes', 'violation_counts', snapshot.violations)
    _put_counts(status, 'limited_names', 'limited_counts', snapshot.limited)
    if snapshot.lateness is not None:
        for name in ('p50', 'p95', 'p99', 'max'):
            setattr(status, f'lateness_{name}_ms', getattr(snapshot.lateness, f'{name}_ms'))
    return status


def _summarise(
    status: ExecutorStatus, facts: NodeFacts
) -> tuple[bytes, str, Mapping[str, object]]:
    """Return level, message and values: an error when nothing can be executed, a warning when something is amiss."""
    level, message = DiagnosticStatus.OK, f'{status.state}: {status.cause}'
    if status.alarms or status.missing:
        level = DiagnosticStatus.WARN
        message += ''.join(f'; {alarm}' for alarm in status.alarms)
        message += ''.join(f'; nobody listens for {missing}' for missing in status.missing)
    if facts.fault or status.state in ('stopping', 'stopped'):
        level = DiagnosticStatus.ERROR
        message += f'; {facts.fault}' if facts.fault else ''
    values: dict[str, object] = {
        'strategy': status.strategy,
        'dry run': status.is_dry_run,
        'scheduling': status.scheduling,
        'lateness p50 / p95 / p99 / max [ms]': ' / '.join(
            f'{getattr(status, f"lateness_{part}_ms"):.3f}'
            for part in ('p50', 'p95', 'p99', 'max')
        ),
        'missed ticks': facts.missed,
        'chunks offered': status.offered,
        'chunks used': status.used,
        'chunk age [ms]': f'{status.chunk_age_ms:.1f}',
        'delay mean / p95 / max [steps]': ' / '.join(
            f'{getattr(status, f"delay_{part}_steps"):.1f}' for part in ('mean', 'p95', 'max')
        ),
        'seams': status.seams,
        'starvations': status.starvations,
    }
    for what in ('refusal', 'discard', 'violation'):
        causes, counts = getattr(status, f'{what}_causes'), getattr(status, f'{what}_counts')
        values.update({f'{what} {c}': n for c, n in zip(causes, counts, strict=True)})
    return level, message, values


def _put_counts(
    status: ExecutorStatus, names: str, numbers: str, counts: Mapping[str, int]
) -> None:
    setattr(status, names, list(counts))
    setattr(status, numbers, list(counts.values()))
