# SPDX-License-Identifier: Apache-2.0
"""`bundle.yaml` and statistics of a GR00T checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vla_policy_ros.bundle.statistics import GroupStatistics
from vla_policy_ros.core.specs import Column
from vla_policy_ros.export.groot.checkpoint import ActionKey, Checkpoint, Embodiment, VectorKey
from vla_policy_ros.export.groot.names import Names
from vla_policy_ros.export.traced_policy import STATE_TENSOR, STATISTICS, Words, image_tensor
from vla_policy_ros.export.tracing import TracedStage


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """What the library's model becomes.

    Attributes:
        cameras: For each camera its entry in the manifest but for name, tensor and history.
        stages: The networks.
        loop: The entry `loop`.
        words: The instruction.
        action_tensor: Pool tensor of the chunk.
    """

    cameras: tuple[Mapping[str, Any], ...]
    stages: tuple[TracedStage, ...]
    loop: Mapping[str, Any]
    words: Words
    action_tensor: str


def make_manifest(
    checkpoint: Checkpoint, plan: Plan, names: Names, *, name: str, step_ns: int
) -> dict[str, Any]:
    """Return the manifest without `source`, `probe` and `files`.

    Args:
        checkpoint: The checkpoint.
        plan: What its model becomes.
        names: Of cameras and columns.
        name: Name of the policy.
        step_ns: Time between two steps of the training data.
    """
    robot = checkpoint.embodiment
    cleaning = 'lower_no_punctuation' if checkpoint.cleans_words else 'none'
    manifest: dict[str, Any] = {
        'schema_version': 1,
        'name': name,
        'family': f'groot {checkpoint.version}',
        'cameras': [
            {
                'name': camera.name,
                'tensor': image_tensor(index),
                **entry,
                'history_ns': _history(robot.camera_steps, step_ns),
            }
            for index, (camera, entry) in enumerate(zip(names.cameras, plan.cameras, strict=True))
        ],
        'state': {
            'tensor': STATE_TENSOR,
            'groups': [_group(f'state.{k.key}', k, names.state[k.key]) for k in robot.state],
            'pad_to': checkpoint.state_width,
            'history_ns': _history(robot.state_steps, step_ns),
        },
        'instruction': {**plan.words.as_dict(), 'cleaning': cleaning},
        'action': {
            'tensor': plan.action_tensor,
            'groups': [_action_group(key, names.action[key.key]) for key in robot.action],
            'horizon': robot.rows,
            'step_ns': step_ns,
            'offset_ns': robot.first_row * step_ns,
        },
        'stages': [stage.as_dict() for stage in plan.stages],
        'loop': dict(plan.loop),
    }
    if make_statistics(robot):
        manifest['statistics'] = STATISTICS
    return manifest


def make_statistics(robot: Embodiment) -> dict[str, GroupStatistics]:
    """Return the statistics of the groups that are normalised with some."""
    kinds: Mapping[str, Sequence[VectorKey]] = {'state': robot.state, 'action': robot.action}
    return {
        f'{kind}.{key.key}': key.statistics
        for kind, keys in kinds.items()
        for key in keys
        if key.statistics is not None
    }


def _history(steps: Sequence[int], step_ns: int) -> list[int]:
    return [step * step_ns for step in steps]


def _action_group(key: ActionKey, columns: Sequence[Column]) -> dict[str, Any]:
    return {
        **_group(f'action.{key.key}', key, columns),
        'representation': key.representation.value,
        'pose_format': key.pose_format,
    }


def _group(name: str, key: VectorKey, columns: Sequence[Column]) -> dict[str, Any]:
    return {
        'name': name,
        'names': [column.name for column in columns],
        'units': [column.unit for column in columns],
        'kinds': [column.kind.value for column in columns],
        'normalization': key.normalization,
        'clip': key.clip,
    }
