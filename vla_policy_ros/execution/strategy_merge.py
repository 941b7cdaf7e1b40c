# SPDX-License-Identifier: Apache-2.0
"""Strategies that mix the rows of several chunks for the same time."""

from __future__ import annotations

from abc import abstractmethod
from types import MappingProxyType

import numpy as np

from vla_policy_ros.core.specs import Array
from vla_policy_ros.execution.curve import ActionCurve
from vla_policy_ros.execution.kinds import ColumnMath
from vla_policy_ros.execution.legs import Leg
from vla_policy_ros.execution.strategy import ChunkStrategy, Parameter

# Share of the new row in LeRobot's aggregate functions, by LeRobot's names.
AGGREGATE_FUNCTIONS = MappingProxyType(
    {'weighted_average': 0.7, 'latest_only': 1.0, 'average': 0.5, 'conservative': 0.3}
)


class _Merge(ChunkStrategy):
    """Every row of a new chunk that is not past is mixed with what was planned for its time.

    Rows that are past stay as they were executed; rows after the end of the plan are the new chunk's. Where the two
    chunks' rows do not lie at the same times, the plan is taken between its rows. The result takes over at once.
    Grippers that snap are the new chunk's.
    """

    def _begin_ns(self, curve: ActionCurve, now_ns: int) -> int:
        return max(now_ns, curve.start_ns)

    def _make_leg(self, curve: ActionCurve, begin_ns: int, now_ns: int) -> Leg:
        times_ns = curve.start_ns + np.arange(curve.horizon) * curve.step_ns
        plan = self._legs[-1].curve if self._legs else None
        is_planned = np.zeros(curve.horizon, bool)
        if plan is not None:
            is_planned = (times_ns >= plan.start_ns) & (times_ns <= plan.end_ns)
        is_past = is_planned & (times_ns < now_ns)
        weights = self._weigh(curve, is_planned, is_past)
        if plan is None or not is_planned.any():
            return Leg(curve, begin_ns)
        planned, velocity = curve.rows.copy(), np.empty(curve.rows.shape[1])
        for row in np.flatnonzero(is_planned):
            plan.evaluate(int(times_ns[row]), planned[row], velocity)
        rows = self.math.blend(planned, curve.rows, weights[:, None])
        return Leg(ActionCurve(curve.chunk, self.math, rows=rows), begin_ns)

    @abstractmethod
    def _weigh(self, curve: ActionCurve, is_planned: Array, is_past: Array) -> Array:
        """Return the (K,) share of a new chunk's rows; 1 where nothing is planned, 0 where what is planned is past."""


class Aggregate(_Merge):
    """Mixes each new row with the row that the chunks before it have left for the same time.

    Source: LeRobot's asynchronous client (`async_inference/robot_client.py`, `_aggregate_action_queues`) and its
    functions of the old and the new row (`configs.py`): `weighted_average` 0.3 and 0.7, `latest_only`, `average`,
    `conservative` 0.7 and 0.3. There chunks share one count of steps; here rows are matched by time.

    Args:
        math: Arithmetic of the D columns.
        step_ns: Time between two rows.
        horizon: K, the number of rows.
        function: Name of the function.
    """

    name = 'aggregate'
    parameters = MappingProxyType(
        {'function': Parameter(default='weighted_average', choices=tuple(AGGREGATE_FUNCTIONS))}
    )

    def __init__(self, math: ColumnMath, *, step_ns: int, horizon: int, function: str) -> None:
        super().__init__(math, step_ns=step_ns, horizon=horizon)
        self._share = AGGREGATE_FUNCTIONS[function]

    def _weigh(self, curve: ActionCurve, is_planned: Array, is_past: Array) -> Array:  # noqa: ARG002
        return np.where(is_past, 0.0, np.where(is_planned, self._share, 1.0))


class TemporalEnsemble(_Merge):
    """The weighted mean of all that chunks have said for a time; weights exp(-m i), i = 0 for the oldest.

    Source: T. Zhao et al., "Learning fine-grained bimanual manipulation with low-cost hardware" (ACT), arXiv
    2304.13705, algorithm 2, with m = 0.01. The mean is kept row by row and updated with each chunk, which gives the
    same numbers. It is meant for a policy that answers at every step.

    Args:
        math: Arithmetic of the D columns.
        step_ns: Time between two rows.
        horizon: K, the number of rows.
        coefficient: m; above 0 older chunks weigh more.
    """

    name = 'temporal_ensemble'
    parameters = MappingProxyType({'coefficient': Parameter(default=0.01, low=-1.0, high=1.0)})

    def __init__(
        self, math: ColumnMath, *, step_ns: int, horizon: int, coefficient: float
    ) -> None:
        super().__init__(math, step_ns=step_ns, horizon=horizon)
        weights = np.exp(-coefficient * np.arange(horizon + 1))
        self._shares = weights / np.cumsum(weights)
        self._counts = np.zeros(0, np.intp)
        self._start_ns = 0

    def _weigh(self, curve: ActionCurve, is_planned: Array, is_past: Array) -> Array:
        rows = np.rint((curve.start_ns - self._start_ns) / self.step_ns).astype(np.intp)
        rows = np.clip(rows + np.arange(curve.horizon), 0, max(len(self._counts) - 1, 0))
        counts = np.where(is_planned, self._counts[rows] if len(self._counts) else 0, 0)
        shares = np.where(is_past, 0.0, self._shares[np.minimum(counts, self.horizon)])
        self._counts = np.where(is_past, counts, counts + 1)
        self._start_ns = curve.start_ns
        return shares
