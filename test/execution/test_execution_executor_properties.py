# SPDX-License-Identifier: Apache-2.0
"""Whatever comes, in whatever order: nothing before arm, nothing outside the limits, every chunk accounted for."""

from itertools import groupby

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.executors import (
    HORIZON,
    MOBILE,
    MS,
    PERIOD_NS,
    STEP_NS,
    Bench,
    assert_within_limits,
)

from vla_policy_ros.core.specs import Column
from vla_policy_ros.execution.states import SENDING, State
from vla_policy_ros.execution.strategies import STRATEGIES
from vla_policy_ros.execution.watchdogs import Action, Watch, WatchRule

COLUMNS = (*MOBILE, Column('shoulder', 'rad'))
ENOUGH = 700  # ticks in which everything that moves has come to rest
SLOW = 1600  # ticks in which the longest soft start is over as well

FATES = st.sampled_from(['arrives', 'drops', 'arrives twice', 'is overtaken'])
CHUNKS = st.tuples(
    st.just('chunk'),
    st.integers(0, HORIZON // 2 * STEP_NS // MS),  # delay in ms
    FATES,
    st.sampled_from([HORIZON, HORIZON, 3, 1]),
    st.sampled_from(
        [None, None, 0.5, -1.7, 50.0]
    ),  # waves, or one level, the last one out of reach
)
REQUESTS = st.sampled_from(
    [
        'arm',
        'arm',
        'disarm',
        'stop',
        'release',
        'reset',
        'prompt',
        'clock back',
        'clock ahead',
        'deaf',
    ]
)
PLANS = st.lists(st.tuples(st.one_of(CHUNKS, CHUNKS, REQUESTS), st.integers(0, 60)), max_size=14)
SETTINGS = st.fixed_dictionaries(
    {
        'jerk': st.sampled_from([None, 60.0]),
        'limit_mode': st.sampled_from(['clamp', 'reject', 'stretch']),
        'starvation': st.sampled_from([Action.HOLD, Action.DECELERATE, Action.STOP]),
        'prompt_change': st.sampled_from(['flush', 'finish', 'splice']),
        'time_jump': st.sampled_from(['stop', 'reset']),
        'gate_tolerance': st.sampled_from([None, 1.0]),
        'soft_start_share': st.sampled_from([0.3, 0.9]),
        'watchdogs': st.dictionaries(
            st.sampled_from(list(Watch)),
            st.builds(WatchRule, st.just(200 * MS), st.sampled_from(list(Action))),
        ),
    }
)


class Plan(Bench):
    """A bench that carries out a plan and checks what must hold at every tick."""

    def __init__(self, **changes):
        super().__init__(COLUMNS, **changes)
        self.epoch = self.prompt = 0
        self.stretches = []  # where the robot was, and the commands that follow each other

    def carry_out(self, step):
        """Do one step of a plan."""
        if isinstance(step, tuple):
            self.deliver(*step[1:])
        elif step == 'stop':
            self.scheduler.stop('button', self.now_ns)
        elif step == 'reset':
            self.epoch += 1
            self.scheduler.reset(self.epoch, self.now_ns)
        elif step == 'prompt':
            self.prompt += 1
            self.scheduler.change_instruction(self.prompt, self.now_ns)
        elif step == 'deaf':
            self.scheduler.note_subscribers(['arm'] * (self.prompt % 2), self.now_ns)
        elif step.startswith('clock'):
            self.now_ns += (-7000 if step.endswith('back') else 700) * MS
        else:
            getattr(self.scheduler, step)(self.now_ns)

    def deliver(self, delay_ms, fate, rows, level):
        """Offer what arrives of a chunk."""
        observed_ns = self.now_ns - delay_ms * MS
        same = {'epoch': self.epoch, 'instruction_id': self.prompt, 'rows': rows, 'level': level}
        chunk = self.chunk(observed_ns=observed_ns, **same)
        if fate == 'is overtaken':
            newer = self.chunk(observed_ns=observed_ns + STEP_NS // 2, **same)
            self.scheduler.offer(newer, self.now_ns)
        for _ in range({'drops': 0, 'arrives twice': 2}.get(fate, 1)):
            self.scheduler.offer(chunk, self.now_ns)

    def tick(self, count=1, *, measured=True):
        """Tick and check each command against the states around it."""
        for _ in range(count):
            before, start = self.scheduler.state, self.measured.copy()
            command = super().tick(measured=measured)
            after = self.scheduler.state
            assert (command is not None) == (after in SENDING or before in SENDING)
            if command is not None and before not in SENDING:
                assert before is State.IDLE
                self.stretches.append((start, []))
            if command is not None:
                self.stretches[-1][1].append(self.commands[-1])
            if before is State.STOPPING and after is not State.STOPPING:
                assert np.abs(self.commands[-1].velocity).max() <= 1e-9
                assert after in (State.UNARMED, State.STOPPED)
        self.check_account()

    def check_account(self):
        """Every offered chunk is used, waits, or has a cause."""
        now = self.snapshot()
        ended = sum(now.refused.values()) + sum(now.discarded.values())
        assert now.offered == now.used + now.waiting + ended

    def check_motion(self):
        """Nothing was ever outside of the limits, from the measured state on."""
        for measured, commands in self.stretches:
            start = measured.copy()
            start[2] = 0.0  # the base starts from rest
            assert_within_limits(commands, COLUMNS, start=start, jerk=self.jerk)


every_strategy = pytest.mark.parametrize('strategy', sorted(STRATEGIES))


def carry_out(changes, plan, *, strategy):
    bench = Plan(strategy=strategy, **changes)
    for step, ticks in plan:
        bench.carry_out(step)
        bench.tick(ticks)
    return bench


@every_strategy
@settings(deadline=None, max_examples=25)
@given(SETTINGS, PLANS)
def test_nothing_leaves_the_limits_and_every_chunk_is_accounted_for(strategy, changes, plan):
    bench = carry_out(changes, [('arm', 1), *plan], strategy=strategy)
    bench.check_motion()
    bench.scheduler.stop('end', bench.now_ns)
    bench.tick(ENOUGH)
    assert bench.state == 'stopped'
    assert bench.snapshot().waiting == 0
    bench.check_motion()


@every_strategy
@settings(deadline=None, max_examples=10)
@given(SETTINGS, PLANS)
def test_nothing_goes_out_without_arm(strategy, changes, plan):
    bench = carry_out(changes, [step for step in plan if step[0] != 'arm'], strategy=strategy)
    assert bench.commands == []


@every_strategy
@settings(deadline=None, max_examples=15)
@given(SETTINGS, PLANS, st.sampled_from(['stop', 'disarm']))
def test_after_a_stop_every_column_only_slows_down(strategy, changes, plan, how):
    # With a jerk limit an acceleration takes its time to end, and the speed grows on meanwhile.
    changes = {**changes, 'jerk': None}
    bench = carry_out(changes, [('arm', 1), *plan], strategy=strategy)
    before = len(bench.commands)
    bench.carry_out(how)
    bench.tick(ENOUGH)
    assert bench.scheduler.state not in SENDING
    stopping = [command.state for command in bench.commands[before:]]
    assert {state for state, _ in groupby(stopping)} <= {'stopping', 'stopped', 'unarmed'}
    if before and len(bench.commands) > before:
        is_twist = np.array([column.kind.value == 'twist' for column in COLUMNS])
        moving = bench.commands[before - 1 :]
        speeds = np.abs([np.where(is_twist, c.position, c.velocity) for c in moving])
        assert (np.diff(speeds, axis=0) <= 1e-6).all()
        assert (speeds[-1] <= 1e-9).all()


@every_strategy
@settings(deadline=None, max_examples=10)
@given(SETTINGS, st.integers(0, 500), st.integers(1, 120), st.sampled_from([None, 0.3, 5.0]))
def test_a_killed_policy_ends_at_rest_and_a_new_one_goes_on(
    strategy, changes, alive, every, level
):
    bench = Plan(strategy=strategy, **changes)
    bench.scheduler.arm(bench.now_ns)
    bench.run(alive, every=every, epoch=3, level=level)
    is_slow = changes['jerk'] is not None and changes['limit_mode'] == 'stretch'
    bench.tick(4 * SLOW if is_slow else SLOW)
    assert bench.state in ('idle', 'starved', 'stopped')
    assert bench.snapshot().is_still
    bench.sequence = 0
    bench.scheduler.reset(0, bench.now_ns)
    bench.run(200, every=20)
    bench.check_motion()
    if bench.state == 'stopped':
        assert bench.snapshot().cause in (
            'starved',
            *(f'{watch.value}_timeout' for watch, rule in changes['watchdogs'].items()),
        )


@every_strategy
@pytest.mark.parametrize('starvation', [Action.HOLD, Action.DECELERATE, Action.STOP])
def test_starvation_has_its_end(strategy, starvation):
    bench = Plan(strategy=strategy, starvation=starvation)
    bench.scheduler.arm(bench.now_ns)
    bench.run(200, every=40)
    bench.tick(ENOUGH)
    assert bench.state == ('stopped' if starvation is Action.STOP else 'starved')
    assert bench.snapshot().starvations == 1
    assert not bench.commands[-1].velocity.any()
    assert bench.now_ns % PERIOD_NS == 0
    bench.check_motion()
