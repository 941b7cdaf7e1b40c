# SPDX-License-Identifier: Apache-2.0
"""What the system permits is reported, and nothing fails; every test sets up a thread or a process of its own."""

import os
import subprocess
import sys
import threading

import pytest

from vla_policy_ros.runtime import realtime
from vla_policy_ros.runtime.realtime import RealTimeScheduling


def refuse(*_):
    raise PermissionError(1, 'no')


def in_thread(scheduling):
    """Set up a thread of its own; return its scheduling class, its cores and what was told."""
    found = []

    def run():
        scheduling.prepare_thread()
        found.extend((os.sched_getscheduler(0), os.sched_getaffinity(0)))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return (*found, scheduling.text)


def in_process(code):
    """Run code in a process of its own; return what it prints."""
    source = f'from vla_policy_ros.runtime.realtime import RealTimeScheduling\n{code}'
    return subprocess.run(
        [sys.executable, '-c', source], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_nothing_asked_for():
    policy, _, text = in_thread(RealTimeScheduling())
    assert policy == os.SCHED_OTHER
    assert text == 'SCHED_OTHER'


def test_a_priority_that_is_permitted(monkeypatch):
    asked = []
    monkeypatch.setattr(os, 'sched_setscheduler', lambda *given: asked.append(given))
    _, _, text = in_thread(RealTimeScheduling(priority=60))
    assert text == 'SCHED_FIFO 60'
    assert asked == [(0, os.SCHED_FIFO, os.sched_param(60))]


def test_a_priority_that_is_not_permitted(monkeypatch):
    monkeypatch.setattr(os, 'sched_setscheduler', refuse)
    policy, _, text = in_thread(RealTimeScheduling(priority=60))
    assert policy == os.SCHED_OTHER
    assert text == 'SCHED_OTHER (SCHED_FIFO 60: operation not permitted)'


def test_the_core_is_that_of_the_thread_alone():
    before = os.sched_getaffinity(0)
    core = max(before)
    _, cores, text = in_thread(RealTimeScheduling(core=core))
    assert cores == {core}
    assert os.sched_getaffinity(0) == before
    assert text == f'SCHED_OTHER, core {core}'


def test_a_core_that_is_not_there():
    _, cores, text = in_thread(RealTimeScheduling(core=1023))
    assert cores == os.sched_getaffinity(0)
    assert text == 'SCHED_OTHER, any core (core 1023: invalid argument)'


@pytest.mark.parametrize(
    ('result', 'text'), [(0, 'locked memory'), (-1, 'memory not locked (cannot allocate memory)')]
)
def test_memory(monkeypatch, result, text):
    class Library:
        def mlockall(self, _flags):
            return result

        def syscall(self, *_):
            return 0

    monkeypatch.setattr(realtime.ctypes, 'CDLL', lambda *_, **__: Library())
    monkeypatch.setattr(realtime.ctypes, 'get_errno', lambda: 12)
    scheduling = RealTimeScheduling(lock_memory=True)
    monkeypatch.setattr(realtime.gc, 'freeze', lambda: None)
    monkeypatch.setattr(realtime.sys, 'setswitchinterval', lambda _: None)
    scheduling.prepare_process()
    assert scheduling.text == text


def test_a_limit_keeps_what_comes_later_unlocked(monkeypatch):
    flags = []

    class Library:
        def mlockall(self, given):
            flags.append(given)
            return 0

        def syscall(self, *_):
            return 0

    monkeypatch.setattr(realtime.ctypes, 'CDLL', lambda *_, **__: Library())
    monkeypatch.setattr(realtime.gc, 'freeze', lambda: None)
    monkeypatch.setattr(realtime.sys, 'setswitchinterval', lambda _: None)
    for limit in (8 * 2**20, realtime.resource.RLIM_INFINITY):
        monkeypatch.setattr(realtime.resource, 'getrlimit', lambda _, limit=limit: (limit, limit))
        RealTimeScheduling(lock_memory=True).prepare_process()
    limited, free = flags
    assert free & ~limited == 2  # MCL_FUTURE


def test_the_process_is_set_up_and_the_collector_freed_again():
    code = """
import gc, sys
scheduling = RealTimeScheduling()
scheduling.prepare_process()
print(sys.getswitchinterval() < 0.001, gc.get_freeze_count() > 0)
scheduling.release_process()
print(gc.get_freeze_count())
"""
    assert in_process(code).split() == ['True', 'True', '0']


def test_all_that_is_asked_for_in_a_process_of_its_own():
    code = """
import os
scheduling = RealTimeScheduling(priority=1, lock_memory=True, core=min(os.sched_getaffinity(0)))
scheduling.prepare_process()
scheduling.prepare_thread()
print(scheduling.text)
"""
    text = in_process(code)
    assert text.startswith('SCHED_FIFO 1, ') or 'not permitted' in text
    assert 'memory' in text
    assert f'core {min(os.sched_getaffinity(0))}' in text
