# SPDX-License-Identifier: Apache-2.0
"""The statistics file of a bundle: group name to min, max, mean, std, q01 and q99 of its columns."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from vla_policy_ros.core.errors import BundleError, SpecMismatchError
from vla_policy_ros.core.specs import Array


@dataclass(frozen=True, slots=True, eq=False)
class GroupStatistics:
    """Statistics of one group: arrays of shape (W,), or (K, W) where they differ by row of the chunk, float64."""

    min: Array
    max: Array
    mean: Array
    std: Array
    q01: Array
    q99: Array


Statistics = Mapping[str, GroupStatistics]

_KEYS = tuple(field.name for field in fields(GroupStatistics))


def compute_statistics(values: Array) -> GroupStatistics:
    """Compute the statistics of N samples, over the first dimension.

    Quantiles are interpolated linearly; the standard deviation is that of the population.

    Args:
        values: (N, W) samples, or (N, K, W) chunks for statistics per row; N >= 1.

    Raises:
        SpecMismatchError: The shape is another one, or a value is not finite.
    """
    if values.ndim not in (2, 3) or not values.size or not np.isfinite(values).all():
        raise SpecMismatchError(
            'values for statistics',
            got=f'{values.dtype}{list(values.shape)}, finite: {bool(np.isfinite(values).all())}',
            expected='[N, W] or [N, K, W] finite values, none of them 0',
            next_step='Drop episodes without steps and rows with NaN.',
        )
    values = values.astype(np.float64)
    low, high = values.min(axis=0), values.max(axis=0)
    moved = (
        low < high
    )  # a sum of equal numbers is rounded, and would leave a std of 1e-16 to divide by
    q01, q99 = np.quantile(values, (0.01, 0.99), axis=0)
    return GroupStatistics(
        min=low,
        max=high,
        mean=np.where(moved, values.mean(axis=0), low),
        std=np.where(moved, values.std(axis=0), 0.0),
        q01=q01,
        q99=q99,
    )


def read_statistics(path: Path) -> dict[str, GroupStatistics]:
    """Read a statistics file.

    Raises:
        BundleError: It is missing, no JSON, has other keys, or holds values of odd shapes or not finite ones.
    """
    try:
        document = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as fault:
        raise _error(str(path), str(fault), 'a JSON file') from fault
    if not isinstance(document, dict):
        raise _error(str(path), f'a {type(document).__name__}', 'an object of groups')
    return {name: _parse_group(entry, f'{path}: {name}') for name, entry in document.items()}


def write_statistics(path: Path, statistics: Statistics) -> None:
    """Write a statistics file; the same statistics give the same bytes."""
    document = {
        name: {key: getattr(group, key).tolist() for key in _KEYS}
        for name, group in sorted(statistics.items())
    }
    text = json.dumps(document, indent=1, allow_nan=False)
    path.write_text(text + '\n', encoding='utf-8', newline='\n')


def _parse_group(entry: object, where: str) -> GroupStatistics:
    if not isinstance(entry, dict) or set(entry) != set(_KEYS):
        got = ', '.join(sorted(entry)) if isinstance(entry, dict) else type(entry).__name__
        raise _error(where, got or 'nothing', f'the keys {", ".join(_KEYS)}')
    arrays = {key: _parse_array(entry[key], f'{where}.{key}') for key in _KEYS}
    shape = arrays['min'].shape
    for key, array in arrays.items():
        if array.shape != shape:
            expected = f'{list(shape)}, the shape of min'
            raise _error(f'{where}.{key}', f'shape {list(array.shape)}', expected)
    for low, high in (('min', 'max'), ('q01', 'q99')):
        if (arrays[low] > arrays[high]).any():
            raise _error(f'{where}.{low}', f'a value above {high}', f'{low} <= {high}')
    if (arrays['std'] < 0).any():
        raise _error(f'{where}.std', 'a negative value', 'std >= 0')
    return GroupStatistics(**arrays)


def _parse_array(entry: object, where: str) -> Array:
    try:
        array = np.array(entry, np.float64)
    except (TypeError, ValueError) as fault:
        raise _error(where, str(fault), 'a list of numbers, or a list of equal lists') from fault
    if array.ndim not in (1, 2) or not array.size or not np.isfinite(array).all():
        got = f'shape {list(array.shape)}, finite: {bool(np.isfinite(array).all())}'
        raise _error(where, got, 'finite numbers of shape [W] or [K, W]')
    return array


def _error(where: str, got: str, expected: str) -> BundleError:
    return BundleError(
        where,
        got=got,
        expected=expected,
        next_step='Write the statistics anew from the training data.',
        code='bad_statistics',
    )
