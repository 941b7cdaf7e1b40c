# SPDX-License-Identifier: Apache-2.0
"""Tap tables: what must hold for all of them, and numbers that are known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_policy_ros.bundle.geometry import Resize
from vla_policy_ros.gpu.limits import DEVICE_RESIZE_LIMITS
from vla_policy_ros.gpu.passes import choose_tiling
from vla_policy_ros.gpu.taps import make_resampling, pick, resize_arithmetics
from vla_policy_ros.preprocess.limits import RESIZE_LIMITS

EDGE = st.integers(1, 400)
RULES = [
    *((library, filter_) for library, limits in RESIZE_LIMITS.items() for filter_ in limits),
    ('torchvision antialiased', 'bilinear'),
    ('torchvision antialiased', 'bicubic'),
]


def make(rule, source, target):
    library, _, antialias = rule[0].partition(' ')
    resize = Resize(
        height=target[0],
        width=target[1],
        library=library,
        filter=rule[1],
        antialias=bool(antialias),
    )
    return resize, make_resampling(resize, source, target)


def whole(resampling):
    """What the weights of one line add up to."""
    bits = {'PICK': 0, 'ROUNDED': resampling.shift, 'LINEAR': 11, 'CUBIC': 11}
    if resampling.arithmetic != 'AREA':
        return 1 << bits[resampling.arithmetic]
    return round(resampling.scale**-0.5) if resampling.scale != 1 else 1


@given(st.sampled_from(RULES), st.tuples(EDGE, EDGE), st.tuples(EDGE, EDGE))
def test_tables_are_sound_for_every_rule_and_size(rule, source, target):
    resize, resampling = make(rule, source, target)
    assert resampling.arithmetic in resize_arithmetics(resize)
    for taps, old, new in zip((resampling.rows, resampling.columns), source, target, strict=True):
        assert taps.first.shape == taps.count.shape == (new,)
        assert taps.weights.shape == (taps.count.max(), new)
        assert taps.weights.dtype == (np.float32 if resampling.arithmetic == 'AREA' else np.int32)
        assert {t.dtype for t in (taps.first, taps.count, taps.lines)} == {np.dtype(np.int32)}
        assert taps.lines.min() >= 0
        assert taps.lines.max() < old
        assert (np.diff(taps.lines) >= 0).all()
        # The kernel takes the first and the last line of a tile for the ends of what it needs.
        assert (np.diff(taps.first) >= 0).all()
        assert (np.diff(taps.first + taps.count) >= 0).all()
        assert taps.first[0] == 0
        assert (taps.first + taps.count).max() == len(taps.lines)
        behind = np.arange(len(taps.weights))[:, None] >= taps.count
        assert not taps.weights[behind].any()


@given(
    st.sampled_from([rule for rule in RULES if rule[1] != 'area']),
    st.tuples(EDGE, EDGE),
    st.tuples(EDGE, EDGE),
)
def test_weights_of_a_line_make_a_whole(rule, source, target):
    _, resampling = make(rule, source, target)
    if resampling.arithmetic == 'AREA':  # bilinear by half: blocks of two
        assert (resampling.rows.weights.sum(axis=0) == 2).all()
        return
    for taps in (resampling.rows, resampling.columns):
        sums = taps.weights.sum(axis=0, dtype=np.int64)
        assert np.abs(sums - whole(resampling)).max() <= max(2, len(taps.weights))  # roundings


@given(st.integers(1, 300), st.integers(1, 40))
def test_areas_make_a_whole(new, more):
    old = new + more
    _, resampling = make(('opencv', 'area'), (old, old), (new, new))
    sums = resampling.rows.weights.sum(axis=0, dtype=np.float64) ** 2 * resampling.scale
    np.testing.assert_allclose(
        sums, 1, atol=5e-3
    )  # taps below a thousandth of a pixel are dropped


def test_pillow_by_half_is_a_triangle_over_four():
    _, resampling = make(('pil', 'bilinear'), (8, 8), (4, 4))
    inner = resampling.rows.weights[:, 1] / (1 << 22)
    np.testing.assert_allclose(inner, np.array([1, 3, 3, 1]) / 8, atol=1e-6)
    assert list(resampling.rows.first) == [0, 1, 3, 5]


def test_opencv_repeats_the_edge_for_a_cubic():
    _, resampling = make(('opencv', 'bicubic'), (4, 4), (8, 8))
    assert list(resampling.rows.lines) == [0, 0, 0, 1, 2, 3, 3, 3]


def test_halving_both_edges_is_an_area_for_opencv_and_halving_one_is_not():
    assert make(('opencv', 'bilinear'), (8, 8), (4, 4))[1].arithmetic == 'AREA'
    assert make(('opencv', 'bilinear'), (8, 8), (4, 8))[1].arithmetic == 'LINEAR'


def test_lines_that_no_tap_needs_are_left_out():
    _, resampling = make(('opencv', 'bilinear'), (100, 100), (5, 10))
    assert len(resampling.rows.lines) == 10
    assert len(resampling.columns.lines) == 20


def test_cut_and_pad_keep_the_lines_that_are_left():
    taps = pick(np.arange(10, 20)).cut(2, 5).pad(3, 12)
    assert list(taps.count) == [0] * 3 + [1] * 5 + [0] * 4
    inside = taps.lines[taps.first[3:8]]
    assert list(inside) == [12, 13, 14, 15, 16]
    assert (np.diff(taps.first + taps.count) >= 0).all()


@pytest.mark.parametrize(
    ('rule', 'source', 'tile'),
    [
        (('pil', 'bilinear'), (480, 640), (8, 32)),
        (('pil', 'bilinear'), (1080, 1920), (8, 32)),
        (('opencv', 'area'), (2160, 3840), (4, 32)),
        (('pil', 'nearest'), (2160, 3840), (8, 32)),
    ],
)
def test_tiles_are_large_where_they_fit(rule, source, tile):
    tiling = choose_tiling(make(rule, source, (224, 224))[1], where='camera')
    assert tiling.tile == tile


def test_the_device_is_held_to_every_rule_that_the_reference_has():
    assert {k: set(v) for k, v in DEVICE_RESIZE_LIMITS.items()} == {
        k: set(v) for k, v in RESIZE_LIMITS.items()
    }
