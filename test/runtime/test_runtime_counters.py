# SPDX-License-Identifier: Apache-2.0
import pytest

from vla_policy_ros.runtime.counters import PipelineCounters, StreamCounter

SECOND_NS = 10**9


def test_a_stream_without_samples():
    stream = StreamCounter()
    snapshot = stream.snapshot(5)
    assert (snapshot.received, snapshot.newest_stamp_ns, snapshot.newest_age_ns) == (0, -1, -1)
    assert snapshot.rate_hz == 0.0
    assert stream.is_silent(0)


def test_counts_age_rate_and_missing_samples():
    stream = StreamCounter(expected_period_ns=SECOND_NS)
    for second in (1, 2, 4):
        stream.arrive(second * SECOND_NS, 0)
    snapshot = stream.snapshot(5 * SECOND_NS)
    assert (snapshot.received, snapshot.missing) == (3, 1)
    assert (snapshot.newest_stamp_ns, snapshot.newest_age_ns) == (4 * SECOND_NS, SECOND_NS)
    assert snapshot.rate_hz == pytest.approx(2 / 3)


def test_a_late_or_unstamped_message_is_not_the_newest():
    stream = StreamCounter()
    for stamp in (10, 5, 0):
        stream.arrive(stamp, 0)
    assert (stream.newest_ns, stream.snapshot(10).received) == (10, 3)


def test_a_broken_message_is_received_and_not_missing():
    stream = StreamCounter(expected_period_ns=10)
    stream.arrive(10, 0)
    stream.arrive_broken(0)
    stream.arrive(30, 0)
    assert (stream.snapshot(30).received, stream.snapshot(30).missing) == (3, 0)


def test_silence_is_a_second_or_three_periods():
    quick, slow = StreamCounter(SECOND_NS // 30), StreamCounter(SECOND_NS)
    for stream in (quick, slow):
        stream.arrive(1, 0)
    assert not quick.is_silent(SECOND_NS)
    assert quick.is_silent(SECOND_NS + 1)
    assert not slow.is_silent(3 * SECOND_NS)
    assert slow.is_silent(3 * SECOND_NS + 1)


def test_a_clock_that_is_set_loses_no_samples():
    """A robot without a battery-backed clock starts in 1970 and is set to the right time a moment later."""
    stream = StreamCounter(expected_period_ns=SECOND_NS)
    for arrived, stamp in enumerate((1, 2, 1_700_000_000, 1_700_000_001, 1_700_000_003)):
        stream.arrive(stamp * SECOND_NS, arrived * SECOND_NS)
    assert stream.snapshot(0).missing == 1


def test_a_long_pause_is_missing_samples():
    stream = StreamCounter(expected_period_ns=SECOND_NS)
    for second in (1, 2, 100):
        stream.arrive(second * SECOND_NS, second * SECOND_NS)
    assert stream.snapshot(0).missing == 97


def test_a_silent_stream_has_no_rate():
    counters = PipelineCounters({'front': None, 'wrist': None})
    for second in (1, 2, 3):
        counters.streams['front'].arrive(second * SECOND_NS, second * SECOND_NS)
    for now_s, rate_hz in ((3, 1.0), (6, 0.0)):
        silent = counters.find_silent(now_s * SECOND_NS)
        assert ('front' in silent, 'wrist' in silent) == (rate_hz == 0.0, True)
        assert counters.snapshots(0, silent)['front'].rate_hz == rate_hz


def test_a_restart_forgets_stamps_and_keeps_counts():
    stream = StreamCounter(expected_period_ns=10)
    stream.arrive(1000, 0)
    stream.restart()
    assert stream.is_silent(0)
    stream.arrive(10, 0)
    snapshot = stream.snapshot(15)
    assert (snapshot.received, snapshot.missing, snapshot.newest_stamp_ns) == (2, 0, 10)


def test_counts_outcomes():
    counters = PipelineCounters({'front': None, 'wrist': None})
    counters.count_chunk(['front'], {'queue': 1_000_000})
    counters.count_chunk(['front', 'wrist'], {'queue': 3_000_000, 'network': 1})
    counters.count_refusal('wrist', 'no_sample')
    counters.count_cause('wrist', 'nan_joint')
    assert (counters.chunks, counters.refused) == (2, 1)
    assert {name: stream.used for name, stream in counters.streams.items()} == {
        'front': 2,
        'wrist': 1,
    }
    assert counters.causes == {'wrist/no_sample': 1, 'wrist/nan_joint': 1}
    latencies = counters.latencies()
    assert (latencies['queue'].count, latencies['queue'].max_ms) == (2, 3.0)
    assert latencies['network'].count == 1
