# SPDX-License-Identifier: Apache-2.0
"""Strategies that change from one chunk to the next and leave the seam as it is."""

from __future__ import annotations

from types import MappingProxyType

from vla_policy_ros.execution.curve import ActionCurve
from vla_policy_ros.execution.kinds import ColumnMath
from vla_policy_ros.execution.legs import Leg
from vla_policy_ros.execution.strategy import ChunkStrategy, Parameter


class Latest(ChunkStrategy):
    """The newest chunk takes over at once, at the row for now.

    Source: LeRobot's asynchronous client without aggregation (`async_inference`, `latest_only` at the row in hand).
    """

    name = 'latest'

    def _begin_ns(self, curve: ActionCurve, now_ns: int) -> int:
        return max(now_ns, curve.start_ns)


class OpenLoop(ChunkStrategy):
    """Executes all rows of a chunk, then the newest that has come by then.

    The delay of the next chunk is counted in executed steps: rows whose time passed while the robot executed others
    are dropped, those whose time passed while it stood still and waited are not. A policy that is asked when
    a chunk has ended is therefore executed from row 0.

    Source: the action chunk broker of openpi (`openpi_client/action_chunk_broker.py`), which runs a chunk to its end
    and then waits for the next.
    """

    name = 'open_loop'

    def _begin_ns(self, curve: ActionCurve, now_ns: int) -> int:
        due_ns = self._legs[0].end_ns if self._legs else now_ns
        return max(now_ns, curve.start_ns, due_ns)

    def _make_leg(self, curve: ActionCurve, begin_ns: int, now_ns: int) -> Leg:  # noqa: ARG002
        still_since_ns = self._legs[0].end_ns if self._legs else curve.start_ns
        shift_ns = begin_ns - max(curve.start_ns, still_since_ns)
        return Leg(curve, begin_ns, shift_ns=shift_ns)


class Receding(ChunkStrategy):
    """Executes s steps of a chunk, then the newest that has come by then; rows that are past are dropped by time.

    Without a newer one it goes on with the rows it has.

    Source: receding horizon control as in C. Chi et al., "Diffusion Policy", arXiv 2303.04137, section 3 (action
    execution horizon), made asynchronous.

    Args:
        math: Arithmetic of the D columns.
        step_ns: Time between two rows.
        horizon: K, the number of rows.
        execution_horizon: s, steps that are executed of a chunk before the next takes over.
    """

    name = 'receding'
    parameters = MappingProxyType(
        {'execution_horizon': Parameter(default=8, low=1, share_of_horizon=1.0)}
    )

    def __init__(
        self, math: ColumnMath, *, step_ns: int, horizon: int, execution_horizon: int
    ) -> None:
        super().__init__(math, step_ns=step_ns, horizon=horizon)
        self._execution_ns = int(execution_horizon) * step_ns

    def _begin_ns(self, curve: ActionCurve, now_ns: int) -> int:
        due_ns = now_ns
        if self._legs:
            leg = self._legs[0]
            due_ns = min(leg.begin_ns + self._execution_ns, leg.end_ns)
        return max(now_ns, curve.start_ns, due_ns)
