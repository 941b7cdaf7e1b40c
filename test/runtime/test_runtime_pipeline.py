# SPDX-License-Identifier: Apache-2.0
import math
import threading
from collections import Counter

import numpy as np
import pytest
from support.pipelines import MS, Bench
from support.policies import PATIENCE_S, FakePolicy, make_frame, make_spec, truncated_frame

from vla_policy_ros.core.clock import ManualClock
from vla_policy_ros.core.errors import ConfigurationError, EngineError, ImageError
from vla_policy_ros.deployment.config import default_deployment
from vla_policy_ros.runtime.pipeline import PolicyPipeline

TWO_CAMERAS = make_spec(['front', 'wrist'])


@pytest.fixture
def make():
    benches = []

    def make(*arguments, **changes):
        benches.append(Bench(*arguments, **changes))
        return benches[-1]

    yield make
    for bench in benches:
        bench.close()


@pytest.fixture
def bench(make):
    return make()


def unread(cause='bad_header'):
    return ImageError('topic', got='a', expected='b', next_step='c', code=cause)


class TestChunks:
    def test_one_chunk_per_reference_image(self, bench):
        for stamp in (1000, 1033, 1066):
            bench.step(stamp)
        assert bench.told == [(1000, '0.0'), (1033, '0.1'), (1066, '0.2')]
        assert bench.threads == {'vla-worker'}
        assert [o.stamp_ns for o in bench.outcomes] == [
            o.chunk.observation_stamp_ns for o in bench.outcomes
        ]

    def test_an_image_that_is_only_handed_on_takes_no_other_thread(self, bench):
        bench.policy.is_swift = True
        prepared_by = []
        prepare = bench.policy.prepare
        bench.policy.prepare = lambda frame: (
            prepared_by.append(threading.current_thread()),
            prepare(frame),
        )[1]
        for stamp in (1000, 1033):
            bench.step(stamp)
        assert bench.told == [(1000, '0.0'), (1033, '0.1')]
        assert set(prepared_by) == {threading.current_thread()}

    def test_the_state_is_blended_at_the_image_stamp(self, bench):
        bench.joints(990, [0.0, 1.0])
        bench.frame(1000)
        assert bench.told == []
        bench.joints(1010, [1.0, 3.0])
        (observation,) = bench.policy.observations
        assert observation.state == pytest.approx(np.array([[0.5, 2.0]]))
        assert observation.stream_stamps_ns == {'front': 1000 * MS, 'joint_states[0]': 1000 * MS}

    def test_latencies_follow_the_way_of_the_image(self, bench):
        bench.step(1000)
        latencies_ns = bench.outcomes[0].chunk.stage_latencies_ns
        assert list(latencies_ns) == ['prepare', 'match', 'queue', 'network']
        assert all(duration_ns > 0 for duration_ns in latencies_ns.values())

    def test_capture_to_chunk_is_on_the_pipeline_clock(self, bench):
        bench.clock.advance(40 * MS)
        bench.step(1000)
        assert bench.pipeline.snapshot().latencies['capture_to_chunk'].max_ms == 40.0

    def test_the_policy_is_told_how_late_its_chunk_is(self, bench):
        told = []
        bench.policy.note_published = lambda delay_ns: told.append(delay_ns) or ()
        bench.clock.advance(40 * MS)
        bench.step(1000)
        bench.clock.advance(40 * MS)
        bench.step(1033)
        assert told == [40 * MS, 47 * MS]

    def test_what_a_policy_finds_wrong_with_its_chunk_is_counted(self, bench):
        bench.policy.note_published = lambda delay_ns: ('too_late', 'too_short')
        bench.step(1000)
        assert bench.told == [(1000, '0.0')]
        snapshot = bench.pipeline.snapshot()
        assert snapshot.causes == {'policy/too_late': 1, 'policy/too_short': 1}
        assert (snapshot.chunks, snapshot.refused) == (1, 0)

    def test_histories_reach_the_policy(self, make):
        bench = make(make_spec({'front': (-100 * MS, 0)}, state_history_ns=(-50 * MS, 0)))
        for stamp in (900, 950, 1000):
            bench.joints(stamp, [stamp, 0])
            bench.frame(stamp)
        assert bench.told[0] == (900, 'front/no_history')
        assert bench.told[-1] == (1000, '0.0')
        assert bench.policy.used == [[('front', 900 * MS), ('front', 1000 * MS)]]
        assert bench.policy.observations[0].state.tolist() == [[950, 0], [1000, 0]]

    def test_several_joint_sources_fill_one_state(self, make):
        def change(document):
            document['joint_states'] = [
                {'topic': '/a', 'names': ['elbow'], 'rename': {'j2': 'elbow'}},
                {'topic': '/b', 'names': ['shoulder']},
            ]

        bench = make(change=change)
        bench.frame(1000)
        bench.joints(1000, [2.0], source=0, names=['j2'])
        assert bench.told == []
        bench.joints(1000, [1.0], source=1, names=['shoulder'])
        assert bench.policy.observations[0].state.tolist() == [[1.0, 2.0]]

    def test_joints_may_be_the_reference(self, make):
        bench = make(change=lambda d: d['matching'].update(reference='joint_states'))
        bench.frame(1000)
        bench.joints(995)
        bench.joints(1000)
        assert bench.told == [(995, '0.0'), (1000, '0.1')]

    def test_two_runs_give_the_same_bytes(self, make):
        def run():
            bench = make(TWO_CAMERAS)
            noise = np.random.default_rng(1)
            for stamp in range(1000, 1400, 33):
                bench.frame(stamp, brightness=int(noise.integers(256)))
                bench.joints(stamp + 2, noise.normal(size=2))
                bench.frame(stamp + 1, 'wrist', brightness=int(noise.integers(256)))
            return [
                (o.stamp_ns, o.chunk and o.chunk.actions.tobytes(), o.cause)
                for o in bench.outcomes
            ]

        first = run()
        assert len(first) > 10
        assert first == run()


