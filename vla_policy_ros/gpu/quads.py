# SPDX-License-Identifier: Apache-2.0
"""The taps of one axis as the kernel takes them: in quads, four lines that follow each other, at a multiple of four."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vla_policy_ros.core.specs import Array
from vla_policy_ros.gpu.taps import Taps

QUAD = 4
"""Lines of a quad."""


@dataclass(frozen=True, slots=True, eq=False)
class Quads:
    """One axis of a resize by quads of source lines; `PICK` takes single lines instead."""

    first: Array
    """(n,) int32: first quad of each output line."""
    count: Array
    """(n,) int32: how many quads, 0 in a border."""
    weights: Array
    """(most quads, 4, n): weights of every line of these quads, 0 beside the taps."""

    def windows(self, tile: int) -> Array:
        """Return (tiles, 2) int32: the first quad that each tile of so many output lines needs, and how many."""
        starts = np.arange(0, len(self.first), tile)
        used = self.count > 0
        beyond = np.iinfo(np.int32).max
        begin = np.minimum.reduceat(np.where(used, self.first, beyond), starts)
        end = np.maximum.reduceat(np.where(used, self.first + self.count, 0), starts)
        begin = np.minimum(begin, end)  # a tile of nothing but border needs none
        return np.stack([begin, end - begin], axis=1).astype(np.int32)


@dataclass(frozen=True, slots=True, eq=False)
class AxisTables:
    """Everything that the kernel knows of one axis, by tiles of output lines."""

    tables: Array
    """(tiles, words) int32: number and lines of the quads that a tile needs; behind them for each of its output lines
    first quad (`PICK`: the line), number of quads, offset in the tensor, and weights."""
    line_quads: int
    """Quads of words before the second part."""

    @property
    def table_quads(self) -> int:
        """Quads of words per tile."""
        return int(self.tables.shape[1]) // QUAD


def in_quads(taps: Taps) -> Quads:
    """Return the same taps in quads; weights of 0 fill them up."""
    shift = taps.first % QUAD
    count = np.where(taps.count > 0, -(-(shift + taps.count) // QUAD), 0)
    weights = np.zeros((QUAD * max(int(count.max()), 1), len(shift)), taps.weights.dtype)
    tap, line = np.nonzero(np.arange(len(taps.weights))[:, None] < taps.count)
    weights[shift[line] + tap, line] = taps.weights[tap, line]
    return Quads(
        (taps.first // QUAD).astype(np.int32),
        count.astype(np.int32),
        weights.reshape(-1, QUAD, len(shift)),
    )


def pack_weights(weights: Array, words: int) -> Array:
    """Return the weights of quads in words for the kernel.

    A weight is low + 65536 * high; low has 16 bits, high 8, both with sign. So a sum of products with levels is made of
    sums that the GPU adds up four or two at a time.

    Args:
        weights: (most quads, 4, n) int32 or float32.
        words: Words per quad: 4 for the weights as they are, 3 for two words of low parts and one of high parts, 2 for
            the low parts alone.

    Returns:
        (most quads, words, n) int32.
    """
    if words == QUAD:
        return np.ascontiguousarray(weights).view(np.int32)
    low = weights.astype(np.int16)
    high = (weights - low) >> 16
    halves, bytes_ = low.view(np.uint16).astype(np.uint32), high.astype(np.uint8).astype(np.uint32)
    first, second = (halves[:, i] | halves[:, i + 1] << 16 for i in (0, 2))
    third = bytes_[:, 0] | bytes_[:, 1] << 8 | bytes_[:, 2] << 16 | bytes_[:, 3] << 24
    return np.stack([first, second, third][:words], axis=1).view(np.int32)


def axis_tables(taps: Taps, offsets: Array, *, tile: int, words: int) -> AxisTables:
    """Return the tables of the struct `Axis` of `kernels/preprocess.cu`.

    Args:
        taps: The taps of the axis.
        offsets: (n,) int32 elements from the start of the tensor to each output line.
        tile: Output lines of a tile.
        words: Words per quad of weights, see `pack_weights`; 0 for taps that pick single lines.
    """
    if words == 0:
        lines = np.zeros((-(-len(offsets) // tile), 0), np.int32)
        first = taps.lines[np.minimum(taps.first, len(taps.lines) - 1)]  # beyond is border only
        by_line = np.stack([first, taps.count, offsets])
    else:
        quads = in_quads(taps)
        windows = quads.windows(tile)
        places = QUAD * windows[:, :1] + np.arange(QUAD * windows[:, 1].max())
        lines = taps.lines[np.minimum(places, len(taps.lines) - 1)]
        lines = np.concatenate([np.pad(windows[:, 1:], ((0, 0), (0, QUAD - 1))), lines], axis=1)
        first = quads.first - np.repeat(windows[:, 0], tile)[: len(offsets)]
        weights = pack_weights(quads.weights, words).reshape(-1, len(offsets))
        by_line = np.concatenate([np.stack([first, quads.count, offsets]), weights])
    by_line = np.pad(by_line, ((0, 0), (0, -len(offsets) % tile)))
    by_tile = by_line.reshape(len(by_line), -1, tile).swapaxes(0, 1).reshape(len(lines), -1)
    by_tile = np.pad(by_tile, ((0, 0), (0, -by_tile.shape[1] % QUAD)))
    tables = np.concatenate([lines, by_tile], axis=1, dtype=np.int32)
    return AxisTables(tables, lines.shape[1] // QUAD)
