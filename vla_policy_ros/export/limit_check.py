# SPDX-License-Identifier: Apache-2.0
"""Whether a policy's chunks keep the limits of the robot that an executor file describes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vla_policy_ros.core.errors import ChunkRejectedError, ConfigurationError
from vla_policy_ros.core.observation import Observation
from vla_policy_ros.core.policy import Policy
from vla_policy_ros.core.specs import Column
from vla_policy_ros.deployment.executor import ExecutorSettings, check_executor, load_executor
from vla_policy_ros.deployment.limits import load_limits
from vla_policy_ros.execution.limits import JointLimits
from vla_policy_ros.execution.motion import commanded_columns
from vla_policy_ros.policies.checked_policy import CheckedPolicy


@dataclass(frozen=True, slots=True)
class LimitFindings:
    """Chunks against limits.

    Attributes:
        chunks: Chunks that were looked at.
        refused: Column and the limit that it breaks, such as `('elbow', 'velocity_limit')`, to the number of chunks.
    """

    chunks: int
    refused: dict[tuple[str, str], int]

    @property
    def num_refused(self) -> int:
        """Chunks that break a limit."""
        return sum(self.refused.values())


def read_executor_limits(
    path: Path, columns: Sequence[Column]
) -> tuple[ExecutorSettings, JointLimits]:
    """Return the settings of an executor file and the limits of a policy's columns.

    Raises:
        ConfigurationError: The file is wrong or does not fit the columns; or it takes the URDF from a topic, which nobody
            publishes here (`needs_robot_description`).
    """
    settings = load_executor(path)
    for fault in check_executor(settings, columns):
        raise fault
    if settings.limits.needs_robot_description:
        raise ConfigurationError(
            f'{path}: limits.urdf_topic',
            got=settings.limits.urdf_topic,
            expected='a urdf_file, or an empty urdf_topic: without the robot nobody publishes the URDF',
            next_step='Save the URDF to a file and name it, or give all limits in the limits file.',
            code='needs_robot_description',
        )
    return settings, load_limits(settings.limits, commanded_columns(columns))


def count_refusals(
    policy: Policy, observations: Iterable[Observation], limits: JointLimits
) -> LimitFindings:
    """Infer on observations and count the chunks that break a limit, each by the first one that it breaks.

    Raises:
        ConfigurationError: Steps (`delta`) cannot be added up, since the state lacks the column (`no_state`).
        VlaPolicyError: The policy failed.
    """
    checked = CheckedPolicy(policy, limits, 'reject')  # not closed: the policy stays the caller's
    refused: Counter[tuple[str, str]] = Counter()
    chunks = 0
    for observation in observations:
        chunks += 1
        try:
            checked.infer(observation)
        except ChunkRejectedError as fault:
            if not fault.code.endswith('_limit'):  # the chunk is unsound by itself
                raise
            _, _, column = fault.where.rpartition(', ')
            refused[column, fault.code] += 1
    return LimitFindings(chunks, dict(refused.most_common()))
