# SPDX-License-Identifier: Apache-2.0
import pytest

from vla_policy_ros.execution.watchdogs import Action, Alarm, Watch, Watchdogs, WatchRule, worst

MS = 1_000_000


@pytest.fixture
def dogs():
    return Watchdogs(
        {
            Watch.CHUNK: WatchRule(500 * MS, Action.DECELERATE),
            Watch.TICK: WatchRule(20 * MS, Action.REPORT),
        }
    )


def watches(alarms):
    return [alarm.watch for alarm in alarms]


def test_an_age_raises_its_alarm_above_its_timeout(dogs):
    dogs.begin(Watch.CHUNK, 1000 * MS)
    assert dogs.check(1500 * MS) == []
    (alarm,) = dogs.check(1501 * MS)
    assert alarm == Alarm(Watch.CHUNK, Action.DECELERATE, 501 * MS, 500 * MS)
    assert alarm.cause == 'chunk_timeout'
    assert alarm.detail == 'chunk: 501.0 ms, at most 500.0 ms.'
    dogs.begin(Watch.CHUNK, 1400 * MS)
    assert dogs.check(1501 * MS) == []


def test_what_was_never_seen_is_not_watched(dogs):
    assert dogs.check(10**15) == []


def test_a_duration_stays_until_the_next_one(dogs):
    dogs.measure(Watch.TICK, 21 * MS)
    assert watches(dogs.check(0)) == [Watch.TICK]
    assert watches(dogs.check(10**12)) == [Watch.TICK]
    dogs.measure(Watch.TICK, 20 * MS)
    assert dogs.check(0) == []


def test_a_watch_without_a_rule_is_off(dogs):
    dogs.begin(Watch.MEASURED, 0)
    dogs.measure(Watch.INFERENCE, 10**15)
    assert dogs.check(10**15) == []
    assert dogs.is_counting(Watch.MEASURED)


def test_forgets_one_or_all(dogs):
    dogs.begin(Watch.CHUNK, 0)
    dogs.measure(Watch.TICK, 10**9)
    dogs.forget(Watch.CHUNK)
    assert watches(dogs.check(10**12)) == [Watch.TICK]
    dogs.begin(Watch.CHUNK, 0)
    dogs.forget()
    assert dogs.check(10**12) == []


def test_the_worst_action_counts():
    alarms = [
        Alarm(watch, action, 2, 1)
        for watch, action in zip(
            Watch, [Action.HOLD, Action.REPORT, Action.STOP, Action.DECELERATE], strict=False
        )
    ]
    assert worst(alarms).action is Action.STOP
    assert worst(alarms[:2]).action is Action.HOLD
    assert worst([]) is None