class TestRefusals:
    def test_a_missing_stream_is_named_after_the_patience(self, make):
        bench = make(TWO_CAMERAS)
        bench.step(1000)
        bench.wait(199)
        assert bench.told == []
        bench.wait(1)
        assert bench.told == [(1000, 'wrist/no_sample')]
        assert bench.outcomes[0].detail
        assert bench.pipeline.snapshot().causes == {'wrist/no_sample': 1}

    def test_patience_ends_while_the_clock_of_the_stamps_stands_still(self, make):
        """In lock-step the clock waits for the answer: an answer that waits for the clock never comes."""
        bench = make(TWO_CAMERAS)
        bench.step(1000)
        bench.duration_clock.advance(200 * MS)
        bench.pipeline.poll()
        bench.settle()
        assert bench.told == [(1000, 'wrist/no_sample')]

    @pytest.mark.parametrize(
        ('stamp', 'positions', 'names', 'cause'),
        [
            (1000, [math.nan, 0], ['shoulder', 'elbow'], 'nan_joint'),
            (1000, [0, math.inf], ['shoulder', 'elbow'], 'nan_joint'),
            (1000, [0], ['shoulder'], 'missing_joint'),
            (1000, [0], ['shoulder', 'elbow'], 'short_message'),
            (0, [0, 0], ['shoulder', 'elbow'], 'zero_stamp'),
            (900, [0, 0], ['shoulder', 'elbow'], 'duplicate_stamp'),
            (800, [0, 0], ['shoulder', 'elbow'], 'out_of_order'),
        ],
    )
    def test_bad_joints_are_counted_and_the_next_ones_are_fine(
        self, bench, stamp, positions, names, cause
    ):
        bench.joints(900)
        bench.frame(1000)
        bench.joints(stamp, positions, names=names)
        bench.wait(200)
        bench.step(1100)
        assert bench.told == [(1000, 'joint_states[0]/out_of_tolerance'), (1100, '0.0')]
        snapshot = bench.pipeline.snapshot()
        assert snapshot.causes[f'joint_states[0]/{cause}'] == 1
        assert snapshot.streams['joint_states[0]'].refused == 1
        assert (snapshot.refused, snapshot.chunks) == (1, 1)

    def test_a_lack_of_samples_says_why_the_last_one_was_refused(self, bench):
        bench.joints(1000, names=('shoulder', 'ellbow'))
        bench.frame(1000)
        bench.wait(200)
        assert bench.told == [(1000, 'joint_states[0]/no_sample')]
        assert 'refused: missing_joint: joint state: got no elbow' in bench.outcomes[0].detail
        bench.joints(1300)
        bench.frame(1400)
        bench.wait(200)
        assert bench.told[1] == (1400, 'joint_states[0]/out_of_tolerance')
        assert 'refused' not in bench.outcomes[1].detail

    @pytest.mark.parametrize(
        ('offer', 'stamp', 'cause'),
        [
            (lambda p: p.offer_frame(truncated_frame('front', 1033 * MS)), 1033, 'truncated_jpeg'),
            (lambda p: p.refuse('front', 1033 * MS, unread()), 1033, 'bad_header'),
            (lambda p: p.offer_frame(make_frame('front', 0)), 0, 'zero_stamp'),
            (lambda p: p.offer_frame(make_frame('front', 1000 * MS)), 1000, 'duplicate_stamp'),
            (lambda p: p.offer_frame(make_frame('front', 990 * MS)), 990, 'out_of_order'),
        ],
    )
    def test_a_bad_reference_image_is_one_outcome_in_its_turn(self, bench, offer, stamp, cause):
        bench.frame(1000)
        offer(bench.pipeline)
        bench.settle()
        assert bench.told == []
        bench.joints(1000)
        bench.step(1066)
        assert bench.told == [(1000, '0.0'), (stamp, f'front/{cause}'), (1066, '0.1')]
        assert 'last one' not in bench.outcomes[1].detail
        snapshot = bench.pipeline.snapshot()
        assert snapshot.causes == {f'front/{cause}': 1}
        assert snapshot.streams['front'].refused == 1
        assert snapshot.streams['front'].received == 3
        assert snapshot.refused == 1

    def test_an_unreadable_image_waits_for_those_before_it(self, bench):
        bench.policy.prepare_gate.close()
        bench.frame(1000)
        bench.pipeline.refuse('front', 1010 * MS, unread())
        bench.policy.prepare_gate.open()
        bench.joints(1000)
        assert bench.told == [(1000, '0.0'), (1010, 'front/bad_header')]

    def test_a_bad_image_of_another_camera_is_no_outcome(self, make):
        bench = make(TWO_CAMERAS)
        bench.step(1000)
        bench.pipeline.offer_frame(truncated_frame('wrist', 1000 * MS))
        bench.pipeline.refuse('wrist', 1001 * MS, unread())
        bench.wait(200)
        assert bench.told == [(1000, 'wrist/no_sample')]
        snapshot = bench.pipeline.snapshot()
        assert snapshot.causes == {
            'wrist/truncated_jpeg': 1,
            'wrist/bad_header': 1,
            'wrist/no_sample': 1,
        }
        assert snapshot.streams['wrist'].refused == 2

    def test_unreadable_joints_are_counted(self, bench):
        bench.pipeline.refuse('joint_states[0]', 1000 * MS, unread())
        assert bench.pipeline.snapshot().causes == {'joint_states[0]/bad_header': 1}

    def test_an_error_of_the_policy_is_one_outcome(self, bench):
        bench.policy.infer_error = EngineError('a', got='b', expected='c', next_step='d')
        bench.step(1000)
        bench.policy.infer_error = None
        bench.step(1033)
        assert bench.told == [(1000, 'policy/engine_failed'), (1033, '0.0')]
        assert 'got b' in bench.outcomes[0].detail

    def test_a_full_queue_refuses_the_oldest_set(self, make):
        bench = make(change=lambda d: d['policy'].update(queue=2))
        bench.policy.infer_gate.close()
        for stamp in (1000, 1033, 1066, 1100):
            bench.joints(stamp)
            bench.frame(stamp)
            assert bench.pipeline._preparer.drain(PATIENCE_S)
            bench.policy.infer_gate.wait_for(1)
        bench.policy.infer_gate.open()
        bench.settle()
        assert bench.told == [
            (1000, '0.0'),
            (1033, 'policy/superseded'),
            (1066, '0.1'),
            (1100, '0.2'),
        ]

    def test_newest_keeps_one_set_only(self, make):
        bench = make(change=lambda d: d['policy'].update(trigger='newest'))
        bench.policy.infer_gate.close()
        for stamp in (1000, 1033, 1066, 1100):
            bench.joints(stamp)
            bench.frame(stamp)
            assert bench.pipeline._preparer.drain(PATIENCE_S)
            bench.policy.infer_gate.wait_for(1)
        bench.policy.infer_gate.open()
        bench.settle()
        assert [stamp for stamp, what in bench.told if what.startswith('0.')] == [1000, 1100]

    def test_images_that_wait_too_long_are_superseded(self, make):
        bench = make(change=lambda d: d['policy'].update(queue=1))
        for stamp in (1000, 1033, 1066):
            bench.joints(stamp)
        bench.policy.prepare_gate.close()
        bench.pipeline.offer_frame(make_frame('front', 1000 * MS))
        bench.policy.prepare_gate.wait_for(1)
        bench.pipeline.offer_frame(make_frame('front', 1033 * MS))
        bench.pipeline.offer_frame(make_frame('front', 1066 * MS))
        bench.policy.prepare_gate.open()
        bench.settle()
        assert bench.told[1] == (1033, 'front/superseded')
        assert [stamp for stamp, _ in bench.told] == [1000, 1033, 1066]


