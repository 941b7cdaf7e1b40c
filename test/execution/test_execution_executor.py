# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import numpy as np
import pytest
from support.executors import (
    ARM,
    HORIZON,
    MOBILE,
    MS,
    PERIOD_NS,
    START_NS,
    STEP_NS,
    Bench,
    assert_within_limits,
    make_limits,
    make_settings,
)

from vla_policy_ros.core.errors import ConfigurationError
from vla_policy_ros.core.latency import LatencySummary
from vla_policy_ros.core.observation import Instruction
from vla_policy_ros.core.specs import Column, ColumnKind, Representation
from vla_policy_ros.execution.executor import ChunkScheduler
from vla_policy_ros.execution.limits import ColumnLimits, check_limits
from vla_policy_ros.execution.states import SENDING, TRANSITIONS, State
from vla_policy_ros.execution.watchdogs import Action, Watch, WatchRule

LIMIT = 100 * MS


@pytest.fixture
def bench():
    return Bench()


def watching(watch, action, **changes):
    return Bench(watchdogs={watch: WatchRule(LIMIT, action)}, **changes)


def is_still(bench):
    return not bench.commands[-1].velocity.any()


# Arming, start, gate


def test_nothing_goes_out_before_arm(bench):
    assert bench.offer().cause == 'not_armed'
    assert bench.tick(10) is None
    assert bench.state == 'unarmed'


def test_armed_without_a_chunk_nothing_goes_out(bench):
    assert bench.scheduler.arm(bench.now_ns).is_done
    assert bench.tick(10) is None
    assert bench.state == 'idle'
    assert bench.scheduler.arm(bench.now_ns).cause == 'not_unarmed'


def test_goes_through_soft_start_to_tracking(bench):
    bench.measured = np.array([0.2, -0.3])
    start = bench.measured
    bench.scheduler.arm(bench.now_ns)
    bench.run(400)
    assert bench.told('transition') == ['armed', 'first_chunk', 'reached']
    states = [command.state for command in bench.commands]
    assert states[0] == 'soft_start'
    assert states[-1] == 'tracking'
    assert states.count('soft_start') > 20
    assert_within_limits(bench.commands, ARM, start=start)


def test_a_chunk_between_two_ticks_of_a_soft_start_starves_nobody(bench):
    """Motion time stands still then, and a chunk must not begin after the motion time of the next tick."""
    bench.measured = np.array([0.4, -0.4])
    bench.scheduler.arm(bench.now_ns)
    for _ in range(40):
        chunk = bench.chunk(observed_ns=bench.now_ns - 60 * MS)
        bench.scheduler.offer(chunk, bench.now_ns + PERIOD_NS - 1)
        bench.tick(10)
    assert bench.told('transition') == ['armed', 'first_chunk', 'reached']
    assert bench.snapshot().starvations == 0


def test_follows_the_chunk_in_time(bench):
    bench.start()
    seconds = (bench.now_ns - START_NS) * 1e-9
    expected = [np.sin(seconds), np.sin(seconds + 1) - np.sin(1)]
    np.testing.assert_allclose(bench.commands[-1].position, expected, atol=2e-3)
    np.testing.assert_allclose(
        bench.commands[-1].velocity, [np.cos(seconds), np.cos(seconds + 1)], atol=0.02
    )


def test_the_soft_start_keeps_to_its_share():
    slow, fast = Bench(soft_start_share=0.25), Bench(soft_start_share=0.9)
    for bench in (slow, fast):
        bench.scheduler.arm(bench.now_ns)
        bench.run(900, level=1.0)
    speeds = [max(c.velocity.max() for c in bench.commands) for bench in (slow, fast)]
    assert speeds[0] <= 0.25 * 2.0 + 1e-6
    assert 0.8 * 2.0 < speeds[1] <= 0.9 * 2.0 + 1e-6
    for bench in (slow, fast):
        np.testing.assert_allclose(bench.commands[-1].position, 1.0, atol=1e-6)


