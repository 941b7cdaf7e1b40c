# SPDX-License-Identifier: Apache-2.0
"""Policy chunks and recorded chunks brought onto the same rows and columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vla_policy_ros.core.specs import Array, Column
from vla_policy_ros.evaluation.recording import ChunkRecording

_SLACK = 0.01  # share of a step by which two time lines may differ: 1/30 s is no whole number of nanoseconds


@dataclass(frozen=True, slots=True, eq=False)
class Alignment:
    """M policy chunks with the recorded values at the times of their rows, for the C columns both sides have.

    Attributes:
        columns: The C columns.
        left_out: Policy columns that the truth lacks, or has in another unit (where both say theirs) or representation.
        policy_index: (M,) int64 positions in the policy's recording.
        truth_index: (M,) int64 positions in the truth's recording.
        predicted: (M, K, C) float64.
        recorded: (M, K, C) float64, linear between two recorded rows.
        is_known: (M, K) bool, false where the truth holds nothing for the time of the row.
    """

    columns: tuple[Column, ...]
    left_out: tuple[str, ...]
    policy_index: Array
    truth_index: Array
    predicted: Array
    recorded: Array
    is_known: Array

    def errors(self) -> Array:
        """Return (M, K, C) predicted minus recorded, angles the short way round, NaN where nothing is known."""
        errors = wrap(self.predicted - self.recorded, self.columns)
        errors[~self.is_known] = np.nan
        return errors


def align(policy: ChunkRecording, truth: ChunkRecording) -> Alignment:
    """Match chunks by observation stamp and columns by name, and look the truth up at the times of the policy's rows.

    A row is known when it lies within the recorded chunk and not after the last recorded step of its epoch: what
    follows there is the last action repeated.
    """
    columns, left_out = _common_columns(policy.columns, truth.columns)
    policy_index, truth_index = match_stamps(
        policy.observation_stamps_ns, truth.observation_stamps_ns
    )
    predicted = _pick(policy, policy_index, columns)
    targets = _pick(truth, truth_index, columns)
    rows_ns = np.arange(policy.horizon, dtype=np.int64) * policy.step_ns
    times_ns = policy.starts_ns[policy_index][:, None] + rows_ns[None, :]
    since_ns = times_ns - truth.starts_ns[truth_index][:, None]
    ends_ns = _epoch_ends(truth)[truth_index][:, None]
    positions = since_ns / max(truth.step_ns, 1)
    is_known = (
        (positions >= -_SLACK)
        & (positions <= truth.horizon - 1 + _SLACK)
        & (times_ns <= ends_ns + truth.step_ns * _SLACK)
    )
    return Alignment(
        columns=columns,
        left_out=left_out,
        policy_index=policy_index,
        truth_index=truth_index,
        predicted=predicted,
        recorded=interpolate(targets, positions, columns),
        is_known=is_known,
    )


def match_stamps(policy_stamps_ns: Array, truth_stamps_ns: Array) -> tuple[Array, Array]:
    """Return the positions of the pairs with equal stamps, one pair per policy chunk that has a partner.

    Where a stamp occurs more than once in the truth (episodes that all start at 0), the next one in order is meant.
    """
    places: dict[int, list[int]] = {}
    for place, stamp_ns in enumerate(truth_stamps_ns.tolist()):
        places.setdefault(stamp_ns, []).append(place)
    pairs: list[tuple[int, int]] = []
    last = 0
    for index, stamp_ns in enumerate(policy_stamps_ns.tolist()):
        candidates = places.get(stamp_ns)
        if candidates:
            last = next((place for place in candidates if place >= last), candidates[0])
            pairs.append((index, last))
    found = np.array(pairs, np.int64).reshape(-1, 2)
    return found[:, 0], found[:, 1]


def interpolate(targets: Array, positions: Array, columns: Sequence[Column]) -> Array:
    """Return (M, P, C) values of (M, K, C) targets at (M, P) row positions, linear in between.

    Positions are clipped to [0, K]: a chunk of K rows lasts K steps, and moves on with its last velocity in the last.
    """
    horizon = targets.shape[1]
    if horizon < 2:
        return np.repeat(targets, positions.shape[1], axis=1)
    clipped = np.clip(positions, 0, horizon)
    rows = np.minimum(clipped.astype(np.int64), horizon - 2)
    shares = (clipped - rows)[:, :, None]
    lower = np.take_along_axis(targets, rows[:, :, None], axis=1)
    upper = np.take_along_axis(targets, rows[:, :, None] + 1, axis=1)
    values: Array = lower + shares * wrap(upper - lower, columns)
    return values


def wrap(differences: Array, columns: Sequence[Column]) -> Array:
    """Return (..., C) differences, a copy, with angles brought into half a turn to either side."""
    wrapped = differences.astype(np.float64)
    for index, column in enumerate(columns):
        if column.turn:
            wrapped[..., index] -= column.turn * np.round(wrapped[..., index] / column.turn)
    return wrapped


def spacing_rows(recording: ChunkRecording) -> int:
    """Return the median number of rows from one chunk to the next, within [1, K]; K when there is only one chunk."""
    gaps_ns = np.diff(recording.starts_ns)[np.diff(recording.epochs) == 0]
    gaps_ns = gaps_ns[gaps_ns > 0]
    if not len(gaps_ns):
        return max(recording.horizon, 1)
    return int(np.clip(np.round(np.median(gaps_ns) / recording.step_ns), 1, recording.horizon))


def select_executed(recording: ChunkRecording, *, execution_horizon: int) -> Array:
    """Return the positions of the chunks that an open-loop executor plays: the next one after `execution_horizon` rows.

    A new epoch, or time that runs back, starts afresh.
    """
    span_ns = (execution_horizon - 0.5) * recording.step_ns
    chosen: list[int] = []
    last: tuple[int, int] | None = None
    moments = zip(recording.epochs.tolist(), recording.starts_ns.tolist(), strict=True)
    for index, (epoch, start_ns) in enumerate(moments):
        is_due = last is None or epoch != last[0] or not 0 <= start_ns - last[1] < span_ns
        if is_due:
            chosen.append(index)
            last = (epoch, start_ns)
    return np.array(chosen, np.int64)


def _common_columns(
    policy: Sequence[Column], truth: Sequence[Column]
) -> tuple[tuple[Column, ...], tuple[str, ...]]:
    known = {column.name: column for column in truth}
    common = tuple(column for column in policy if _means_the_same(column, known.get(column.name)))
    return common, tuple(column.name for column in policy if column not in common)


def _means_the_same(column: Column, other: Column | None) -> bool:
    return (
        other is not None
        and (column.unit == other.unit or '' in (column.unit, other.unit))
        and column.representation is other.representation
    )


def _pick(recording: ChunkRecording, chunks: Array, columns: Sequence[Column]) -> Array:
    names = [column.name for column in recording.columns]
    wanted = [names.index(column.name) for column in columns]
    return recording.actions[chunks][:, :, wanted].astype(np.float64)


def _epoch_ends(recording: ChunkRecording) -> Array:
    """Return (N,) int64: the last start in the epoch of each chunk."""
    epochs, starts_ns = recording.epochs, recording.starts_ns
    ends_ns = np.zeros_like(starts_ns)
    for epoch in np.unique(epochs):
        ends_ns[epochs == epoch] = starts_ns[epochs == epoch].max()
    return ends_ns