class TestFill:
    @pytest.mark.parametrize(
        ('fill', 'seen'), [('black', ('wrist', 0)), ('last', ('wrist', 500 * MS))]
    )
    def test_an_optional_camera_is_filled_and_counted(self, make, fill, seen):
        bench = make(TWO_CAMERAS, lambda d: d['cameras']['wrist'].update(fill=fill))
        bench.frame(500, 'wrist')
        bench.step(1000)
        bench.wait(200)
        assert bench.told == [(1000, '0.0')]
        assert bench.policy.used == [[('front', 1000 * MS), seen]]
        assert bench.pipeline.snapshot().streams['wrist'].filled == 1

    def test_a_dead_optional_camera_costs_no_chunk(self, make):
        bench = make(TWO_CAMERAS, lambda d: d['cameras']['wrist'].update(fill='black'))
        stamps = [1000 + 10 * index for index in range(60)]
        for stamp in stamps:
            bench.step(stamp)
            bench.wait(10)
        bench.wait(200)
        assert bench.told == [(stamp, f'0.{index}') for index, stamp in enumerate(stamps)]

    def test_a_fill_is_not_used_while_there_are_images(self, make):
        bench = make(TWO_CAMERAS, lambda d: d['cameras']['wrist'].update(fill='black'))
        bench.step(1000)
        bench.frame(1001, 'wrist')
        assert bench.policy.used == [[('front', 1000 * MS), ('wrist', 1001 * MS)]]
        assert bench.pipeline.snapshot().streams['wrist'].filled == 0


