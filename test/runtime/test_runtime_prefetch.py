# SPDX-License-Identifier: Apache-2.0
import threading

import pytest
from support.policies import PATIENCE_S, FakePolicy, gpu_error, make_frame, truncated_frame

from vla_policy_ros.core.errors import ImageError
from vla_policy_ros.runtime.prefetch import FramePreparer


class Desk:
    """A preparer with what it said: (ticket, stamp or cause) per camera."""

    def __init__(self, cameras=('front', 'wrist'), queue=2):
        self.policy = FakePolicy()
        self.said = {name: [] for name in cameras}
        self.threads = set()
        self.preparer = FramePreparer(
            self.policy,
            cameras,
            queue=queue,
            on_ready=lambda ticket, prepared: self.say(ticket, prepared.stamp_ns),
            on_refused=lambda ticket, cause, detail: self.say(ticket, cause),
        )

    def say(self, ticket, what):
        self.threads.add(threading.current_thread().name)
        self.said[ticket[0]].append((ticket[1], what))

    def offer(self, camera, *stamps):
        for stamp in stamps:
            self.preparer.offer(make_frame(camera, stamp), (camera, stamp))()

    def drain(self):
        assert self.preparer.drain(PATIENCE_S)


@pytest.fixture
def desk():
    desk = Desk()
    yield desk
    desk.policy.prepare_gate.open()
    assert desk.preparer.stop(PATIENCE_S)


def test_prepares_in_order_on_one_thread_per_camera(desk):
    desk.preparer.start()
    for stamp in range(10):
        desk.offer('front', stamp)
        desk.offer('wrist', stamp)
        desk.drain()
    assert desk.said['front'] == desk.said['wrist'] == [(i, i) for i in range(10)]
    assert desk.threads == {'vla-prepare-front', 'vla-prepare-wrist'}


def test_what_is_prepared_at_once_is_prepared_on_the_callers_thread(desk):
    desk.policy.is_swift = True
    desk.preparer.start()
    desk.offer('front', 1, 2)
    desk.preparer.offer(truncated_frame('front', 3), ('front', 3))()
    assert desk.said['front'] == [(1, 1), (2, 2), (3, 'truncated_jpeg')]
    assert desk.threads == {threading.current_thread().name}


def test_cameras_do_not_wait_for_each_other(desk):
    desk.policy.prepare_gate.close()
    desk.preparer.start()
    desk.offer('front', 1)
    desk.offer('wrist', 2)
    desk.policy.prepare_gate.wait_for(2)


def test_overflow_refuses_the_oldest_in_its_place(desk):
    desk.policy.prepare_gate.close()
    desk.preparer.start()
    desk.offer('front', 0)
    desk.policy.prepare_gate.wait_for(1)
    desk.offer('front', 1, 2, 3)
    desk.policy.prepare_gate.open()
    desk.drain()
    assert desk.said['front'] == [(0, 0), (1, 'superseded'), (2, 2), (3, 3)]


def test_a_bad_frame_is_refused_with_its_cause_and_the_next_one_is_fine(desk):
    desk.preparer.start()
    desk.preparer.offer(truncated_frame('front', 1), ('front', 1))
    desk.offer('front', 2)
    desk.drain()
    assert desk.said['front'] == [(1, 'truncated_jpeg'), (2, 2)]
    assert desk.preparer.failures == {}


def test_a_message_that_could_not_be_read_keeps_its_turn(desk):
    error = ImageError('a', got='b', expected='c', next_step='d', code='bad_header')
    desk.offer('front', 1)
    desk.preparer.refuse('front', ('front', 2), error)
    desk.offer('front', 3)
    desk.preparer.start()
    desk.drain()
    assert desk.said['front'] == [(1, 1), (2, 'bad_header'), (3, 3)]


def test_shed_refuses_what_waits(desk):
    desk.offer('front', 1)
    desk.offer('wrist', 1)
    desk.preparer.shed('stale_epoch')
    desk.offer('front', 2)
    desk.preparer.start()
    desk.drain()
    assert desk.said == {'front': [(1, 'stale_epoch'), (2, 2)], 'wrist': [(1, 'stale_epoch')]}


def test_a_full_gpu_costs_one_image(desk):
    desk.policy.prepare_error = gpu_error('out_of_memory')
    desk.preparer.start()
    desk.offer('front', 1)
    desk.drain()
    desk.policy.prepare_error = None
    desk.offer('front', 2)
    desk.drain()
    assert desk.said['front'] == [(1, 'out_of_memory'), (2, 2)]


@pytest.mark.parametrize('error', [RuntimeError('a bug'), gpu_error('gpu_failed')])
def test_an_unexpected_error_and_a_lost_gpu_end_one_camera_only(desk, error):
    desk.policy.prepare_error = error
    desk.preparer.start()
    desk.offer('front', 1)
    desk.drain()
    desk.policy.prepare_error = None
    desk.offer('front', 2)
    desk.offer('wrist', 2)
    desk.drain()
    assert desk.said == {'front': [(1, 'worker_failed'), (2, 'worker_failed')], 'wrist': [(2, 2)]}
    assert desk.preparer.failures == {'front': error}


def test_stop_reports_a_camera_that_hangs_and_stops_the_others():
    desk = Desk()
    desk.policy.prepare_gate.close()
    desk.preparer.start()
    desk.offer('front', 1)
    desk.policy.prepare_gate.wait_for(1)
    desk.offer('front', 2)
    desk.offer('wrist', 2)
    desk.policy.prepare_gate.wait_for(2)
    assert not desk.preparer.stop(0.0)
    desk.policy.prepare_gate.open()
    assert desk.preparer.stop(PATIENCE_S)
    assert desk.said == {'front': [(1, 1), (2, 'stopped')], 'wrist': [(2, 2)]}