def test_the_gate_says_which_joint_is_how_far_away():
    bench = Bench(gate_tolerance=0.5)
    bench.measured = np.array([0.0, 0.2])
    bench.scheduler.arm(bench.now_ns)
    bench.offer(level=0.75)
    assert bench.tick(5) is None
    assert bench.state == 'idle'
    (event,) = [event for event in bench.events if event.kind.value == 'gate']
    assert event.cause == 'too_far'
    assert event.detail == ('shoulder is 0.75 away from the first action (0 to 0.75), at most 0.5')
    bench.measured = np.array([0.4, 0.4])
    assert bench.tick() is not None


def test_the_gate_needs_a_measured_state():
    bench = Bench(gate_tolerance=0.5)
    bench.scheduler.arm(bench.now_ns)
    bench.offer()
    assert bench.tick(3, measured=False) is None
    bench.measured = np.array([0.0, np.nan])
    assert bench.tick(3) is None
    assert bench.told('gate') == ['no_measured_state']
    assert bench.events[-1].detail == 'no measured state yet'


def test_the_gate_may_differ_per_column():
    bench = Bench(gate_tolerance=0.1, gate_tolerances={'shoulder': np.inf, 'elbow': 1.0})
    bench.scheduler.arm(bench.now_ns)
    bench.measured = np.array([np.nan, 0.0])
    bench.offer(level=0.75)
    assert bench.tick() is not None
    with pytest.raises(ConfigurationError) as caught:
        Bench(gate_tolerances={'wrist': 1.0})
    assert caught.value.code == 'unknown_column'


def test_a_second_arm_starts_from_where_the_robot_is():
    bench = Bench(gate_tolerance=1.0)
    bench.start()
    bench.scheduler.disarm(bench.now_ns)
    bench.tick(200)
    assert bench.state == 'unarmed'
    bench.commands.clear()
    bench.measured = np.array([0.4, 0.1])
    bench.scheduler.arm(bench.now_ns)
    bench.run(300, level=0.5)
    assert bench.state == 'tracking'
    assert_within_limits(bench.commands, ARM, start=np.array([0.4, 0.1]))


# What is refused


def offers(bench, **first):
    bench.scheduler.arm(bench.now_ns)
    assert bench.offer(**first).is_accepted
    bench.tick(4)


@pytest.mark.parametrize(
    ('changes', 'cause'),
    [
        ({'observed_ns': START_NS}, 'duplicate'),
        ({'observed_ns': START_NS - MS}, 'older_observation'),
        ({'observed_ns': START_NS + 500 * MS}, 'future_stamp'),
        ({'epoch': 2}, 'stale_epoch'),
        ({'instruction_id': 4}, 'old_instruction'),
        ({'policy_id': 'other@2'}, 'policy_changed'),
        ({'step_ns': STEP_NS + 1}, 'wrong_step'),
        ({'rows': HORIZON + 1}, 'wrong_horizon'),
        ({'columns': (ARM[1], ARM[0])}, 'wrong_columns'),
        ({'start_ns': START_NS - 800 * MS}, 'late_chunk'),
        ({'start_ns': START_NS + 2000 * MS}, 'early_chunk'),
    ],
)
def test_refuses_with_a_cause(bench, changes, cause):
    offers(bench, epoch=3, instruction_id=5)
    answer = bench.offer(**{'epoch': 3, 'instruction_id': 5, **changes})
    assert not answer.is_accepted
    assert answer.cause == cause
    assert answer.detail
    assert bench.told('refused') == [cause]
    assert bench.snapshot().refused == {cause: 1}


def test_armed_for_an_instruction_it_waits_for_a_chunk_of_it(bench):
    bench.scheduler.arm(bench.now_ns, instruction='wave')
    assert bench.offer().cause == 'other_instruction'
    assert bench.tick(5) is None
    assert bench.offer(instruction=Instruction('wave', 7)).is_accepted
    assert bench.tick(5) is not None
    assert bench.offer(instruction=Instruction('point', 8)).is_accepted  # told on the way