class TestReset:
    def test_ends_what_is_undecided(self, bench):
        bench.frame(1000)
        bench.pipeline.reset('service')
        bench.step(1033)
        assert bench.told == [(1000, 'front/stale_epoch'), (1033, '1.0')]
        assert [outcome.epoch for outcome in bench.outcomes] == [0, 1]
        assert bench.pipeline.snapshot().resets == {'service': 1}
        assert bench.policy.num_resets == 2  # at the start, and now

    def test_ends_what_is_being_prepared(self, bench):
        bench.policy.prepare_gate.close()
        for stamp in (1000, 1033):
            bench.pipeline.offer_frame(make_frame('front', stamp * MS))
        bench.policy.prepare_gate.wait_for(1)
        bench.pipeline.reset('service')
        bench.policy.prepare_gate.open()
        bench.step(1066)
        assert bench.told == [
            (1000, 'front/stale_epoch'),
            (1033, 'front/stale_epoch'),
            (1066, '1.0'),
        ]
        assert bench.pipeline.snapshot().streams['front'].refused == 0
        assert bench.policy.prepare_gate.num_arrived == 2  # 1033 was not prepared for nothing

    def test_ends_what_is_queued_or_in_work(self, bench):
        bench.policy.infer_gate.close()
        for stamp in (1000, 1033):
            bench.joints(stamp)
            bench.frame(stamp)
            assert bench.pipeline._preparer.drain(PATIENCE_S)
        bench.policy.infer_gate.wait_for(1)
        bench.pipeline.reset('service')
        bench.policy.infer_gate.open()
        bench.step(1066)
        assert bench.told == [
            (1000, 'policy/stale_epoch'),
            (1033, 'policy/stale_epoch'),
            (1066, '1.0'),
        ]

    def test_sequences_begin_anew(self, bench):
        bench.step(1000)
        bench.pipeline.reset('service')
        bench.step(1033)
        assert [observation.sequence for observation in bench.policy.observations] == [0, 0]
        assert bench.told[-1] == (1033, '1.0')

    def test_streams_begin_anew(self, bench):
        bench.step(5000)
        bench.pipeline.reset('service')
        snapshot = bench.pipeline.snapshot()
        assert snapshot.state == 'waiting'
        assert snapshot.streams['front'].newest_stamp_ns == -1
        bench.step(1000)
        assert bench.told[-1] == (1000, '1.0')
        assert bench.pipeline.snapshot().resets == {'service': 1}

    def test_time_that_jumps_back_resets(self, bench):
        bench.step(5000)
        bench.frame(5033)
        bench.step(1000)
        assert bench.told == [(5000, '0.0'), (5033, 'front/stale_epoch'), (1000, '1.0')]
        assert bench.pipeline.snapshot().resets == {'time_jump': 1}

    @pytest.mark.parametrize('stamp', [0, 4001, 4999])
    def test_a_zero_or_slightly_late_stamp_is_no_jump(self, bench, stamp):
        bench.step(5000)
        bench.frame(stamp)
        assert bench.pipeline.snapshot().epoch == 0

    def test_another_stream_that_jumps_back_does_not_reset(self, bench):
        bench.step(5000)
        bench.joints(1000)
        assert bench.pipeline.snapshot().epoch == 0
        assert bench.pipeline.snapshot().causes == {'joint_states[0]/out_of_order': 1}

    @pytest.mark.parametrize('stamp', [90_000, 1000])
    def test_another_stream_recovers_from_a_jump(self, make, stamp):
        bench = make(TWO_CAMERAS)
        for number in (5000, 5033):
            bench.frame(number, 'wrist')
            bench.step(number)
        for number in (stamp, 5066, 5100):
            bench.frame(number, 'wrist')
        bench.step(5100)
        assert bench.told[-1] == (5100, '0.2')
        snapshot = bench.pipeline.snapshot()
        assert snapshot.causes == {'wrist/out_of_order': 1}
        assert snapshot.streams['wrist'].newest_stamp_ns == 5100 * MS


