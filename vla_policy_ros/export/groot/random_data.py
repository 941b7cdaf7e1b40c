# SPDX-License-Identifier: Apache-2.0
"""What GR00T's training would know of a dataset: which columns lie under which key, and their statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import numpy as np

from vla_policy_ros.bundle.statistics import compute_statistics
from vla_policy_ros.core.dataset import Dataset, DatasetInfo
from vla_policy_ros.core.errors import DatasetError
from vla_policy_ros.core.specs import Array, Column, ColumnKind
from vla_policy_ros.export.dataset_numbers import read_episodes

Keys = Mapping[str, slice]
"""Key to columns; the keys follow each other as the columns do."""


@dataclass(frozen=True, slots=True)
class DataKeys:
    """The keys of a dataset: grippers by themselves, the columns between them together.

    Attributes:
        cameras: Names of the cameras.
        state: Keys of the state.
        action: Keys of the action.
        rows: Rows of a chunk.
    """

    cameras: tuple[str, ...]
    state: Keys
    action: Keys
    rows: int

    @classmethod
    def of_dataset(cls, info: DatasetInfo, *, rows: int, joints: str = 'joints') -> DataKeys:
        """Make keys of a dataset's columns.

        Args:
            info: The dataset.
            rows: Rows of a chunk.
            joints: Key of what is no gripper.
        """
        return cls(
            tuple(camera.name for camera in info.cameras),
            _split_columns(info.state, joints),
            _split_columns(info.action or info.state, joints),
            rows,
        )

    @property
    def relative(self) -> tuple[str, ...]:
        """Keys of the action that start from the state: joints that both have."""
        return tuple(
            key
            for key, columns in self.action.items()
            if self.state.get(key) == columns and 'gripper' not in key
        )

    def modality_config(self) -> dict[str, dict[str, Any]]:
        """Return the library's modality configuration."""
        actions = [
            {
                'rep': 'RELATIVE' if key in self.relative else 'ABSOLUTE',
                'type': 'NON_EEF',
                'format': 'DEFAULT',
            }
            for key in self.action
        ]
        return {
            'video': {'delta_indices': [0], 'modality_keys': list(self.cameras)},
            'state': {'delta_indices': [0], 'modality_keys': list(self.state)},
            'action': {
                'delta_indices': list(range(self.rows)),
                'modality_keys': list(self.action),
                'action_configs': actions,
            },
            'language': {
                'delta_indices': [0],
                'modality_keys': ['annotation.human.task_description'],
            },
        }

    def compute_statistics(self, dataset: Dataset) -> dict[str, dict[str, Any]]:
        """Compute the library's statistics over all episodes.

        Raises:
            DatasetError: No episode is as long as a chunk (`short_episodes`).
        """
        episodes = list(read_episodes(dataset))
        chunks = [
            _relative_chunks(state, action, self.rows)
            for state, action in episodes
            if len(state) >= self.rows
        ]
        if not chunks:
            raise DatasetError(
                dataset.info.name,
                got='no episode that is long enough',
                expected=f'an episode of {self.rows} steps, which a chunk has',
                next_step='Name a dataset with longer episodes.',
                code='short_episodes',
            )
        states, actions, moves = (
            np.concatenate(part) for part in (*zip(*episodes, strict=True), chunks)
        )
        return {
            'state': {key: _describe(states[:, part]) for key, part in self.state.items()},
            'action': {key: _describe(actions[:, part]) for key, part in self.action.items()},
            'relative_action': {
                key: _describe(moves[:, :, self.action[key]]) for key in self.relative
            },
        }

    def describe_n15(self, dataset: Dataset, tag: str) -> dict[str, Any]:
        """Return a robot's entry in `metadata.json` of N1.5; errors as those of `compute_statistics`."""
        statistics = self.compute_statistics(dataset)
        video = {
            camera.name: {
                'resolution': [camera.width, camera.height],
                'channels': 3,
                'fps': 1e9 / dataset.info.step_ns,
            }
            for camera in dataset.info.cameras
        }
        vectors = {
            kind: {
                key: {
                    'absolute': True,
                    'rotation_type': None,
                    'shape': [columns.stop - columns.start],
                    'continuous': True,
                }
                for key, columns in keys.items()
            }
            for kind, keys in (('state', self.state), ('action', self.action))
        }
        return {
            'statistics': {kind: statistics[kind] for kind in ('state', 'action')},
            'modalities': {'video': video, **vectors},
            'embodiment_tag': tag,
        }


def _split_columns(columns: Sequence[Column], joints: str) -> Keys:
    keys: dict[str, slice] = {}
    start = 0
    for is_gripper, run in groupby(columns, lambda column: column.kind is ColumnKind.GRIPPER):
        name = 'gripper' if is_gripper else joints
        count = sum(key.startswith(name) for key in keys)
        stop = start + len(list(run))
        keys[f'{name}_{count}' if count else name] = slice(start, stop)
        start = stop
    return keys


def _relative_chunks(state: Array, action: Array, rows: int) -> Array:
    """Return (N, rows, D): the next actions of each step, seen from its state as far as both have columns."""
    chunks = np.lib.stride_tricks.sliding_window_view(action, rows, axis=0).transpose(0, 2, 1)
    shared = min(state.shape[1], action.shape[1])
    moves: Array = chunks.astype(np.float64)
    moves[:, :, :shared] -= state[: len(chunks), None, :shared]
    return moves


def _describe(values: Array) -> dict[str, Any]:
    return {name: part.tolist() for name, part in asdict(compute_statistics(values)).items()}