def test_another_policy_may_be_let_in():
    bench = Bench(policy_change='accept')
    offers(bench)
    assert bench.offer(policy_id='other@2').is_accepted


def test_another_policy_may_come_with_the_next_arm(bench):
    offers(bench)
    bench.scheduler.disarm(bench.now_ns)
    bench.tick(100)
    bench.scheduler.arm(bench.now_ns)
    assert bench.offer(policy_id='other@2').is_accepted


def test_mode_reject_refuses_a_chunk_that_breaks_a_limit():
    bench = Bench(limit_mode='reject')
    offers(bench)
    answer = bench.offer(level=3.0)
    assert not answer.is_accepted
    assert 'shoulder' in answer.detail
    assert bench.snapshot().refused == {answer.cause: 1}


def test_limits_must_be_of_the_commanded_columns():
    with pytest.raises(ConfigurationError) as caught:
        ChunkScheduler(ARM, make_settings(), make_limits(MOBILE))
    assert caught.value.code == 'wrong_columns'


# Delay


def test_the_delay_is_what_was_executed(bench):
    bench.start()
    assert bench.offer(observed_ns=bench.now_ns - 100 * MS).delay_steps == pytest.approx(2.0)


def test_what_passed_while_nothing_was_executed_is_no_delay(bench):
    bench.start()
    bench.tick(400)
    assert bench.state == 'starved'
    assert bench.offer(observed_ns=bench.now_ns - 100 * MS).delay_steps == 0.0


def test_the_first_chunk_after_arm_and_reset_is_not_in_the_statistics(bench):
    bench.scheduler.arm(bench.now_ns)
    bench.offer(observed_ns=bench.now_ns - 700 * MS)
    bench.tick()
    assert bench.snapshot().delay.count == 0
    bench.run(180)
    assert bench.snapshot().delay.count == 3
    bench.scheduler.reset(1, bench.now_ns)
    bench.tick(100)
    bench.run(120, epoch=1)
    assert bench.snapshot().delay.count == 4
    assert bench.snapshot().delay.max_steps < 2


def test_a_delay_that_does_not_fit_the_horizon_is_told(bench):
    bench.start()
    bench.offer(observed_ns=bench.now_ns - 80 * MS)
    bench.tick(20)
    assert bench.told('violation') == []
    bench.offer(observed_ns=bench.now_ns - 179 * MS)
    bench.tick()
    assert bench.told('violation') == ['delay_above_horizon']
    assert bench.snapshot().violations == {'delay_above_horizon': 1}


# Starvation


@pytest.mark.parametrize('action', [Action.HOLD, Action.DECELERATE])
def test_without_rows_the_robot_comes_to_rest_and_holds(action):
    bench = Bench(starvation=action)
    bench.start()
    bench.tick(400)
    assert bench.state == 'starved'
    assert bench.snapshot().starvations == 1
    assert bench.snapshot().is_still
    assert is_still(bench)
    held = bench.commands[-1].position
    bench.tick(50)
    np.testing.assert_array_equal(bench.commands[-1].position, held)
    assert_within_limits(bench.commands, ARM)


def test_hold_ends_at_the_last_row(bench):
    bench.start()
    chunk = bench.chunk()
    bench.scheduler.offer(chunk, bench.now_ns)
    bench.tick(400)
    np.testing.assert_allclose(bench.commands[-1].position, chunk.actions[-1], atol=1e-5)


def test_starvation_may_latch_a_stop():
    bench = Bench(starvation=Action.STOP)
    bench.start()
    bench.tick(400)
    assert bench.state == 'stopped'
    assert bench.snapshot().cause == 'starved'
    assert is_still(bench)
    assert_within_limits(bench.commands, ARM)


def test_a_chunk_after_starvation_is_taken_up_without_a_jump(bench):
    bench.start()
    bench.tick(400)
    bench.run(300)
    assert bench.told('transition')[-3:] == ['out_of_rows', 'resumed', 'reached']
    assert bench.state == 'tracking'
    assert_within_limits(bench.commands, ARM)