class TestInstruction:
    def test_the_id_grows_on_change_only(self, make):
        bench = make(change=lambda d: d['instruction'].update(text='wait'))
        for text in ('wait', 'go', 'go', 'wait'):
            bench.pipeline.set_instruction(text)
            bench.step(1000 + len(bench.outcomes))
        seen = [observation.instruction for observation in bench.policy.observations]
        assert [(i.text, i.instruction_id) for i in seen] == [
            ('wait', 0),
            ('go', 1),
            ('go', 1),
            ('wait', 2),
        ]
        assert bench.pipeline.snapshot().instruction == seen[-1]


class TestSnapshot:
    def test_says_what_it_waits_for(self, make):
        bench = make(make_spec(['front', 'wrist'], needs_instruction=True))

        def said():
            snapshot = bench.pipeline.snapshot()
            return snapshot.state, snapshot.detail

        assert said() == ('waiting', 'No samples from front, wrist, joint_states[0].')
        bench.step(1000)
        assert said() == ('waiting', 'No samples from wrist.')
        bench.frame(1000, 'wrist')
        assert said() == ('waiting', 'No instruction yet.')
        bench.pipeline.set_instruction('go')
        assert said() == ('running', '')
        bench.pipeline.stop()
        assert said() == ('inactive', '')

    def test_waits_for_a_clock_that_stands_at_0(self, bench):
        bench.step(1000)
        bench.clock.advance(-1000 * MS)
        state, detail = bench.pipeline.snapshot().state, bench.pipeline.snapshot().detail
        assert (state, '/clock' in detail) == ('waiting', True)

    def test_does_not_wait_for_an_optional_camera(self, make):
        bench = make(TWO_CAMERAS, lambda d: d['cameras']['wrist'].update(fill='last'))
        bench.step(1000)
        assert bench.pipeline.snapshot().state == 'running'

    def test_counts_the_streams(self, make):
        bench = make(change=lambda d: d['cameras']['front'].update(rate_hz=10.0))
        for stamp in (1000, 1100, 1400):
            bench.step(stamp)
        bench.wait(450)
        snapshot = bench.pipeline.snapshot()
        front = snapshot.streams['front']
        assert (front.received, front.used, front.missing, front.refused) == (3, 3, 2, 0)
        assert (front.newest_stamp_ns, front.newest_age_ns) == (1400 * MS, 50 * MS)
        assert front.rate_hz == pytest.approx(5.0)
        assert (snapshot.observations, snapshot.chunks, snapshot.refused) == (3, 3, 0)
        assert list(snapshot.latencies) == [
            'prepare',
            'match',
            'queue',
            'network',
            'capture_to_chunk',
            'publish',
            'receipt_to_published',
        ]
        assert snapshot.latencies['network'].count == 3


