# SPDX-License-Identifier: Apache-2.0
"""Names of cameras and columns: the checkpoint knows keys, the dataset knows what lies under them.

GR00T's datasets say it in `meta/modality.json`. In one without that file cameras are found by their names, and the columns of
the keys follow each other as in the checkpoint, which has to use all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from vla_policy_ros.core.dataset import DatasetCamera, DatasetInfo
from vla_policy_ros.core.errors import ConfigurationError, DatasetError
from vla_policy_ros.core.specs import Column
from vla_policy_ros.datasets.faults import raise_fault
from vla_policy_ros.datasets.json_files import read_json
from vla_policy_ros.datasets.naming import make_camera_names, make_column
from vla_policy_ros.export.checkpoint_files import bad_checkpoint
from vla_policy_ros.export.groot.checkpoint import ActionKey, Embodiment, VectorKey
from vla_policy_ros.export.groot.images import Size

_STATE, _ACTION = 'observation.state', 'action'
_Key = TypeVar('_Key', bound=VectorKey)


@dataclass(frozen=True, slots=True)
class Names:
    """What the checkpoint does not know, in its order.

    Attributes:
        cameras: Name and size of each camera.
        state: Key to columns.
        action: Likewise; those of relative numbers are called as the columns of the state that they start from.
    """

    cameras: tuple[DatasetCamera, ...]
    state: Mapping[str, tuple[Column, ...]]
    action: Mapping[str, tuple[Column, ...]]


def make_names(embodiment: Embodiment, *, image_size: Size | None) -> Names:
    """Make names out of the keys, for want of a dataset.

    Args:
        embodiment: The robot.
        image_size: Size of the images of all cameras.

    Raises:
        ConfigurationError: Nobody says the size (`unknown_image_size`).
        BundleError: An action is relative to a state of another width (`bad_checkpoint`).
    """
    if image_size is None:
        raise ConfigurationError(
            '--image-size',
            got='nothing, and no --dataset',
            expected='the size of the images, which the checkpoint does not hold',
            next_step='Name the dataset that the policy was trained on, or its image size as HEIGHTxWIDTH.',
            code='unknown_image_size',
        )
    cameras = zip(make_camera_names(embodiment.cameras), embodiment.cameras, strict=True)
    return _share_names(
        embodiment,
        tuple(DatasetCamera(name, key, *image_size) for name, key in cameras),
        {key.key: _numbered(key) for key in embodiment.state},
        {key.key: _numbered(key) for key in embodiment.action},
    )


def find_names(embodiment: Embodiment, info: DatasetInfo, modality: Path | None) -> Names:
    """Find the names in a dataset.

    Args:
        embodiment: The robot.
        info: The dataset.
        modality: Its `modality.json`; None when it has none.

    Raises:
        DatasetError: The dataset lacks a camera or columns (`other_dataset`), or the file is broken.
        BundleError: An action is relative to a state of another width (`bad_checkpoint`).
    """
    entries = (read_json(modality, raise_fault) or {}) if modality else None
    # Without recorded actions their columns are those of the state, as everywhere here.
    columns = {_STATE: info.state, _ACTION: info.action or info.state}
    finder = _Finder(info, entries)
    return _share_names(
        embodiment,
        tuple(finder.camera(key) for key in embodiment.cameras),
        finder.columns('state', _STATE, columns[_STATE], embodiment.state),
        finder.columns('action', _ACTION, columns[_ACTION], embodiment.action),
    )


def _numbered(key: VectorKey) -> tuple[Column, ...]:
    return tuple(make_column(f'{key.key}_{index}') for index in range(key.width))


def _share_names(
    embodiment: Embodiment,
    cameras: tuple[DatasetCamera, ...],
    state: Mapping[str, tuple[Column, ...]],
    action: Mapping[str, tuple[Column, ...]],
) -> Names:
    """Call what is relative to columns of the state as these."""
    shared = {
        key.key: _reference(key, state) if key.reference else action[key.key]
        for key in embodiment.action
    }
    return Names(cameras, state, shared)


def _reference(key: ActionKey, state: Mapping[str, tuple[Column, ...]]) -> tuple[Column, ...]:
    columns = state.get(key.reference, ())
    if len(columns) != key.width:
        raise bad_checkpoint(
            f'action {key.key}',
            got=f'{len(columns)} columns of the state {key.reference}',
            expected=f'{key.width}, since the action is relative to them',
            next_step='Correct state_key in the modality configuration, and train again.',
        )
    return columns


@dataclass(frozen=True, slots=True)
class _Finder:
    """Finds keys in a dataset.

    Attributes:
        info: The dataset.
        entries: Its `modality.json`; None when it has none.
    """

    info: DatasetInfo
    entries: Mapping[str, Any] | None

    def camera(self, key: str) -> DatasetCamera:
        wanted = None
        if self.entries is not None:
            wanted = self._entry('video', key).get('original_key') or f'observation.images.{key}'
        for camera in self.info.cameras:
            own_names = (camera.key,) if wanted else (camera.name, camera.key.rsplit('.', 1)[-1])
            if (wanted or key) in own_names:
                return camera
        found = ', '.join(camera.key for camera in self.info.cameras)
        raise self._other('cameras', found or '(none)', f'the camera {key}')

    def columns(
        self, kind: str, source: str, columns: Sequence[Column], keys: Iterable[_Key]
    ) -> dict[str, tuple[Column, ...]]:
        """Return key to columns."""
        keys = tuple(keys)
        if self.entries is None:
            width = sum(key.width for key in keys)
            if width != len(columns):
                got = f'{len(columns)} columns, and no meta/modality.json'
                raise self._other(kind, got, f'the {width} columns of {_list(keys)}, or that file')
            starts = [sum(key.width for key in keys[:place]) for place in range(len(keys))]
        else:
            starts = [self._start(kind, source, key, len(columns)) for key in keys]
        return {
            key.key: tuple(columns[start : start + key.width])
            for key, start in zip(keys, starts, strict=True)
        }

    def _start(self, kind: str, source: str, key: VectorKey, width: int) -> int:
        entry = self._entry(kind, key.key)
        original = entry.get('original_key') or source
        try:
            start, end = int(entry['start']), int(entry['end'])
        except (KeyError, TypeError, ValueError):
            start = end = -1
        if original != source or start + key.width != end or not 0 <= start < end <= width:
            got = f'{key.key}: {dict(entry)}'
            expected = f'start and end of {key.width} of the {width} columns of {source}'
            raise self._other(f'meta/modality.json: {kind}', got, expected)
        return start

    def _entry(self, kind: str, key: str) -> Mapping[str, Any]:
        entries = (self.entries or {}).get(kind)
        entry = entries.get(key) if isinstance(entries, Mapping) else None
        if not isinstance(entry, Mapping):
            found = ', '.join(entries) if isinstance(entries, Mapping) else 'nothing'
            raise self._other(f'meta/modality.json: {kind}', found, f'the key {key}')
        return entry

    def _other(self, what: str, got: str, expected: str) -> DatasetError:
        return DatasetError(
            f'{self.info.name}: {what}',
            got=got,
            expected=f'{expected}, as the checkpoint takes them',
            next_step='Name a dataset that the policy was trained on.',
            code='other_dataset',
        )


def _list(keys: Iterable[VectorKey]) -> str:
    return ', '.join(key.key for key in keys)
