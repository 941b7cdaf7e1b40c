# SPDX-License-Identifier: Apache-2.0
import logging
import threading
import weakref
from functools import partial

import pytest
from support.policies import PATIENCE_S, Gate

from vla_policy_ros.runtime.lane import Lane


@pytest.fixture
def said():
    return []


@pytest.fixture
def lane():
    lane = Lane('test-lane', capacity=2)
    yield lane
    assert lane.stop(PATIENCE_S)


def submit(lane, said, name, gate=None):
    def work():
        if gate:
            gate.enter()
        return partial(said.append, name)

    lane.submit(work, lambda cause: said.append(f'{name} {cause}'))


def test_answers_in_order_on_one_thread(lane, said):
    threads = []
    submit(lane, said, 'a')
    lane.call(lambda: threads.append(threading.current_thread().name))
    lane.call(partial(said.append, 'call'))
    submit(lane, said, 'b')
    lane.start()
    assert lane.drain(PATIENCE_S)
    assert said == ['a', 'call', 'b']
    assert threads == ['test-lane']


def test_too_many_waiting_answer_the_oldest_in_its_place(lane, said):
    for name in 'abcd':
        submit(lane, said, name)
        lane.call(partial(said.append, f'after {name}'))
    lane.start()
    assert lane.drain(PATIENCE_S)
    assert said == [
        *('a superseded', 'after a', 'b superseded', 'after b'),
        *('c', 'after c', 'd', 'after d'),
    ]


def test_the_task_in_work_does_not_count_as_waiting(lane, said):
    gate = Gate()
    gate.close()
    lane.start()
    submit(lane, said, 'a', gate)
    gate.wait_for(1)
    submit(lane, said, 'b')
    submit(lane, said, 'c')
    assert not lane.drain(0.0)
    gate.open()
    assert lane.drain(PATIENCE_S)
    assert said == ['a', 'b', 'c']


def test_shed_spares_the_task_in_work_and_calls(lane, said):
    gate = Gate()
    gate.close()
    lane.start()
    submit(lane, said, 'a', gate)
    gate.wait_for(1)
    submit(lane, said, 'b')
    lane.call(partial(said.append, 'call'))
    lane.shed('stale_epoch')
    submit(lane, said, 'c')
    gate.open()
    assert lane.drain(PATIENCE_S)
    assert said == ['a', 'b stale_epoch', 'call', 'c']


def test_stop_answers_everything(said):
    gate = Gate()
    gate.close()
    busy = Lane('test-lane', capacity=2)
    busy.start()
    submit(busy, said, 'a', gate)
    gate.wait_for(1)
    submit(busy, said, 'b')
    busy.call(partial(said.append, 'call'))
    assert not busy.stop(0.0)
    assert busy.is_stopping
    gate.open()
    assert busy.stop(PATIENCE_S)
    assert said == ['a', 'b stopped', 'call']


@pytest.mark.parametrize('where', ['work', 'answer'])
def test_an_unexpected_error_is_kept_and_the_rest_is_answered(lane, said, where):
    error = ZeroDivisionError('x')

    def fail():
        raise error

    lane.submit(fail if where == 'work' else lambda: fail, said.append)
    submit(lane, said, 'b')
    lane.call(partial(said.append, 'call'))
    assert lane.failure is None
    lane.start()
    assert lane.drain(PATIENCE_S)
    assert lane.failure is error
    expected = ['b worker_failed', 'call']
    assert said == (['worker_failed', *expected] if where == 'work' else expected)


def test_the_failure_is_logged_with_its_traceback(lane, caplog):
    lane.submit(lambda: 1 // 0, lambda cause: None)
    lane.start()
    assert lane.drain(PATIENCE_S)
    assert 'test-lane failed' in caplog.text
    assert 'ZeroDivisionError' in caplog.text


class Image:
    pass


def hold(lane, image, work):
    lane.submit(partial(work, image), lambda cause: None)
    return weakref.ref(image)


def test_holds_nothing_of_what_is_done(lane):
    lane.start()
    ref = hold(lane, Image(), lambda image: lambda: None)
    assert lane.drain(PATIENCE_S)
    assert ref() is None


def test_holds_nothing_of_what_failed(lane, monkeypatch):
    monkeypatch.setattr(logging.getLogger('vla_policy_ros.runtime.lane'), 'disabled', True)

    def fail(image):
        raise ZeroDivisionError

    lane.start()
    ref = hold(lane, Image(), fail)
    assert lane.drain(PATIENCE_S)
    assert ref() is None


def test_holds_nothing_of_what_was_shed(lane):
    ref = hold(lane, Image(), lambda image: lambda: None)
    lane.shed('stale_epoch')
    assert ref() is None
    lane.start()


class TestDoNow:
    def do(self, lane, said, name, gate=None):
        def work():
            if gate:
                gate.enter()
            return lambda: said.append((name, threading.current_thread().name))

        lane.do_now(work, lambda cause: said.append((name, cause)))

    def test_work_is_done_on_the_callers_thread(self, lane, said):
        lane.start()
        self.do(lane, said, 'a')
        assert said == [('a', threading.current_thread().name)]

    def test_work_waits_for_what_was_before_it(self, lane, said):
        gate = Gate()
        gate.close()
        submit(lane, said, 'a', gate)
        lane.start()
        gate.wait_for(1)
        self.do(lane, said, 'b')
        assert said == []
        gate.open()
        assert lane.drain(PATIENCE_S)
        assert said == ['a', ('b', 'test-lane')]

    def test_what_comes_meanwhile_waits_for_it(self, lane, said):
        lane.start()
        gate = Gate()
        gate.close()
        caller = threading.Thread(target=self.do, args=(lane, said, 'a', gate), name='caller')
        caller.start()
        gate.wait_for(1)
        submit(lane, said, 'b')
        assert not lane.drain(0.0)
        gate.open()
        caller.join(PATIENCE_S)
        assert lane.drain(PATIENCE_S)
        assert said == [('a', 'caller'), 'b']

    def test_it_is_refused_once_the_lane_is_stopped(self, lane, said):
        lane.start()
        assert lane.stop(PATIENCE_S)
        self.do(lane, said, 'a')
        assert said == [('a', 'stopped')]

    def test_a_failure_ends_the_lane(self, lane, said, caplog):
        lane.start()
        with caplog.at_level(logging.CRITICAL):
            lane.do_now(lambda: 1 // 0, said.append)
        assert isinstance(lane.failure, ZeroDivisionError)
        self.do(lane, said, 'b')
        assert said == ['worker_failed', ('b', 'worker_failed')]
