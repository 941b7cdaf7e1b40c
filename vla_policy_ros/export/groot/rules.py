# SPDX-License-Identifier: Apache-2.0
"""How GR00T normalises, said in the words of a bundle.

N1.6 and N1.7 (`gr00t/data/utils.py`) compute:

| rule              | to the network             | back                                     |
|-------------------|----------------------------|------------------------------------------|
| bounds, quantiles | 2 (x - low) / (high - low) - 1, 0 where both are nearly equal | (clip(y) + 1) / 2 (high - low) + low |
| mean and std      | (x - mean) / std, x where std is 0 | y std + mean, y where std is 0   |
| sine and cosine   | [sin x, cos x]             |                                          |

The same numbers come out of a bundle whose statistics say so: one value where the bounds are nearly equal, mean 0 and
deviation 1 where the deviation is 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from vla_policy_ros.bundle.statistics import GroupStatistics
from vla_policy_ros.core.errors import BundleError
from vla_policy_ros.export.checkpoint_files import bad_checkpoint

Normalization = Literal['identity', 'min_max', 'quantile', 'mean_std', 'sin_cos']
_BOUNDS: Mapping[str, tuple[str, str]] = {'min_max': ('min', 'max'), 'quantile': ('q01', 'q99')}


class Rules:
    """The statistics of one key.

    Args:
        where: File and key, for errors.
        entry: Statistic to values, as the checkpoint holds them.

    Raises:
        BundleError: Statistics are missing, not finite or of several shapes (`bad_checkpoint`).
    """

    def __init__(self, where: str, entry: Mapping[str, Any]) -> None:
        self._where = where
        bounds = {'q01': entry.get('q01', entry['min']), 'q99': entry.get('q99', entry['max'])}
        given = {name: entry[name] for name in ('min', 'max', 'mean', 'std')}
        values = {name: np.array(part, np.float64) for name, part in {**given, **bounds}.items()}
        shapes = {part.shape for part in values.values()}
        is_finite = all(np.isfinite(part).all() for part in values.values())
        if len(shapes) != 1 or not is_finite or values['min'].ndim not in (1, 2):
            raise self._bad(
                f'shapes {sorted(shapes)}, finite: {is_finite}', 'equal rows of numbers'
            )
        self._statistics = GroupStatistics(**values)

    @property
    def width(self) -> int:
        """Number of columns."""
        return int(self._statistics.min.shape[-1])

    def for_state(self, normalization: Normalization) -> GroupStatistics:
        """Return the statistics of a state group."""
        statistics = self.for_action(normalization, rows=1)
        if normalization not in _BOUNDS:
            return statistics
        names = _BOUNDS[normalization]
        low, high = (getattr(statistics, name) for name in names)
        still = np.isclose(high, low)
        middle = (low + high) / 2
        settled = [np.where(still, middle, part) for part in (low, high)]
        return replace(statistics, **dict(zip(names, settled, strict=True)))

    def for_action(self, normalization: Normalization, *, rows: int) -> GroupStatistics:
        """Return the statistics of an action group.

        Args:
            normalization: How it is normalised.
            rows: Rows of a chunk, which statistics per row must have.

        Raises:
            BundleError: There are statistics per row for another number of rows (`bad_checkpoint`).
        """
        held = self._statistics
        shape = held.min.shape
        if len(shape) == 2 and shape[0] != rows:
            raise self._bad(f'statistics of {shape[0]} rows', f'statistics of {rows} rows')
        if normalization != 'mean_std':
            return held
        still = held.std == 0
        return replace(held, mean=np.where(still, 0, held.mean), std=np.where(still, 1, held.std))

    def _bad(self, got: str, expected: str) -> BundleError:
        return bad_checkpoint(
            self._where,
            got=got,
            expected=expected,
            next_step='Compute the statistics of the training data again, and save the checkpoint with them.',
        )
