# SPDX-License-Identifier: Apache-2.0
"""Taps in quads are the same taps, and the tables of a tile hold all that it needs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_policy_ros.bundle.geometry import Resize
from vla_policy_ros.gpu.quads import QUAD, axis_tables, in_quads, pack_weights
from vla_policy_ros.gpu.taps import make_resampling, pick

RULES = st.sampled_from(
    [('pil', 'bilinear'), ('pil', 'bicubic'), ('opencv', 'bilinear'), ('opencv', 'area')]
)


@st.composite
def resized_axes(draw):
    """Taps of one axis of a resize, cut and padded."""
    library, filter_ = draw(RULES)
    old, new = draw(st.integers(1, 120)), draw(st.integers(2, 60))
    rule = Resize(height=new, width=new, library=library, filter=filter_)
    taps = make_resampling(rule, (old, old), (new, new)).columns
    start = draw(st.integers(0, new - 1))
    taps = taps.cut(start, draw(st.integers(1, new - start)))
    before, after = draw(st.integers(0, 9)), draw(st.integers(0, 9))
    return taps.pad(before, before + len(taps.first) + after)


def by_source_line(first, count, weights, num_lines):
    """(n, lines): the weight of every source line in every output line."""
    dense = np.zeros((len(first), num_lines), weights.dtype)
    for line, (start, length) in enumerate(zip(first, count, strict=True)):
        dense[line, start : start + length] = weights[:length, line]
    return dense


@given(resized_axes())
def test_quads_are_the_same_taps(taps):
    quads = in_quads(taps)
    num_lines = len(taps.lines) + 2 * QUAD
    wanted = by_source_line(taps.first, taps.count, taps.weights, num_lines)
    flat = quads.weights.reshape(-1, len(taps.first))
    got = by_source_line(QUAD * quads.first, QUAD * quads.count, flat, num_lines)
    np.testing.assert_array_equal(got, wanted)


@given(resized_axes(), st.integers(1, 40))
def test_a_window_holds_the_quads_of_its_tile_and_no_more(taps, tile):
    quads = in_quads(taps)
    windows = quads.windows(tile)
    assert len(windows) == -(-len(taps.first) // tile)
    for index, (start, length) in enumerate(windows):
        inside = slice(index * tile, (index + 1) * tile)
        used = quads.count[inside] > 0
        first, count = quads.first[inside][used], quads.count[inside][used]
        if used.any():
            assert (start, start + length) == (first.min(), (first + count).max())
        else:
            assert length == 0


def unpack(words):
    """What `pack_weights` has packed, read as the kernel reads it."""
    low = words[:, :2].copy().view(np.int16).reshape(len(words), 2, -1, 2)
    low = low.transpose(0, 1, 3, 2).reshape(len(words), QUAD, -1)
    high = words[:, 2].copy().view(np.int8).reshape(len(words), -1, QUAD).transpose(0, 2, 1)
    return low.astype(np.int64) + 65536 * high.astype(np.int64)


@given(st.lists(st.integers(-(1 << 22), 1 << 22), min_size=8, max_size=8))
def test_weights_of_22_bits_come_back_from_three_words(values):
    weights = np.array(values, np.int32).reshape(1, QUAD, 2)
    np.testing.assert_array_equal(unpack(pack_weights(weights, 3)), weights)
    np.testing.assert_array_equal(pack_weights(weights, 2), pack_weights(weights, 3)[:, :2])


def test_four_words_are_the_bits_of_the_weights():
    weights = np.linspace(-1, 1, 8, dtype=np.float32).reshape(1, QUAD, 2)
    np.testing.assert_array_equal(pack_weights(weights, 4).view(np.float32), weights)


@given(resized_axes(), st.sampled_from([1, 2, 8, 32]))
def test_the_tables_of_a_tile_are_complete(taps, tile):
    offsets = np.arange(len(taps.first), dtype=np.int32) * 5
    axis, quads = axis_tables(taps, offsets, tile=tile, words=4), in_quads(taps)
    assert axis.tables.dtype == np.int32
    assert axis.table_quads * QUAD == axis.tables.shape[1]
    for index, (row, (start, length)) in enumerate(
        zip(axis.tables, quads.windows(tile), strict=True)
    ):
        num_quads, lines = row[0], row[QUAD : QUAD * (1 + length)]
        assert num_quads == length
        known = taps.lines[QUAD * start : QUAD * (start + length)]
        assert list(lines[: len(known)]) == list(known)
        assert set(lines[len(known) :]) <= set(taps.lines[-1:])  # the last one again
        inside = slice(index * tile, (index + 1) * tile)
        first, count, offset = row[QUAD * axis.line_quads :][: 3 * tile].reshape(3, tile)
        size = len(offsets[inside])
        assert list(count[:size]) == list(quads.count[inside])
        assert list(first[:size] + start) == list(quads.first[inside])
        assert list(offset[:size]) == list(offsets[inside])
        assert not count[size:].any()


@pytest.mark.parametrize('tile', [1, 4, 8])
def test_picked_lines_stand_for_themselves(tile):
    taps = pick(np.array([7, 7, 9, 4])).pad(1, 6)
    axis = axis_tables(taps, np.arange(6, dtype=np.int32), tile=tile, words=0)
    assert axis.line_quads == 0
    rows = axis.tables[:, : 3 * tile].reshape(-1, 3, tile)
    first, count = (rows[:, i].reshape(-1)[:6] for i in (0, 1))
    assert list(count) == [0, 1, 1, 1, 1, 0]
    assert list(first[1:5]) == [7, 7, 9, 4]
