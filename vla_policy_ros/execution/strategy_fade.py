# SPDX-License-Identifier: Apache-2.0
"""Strategies whose seams have no step in position or velocity."""

from __future__ import annotations

from types import MappingProxyType

import numpy as np

from vla_policy_ros.core.specs import Array
from vla_policy_ros.execution.curve import ActionCurve
from vla_policy_ros.execution.kinds import ColumnMath
from vla_policy_ros.execution.legs import Leg, fade_from
from vla_policy_ros.execution.strategy import ChunkStrategy, Parameter

_FADE = Parameter(default=300.0, low=10.0, high=5000.0)


class OffsetFade(ChunkStrategy):
    """The newest chunk takes over at once; what the motion before it differs in is faded out within a window.

    At the seam position and velocity are those of what was executed until then, also when that still held a fade: the
    fade starts anew from there. After a gap that is the last row, at rest. Grippers that snap do so at the seam.

    Source: the offset that almond-bot/axol fades out at the seam; here with the velocity's difference too, and with the
    quintic polynomial that is usual for motion from point to point.

    Args:
        math: Arithmetic of the D columns.
        step_ns: Time between two rows.
        horizon: K, the number of rows.
        fade_ms: The window.
    """

    name = 'offset_fade'
    promises_continuity = True
    parameters = MappingProxyType({'fade_ms': _FADE})

    def __init__(self, math: ColumnMath, *, step_ns: int, horizon: int, fade_ms: float) -> None:
        super().__init__(math, step_ns=step_ns, horizon=horizon)
        self._window_ns = round(1e6 * fade_ms)

    def _begin_ns(self, curve: ActionCurve, now_ns: int) -> int:
        return max(now_ns, curve.start_ns)

    def _make_leg(self, curve: ActionCurve, begin_ns: int, now_ns: int) -> Leg:  # noqa: ARG002
        before = self._leg_at(begin_ns)
        if before is None:
            return Leg(curve, begin_ns)
        fade = fade_from(before, curve, begin_ns=begin_ns, window_ns=self._window_ns)
        return Leg(curve, begin_ns, fade=fade)


class RealTimeChunking(OffsetFade):
    """A chunk takes over at its row d: the rows before it repeat what was committed when the policy was asked.

    The policy is given `prefix` and freezes its first d rows to it, so that old and new chunk agree at row d. What they
    still differ in there is faded out as `offset_fade` does it. A chunk that comes later than row d takes over at
    once, and one does at the end of the rows before it.

    Source: K. Black, M. Galliker, S. Levine, "Real-time execution of action chunking flow policies", arXiv 2506.07339
    (inference delay d, execution horizon s, d <= s <= K - d); with the prefix as an input of the model: arXiv
    2512.05964.

    Args:
        math: Arithmetic of the D columns.
        step_ns: Time between two rows.
        horizon: K, the number of rows.
        fade_ms: The window of the fade.
        delay_steps: d, at most half of the horizon.
    """

    name = 'rtc'
    parameters = MappingProxyType(
        {'fade_ms': _FADE, 'delay_steps': Parameter(default=4, low=0, share_of_horizon=0.5)}
    )

    def __init__(
        self, math: ColumnMath, *, step_ns: int, horizon: int, fade_ms: float, delay_steps: int
    ) -> None:
        super().__init__(math, step_ns=step_ns, horizon=horizon, fade_ms=fade_ms)
        self._delay_ns = int(delay_steps) * step_ns

    def prefix(self, now_ns: int) -> Array:
        """Return the rows that will be executed from now on, as far as they are known.

        Args:
            now_ns: Time of row 0 of the chunk that is to be asked for: the observation's stamp plus the policy's
                offset.

        Returns:
            (n, D) float64, 0 <= n <= K, absolute, a step apart; what is left of a fade is in them. Empty before the
            first chunk and after a gap: there is nothing to freeze.
        """
        count = min(self.remaining_ns(now_ns) // self.step_ns + 1, self.horizon)
        if self._leg_at(now_ns) is None or self._legs[-1].end_ns < now_ns:
            count = 0
        rows = np.empty((count, len(self.math.columns)))
        velocity = np.empty(len(self.math.columns))
        for place, row in enumerate(rows):
            time_ns = now_ns + place * self.step_ns
            leg = self._leg_at(time_ns)
            assert leg is not None
            leg.evaluate(time_ns, row, velocity)
        return rows

    def _begin_ns(self, curve: ActionCurve, now_ns: int) -> int:
        due_ns = now_ns
        if self._legs:
            due_ns = min(curve.start_ns + self._delay_ns, self._legs[-1].end_ns)
        return max(now_ns, curve.start_ns, due_ns)
