# SPDX-License-Identifier: Apache-2.0
"""How far a policy's chunks are from the recorded ones, and how smoothly they join."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vla_policy_ros.core.errors import SpecMismatchError
from vla_policy_ros.core.specs import Array
from vla_policy_ros.evaluation.alignment import (
    Alignment,
    align,
    select_executed,
    spacing_rows,
    wrap,
)
from vla_policy_ros.evaluation.recording import ChunkRecording
from vla_policy_ros.evaluation.smoothness import Smoothness, measure_smoothness


@dataclass(frozen=True, slots=True)
class ErrorSummary:
    """Mean absolute, mean squared and largest absolute error of `count` values, in the unit of the columns."""

    mae: float
    mse: float
    max_error: float
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JointComparison:
    """Errors of one column, or of all of them; None where no row is known.

    Attributes:
        name: Column, or `all`.
        unit: Its unit; empty for `all`.
        whole: All rows of every compared chunk.
        executed: The first `execution_horizon` rows of every compared chunk.
        open_loop: The executed rows of chunks that follow one another, put end to end: every moment counts once.
            This is what GR00T's open-loop evaluation reports.
    """

    name: str
    unit: str
    whole: ErrorSummary | None
    executed: ErrorSummary | None
    open_loop: ErrorSummary | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A policy's chunk stream against the recorded truth.

    Attributes:
        num_policy_chunks: Chunks of the policy.
        num_truth_chunks: Recorded chunks; 0 without a truth.
        num_compared: Policy chunks with a recorded chunk of the same observation stamp.
        execution_horizon: Rows of a chunk that are executed before the next one takes over.
        overall: Errors over all columns; None when nothing could be compared.
        joints: Errors per column.
        left_out: Policy columns that the truth lacks, or has in another unit or representation.
        row_mae: Mean absolute error of row k over all chunks; None where no row k is known.
        policy_smoothness: How smooth the policy is.
        truth_smoothness: How smooth the same chunks of the truth are; None when nothing could be compared.
        hold_last: Open-loop error of a robot that stays in its observed pose; None when no pose was given.
    """

    num_policy_chunks: int
    num_truth_chunks: int
    num_compared: int
    execution_horizon: int
    overall: JointComparison | None = None
    joints: tuple[JointComparison, ...] = ()
    left_out: tuple[str, ...] = ()
    row_mae: tuple[float | None, ...] = ()
    policy_smoothness: Smoothness
    truth_smoothness: Smoothness | None = None
    hold_last: ErrorSummary | None = None


def compare(
    policy: ChunkRecording,
    truth: ChunkRecording | None,
    *,
    execution_horizon: int | None = None,
    held: Array | None = None,
) -> Comparison:
    """Compare a policy's chunks with the recorded ones.

    Args:
        policy: The policy's chunks.
        truth: One recorded chunk per step, every episode in an epoch of its own; None when nothing was recorded.
        execution_horizon: Rows executed of every chunk; None takes the median distance from chunk to chunk.
        held: (N, D) measured pose at the observation of each policy chunk, in the order of the policy's columns,
            NaN where the robot does not measure a column; for the error of a robot that does nothing.

    Raises:
        SpecMismatchError: `held` is not (N, D), or the execution horizon is not within [1, K].
    """
    rows = spacing_rows(policy) if execution_horizon is None else execution_horizon
    _check(policy, rows, held)
    pairs = align(policy, truth) if truth is not None and len(policy) and len(truth) else None
    chosen = select_executed(policy, execution_horizon=rows)
    if pairs is None or not len(pairs.policy_index) or not pairs.columns:
        return Comparison(
            num_policy_chunks=len(policy),
            num_truth_chunks=len(truth) if truth else 0,
            num_compared=0,
            execution_horizon=rows,
            left_out=pairs.left_out if pairs else (),
            policy_smoothness=measure_smoothness(policy, chosen, columns=policy.columns),
        )
    assert truth is not None  # align() was called with it
    return _compare_pairs(policy, truth, pairs=pairs, chosen=chosen, rows=rows, held=held)


def summarize_errors(errors: Array) -> ErrorSummary | None:
    """Return the figures of an array of errors, NaN left out; None when nothing is left."""
    known = np.abs(errors[np.isfinite(errors)])
    if not known.size:
        return None
    return ErrorSummary(
        mae=float(known.mean()),
        mse=float(np.square(known).mean()),
        max_error=float(known.max()),
        count=int(known.size),
    )


def _check(policy: ChunkRecording, rows: int, held: Array | None) -> None:
    if len(policy) and not 1 <= rows <= policy.horizon:
        raise SpecMismatchError(
            'execution horizon',
            got=f'{rows} rows',
            expected=f'1 to {policy.horizon}, the rows of a chunk',
            next_step='Choose an execution horizon within the chunk.',
            code='bad_execution_horizon',
        )
    if held is not None and held.shape != (len(policy), len(policy.columns)):
        raise SpecMismatchError(
            'held poses',
            got=f'shape {list(held.shape)}',
            expected=f'[{len(policy)}, {len(policy.columns)}], a pose per chunk',
            next_step='Give the measured pose at the observation of every policy chunk.',
        )


def _compare_pairs(
    policy: ChunkRecording,
    truth: ChunkRecording,
    *,
    pairs: Alignment,
    chosen: Array,
    rows: int,
    held: Array | None,
) -> Comparison:
    is_chosen = np.isin(pairs.policy_index, chosen)
    errors = pairs.errors()
    return Comparison(
        num_policy_chunks=len(policy),
        num_truth_chunks=len(truth),
        num_compared=len(pairs.policy_index),
        execution_horizon=rows,
        overall=_joint('all', '', errors, is_chosen, rows),
        joints=tuple(
            _joint(column.name, column.unit, errors[:, :, index], is_chosen, rows)
            for index, column in enumerate(pairs.columns)
        ),
        left_out=pairs.left_out,
        row_mae=_row_mae(errors),
        policy_smoothness=measure_smoothness(policy, chosen, columns=pairs.columns),
        truth_smoothness=measure_smoothness(
            truth, pairs.truth_index[is_chosen], columns=pairs.columns
        ),
        hold_last=_hold_last(policy, pairs, is_chosen, rows, held),
    )


def _joint(name: str, unit: str, errors: Array, is_chosen: Array, rows: int) -> JointComparison:
    return JointComparison(
        name=name,
        unit=unit,
        whole=summarize_errors(errors),
        executed=summarize_errors(errors[:, :rows]),
        open_loop=summarize_errors(errors[is_chosen, :rows]),
    )


def _row_mae(errors: Array) -> tuple[float | None, ...]:
    rows: Sequence[Array] = list(np.moveaxis(errors, 1, 0))
    summaries = [summarize_errors(row) for row in rows]
    return tuple(summary.mae if summary else None for summary in summaries)


def _hold_last(
    policy: ChunkRecording, pairs: Alignment, is_chosen: Array, rows: int, held: Array | None
) -> ErrorSummary | None:
    if held is None:
        return None
    names = [column.name for column in policy.columns]
    wanted = [names.index(column.name) for column in pairs.columns]
    poses = held[pairs.policy_index][:, None, wanted]
    errors = wrap(poses - pairs.recorded, pairs.columns)
    errors[~pairs.is_known] = np.nan
    return summarize_errors(errors[is_chosen, :rows])
