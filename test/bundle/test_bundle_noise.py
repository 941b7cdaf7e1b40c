# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_policy_ros.bundle.noise import draw_noise, philox

ONES = 0xFFFFFFFF
int64 = st.integers(-(2**63), 2**63 - 1)


def draw(seed, stamp_ns, size):
    out = np.zeros(size, np.float32)
    draw_noise(seed, stamp_ns, out)
    return out


@pytest.mark.parametrize(
    ('key', 'counter', 'words'),
    [  # known answers of Random123 for philox4x32 with ten rounds
        ((0, 0), (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES, ONES), (ONES,) * 4, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0xA4093822, 0x299F31D0),
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_known_answers(key, counter, words):
    assert tuple(philox(key, counter, 1)[:, 0]) == words


def test_blocks_count_up_in_the_first_word():
    blocks = philox((1, 2), (10, 20, 30, 40), 3)
    for index in range(3):
        np.testing.assert_array_equal(
            blocks[:, index], philox((1, 2), (10 + index, 20, 30, 40), 1)[:, 0]
        )


def test_values_follow_box_and_muller_from_the_bits():
    seed, stamp_ns = 0x0123456789ABCDEF, -5
    stamp = stamp_ns % 2**64
    words = philox((seed % 2**32, seed >> 32), (0, 0, stamp % 2**32, stamp >> 32), 2)
    expected = []
    for first, second in words.T.reshape(-1, 2).tolist():
        radius = math.sqrt(-2 * math.log(((first >> 8) + 1) / 2**24))
        turn = 2 * math.pi * (second >> 8) / 2**24
        expected += [radius * math.cos(turn), radius * math.sin(turn)]
    np.testing.assert_allclose(draw(seed, stamp_ns, 8), expected, atol=2e-6)


def test_many_values_are_normal():
    values = np.sort(draw(7, 1_700_000_000_123_456_789, 400_000).astype(np.float64))
    assert abs(values.mean()) < 0.01
    assert abs(values.var() - 1) < 0.01
    assert abs((values**3).mean()) < 0.03
    assert abs((values**4).mean() - 3) < 0.06
    normal = np.array([math.erfc(-value / math.sqrt(2)) / 2 for value in values[::100]])
    ranks = np.arange(values.size)[::100] / values.size
    assert np.abs(normal - ranks).max() < 1.95 / math.sqrt(
        values.size
    )  # Kolmogorov-Smirnov, 0.1 %


def test_neighbours_are_uncorrelated():
    rows = [draw(seed, stamp, 20_000) for seed in (0, 1) for stamp in (0, 1, 33_333_333)]
    rows += [rows[0][1:], rows[0][4:]]  # against itself, one value and one block on
    size = min(row.size for row in rows)
    correlation = np.corrcoef([row[:size] for row in rows]) - np.eye(len(rows))
    assert np.abs(correlation).max() < 0.04


@given(int64, int64, st.integers(0, 127))
def test_each_of_the_128_bits_counts(seed, stamp_ns, bit):
    other = (seed ^ (1 << bit), stamp_ns) if bit < 64 else (seed, stamp_ns ^ (1 << bit - 64))
    assert not np.array_equal(draw(seed, stamp_ns, 4), draw(*other, 4))


@given(int64, int64, st.integers(0, 50), st.integers(0, 50))
def test_values_do_not_depend_on_how_many_follow(seed, stamp_ns, few, more):
    np.testing.assert_array_equal(
        draw(seed, stamp_ns, few), draw(seed, stamp_ns, few + more)[:few]
    )


def test_the_order_of_calls_does_not_matter():
    forward = [draw(3, stamp, 10).tobytes() for stamp in range(4)]
    backward = [draw(3, stamp, 10).tobytes() for stamp in reversed(range(4))]
    assert forward == backward[::-1]
    assert len(set(forward)) == 4


def test_negative_numbers_are_taken_by_their_low_64_bits():
    np.testing.assert_array_equal(draw(-1, -2, 9), draw(2**64 - 1, 2**64 - 2, 9))


def test_a_tensor_is_filled_in_the_order_of_its_memory():
    out = np.zeros((2, 3, 5), np.float32)
    draw_noise(1, 2, out)
    np.testing.assert_array_equal(out.reshape(-1), draw(1, 2, 30))


def test_all_values_are_finite_at_the_ends_of_the_uniform_numbers(monkeypatch):
    ends = np.array([[0], [0], [ONES], [ONES]], np.uint32)
    monkeypatch.setattr('vla_policy_ros.bundle.noise.philox', lambda *_: ends)
    values = draw(0, 0, 4)
    np.testing.assert_allclose(values, [math.sqrt(48 * math.log(2)), 0, 0, 0], atol=1e-6)