@pytest.mark.parametrize('rows', [1, 2])
def test_a_short_chunk_ends_in_a_defined_state(bench, rows):
    bench.start()
    chunk = bench.chunk(rows=rows, observed_ns=bench.now_ns + MS)
    assert bench.scheduler.offer(chunk, bench.now_ns).is_accepted
    bench.tick(300)
    assert bench.state == 'starved'
    assert is_still(bench)


def test_a_base_does_not_go_on_without_rows():
    bench = Bench(MOBILE, starvation=Action.HOLD)
    bench.scheduler.arm(bench.now_ns)
    bench.run(700, level=0.8)
    assert bench.commands[-1].position[2] == pytest.approx(0.8, abs=1e-3)
    bench.tick(400)
    assert bench.commands[-1].position[2] == 0.0
    np.testing.assert_allclose(bench.commands[-1].position[[0, 1, 3]], 0.8, atol=1e-5)


def test_a_base_starts_from_rest_whatever_is_measured():
    bench = Bench(MOBILE, gate_tolerance=2.0)
    bench.measured = np.array([0.0, 0.0, 0.7, 0.0])
    bench.scheduler.arm(bench.now_ns)
    bench.offer(level=0.8)
    bench.tick()
    assert abs(bench.commands[0].position[2]) < 0.05


# Stop, disarm, release


@pytest.mark.parametrize(('how', 'end'), [('stop', 'stopped'), ('disarm', 'unarmed')])
def test_decelerates_and_then_sends_nothing(bench, how, end):
    bench.start()
    if how == 'stop':
        bench.scheduler.stop('button', bench.now_ns)
    else:
        assert bench.scheduler.disarm(bench.now_ns).is_done
    assert bench.state == 'stopping'
    assert bench.offer().cause == 'not_armed'
    before = len(bench.commands)
    assert bench.tick(300) is None
    assert bench.state == end
    assert len(bench.commands) > before + 10
    assert is_still(bench)
    assert_within_limits(bench.commands, ARM)


def test_a_stop_outranks_a_disarm(bench):
    bench.start()
    bench.scheduler.disarm(bench.now_ns)
    bench.tick()
    bench.scheduler.stop('button', bench.now_ns)
    bench.tick()
    assert bench.scheduler.disarm(bench.now_ns).cause == 'not_armed'
    bench.tick(300)
    assert bench.state == 'stopped'
    assert bench.snapshot().cause == 'button'


def test_the_first_stop_names_the_cause(bench):
    bench.start()
    bench.scheduler.stop('button', bench.now_ns)
    bench.scheduler.stop('signal', bench.now_ns)
    bench.tick(300)
    bench.scheduler.stop('late', bench.now_ns)
    assert bench.snapshot().cause == 'button'


@pytest.mark.parametrize('is_armed', [False, True])
def test_a_stop_is_latched_until_it_is_released_after_its_cool_down(bench, is_armed):
    if is_armed:
        bench.scheduler.arm(bench.now_ns)
    bench.scheduler.stop('button', bench.now_ns)
    assert bench.state == 'stopped'
    assert bench.scheduler.arm(bench.now_ns).cause == 'not_unarmed'
    answer = bench.scheduler.release(bench.now_ns + 400 * MS)
    assert (answer.cause, answer.detail) == ('cooling_down', '600 ms left')
    assert bench.scheduler.release(bench.now_ns + 1000 * MS).is_done
    assert bench.state == 'unarmed'
    assert bench.scheduler.release(bench.now_ns).cause == 'not_stopped'


def test_disarm_needs_something_to_disarm(bench):
    assert bench.scheduler.disarm(bench.now_ns).cause == 'not_armed'
    bench.scheduler.arm(bench.now_ns)
    assert bench.scheduler.disarm(bench.now_ns).is_done
    assert bench.state == 'unarmed'


