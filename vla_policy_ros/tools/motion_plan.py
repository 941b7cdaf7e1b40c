# SPDX-License-Identifier: Apache-2.0
"""The two nodes that turn a replay's chunks into motion: the executor, and a simulated robot that follows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla_policy_ros.core.errors import ConfigurationError
from vla_policy_ros.tools.node_launch import NodeLaunch

if TYPE_CHECKING:
    from vla_policy_ros.core.specs import Column
    from vla_policy_ros.deployment.executor import ExecutorSettings

EXECUTOR, ROBOT = 'executor_node', 'simulated_robot_node'
ROBOT_TOPIC = 'simulated_robot/joint_states'
"""Where the simulated robot tells its joint states; on the robot's own topic the replay plays the recorded ones."""


def motion_nodes(
    executor: Path,
    *,
    columns: Sequence[Column],
    first_pose: Mapping[str, float],
    chunk_topic: str,
) -> tuple[NodeLaunch, ...]:
    """Return the executor, armed at the start, and the robot, which stands where the recording begins.

    Args:
        executor: Executor file.
        columns: Columns of the policy's action.
        first_pose: Column to recorded position at the first step.
        chunk_topic: Where the policy's chunks come from.

    Raises:
        ConfigurationError: The file is wrong, or does not fit the policy.
    """
    settings = _load_executor(executor, columns, chunk_topic)
    common = {
        'config': str(executor.absolute()),
        'autostart': True,
    }
    remaps = {'joint_states': ROBOT_TOPIC}
    if settings.measured.topic:
        remaps[settings.measured.topic] = ROBOT_TOPIC
    start = {
        column.name: first_pose[column.name] for column in columns if column.name in first_pose
    }
    robot: dict[str, Any] = dict(common)
    if start:  # ROS knows no type for an empty list
        robot['initial_names'] = list(start)
        robot['initial_positions'] = [float(position) for position in start.values()]
    return (
        NodeLaunch(name=ROBOT, parameters=robot, remaps=remaps),
        NodeLaunch(name=EXECUTOR, parameters={**common, 'armed_at_start': True}, remaps=remaps),
    )


def _load_executor(
    executor: Path, columns: Sequence[Column], chunk_topic: str
) -> ExecutorSettings:
    """Read an executor file, and check all that a replay can tell of it."""
    from vla_policy_ros.export.limit_check import read_executor_limits

    settings, _ = read_executor_limits(executor, columns)
    if settings.chunk_topic != chunk_topic:
        raise ConfigurationError(
            f'{executor}: chunk_topic',
            got=settings.chunk_topic,
            expected=f'{chunk_topic}, where the policy publishes',
            next_step='Name the same topic in the deployment file and in the executor file.',
        )
    return settings
