# SPDX-License-Identifier: Apache-2.0
"""`bundle.yaml` and statistics of a LeRobot checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vla_policy_ros.bundle.files import hash_file
from vla_policy_ros.bundle.statistics import GroupStatistics
from vla_policy_ros.core.dataset import DatasetInfo
from vla_policy_ros.core.errors import DatasetError
from vla_policy_ros.core.specs import Column
from vla_policy_ros.datasets.lerobot_columns import make_cameras
from vla_policy_ros.datasets.lerobot_info import Feature
from vla_policy_ros.datasets.naming import make_column
from vla_policy_ros.export.lerobot.checkpoint import Checkpoint, ImageFeature, VectorFeature
from vla_policy_ros.export.lerobot.plan import Plan
from vla_policy_ros.export.traced_policy import STATE_TENSOR, STATISTICS, image_tensor

_STATE, _ACTION = 'state', 'action'


@dataclass(frozen=True, slots=True)
class Names:
    """What the checkpoint does not know: names of its cameras and columns, in its order."""

    cameras: tuple[str, ...]
    state: tuple[Column, ...]
    action: tuple[Column, ...]


def find_names(checkpoint: Checkpoint, info: DatasetInfo | None) -> Names:
    """Take the names of a dataset; without one, cameras are called after their keys, columns `joint_0` and so on.

    Raises:
        DatasetError: The dataset lacks a camera, or has another number of columns (`other_dataset`).
    """
    sources = [image.source for image in checkpoint.images]
    if info is None:
        features = [
            Feature(image.source, 'image', (3, image.height, image.width), ['channels'], {})
            for image in checkpoint.images
        ]
        cameras = tuple(camera.name for camera in make_cameras(features))
        state, action = _joints(checkpoint.state), _joints(checkpoint.action)
        return Names(cameras, state, action)
    named = {camera.key: camera.name for camera in info.cameras}
    _check_dataset('cameras', info, sources, [key for key in sources if key in named])
    _check_dataset('state columns', info, checkpoint.state.width, len(info.state))
    # Without recorded actions their columns are those of the state, as everywhere here.
    action = info.action or info.state
    _check_dataset('action columns', info, checkpoint.action.width, len(action))
    return Names(tuple(named[key] for key in sources), info.state, action)


def make_manifest(
    checkpoint: Checkpoint, plan: Plan, names: Names, *, name: str, step_ns: int
) -> dict[str, Any]:
    """Return the manifest without `probe` and `files`.

    Args:
        checkpoint: The checkpoint.
        plan: What its family makes of it.
        names: Of cameras and columns.
        name: Name of the policy.
        step_ns: Time between two steps of the training data.
    """
    history_ns = [-step * step_ns for step in reversed(range(plan.observation_steps))]
    manifest: dict[str, Any] = {
        'schema_version': 1,
        'name': name,
        'family': checkpoint.policy_type,
        'source': _source(checkpoint, plan),
        'cameras': [
            _camera(image, plan, name=camera, tensor=image_tensor(index), history_ns=history_ns)
            for index, (image, camera) in enumerate(
                zip(checkpoint.images, names.cameras, strict=True)
            )
        ],
        'state': {
            'tensor': STATE_TENSOR,
            'groups': [_group(_STATE, names.state, checkpoint.state)],
            'history_ns': history_ns,
            'squeeze': plan.squeeze_state,
        },
        'action': {
            'tensor': plan.action_tensor,
            'groups': [_group(_ACTION, names.action, checkpoint.action)],
            'horizon': plan.horizon,
            'step_ns': step_ns,
            'offset_ns': plan.first_row * step_ns,
        },
        'stages': [stage.as_dict() for stage in plan.stages],
    }
    if plan.words:
        manifest['instruction'] = plan.words.as_dict()
    if plan.loop:
        manifest['loop'] = dict(plan.loop)
    if make_statistics(checkpoint):
        manifest['statistics'] = STATISTICS
    return manifest


def make_statistics(checkpoint: Checkpoint) -> dict[str, GroupStatistics]:
    """Return the statistics of the groups that are normalised with some."""
    state, action = checkpoint.state.rule, checkpoint.action.rule
    statistics = {}
    if state.normalization != 'identity':
        statistics[_STATE] = state.for_state()
    if action.normalization != 'identity':
        statistics[_ACTION] = action.for_action()
    return statistics


def _source(checkpoint: Checkpoint, plan: Plan) -> dict[str, str]:
    after = f' after {-plan.first_row} before the observation' if plan.first_row else ''
    return {
        'sha256': hash_file(checkpoint.weights_path),
        'license': str(checkpoint.config.get('license') or ''),
        'note': f'LeRobot {checkpoint.policy_type}; made to execute {plan.executed_rows} of {plan.horizon} rows{after}.',
    }


def _camera(
    image: ImageFeature, plan: Plan, *, name: str, tensor: str, history_ns: Sequence[int]
) -> dict[str, Any]:
    mean, std = [0.0] * 3, [1.0] * 3
    if image.rule.normalization != 'identity':
        mean, std = (values.tolist() for values in image.rule.center_and_spread())
    return {
        'name': name,
        'tensor': tensor,
        'geometry': _geometry(image, plan.crop),
        'mean': mean,
        'std': std,
        'history_ns': list(history_ns),
    }


def _geometry(image: ImageFeature, crop: tuple[int, int] | None) -> list[dict[str, Any]]:
    """Return the steps to the size of the training images, which leaves those of the same size as they are, and the crop.

    The crop lies as torchvision's `CenterCrop` lays it.
    """
    size = {'height': image.height, 'width': image.width}
    steps: list[dict[str, Any]] = [{'kind': 'resize', **size, 'library': 'torchvision'}]
    if crop:
        top, left = (
            round((whole - part) / 2) for whole, part in zip(size.values(), crop, strict=True)
        )
        steps.append(
            {'kind': 'crop', 'top': top, 'left': left, 'height': crop[0], 'width': crop[1]}
        )
    return steps


def _group(name: str, columns: Sequence[Column], feature: VectorFeature) -> dict[str, Any]:
    return {
        'name': name,
        'names': [column.name for column in columns],
        'units': [column.unit for column in columns],
        'kinds': [column.kind.value for column in columns],
        'normalization': feature.rule.normalization,
    }


def _joints(feature: VectorFeature) -> tuple[Column, ...]:
    return tuple(make_column(f'joint_{index}') for index in range(feature.width))


def _check_dataset(what: str, info: DatasetInfo, wanted: object, found: object) -> None:
    if found != wanted:
        raise DatasetError(
            f'{info.name}: {what}',
            got=found,
            expected=f'{wanted}, as the checkpoint takes them',
            next_step='Name a dataset that the policy was trained on.',
            code='other_dataset',
        )
