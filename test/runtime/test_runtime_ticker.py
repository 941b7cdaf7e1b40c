# SPDX-License-Identifier: Apache-2.0
"""Ticks on a grid: on a clock that a test moves, so that nothing waits."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_policy_ros.core.clock import ManualClock
from vla_policy_ros.runtime.ticker import ClockTicks, Ticker, TickSchedule

MS = 1_000_000
PERIOD_NS = 5 * MS


class SleepingClock(ManualClock):
    """A clock that moves by what somebody sleeps, and a little more."""

    def __init__(self, *, oversleeps_ns):
        super().__init__(1_000 * MS)
        self._oversleeps_ns = iter(oversleeps_ns)

    def sleep(self, duration_s):
        self.advance(round(duration_s * 1e9) + next(self._oversleeps_ns))


def run_ticker(*, oversleeps_ns=(), works_ns=(), count=None):
    """Run a ticker until its ticks are used up; return it and the time since the deadline at every tick."""
    count = len(oversleeps_ns) or len(works_ns)
    clock = SleepingClock(oversleeps_ns=list(oversleeps_ns) or [0] * 100)
    works_ns = iter(list(works_ns) or [0] * 100)
    offsets_ns, is_done = [], threading.Event()

    def on_tick(offset_ns):
        offsets_ns.append(offset_ns)
        clock.advance(next(works_ns))
        if len(offsets_ns) == count:
            is_done.set()
            ticker.request_stop()

    ticker = Ticker(PERIOD_NS, on_tick, clock=clock, sleep=clock.sleep)
    ticker.start()
    assert is_done.wait(60)
    ticker.stop()
    assert ticker.failure is None
    return ticker, offsets_ns


def test_a_late_tick_does_not_move_the_ones_after_it():
    ticker, offsets_ns = run_ticker(oversleeps_ns=[0, 2 * MS, 0, MS, 0])
    assert offsets_ns == [0, 2 * MS, 0, MS, 0]
    assert ticker.missed == 0
    assert ticker.lateness().max_ms == 2.0
    assert ticker.lateness().count == 5


def test_work_eats_into_the_wait_and_not_into_the_grid():
    _, offsets_ns = run_ticker(works_ns=[4 * MS, 6 * MS, 1 * MS, 0])
    assert offsets_ns == [0, 0, 1 * MS, 0]


def test_missed_ticks_are_skipped_and_never_burst():
    ticker, offsets_ns = run_ticker(oversleeps_ns=[0, 12 * MS, 0, 0])
    assert offsets_ns == [0, 2 * MS, 0, 0]
    assert ticker.missed == 2
    assert ticker.lateness().max_ms == 12.0


def test_an_error_ends_the_ticks_and_is_kept():
    ended = threading.Event()

    def on_tick(_offset_ns):
        ended.set()
        raise ValueError('broken')

    clock = SleepingClock(oversleeps_ns=[0] * 10)
    ticker = Ticker(PERIOD_NS, on_tick, clock=clock, sleep=clock.sleep)
    ticker.start()
    assert ended.wait(60)
    ticker.stop()
    assert str(ticker.failure) == 'broken'
    assert ticker.lateness().count == 1


def test_the_thread_is_set_up_before_its_first_tick():
    told = []

    def on_tick(_offset_ns):
        told.append(('tick', threading.get_ident()))
        ticker.request_stop()

    def on_start():
        told.append(('start', threading.get_ident()))

    clock = SleepingClock(oversleeps_ns=[0] * 10)
    ticker = Ticker(PERIOD_NS, on_tick, on_start=on_start, clock=clock, sleep=clock.sleep)
    ticker.start()
    ticker.join()
    assert [name for name, _ in told] == ['start', 'tick']
    assert {thread for _, thread in told} != {threading.get_ident()}
    assert len({thread for _, thread in told}) == 1


def test_it_starts_again_on_a_new_grid():
    clock = SleepingClock(oversleeps_ns=[0] * 10)
    offsets_ns = []

    def on_tick(offset_ns):
        offsets_ns.append(offset_ns)
        ticker.request_stop()

    ticker = Ticker(PERIOD_NS, on_tick, clock=clock, sleep=clock.sleep)
    for _ in range(2):
        ticker.start()
        ticker.join()
        clock.advance(77 * MS)
    assert offsets_ns == [0, 0]


def test_stop_without_a_start_is_safe():
    Ticker(PERIOD_NS, lambda _: None).stop()


@given(st.lists(st.integers(0, 4 * PERIOD_NS), min_size=1, max_size=30))
def test_every_deadline_is_taken_or_missed(late):
    schedule = TickSchedule(PERIOD_NS, start_ns=0)
    for taken, late_ns in enumerate(late, 1):
        now_ns = schedule.next_ns + late_ns
        told_ns, offset_ns = schedule.take(now_ns)
        assert told_ns == late_ns
        assert 0 <= offset_ns < PERIOD_NS
        assert (now_ns - offset_ns) % PERIOD_NS == 0
        assert schedule.next_ns == (taken + schedule.missed + 1) * PERIOD_NS
        assert schedule.next_ns > now_ns


def test_all_ticks_of_a_clock_that_leaps_are_due():
    ticks = ClockTicks(PERIOD_NS)
    assert list(ticks.due(7 * MS)) == [7 * MS]
    assert list(ticks.due(10 * MS)) == []
    assert list(ticks.due(23 * MS)) == [12 * MS, 17 * MS, 22 * MS]
    assert list(ticks.due(27 * MS)) == [27 * MS]


def test_a_leap_back_is_told_at_once():
    ticks = ClockTicks(PERIOD_NS)
    ticks.due(1000 * MS)
    assert list(ticks.due(3 * MS)) == [3 * MS]
    assert list(ticks.due(13 * MS)) == [8 * MS, 13 * MS]


@pytest.mark.parametrize('leap_ns', [3_600_000 * MS, 3_600_001 * MS])
def test_a_clock_that_was_set_ahead_is_not_run_after(leap_ns):
    ticks = ClockTicks(PERIOD_NS)
    ticks.due(0)
    due = ticks.due(leap_ns)
    assert len(due) in (400, 401)
    assert due[0] % PERIOD_NS == 0
    assert leap_ns - PERIOD_NS < due[-1] <= leap_ns
