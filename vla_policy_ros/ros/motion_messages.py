# SPDX-License-Identifier: Apache-2.0
"""What an executor says, as the types of a recording."""

from __future__ import annotations

from typing import Any

import numpy as np

from vla_policy_ros.deployment.executor import ExecutorSettings
from vla_policy_ros.evaluation.motion_metrics import ExecutorFacts
from vla_policy_ros.evaluation.motion_recording import MotionSample
from vla_policy_ros.msg import ExecutorStatus, MotionCommand
from vla_policy_ros.ros.convert import to_ns


def motion_sample(message: MotionCommand) -> MotionSample:
    """Return a command as a sample of a recording."""
    return MotionSample(
        time_ns=to_ns(message.header.stamp),
        names=tuple(message.names),
        positions=np.array(message.positions, np.float64),
        velocities=np.array(message.velocities, np.float64),
        accelerations=np.array(message.accelerations, np.float64),
        is_limited=np.array(message.is_limited, bool),
        state=message.state,
        sequence=int(message.sequence),
        epoch=int(message.epoch),
        is_seam=bool(message.is_seam),
    )


def executor_facts(
    status: ExecutorStatus | None, settings: ExecutorSettings, *, robot_topic: str
) -> ExecutorFacts:
    """Return what an executor said last, and what its file says; without a status only the latter."""
    file = ExecutorFacts(
        strategy=settings.strategy.name,
        period_ns=settings.period_ns,
        is_dry_run=settings.dry_run,
        robot_topic=robot_topic,
    )
    if status is None:
        return file
    chunks = {'offered': status.offered, 'used': status.used, 'waiting': status.waiting}
    delay = ('mean', 'p95', 'max')
    lateness = ('p50', 'p95', 'p99', 'max')
    return ExecutorFacts(
        strategy=status.strategy or file.strategy,
        period_ns=file.period_ns,
        is_dry_run=status.is_dry_run,
        seams=int(status.seams),
        starvations=int(status.starvations),
        chunks={name: int(count) for name, count in chunks.items()},
        refusals=_counts(status.refusal_causes, status.refusal_counts),
        discards=_counts(status.discard_causes, status.discard_counts),
        violations=_counts(status.violation_causes, status.violation_counts),
        delay_steps={name: float(getattr(status, f'delay_{name}_steps')) for name in delay},
        lateness_ms={name: float(getattr(status, f'lateness_{name}_ms')) for name in lateness},
        scheduling=status.scheduling,
        robot_topic=file.robot_topic,
    )


def _counts(names: Any, counts: Any) -> dict[str, int]:
    return {name: int(count) for name, count in zip(names, counts, strict=True)}
