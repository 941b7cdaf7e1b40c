# SPDX-License-Identifier: Apache-2.0
import threading

import numpy as np
import pytest
from support.clocks import TickClock
from support.policies import PATIENCE_S, FakePolicy, FakePrepared, gpu_error

from vla_policy_ros.core.errors import EngineError
from vla_policy_ros.core.observation import Instruction, Observation
from vla_policy_ros.runtime.worker import InferenceWorker


def observe(stamp_ns, epoch=0):
    return Observation(
        images={'front': (FakePrepared('front', stamp_ns, 1),)},
        state=np.zeros((1, 2), np.float32),
        instruction=Instruction('go', 1),
        stamp_ns=stamp_ns,
        sequence=stamp_ns,
        epoch=epoch,
    )


class Desk:
    def __init__(self, queue=2):
        self.policy = FakePolicy()
        self.said, self.chunks, self.bare, self.threads = [], [], [], set()
        self.worker = InferenceWorker(
            self.policy,
            queue=queue,
            on_chunk=self.on_chunk,
            on_refused=self.on_refused,
            clock=TickClock(7),
        )

    def on_chunk(self, observation, chunk):
        self.threads.add(threading.current_thread().name)
        self.said.append((observation.stamp_ns, f'{chunk.epoch}.{chunk.sequence}'))
        self.chunks.append(chunk)
        self.bare.append(observation)

    def on_refused(self, observation, cause, detail):
        assert detail
        self.threads.add(threading.current_thread().name)
        self.said.append((observation.stamp_ns, cause))
        self.bare.append(observation)

    def offer(self, *stamps, epoch=0):
        for stamp in stamps:
            self.worker.offer(observe(stamp, epoch), stages_ns={'match': 3})

    def hold(self, stamp, epoch=0):
        """Offer one observation and wait until it is in work, held back."""
        self.policy.infer_gate.close()
        count = len(self.policy.observations)
        self.offer(stamp, epoch=epoch)
        self.policy.infer_gate.wait_for(count + 1)

    def finish(self):
        self.policy.infer_gate.open()
        assert self.worker.drain(PATIENCE_S)


@pytest.fixture
def desk():
    desk = Desk()
    yield desk
    desk.policy.infer_gate.open()
    assert desk.worker.stop(PATIENCE_S)


def test_counts_chunks_and_merges_latencies(desk):
    desk.offer(10, 11)
    desk.worker.start()
    desk.finish()
    assert desk.said == [(10, '0.0'), (11, '0.1')]
    assert list(desk.chunks[0].stage_latencies_ns) == ['match', 'queue', 'network']
    assert desk.chunks[0].stage_latencies_ns == {'match': 3, 'queue': 14, 'network': 5}
    assert desk.threads == {'vla-worker'}


def test_answers_come_without_images(desk):
    desk.offer(1, 2, 3)
    desk.worker.start()
    desk.finish()
    assert [dict(observation.images) for observation in desk.bare] == [{}, {}, {}]
    assert desk.policy.used == [[('front', 2)], [('front', 3)]]


def test_overflow_refuses_the_oldest(desk):
    desk.worker.start()
    desk.hold(1)
    desk.offer(2, 3, 4, 5)
    desk.finish()
    assert desk.said == [
        (1, '0.0'),
        (2, 'superseded'),
        (3, 'superseded'),
        (4, '0.1'),
        (5, '0.2'),
    ]


def test_a_refusal_does_not_use_up_a_sequence_number(desk):
    desk.worker.start()
    desk.policy.infer_error = EngineError('a', got='b', expected='c', next_step='d')
    desk.offer(1)
    desk.finish()
    desk.policy.infer_error = None
    desk.offer(2)
    desk.finish()
    assert desk.said == [(1, 'engine_failed'), (2, '0.0')]
    assert desk.worker.failure is None


@pytest.mark.parametrize('error', [KeyError('a bug'), gpu_error('gpu_failed')])
def test_an_unexpected_error_and_a_lost_gpu_end_the_inference(desk, error):
    desk.policy.infer_error = error
    desk.worker.start()
    desk.offer(1)
    desk.finish()
    desk.policy.infer_error = None
    desk.offer(2)
    desk.finish()
    assert desk.said == [(1, 'worker_failed'), (2, 'worker_failed')]
    assert desk.worker.failure is error
    assert len(desk.policy.observations) == 1


def test_reset_discards_what_waits_and_what_is_in_work(desk):
    desk.worker.start()
    desk.hold(1)
    desk.offer(2)
    desk.worker.reset(1)
    desk.offer(3, 4, epoch=1)
    desk.finish()
    assert desk.said == [(1, 'stale_epoch'), (2, 'stale_epoch'), (3, '1.0'), (4, '1.1')]


def test_the_policy_is_reset_between_the_epochs_on_the_worker_thread(desk):
    seen = []
    desk.policy.reset = lambda: seen.append(
        (threading.current_thread().name, len(desk.policy.observations))
    )
    desk.worker.start()
    desk.hold(1)
    desk.worker.reset(1)
    desk.offer(2, epoch=1)
    assert seen == []
    desk.finish()
    assert seen == [('vla-worker', 1)]


def test_calls_keep_their_turn(desk):
    desk.offer(1)
    desk.worker.call(lambda: desk.said.append('call'))
    desk.offer(2)
    desk.worker.start()
    desk.finish()
    assert desk.said == [(1, '0.0'), 'call', (2, '0.1')]


def test_stop_discards_what_waits_and_what_is_in_work():
    desk = Desk()
    desk.worker.start()
    desk.hold(1)
    desk.offer(2)
    assert not desk.worker.stop(0.0)
    desk.policy.infer_gate.open()
    assert desk.worker.stop(PATIENCE_S)
    assert desk.said == [(1, 'stopped'), (2, 'stopped')]