def test_dry_run_tells_and_does_not_send():
    bench = Bench(is_dry_run=True)
    bench.scheduler.arm(bench.now_ns)
    bench.run(300)
    assert bench.commands == []
    assert bench.state == 'tracking'
    assert bench.scheduler.last_command.position[0] == pytest.approx(np.sin(1.5), abs=0.01)
    bench.scheduler.stop('button', bench.now_ns)
    bench.tick(300)
    assert bench.scheduler.last_command is None


# Epochs, instructions, a policy that starts anew


def test_reset_drops_the_chunks_and_refuses_late_ones(bench):
    bench.start()
    bench.offer()
    late = bench.chunk(observed_ns=bench.now_ns + MS)
    bench.scheduler.reset(1, bench.now_ns)
    assert bench.state == 'starved'
    assert bench.snapshot().discarded == {'reset': 1}
    assert bench.scheduler.offer(late, bench.now_ns).cause == 'stale_epoch'
    bench.tick(100)
    assert is_still(bench)
    assert bench.offer(epoch=1, observed_ns=bench.now_ns - 900 * MS + STEP_NS * 4).is_accepted
    bench.tick(200)
    assert_within_limits(bench.commands, ARM)


def test_a_chunk_of_a_newer_epoch_begins_it(bench):
    bench.start()
    old = bench.chunk()
    assert bench.offer(epoch=2).is_accepted
    assert bench.scheduler.offer(old, bench.now_ns).cause == 'stale_epoch'
    bench.tick(2)
    assert bench.commands[-1].sequence == old.sequence + 1
    assert 'new_epoch' in bench.told('transition')


def test_a_policy_that_is_lost_and_starts_anew_is_taken():
    bench = watching(Watch.CHUNK, Action.DECELERATE)
    bench.scheduler.arm(bench.now_ns)
    bench.run(200, every=10, delay_ns=20 * MS, epoch=4, instruction_id=7)
    bench.tick(60)
    assert bench.state == 'starved'
    assert bench.snapshot().cause == 'chunk_timeout'
    bench.sequence = 0
    bench.run(400, every=10, delay_ns=20 * MS, epoch=0)
    assert bench.state == 'tracking'
    assert bench.told('cleared') == ['chunk_timeout']
    assert_within_limits(bench.commands, ARM)


def change(bench):
    """Change the instruction while a chunk of the old one has 10 steps left."""
    bench.scheduler.arm(bench.now_ns)
    bench.run(300, instruction_id=1)
    last = bench.chunk(instruction_id=1, observed_ns=bench.now_ns)
    bench.scheduler.offer(last, bench.now_ns)
    bench.tick(50)
    bench.scheduler.change_instruction(2, bench.now_ns)
    assert bench.offer(instruction_id=1).cause == 'old_instruction'
    return last


def ids(bench):
    return [command.instruction_id for command in bench.commands]


def test_flush_drops_the_old_rows_and_waits():
    bench = Bench(prompt_change='flush')
    change(bench)
    assert bench.state == 'starved'
    bench.tick(150)
    assert is_still(bench)
    bench.offer(instruction_id=2)
    bench.tick(20)
    assert ids(bench)[-1] == 2
    assert_within_limits(bench.commands, ARM)


