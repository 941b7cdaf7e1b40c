# SPDX-License-Identifier: Apache-2.0
"""Statistics of a described network: from its file, or computed from a dataset by the names of the columns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vla_policy_ros.bundle.manifest import Group
from vla_policy_ros.bundle.statistics import (
    GroupStatistics,
    compute_statistics,
    read_statistics,
)
from vla_policy_ros.core.dataset import Dataset
from vla_policy_ros.core.errors import DatasetError
from vla_policy_ros.core.specs import Array, Column
from vla_policy_ros.export.dataset_numbers import read_numbers
from vla_policy_ros.export.network.description import NetworkDescription
from vla_policy_ros.export.network.faults import misfit

_WITHOUT = ('identity', 'sin_cos')


def find_statistics(
    description: NetworkDescription, dataset: Dataset | None, describe: Path
) -> dict[str, GroupStatistics]:
    """Return the statistics of the bundle; none when no group needs any.

    Raises:
        ConfigurationError: A group needs some, and there is neither a file nor a dataset (`no_statistics`).
        BundleError: The file is broken.
        DatasetError: The dataset has no columns of these names (`other_dataset`).
    """
    if description.statistics:
        return read_statistics(describe.parent / description.statistics)
    state = description.state.groups if description.state else ()
    of_state = [group for group in state if group.normalization not in _WITHOUT]
    of_action = [g for g in description.action.groups if g.normalization not in _WITHOUT]
    needed: list[Group] = [*of_state, *of_action]
    if not needed:
        return {}
    if dataset is None:
        raise misfit(
            f'{describe}: statistics',
            got=f'nothing, and no --dataset, for {", ".join(group.name for group in needed)}',
            expected='the numbers that the network was trained with',
            next_step='Name a statistics file, or the dataset of the training with --dataset.',
            code='no_statistics',
        )
    numbers, info = read_numbers(dataset), dataset.info
    action = info.action or info.state
    return {
        **{g.name: _compute(g, info.state, numbers.state, info.name) for g in of_state},
        **{g.name: _compute(g, action, numbers.action, info.name) for g in of_action},
    }


def _compute(
    group: Group, columns: Sequence[Column], values: Array, dataset: str
) -> GroupStatistics:
    names = [column.name for column in columns]
    missing = [name for name in group.names if name not in names]
    if missing:
        raise DatasetError(
            f'{dataset}: columns of group {group.name!r}',
            got=f'no {", ".join(missing)}',
            expected=f'some of {", ".join(names) or "(none)"}',
            next_step='Name the columns as the dataset does, or give a statistics file.',
            code='other_dataset',
        )
    return compute_statistics(values[:, [names.index(name) for name in group.names]])
