# SPDX-License-Identifier: Apache-2.0
"""How LeRobot normalises a feature, said in the words of a bundle.

LeRobot (`processor/normalize_processor.py`; `policies/normalize.py` before 0.4) computes, with an epsilon of 1e-8:

| mode      | to the network                    | back                         |
|-----------|-----------------------------------|------------------------------|
| IDENTITY  | x                                 | y                            |
| MEAN_STD  | (x - mean) / (std + eps)          | y * std + mean               |
| MIN_MAX   | 2 (x - min) / (max - min) - 1     | (y + 1) / 2 (max - min) + min|
| QUANTILES | 2 (x - q01) / (q99 - q01) - 1     | likewise                     |

A span of 0 is eps. The same numbers come out of a bundle whose statistics hold the epsilon already.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from vla_policy_ros.bundle.statistics import GroupStatistics
from vla_policy_ros.core.specs import Array
from vla_policy_ros.export.checkpoint_files import bad_checkpoint

Normalization = Literal['identity', 'mean_std', 'min_max', 'quantile']

_MODES: dict[str, Normalization] = {
    'IDENTITY': 'identity',
    'MEAN_STD': 'mean_std',
    'MIN_MAX': 'min_max',
    'QUANTILES': 'quantile',
}
_NEEDS: dict[Normalization, tuple[str, ...]] = {
    'identity': (),
    'mean_std': ('mean', 'std'),
    'min_max': ('min', 'max'),
    'quantile': ('q01', 'q99'),
}
EPSILON = 1e-8
"""LeRobot's default, and the only value before 0.4."""


@dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """How one feature is normalised.

    Attributes:
        normalization: As in `bundle.yaml`.
        statistics: Name to (W,) float64: what the checkpoint holds, the needed ones among them.
        epsilon: LeRobot's guard against a division by 0.
    """

    normalization: Normalization
    statistics: Mapping[str, Array]
    epsilon: float = EPSILON

    def center_and_spread(self) -> tuple[Array, Array]:
        """Return center and spread of y = (x - center) / spread; nothing for identity.

        Returns:
            Two (W,) float64 arrays.
        """
        first, second = (self.statistics[name] for name in _NEEDS[self.normalization])
        if self.normalization == 'mean_std':
            return first, second + self.epsilon
        second = self._widen(first, second)
        return (first + second) / 2, (second - first) / 2

    def for_state(self) -> GroupStatistics:
        """Return the statistics of a state group, the epsilon in them."""
        low, high = _NEEDS[self.normalization]
        known = dict(self.statistics)
        if self.normalization == 'mean_std':
            known['std'] = known['std'] + self.epsilon
        else:
            known[high] = self._widen(known[low], known[high])
        return _complete(known)

    def for_action(self) -> GroupStatistics:
        """Return the statistics of an action group."""
        return _complete(self.statistics)

    def _widen(self, low: Array, high: Array) -> Array:
        """Return the upper bounds, about an epsilon above the lower ones where both are equal.

        A column that never moved in training is -1 for LeRobot. Here it is so too, however large its value is, since both
        bounds are as far from a center that float64 holds; -1.0000001 would be another word of a state told in words.
        """
        center = np.maximum(low + self.epsilon / 2, np.nextafter(low, np.inf))
        return np.where(high == low, 2 * center - low, high)


def make_rule(
    where: str, mode: str, statistics: Mapping[str, Array], *, width: int, epsilon: float = EPSILON
) -> Rule:
    """Return the rule of a feature.

    Args:
        where: File and feature, for the error.
        mode: LeRobot's `NormalizationMode`.
        statistics: Name to (W,) float64.
        width: W, the number of columns, or of colours.
        epsilon: LeRobot's guard against a division by 0.

    Raises:
        BundleError: The mode is another one (`unknown_normalization`), or statistics are missing, not finite or of another
            width (`bad_checkpoint`).
    """
    if mode not in _MODES:
        raise bad_checkpoint(
            where,
            got=f'normalization {mode}',
            expected=f'one of {", ".join(_MODES)}',
            next_step='Train with one of these; no bundle can say another one.',
            code='unknown_normalization',
        )
    normalization = _MODES[mode]
    for name in _NEEDS[normalization]:
        values = statistics.get(name)
        if values is None or values.shape != (width,) or not np.isfinite(values).all():
            raise bad_checkpoint(
                where,
                got=f'{name}: {"nothing" if values is None else values.tolist()}',
                expected=f'{width} finite numbers for {mode}',
                next_step='Save the checkpoint again with the statistics of its training data.',
            )
    return Rule(normalization, statistics, epsilon)


def _complete(known: Mapping[str, Array]) -> GroupStatistics:
    """Fill in what older checkpoints do not hold and their normalisation does not read: three deviations, or the bounds."""
    low, high = known.get('min', known.get('q01')), known.get('max', known.get('q99'))
    if low is None or high is None:
        low, high = known['mean'] - 3 * known['std'], known['mean'] + 3 * known['std']
    return GroupStatistics(
        min=low,
        max=high,
        mean=known.get('mean', (low + high) / 2),
        std=known.get('std', (high - low) / 2),
        q01=known.get('q01', low),
        q99=known.get('q99', high),
    )
