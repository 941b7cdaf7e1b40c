# SPDX-License-Identifier: Apache-2.0
"""Which features of a LeRobot dataset are its state, its action, its cameras and its instruction.

State: `observation.state`, or, when there is none, every other 1-D number feature `observation.*` in the order of
`info.json`. Action: `action`, or, when there is none, every 1-D number feature `action.*`. A state or an action of more
dimensions (two arms, say) is laid out row by row.

Column names: the feature's `names`, as a list, or nested in lists and objects; an object of positions is put in order.
When that does not give one distinct, printable name per number, every column of the vector is called `<feature>_<i>`, with the
feature's key after `observation.` or `action.`. The unit is empty: the format does not say. A name with `gripper` in it
is of kind gripper.

Cameras: the last part of the key; when two cameras share it, the key after `observation.images.`, else the whole key;
each written as a ROS topic may hold it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vla_policy_ros.core.dataset import DatasetCamera
from vla_policy_ros.core.specs import Column
from vla_policy_ros.datasets.faults import Report
from vla_policy_ros.datasets.json_files import read_json
from vla_policy_ros.datasets.lerobot_info import Feature, LeRobotInfo
from vla_policy_ros.datasets.naming import make_camera_names, make_column

_IMAGE_PREFIXES = ('observation.images.', 'observation.image.', 'observation.')
_TASK_ENDINGS = ('task_description', 'language_instruction')


def find_vector(info: LeRobotInfo, key: str, prefix: str) -> tuple[Feature, ...]:
    """Return the feature `key`, or every vector feature whose key starts with `prefix`, in the file's order."""
    whole = info.features.get(key)
    if whole is not None and whole.is_vector:
        return (whole,)
    return tuple(
        feature
        for name, feature in info.features.items()
        if name.startswith(prefix) and feature.is_vector
    )


def make_columns(features: Sequence[Feature]) -> tuple[Column, ...]:
    """Name the columns of features that stand side by side in one vector."""
    named = [name for feature in features for name in _given_names(feature)]
    width = sum(feature.width for feature in features)
    is_usable = all(name and name.isprintable() and name == name.strip() for name in named)
    if not is_usable or len(named) != width or len(set(named)) != width:
        named = [f'{_base(f.key)}_{i}' for f in features for i in range(f.width)]
    return tuple(make_column(name) for name in named)


def make_cameras(features: Sequence[Feature]) -> tuple[DatasetCamera, ...]:
    """Name the cameras and read their sizes; features whose shape is no image size are left out."""
    sized = [(feature, size) for feature in features if (size := image_size(feature))]
    keys = [feature.key for feature, _ in sized]
    rests = [_rest(key) for key in keys]
    names = make_camera_names([rest.rsplit('.', 1)[-1] for rest in rests], rests, keys)
    return tuple(
        DatasetCamera(name, feature.key, *size)
        for name, (feature, size) in zip(names, sized, strict=True)
    )


def image_size(feature: Feature) -> tuple[int, int] | None:
    """Return height and width in pixels of an image feature, (H, W, C) or (C, H, W); None when it is neither."""
    if len(feature.shape) != 3:
        return None
    names = feature.names if isinstance(feature.names, list) else []
    is_channel_first = (
        str(names[0]).startswith('channel') if names else feature.shape[2] not in (1, 3)
    )
    return feature.shape[1:3] if is_channel_first else feature.shape[0:2]


def find_instruction_column(info: LeRobotInfo, report: Report) -> str:
    """Return the column of task indices that holds the instruction.

    The first annotation of `meta/modality.json` that ends with `task_description` or `language_instruction` and whose
    column is an integer feature, as GR00T reads it; `task_index` when there is none.
    """
    path = info.root / 'meta' / 'modality.json'
    modality = (read_json(path, report) or {}) if path.is_file() else {}
    annotations = modality.get('annotation')
    for name, facts in annotations.items() if isinstance(annotations, dict) else ():
        original = facts.get('original_key') if isinstance(facts, dict) else None
        column = str(original or f'annotation.{name}')
        feature = info.features.get(column)
        if name.endswith(_TASK_ENDINGS) and feature and feature.dtype.startswith('int'):
            return column
    return 'task_index'


def _given_names(feature: Feature) -> list[str]:
    names = feature.names
    if isinstance(names, Mapping) and all(isinstance(value, int) for value in names.values()):
        return sorted(names, key=lambda name: names[name])
    flat = list(_flatten(names))
    return flat if len(flat) == feature.width else []


def _flatten(names: Any) -> Iterator[str]:
    if isinstance(names, str):
        yield names
    elif isinstance(names, Mapping | list):
        for inner in names.values() if isinstance(names, Mapping) else names:
            yield from _flatten(inner)


def _base(key: str) -> str:
    return key.removeprefix('observation.').removeprefix('action.')


def _rest(key: str) -> str:
    prefix = next((prefix for prefix in _IMAGE_PREFIXES if key.startswith(prefix)), '')
    return key.removeprefix(prefix)
