# SPDX-License-Identifier: Apache-2.0
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_policy_ros.execution.delay import DelayTracker, ExecutionClock

MS = 1_000_000
STEP_NS = 50 * MS


def run(segments, *, begin_ns=1000 * MS):
    """A clock that ran through (duration_ns, rate, is_executing)."""
    clock = ExecutionClock()
    clock.restart(begin_ns)
    now_ns = begin_ns
    for duration_ns, rate, is_executing in segments:
        clock.set_rate(rate, is_executing=is_executing)
        now_ns += duration_ns
        clock.advance(now_ns)
    return clock, now_ns


def test_motion_time_is_the_time_until_motion_is_stretched():
    clock, now_ns = run([(100 * MS, 1.0, True), (100 * MS, 0.5, True), (100 * MS, 1.0, True)])
    assert clock.motion_ns(1050 * MS) == 1050 * MS
    assert clock.motion_ns(1150 * MS) == 1125 * MS
    assert clock.motion_ns(now_ns) == now_ns - 50 * MS


def test_motion_time_runs_with_the_clock_before_the_kept_past_and_after_now():
    clock, now_ns = run([(100 * MS, 0.5, True)])
    assert clock.motion_ns(900 * MS) == 900 * MS
    assert clock.motion_ns(now_ns + 30 * MS) == now_ns - 50 * MS + 30 * MS


def test_executed_time_runs_only_while_chunks_are_executed():
    clock, now_ns = run([(40 * MS, 1.0, False), (100 * MS, 0.5, True), (60 * MS, 1.0, False)])
    assert clock.executed_ns(0) == 0
    assert clock.executed_ns(1040 * MS) == 0
    assert clock.executed_ns(1100 * MS) == 30 * MS
    assert clock.executed_ns(now_ns) == 50 * MS
    assert clock.executed_ns(now_ns + 1000 * MS) == 50 * MS


def test_a_restart_forgets_what_was_executed():
    clock, _ = run([(100 * MS, 1.0, True)])
    clock.restart(0)
    assert clock.executed_ns(5 * MS) == 0
    assert clock.motion_ns(5 * MS) == 5 * MS


@given(
    st.lists(
        st.tuples(st.integers(1, 500 * MS), st.floats(0, 1), st.booleans()),
        min_size=1,
        max_size=30,
    ),
    st.lists(st.integers(0, 20_000 * MS), min_size=2, max_size=10),
)
def test_both_times_never_go_back_nor_faster_than_the_clock(segments, moments):
    clock, _ = run(segments)
    for earlier, later in zip(sorted(moments), sorted(moments)[1:], strict=False):
        assert 0 <= clock.motion_ns(later) - clock.motion_ns(earlier) <= later - earlier + 1
        executed_ns = clock.executed_ns(later) - clock.executed_ns(earlier)
        assert 0 <= executed_ns <= clock.motion_ns(later) - clock.motion_ns(earlier) + 1


def use(tracker, *, delay, used, horizon=16):
    used_ns = round(used * STEP_NS)
    observed_ns = used_ns - round(delay * STEP_NS)
    return tracker.use(observed_ns=observed_ns, used_ns=used_ns, step_ns=STEP_NS, horizon=horizon)


def test_the_first_chunk_never_enters_the_statistics():
    tracker = DelayTracker()
    use(tracker, delay=40, used=40)
    assert tracker.summary().count == 0
    use(tracker, delay=2, used=48)
    use(tracker, delay=4, used=56)
    tracker.restart()
    use(tracker, delay=50, used=200)
    summary = tracker.summary()
    assert (summary.count, summary.mean_steps, summary.max_steps) == (2, 3.0, 4.0)
    assert (summary.p50_steps, summary.p95_steps) == (3.0, pytest.approx(3.9))


@pytest.mark.parametrize(
    ('delay', 'executed', 'cause'),
    [
        (4, 8, None),
        (8, 8, None),
        (0, 16, None),
        (9, 8, 'delay_above_horizon'),
        (4, 13, 'horizon_above_rest'),
        (8, 8.1, 'horizon_above_rest'),
    ],
)
def test_tells_when_the_delay_does_not_fit(delay, executed, cause):
    tracker = DelayTracker()
    assert use(tracker, delay=0, used=0) is None
    violation = use(tracker, delay=delay, used=executed)
    assert (violation and violation[0]) == cause
    if violation:
        assert f'd = {delay:.1f}' in violation[1]
        assert 'K = 16' in violation[1]


def test_the_window_holds_the_newest_and_counts_all():
    tracker = DelayTracker()
    use(tracker, delay=0, used=0)
    for count in range(300):
        use(tracker, delay=9 if count < 40 else 1, used=count + 1)
    summary = tracker.summary()
    assert (summary.count, summary.max_steps) == (300, 1.0)