def test_finish_executes_the_old_rows_first():
    bench = Bench(prompt_change='finish')
    last = change(bench)
    bench.offer(instruction_id=2)
    bench.tick(20)
    assert ids(bench)[-1] == 1
    bench.offer(instruction_id=2)
    bench.tick(10)
    assert bench.told('discarded')[-1:] == ['overtaken']
    old_end_ns = int(last.times_ns()[-1])
    bench.tick((old_end_ns - bench.now_ns) // PERIOD_NS)
    assert ids(bench)[-1] == 1
    bench.tick(3)
    assert ids(bench)[-1] == 2
    bench.tick(60)
    assert_within_limits(bench.commands, ARM)


def test_splice_executes_the_old_rows_until_the_new_chunk():
    bench = Bench(prompt_change='splice')
    change(bench)
    bench.tick(10)
    assert (bench.state, ids(bench)[-1]) == ('tracking', 1)
    bench.offer(instruction_id=2)
    bench.tick()
    assert (bench.state, ids(bench)[-1]) == ('tracking', 2)
    bench.tick(60)
    assert_within_limits(bench.commands, ARM)


def test_a_chunk_tells_of_a_new_instruction_too():
    bench = Bench(prompt_change='flush')
    bench.start(instruction_id=1)
    bench.offer(instruction_id=3)
    assert 'new_instruction' in bench.told('transition')
    assert bench.snapshot().instruction_id == 3


# Watchdogs


@pytest.mark.parametrize(
    ('action', 'state'),
    [
        (Action.REPORT, 'tracking'),
        (Action.HOLD, 'tracking'),
        (Action.DECELERATE, 'starved'),
        (Action.STOP, 'stopping'),
    ],
)
def test_an_alarm_has_its_action(action, state):
    bench = watching(Watch.SUBSCRIBER, action)
    bench.start()
    bench.scheduler.note_subscribers(['arm'], bench.now_ns)
    bench.tick(10)
    bench.scheduler.note_subscribers(['arm'], bench.now_ns)
    bench.tick(10)
    assert bench.told('alarm') == []
    bench.tick()
    assert bench.told('alarm') == ['subscriber_timeout']
    assert bench.snapshot().alarms == ('subscriber_timeout',)
    assert bench.state == state
    is_open = action is Action.REPORT
    assert bench.offer().is_accepted is is_open
    if action is not Action.STOP:
        bench.scheduler.note_subscribers([], bench.now_ns)
        bench.tick()
        assert bench.told('cleared') == ['subscriber_timeout']
        bench.run(100)
        assert bench.state == 'tracking'
    assert_within_limits(bench.commands, ARM)


def test_nothing_starts_while_an_alarm_is_on():
    bench = watching(Watch.MEASURED, Action.HOLD)
    bench.scheduler.arm(bench.now_ns)
    bench.tick()
    bench.offer()
    assert bench.tick(30, measured=False) is not None
    assert bench.told('alarm') == ['measured_timeout']
    bench.tick(200, measured=False)
    assert bench.state == 'starved'
    assert bench.offer().cause == 'measured_timeout'
    bench.tick()
    assert bench.offer().is_accepted


def test_a_chunk_at_hand_does_not_start_while_an_alarm_is_on():
    bench = watching(Watch.SUBSCRIBER, Action.HOLD, gate_tolerance=0.5)
    bench.measured = np.array([2.0, 0.0])
    bench.scheduler.arm(bench.now_ns)
    bench.offer()
    bench.scheduler.note_subscribers(['arm'], bench.now_ns)
    bench.tick(25)
    bench.measured = np.zeros(2)
    assert bench.tick() is None
    bench.scheduler.note_subscribers([], bench.now_ns)
    assert bench.tick() is not None


def test_a_stale_stamp_of_the_measured_state_counts():
    bench = watching(Watch.MEASURED, Action.STOP)
    bench.start()
    bench.scheduler.command(
        bench.now_ns + PERIOD_NS, bench.measured, measured_stamp_ns=bench.now_ns - 200 * MS
    )
    assert bench.state == 'stopping'


def test_a_slow_policy_is_an_alarm_until_it_is_fast_again():
    bench = watching(Watch.INFERENCE, Action.HOLD)
    bench.start()
    assert bench.offer(observed_ns=bench.now_ns - 101 * MS).is_accepted is False
    bench.tick()
    assert bench.told('alarm') == ['inference_timeout']
    assert bench.offer(observed_ns=bench.now_ns - 90 * MS).is_accepted
    bench.tick()
    assert bench.told('cleared') == ['inference_timeout']


def test_a_late_tick_is_an_alarm():
    bench = watching(Watch.TICK, Action.REPORT)
    bench.start()
    bench.now_ns += 100 * MS
    bench.tick()
    assert bench.told('alarm') == []
    bench.now_ns += 101 * MS
    bench.tick()
    assert bench.told('alarm') == ['tick_timeout']
    assert_within_limits(bench.commands, ARM)


@pytest.mark.parametrize(('action', 'end'), [('stop', 'stopped'), ('reset', 'tracking')])
def test_a_clock_that_goes_back_stops_or_resets(action, end):
    bench = Bench(time_jump=action)
    bench.start()
    bench.now_ns -= 62_832 * MS  # ten turns of the waves
    bench.tick(200)
    assert 'time_jump' in bench.told('transition')
    assert is_still(bench)
    bench.run(600)
    assert bench.state == end
    assert_within_limits(bench.commands, ARM)
    if end == 'stopped':
        bench.tick(200)
        assert bench.scheduler.release(bench.now_ns).is_done


def test_a_small_step_back_lets_time_stand_still(bench):
    bench.start()
    bench.now_ns -= 50 * MS
    bench.tick(30)
    assert bench.state == 'tracking'
    assert_within_limits(bench.commands, ARM)


# On demand, stretched, told


def test_asks_for_a_chunk_when_little_is_left(bench):
    assert not bench.scheduler.should_request(bench.now_ns)
    bench.scheduler.arm(bench.now_ns)
    assert bench.scheduler.should_request(bench.now_ns)
    bench.scheduler.note_request(bench.now_ns)
    assert not bench.scheduler.should_request(bench.now_ns + 1999 * MS)
    assert bench.scheduler.should_request(bench.now_ns + 2000 * MS)
    bench.run(300)
    bench.offer()
    assert not bench.scheduler.should_request(bench.now_ns)
    bench.tick(69)
    assert not bench.scheduler.should_request(bench.now_ns)
    bench.tick(2)
    assert bench.scheduler.should_request(bench.now_ns)


def test_stretch_slows_the_clock_and_keeps_the_path():
    bench = Bench(limit_mode='stretch')
    bench.scheduler.arm(bench.now_ns)
    rows = np.linspace(0, 1, HORIZON)[:, None] * [1.9, -0.95]
    fast = replace(bench.chunk(), actions=rows.astype(np.float32))
    assert bench.scheduler.offer(fast, bench.now_ns).is_accepted
    bench.tick(40)
    scale = bench.snapshot().time_scale
    bench.tick(400)
    assert 0 < scale < 1
    assert bench.state == 'starved'
    tracked = [command for command in bench.commands if command.state == 'tracking']
    assert tracked[-1].position[0] > 1.8
    for command in tracked[1:]:
        np.testing.assert_allclose(command.position[1], -0.5 * command.position[0], atol=1e-6)
    np.testing.assert_allclose(bench.commands[-1].position, [1.9, -0.95], atol=1e-5)
    assert_within_limits(bench.commands, ARM)


def test_steps_are_added_up_from_where_the_robot_is():
    columns = tuple(Column(c.name, c.unit, c.kind, Representation.DELTA) for c in ARM)
    scheduler = ChunkScheduler(columns, make_settings(), make_limits(ARM))
    bench = Bench()
    bench.scheduler, bench.columns = scheduler, columns
    bench.measured = np.array([0.5, -0.5])
    scheduler.arm(bench.now_ns)
    assert bench.offer(level=0.01).cause == 'no_measured_state'
    bench.tick()
    assert bench.offer(level=0.01).is_accepted
    bench.tick(400)
    np.testing.assert_allclose(bench.commands[-1].position, [0.66, -0.34], atol=1e-5)


def test_the_snapshot_counts_every_chunk_once(bench):
    bench.scheduler.arm(bench.now_ns)
    bench.offer()
    bench.offer(observed_ns=bench.now_ns + MS)
    bench.offer(observed_ns=bench.now_ns)
    bench.tick(10)
    bench.offer()
    lateness = LatencySummary(1, 0.1, 0.2, 0.3, 0.4)
    now = bench.scheduler.snapshot(bench.now_ns, lateness=lateness)
    assert (now.offered, now.used, now.waiting) == (4, 1, 1)
    assert (now.refused, now.discarded) == ({'older_observation': 1}, {'overtaken': 1})
    assert now.lateness is lateness
    assert (now.strategy, now.epoch, now.seams) == ('offset_fade', 0, 0)
    assert now.chunk_age_ms == 0.0
    assert now.remaining_ms == 750.0


def test_limited_ticks_are_counted_per_column(bench):
    bench.scheduler.arm(bench.now_ns)
    rows = np.zeros((HORIZON, 2), np.float32)
    rows[HORIZON // 2 :, 1] = 1.0
    bench.scheduler.offer(replace(bench.chunk(), actions=rows), bench.now_ns)
    bench.tick(300)
    limited = bench.snapshot().limited
    assert set(limited) == {'elbow'}
    assert limited['elbow'] > 3


def test_events_are_drained_once(bench):
    bench.scheduler.arm(bench.now_ns)
    (event,) = bench.scheduler.events()
    assert (event.cause, event.detail, event.time_ns) == ('armed', 'unarmed -> idle', START_NS)
    assert bench.scheduler.events() == []


def test_every_state_can_be_left_and_reached():
    assert set(TRANSITIONS) == set(State)
    assert set().union(*TRANSITIONS.values()) == set(State)
    for state in SENDING:
        assert State.UNARMED not in TRANSITIONS[state] or state is State.STOPPING


def test_a_gripper_snaps_through_a_soft_start():
    columns = (Column('lift', 'm'), Column('hand', '', ColumnKind.GRIPPER))
    limits = check_limits(
        columns,
        {
            'lift': ColumnLimits(position_min=-2, position_max=2, velocity=2, acceleration=10),
            'hand': ColumnLimits(position_min=0, position_max=1),
        },
    )
    scheduler = ChunkScheduler(columns, make_settings(), limits)
    bench = Bench(columns)
    bench.scheduler = scheduler
    scheduler.arm(bench.now_ns)
    bench.offer(level=1.0)
    bench.tick()
    assert bench.commands[0].position[1] == 1.0
    assert bench.commands[0].position[0] < 0.1


def test_a_pose_is_followed():
    columns = (
        *(Column(name, 'm') for name in 'xyz'),
        *(Column(f'q{axis}', '', ColumnKind.QUATERNION) for axis in 'xyzw'),
    )
    bench = Bench(columns, gate_tolerance=2.0)
    bench.measured = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0])
    bench.scheduler.arm(bench.now_ns)
    goal = np.array([0.1, 0.2, 0.3, 0.0, np.sin(0.5), 0.0, np.cos(0.5)], np.float32)
    for _ in range(12):
        chunk = replace(bench.chunk(), actions=np.tile(goal, (HORIZON, 1)))
        assert bench.scheduler.offer(chunk, bench.now_ns).is_accepted
        bench.tick(60)
    assert bench.state == 'tracking'
    np.testing.assert_allclose(bench.commands[-1].position, goal, atol=1e-6)
    orientations = np.array([command.position[3:] for command in bench.commands])
    np.testing.assert_allclose(np.linalg.norm(orientations, axis=1), 1.0, atol=1e-9)
    turns = 2 * np.arccos(np.clip(np.sum(orientations[1:] * orientations[:-1], axis=1), -1, 1))
    assert turns.max() <= 2.0 * PERIOD_NS * 1e-9 * (1 + 1e-6)


def test_an_unreachable_first_action_does_not_keep_it_from_starting(bench):
    bench.scheduler.arm(bench.now_ns)
    bench.run(900, level=50.0)
    assert bench.state == 'tracking'
    np.testing.assert_allclose(bench.commands[-1].position, 2.0, atol=1e-9)
    assert_within_limits(bench.commands, ARM)
