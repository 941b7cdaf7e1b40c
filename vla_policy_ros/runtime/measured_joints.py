# SPDX-License-Identifier: Apache-2.0
"""The newest position of every joint, from as many publishers as there are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from vla_policy_ros.core.specs import Array


class MeasuredJoints:
    """Takes joint-state messages that may hold a part of the joints each. Pure, one thread at a time.

    Args:
        rename: Name in the message to name of the column; other names stay as they are.
    """

    def __init__(self, rename: Mapping[str, str]) -> None:
        self._rename = dict(rename)
        self._newest: dict[str, tuple[float, int]] = {}

    def update(
        self, names: Sequence[str], positions: Sequence[float], *, stamp_ns: int, now_ns: int
    ) -> None:
        """Take a message; positions that are not finite, and those older than what is known, are left out.

        Args:
            names: Joints of the message.
            positions: Their positions; a message without them, of velocities only, tells nothing.
            stamp_ns: Its stamp. 0 means now, and so does the future: an age that is never reached would watch nothing.
            now_ns: Time of its arrival.
        """
        stamp_ns = min(stamp_ns, now_ns) if stamp_ns > 0 else now_ns
        for name, position in zip(names, positions, strict=False):
            column = self._rename.get(name, name)
            known = self._newest.get(column)
            # What is known from the future is from before the clock went back.
            is_newest = known is None or known[1] <= stamp_ns or known[1] > now_ns
            if is_newest and math.isfinite(position):
                self._newest[column] = position, stamp_ns

    def select(self, columns: Sequence[str]) -> tuple[Array, int] | None:
        """Return the (D,) float64 positions of columns, NaN where nothing is known, and the stamp of the oldest of them.

        None when not one of them is known.
        """
        found = [self._newest.get(column) for column in columns]
        stamps = [known[1] for known in found if known is not None]
        if not stamps:
            return None
        values = [math.nan if known is None else known[0] for known in found]
        return np.array(values, np.float64), min(stamps)
