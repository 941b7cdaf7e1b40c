# SPDX-License-Identifier: Apache-2.0
"""From a joint-state message to a vector in the policy's order, by joint name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from vla_policy_ros.core.errors import StateError
from vla_policy_ros.core.specs import Array


class JointSelector:
    """Picks joints out of messages; where they stand is looked up anew only when the name list changes.

    Args:
        names: The S joints wanted, under their names in the policy, in order.
        rename: Name in the message to name in the policy; other names stay as they are.
    """

    def __init__(self, names: Sequence[str], *, rename: Mapping[str, str] | None = None) -> None:
        self._names = tuple(names)
        self._rename = dict(rename or {})
        self._seen: list[str] | None = None
        self._index = np.empty(0, np.intp)

    @property
    def names(self) -> tuple[str, ...]:
        """The joints of the vector in order."""
        return self._names

    def select(self, names: Sequence[str], positions: Sequence[float] | Array) -> Array:
        """Return the (S,) float32 vector of one message with M joints.

        Args:
            names: The M joint names of the message.
            positions: (M,) positions in the unit of the policy's state.

        Raises:
            StateError: `short_message`, `missing_joint`, or `nan_joint` when a wanted value is not finite.
        """
        if len(positions) < len(names):
            raise StateError(
                'joint state',
                got=f'{len(positions)} positions for {len(names)} names',
                expected='one position per name',
                next_step='Check the publisher: it must fill position for every joint it names.',
                code='short_message',
            )
        seen = list(names)
        if seen != self._seen:
            self._index = self._find(seen)
            self._seen = seen
        with np.errstate(over='ignore'):  # too large for float32 becomes inf, which is refused
            values = np.asarray(positions)[self._index].astype(np.float32)
        if not np.isfinite(values).all():
            self._refuse(values)
        return values

    def _find(self, names: list[str]) -> Array:
        places = {self._rename.get(name, name): index for index, name in enumerate(names)}
        missing = [name for name in self._names if name not in places]
        if missing:
            raise StateError(
                'joint state',
                got=f'no {", ".join(missing)} among {", ".join(names) or "no names"}',
                expected='every joint of the policy',
                next_step='Give the source its joints with names, or map them with rename.',
                code='missing_joint',
            )
        return np.array([places[name] for name in self._names], np.intp)

    def _refuse(self, values: Array) -> None:
        bad = [
            f'{value} for {name}'
            for name, value in zip(self._names, values, strict=True)
            if not np.isfinite(value)
        ]
        raise StateError(
            'joint state',
            got=', '.join(bad),
            expected='finite positions',
            next_step='Check the driver or the encoder of the joint.',
            code='nan_joint',
        )