class TestFailure:
    def test_an_unexpected_error_of_the_policy(self, bench):
        bench.policy.infer_error = ZeroDivisionError('a bug')
        bench.step(1000)
        bench.policy.infer_error = None
        bench.step(1033)
        assert bench.told == [(1000, 'policy/worker_failed'), (1033, 'policy/worker_failed')]
        snapshot = bench.pipeline.snapshot()
        assert (snapshot.state, snapshot.detail) == ('failed', 'policy: ZeroDivisionError: a bug')

    def test_an_unexpected_error_of_the_preprocessing(self, bench):
        bench.policy.prepare_error = ZeroDivisionError('a bug')
        bench.step(1000)
        assert bench.told == [(1000, 'front/worker_failed')]
        snapshot = bench.pipeline.snapshot()
        assert (snapshot.state, snapshot.detail) == ('failed', 'front: ZeroDivisionError: a bug')

    def test_a_new_start_recovers(self, bench):
        bench.policy.infer_error = ZeroDivisionError('a bug')
        bench.step(1000)
        bench.policy.infer_error = None
        assert bench.pipeline.stop(PATIENCE_S)
        bench.pipeline.start()
        bench.step(1033)
        assert bench.told[-1] == (1033, '1.0')
        snapshot = bench.pipeline.snapshot()
        assert (snapshot.state, snapshot.refused, snapshot.epoch) == ('running', 0, 1)


