# SPDX-License-Identifier: Apache-2.0
"""Statistics of features as LeRobot keeps them: min, max, mean, std, five quantiles and count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vla_policy_ros.core.specs import Array

FeatureStatistics = dict[str, list[Any]]

# All five: LeRobot v3.0 adds episodes to a dataset only when its columns of statistics are the same.
_QUANTILES = {'q01': 0.01, 'q10': 0.1, 'q50': 0.5, 'q90': 0.9, 'q99': 0.99}


def compute_number_statistics(parts: Sequence[Array]) -> FeatureStatistics:
    """Compute the statistics of (N_i, W) numbers put below each other, each a list of W values; `count` is [N]."""
    numbers = np.concatenate(parts).astype(np.float64)
    quantiles = np.quantile(numbers, list(_QUANTILES.values()), axis=0)
    rows = {
        'min': numbers.min(axis=0),
        'max': numbers.max(axis=0),
        'mean': numbers.mean(axis=0),
        'std': numbers.std(axis=0),
        **dict(zip(_QUANTILES, quantiles, strict=True)),
    }
    return {**{name: row.tolist() for name, row in rows.items()}, 'count': [len(numbers)]}


class ImageStatistics:
    """Counts the values of each colour over many images: exact, in constant memory."""

    def __init__(self) -> None:
        self._counts = np.zeros((3, 256), np.int64)
        self._num_images = 0

    def add(self, image: Array) -> None:
        """Count one (H, W, 3) uint8 RGB image."""
        for channel in range(3):
            self._counts[channel] += np.bincount(image[..., channel].reshape(-1), minlength=256)
        self._num_images += 1

    def merge(self, other: ImageStatistics) -> None:
        """Add what another one counted."""
        self._counts += other._counts
        self._num_images += other._num_images

    def compute(self) -> FeatureStatistics:
        """Compute the statistics of values in [0, 1], each of shape (3, 1, 1); `count` is the number of images."""
        values = np.arange(256) / 255
        total = self._counts.sum(axis=1)
        mean = self._counts @ values / total
        square = self._counts @ values**2 / total
        seen = self._counts.cumsum(axis=1)
        rows: dict[str, Array] = {
            'min': values[(self._counts > 0).argmax(axis=1)],
            'max': values[255 - (self._counts[:, ::-1] > 0).argmax(axis=1)],
            'mean': mean,
            'std': np.sqrt(np.maximum(square - mean**2, 0)),
        }
        for name, share in _QUANTILES.items():
            rows[name] = values[(seen >= share * total[:, None]).argmax(axis=1)]
        shaped = {name: row.reshape(3, 1, 1).tolist() for name, row in rows.items()}
        return {**shaped, 'count': [self._num_images]}
