# SPDX-License-Identifier: Apache-2.0
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_policy_ros.scheduling.gaps import GapCounter

PERIOD_NS = 33_333_333


def feed(counter, indices, jitter=()):
    for place, index in enumerate(indices):
        shift = jitter[place] if place < len(jitter) else 0.0
        counter.add(round((100 + index + shift) * PERIOD_NS))
    return counter


def test_nothing_is_missing_from_a_regular_stream():
    counter = feed(GapCounter(), range(100))
    assert counter.missing == 0
    assert counter.rate_hz == pytest.approx(30.0, rel=1e-3)
    assert counter.period_ns == pytest.approx(PERIOD_NS, abs=2)


@pytest.mark.parametrize('expected_period_ns', [None, PERIOD_NS])
def test_lost_samples_are_counted(expected_period_ns):
    lost = {3, 20, 21, 22, 50}
    counter = GapCounter(expected_period_ns)
    feed(counter, [index for index in range(60) if index not in lost])
    assert counter.missing == len(lost)


def test_an_expected_period_counts_from_the_second_sample():
    counter = feed(GapCounter(PERIOD_NS), [0, 4])
    assert counter.missing == 3


def test_nothing_is_known_before_enough_samples():
    counter = feed(GapCounter(), [0, 1, 2, 5])
    assert (counter.missing, counter.period_ns) == (0, None)
    feed(counter, [6, 7])
    assert counter.missing == 2


def test_stamps_that_do_not_grow_are_left_out():
    counter = feed(GapCounter(PERIOD_NS), [0, 1, 1, 0, 2])
    assert counter.missing == 0


def test_a_restart_keeps_the_period_and_forgets_the_stamp():
    counter = feed(GapCounter(), range(20))
    counter.restart()
    feed(counter, [-50, -49, -47])
    assert counter.missing == 1


def test_no_rate_before_the_second_sample():
    assert feed(GapCounter(), [0]).rate_hz == 0.0


@given(
    st.lists(st.floats(-0.24, 0.24), min_size=60, max_size=60),
    st.sets(st.integers(1, 58), max_size=15),
)
def test_jitter_is_forgiven(jitter, lost):
    indices = [index for index in range(60) if index not in lost]
    assert feed(GapCounter(PERIOD_NS), indices, jitter).missing == len(lost)