class TestStartAndStop:
    def test_fifty_cycles_leave_no_thread(self, bench):
        bench.pipeline.stop(PATIENCE_S)
        before = set(threading.enumerate())
        for cycle in range(50):
            bench.pipeline.start()
            bench.step(1000 + cycle)
            assert bench.pipeline.stop(PATIENCE_S)
        assert set(threading.enumerate()) == before
        assert [what for _, what in bench.told] == [f'{epoch}.0' for epoch in range(1, 51)]

    def test_stop_ends_everything_that_is_unfinished(self, bench):
        bench.policy.infer_gate.close()
        for stamp in (1000, 1033):
            bench.joints(stamp)
            bench.frame(stamp)
            assert bench.pipeline._preparer.drain(PATIENCE_S)
        bench.policy.infer_gate.wait_for(1)
        bench.frame(1066)
        assert bench.pipeline._preparer.drain(PATIENCE_S)
        bench.policy.prepare_gate.close()
        bench.frame(1100)
        bench.policy.prepare_gate.wait_for(4)
        bench.frame(1133)
        assert not bench.pipeline.stop(0.0)
        bench.policy.prepare_gate.open()
        bench.policy.infer_gate.open()
        assert bench.pipeline._preparer.stop(PATIENCE_S)
        assert bench.pipeline._worker.stop(PATIENCE_S)
        assert bench.told[:3] == [
            (1000, 'policy/stopped'),
            (1033, 'policy/stopped'),
            (1066, 'front/stopped'),
        ]

    def test_what_is_being_prepared_ends_as_stopped(self, bench):
        bench.policy.prepare_gate.close()
        for stamp in (1000, 1033):
            bench.frame(stamp)
        bench.policy.prepare_gate.wait_for(1)
        stopper = threading.Thread(target=bench.pipeline.stop)
        stopper.start()
        bench.policy.prepare_gate.open()
        stopper.join(PATIENCE_S)
        assert [stamp for stamp, _ in bench.told] == [1000, 1033]
        assert {what for _, what in bench.told} <= {'front/stopped'}

    def test_nothing_is_taken_while_stopped(self, bench):
        assert bench.pipeline.stop(PATIENCE_S)
        bench.pipeline.offer_frame(make_frame('front', 1000 * MS))
        bench.pipeline.offer_joints(0, 1000 * MS, ['shoulder'], [0.0])
        bench.pipeline.refuse('front', 1000 * MS, unread())
        bench.pipeline.reset('service')
        bench.pipeline.poll()
        assert bench.outcomes == []
        assert bench.pipeline.snapshot().streams['front'].received == 0

    def test_start_and_stop_may_be_called_twice(self, bench):
        bench.pipeline.start()
        bench.step(1000)
        assert bench.pipeline.stop(PATIENCE_S)
        assert bench.pipeline.stop(PATIENCE_S)
        assert bench.told == [(1000, '0.0')]

    def test_no_second_thread_works_with_a_policy_that_is_busy(self, bench):
        bench.policy.infer_gate.close()
        bench.joints(1000)
        bench.frame(1000)
        bench.policy.infer_gate.wait_for(1)
        assert not bench.pipeline.stop(0.01)
        with pytest.raises(EngineError) as caught:
            bench.pipeline.start()
        assert caught.value.code == 'still_busy'
        bench.policy.infer_gate.open()
        assert bench.pipeline._worker.stop(PATIENCE_S)
        bench.pipeline.start()
        bench.step(1033)
        assert bench.told == [(1000, 'policy/stopped'), (1033, '1.0')]

    def test_a_deployment_that_does_not_fit_is_refused(self):
        policy = FakePolicy(TWO_CAMERAS)
        other = default_deployment(make_spec(['top']), bundle='sample')
        with pytest.raises(ConfigurationError) as caught:
            PolicyPipeline(policy, other, clock=ManualClock(), on_outcome=print)
        assert '2 more' in str(caught.value)


def test_every_reference_sample_has_one_outcome_whatever_the_threads_do(make):
    bench = make(TWO_CAMERAS, lambda d: d['policy'].update(queue=2, slots=8))
    barrier = threading.Barrier(4)
    stamps = range(1000, 4000, 10)

    def feed(camera):
        barrier.wait(PATIENCE_S)
        for stamp in stamps:
            make_image = truncated_frame if stamp % 70 == 0 else make_frame
            bench.pipeline.offer_frame(make_image(camera, stamp * MS))

    def feed_joints():
        barrier.wait(PATIENCE_S)
        for stamp in stamps:
            value = math.nan if stamp % 110 == 0 else 0.0
            bench.pipeline.offer_joints(0, stamp * MS, ['shoulder', 'elbow'], [value, 0.0])

    def disturb():
        barrier.wait(PATIENCE_S)
        for _ in range(20):
            bench.pipeline.reset('test')
            bench.pipeline.poll()
            bench.pipeline.snapshot()

    targets = [lambda: feed('front'), lambda: feed('wrist'), feed_joints, disturb]
    threads = [threading.Thread(target=target) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    bench.settle()
    bench.wait(10_000)
    assert Counter(o.stamp_ns for o in bench.outcomes) == Counter(stamp * MS for stamp in stamps)
    snapshot = bench.pipeline.snapshot()
    assert snapshot.chunks + snapshot.refused == len(stamps)
    assert (snapshot.state, snapshot.epoch) != ('failed', 0)
    sequences = [(o.epoch, o.sequence) for o in bench.outcomes if o.chunk is not None]
    assert sequences == sorted(set(sequences))


@pytest.mark.parametrize('silent', ['front', 'wrist', None])
def test_prepared_images_fit_into_the_slots(make, silent):
    bench = make(TWO_CAMERAS, lambda d: d['policy'].update(queue=2, slots=8))
    bench.policy.infer_gate.close()
    for stamp in range(1000, 2000, 20):
        for camera in {'front', 'wrist'} - {silent}:
            bench.frame(stamp, camera)
        bench.joints(stamp)
        assert bench.pipeline._preparer.drain(PATIENCE_S)
    assert bench.policy.most_in_use
    assert max(bench.policy.most_in_use.values()) <= 8
