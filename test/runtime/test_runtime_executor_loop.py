# SPDX-License-Identifier: Apache-2.0
"""The executor loop on a clock of the test: what is known before the first chunk, and what the lead changes."""

import threading

import numpy as np
import pytest
from support.executors import ARM, HORIZON, MS, PERIOD_NS, START_NS, STEP_NS, make_limits

from vla_policy_ros.core.chunk import ActionChunk
from vla_policy_ros.core.clock import ManualClock
from vla_policy_ros.core.errors import ChunkRejectedError, ConfigurationError
from vla_policy_ros.core.observation import Instruction
from vla_policy_ros.core.specs import Column
from vla_policy_ros.deployment.executor import ExecutorSettings
from vla_policy_ros.runtime.executor_loop import ExecutorLoop

LEAD_NS = 50 * MS
ARM_CONTROLLER = {
    'kind': 'forward_command',
    'name': 'arm',
    'topic': 'arm/commands',
    'columns': ['shoulder', 'elbow'],
}


class Outputs:
    """Keeps what the controllers would get."""

    def __init__(self, *, lead_ns=0, missing=()):
        self.lead_ns = lead_ns
        self.put_commands = []
        self.begun = 0
        self.is_closed = False
        self.nobody_hears = tuple(missing)

    def begin(self):
        self.begun += 1

    def put(self, command, due_ns):
        kept = None
        if command is not None:
            kept = command.time_ns, command.position.copy(), command.state.value
        self.put_commands.append((due_ns, kept))

    def missing(self):
        return self.nobody_hears

    def close(self):
        self.is_closed = True

    @property
    def sent(self):
        return [command for _, command in self.put_commands if command is not None]


class Robot:
    """A loop, its outputs, and a robot that does as it is told."""

    def __init__(self, *, lead_ns=0, missing=(), limits=make_limits, **settings):
        self.clock = ManualClock(START_NS)
        self.outputs = Outputs(lead_ns=lead_ns, missing=missing)
        self.made = []
        given = {'controllers': [ARM_CONTROLLER], 'strategy': {'name': 'offset_fade'}, **settings}
        self.loop = ExecutorLoop(
            ExecutorSettings.model_validate(given),
            clock=self.clock,
            make_limits=limits,
            make_outputs=self.make_outputs,
        )
        self.sequence = 0
        self.position = np.zeros(2)
        self.told = []
        self.events = []

    def make_outputs(self, columns, limits):
        self.made.append((columns, limits))
        return self.outputs

    def chunk(self, *, columns=ARM, delay_ns=0, rows=HORIZON, level=None, step_ns=STEP_NS):
        observed_ns = self.clock.now_ns() - delay_ns
        seconds = (observed_ns - START_NS + np.arange(rows) * step_ns) * 1e-9
        waves = np.stack([0.3 * np.sin(seconds + 0.1 * i) for i in range(len(columns))], axis=1)
        if level is not None:
            waves[:] = level
        self.sequence += 1
        return ActionChunk(
            actions=waves.astype(np.float32),
            columns=columns,
            step_ns=step_ns,
            start_ns=observed_ns,
            observation_stamp_ns=observed_ns,
            sequence=self.sequence,
            instruction=Instruction('go', 0),
            policy_id='waves@1',
        )

    def tick(self, count=1):
        for _ in range(count):
            self.clock.advance(PERIOD_NS)
            self.loop.note_measured(self.position.copy(), self.clock.now_ns())
            command = self.loop.tick(self.clock.now_ns())
            self.told.append(None if command is None else command.position.copy())
            if command is not None:
                self.position = command.position.copy()
        self.events += self.loop.events()

    def run(self, ticks, *, every=60, **changes):
        for count in range(ticks):
            if count % every == 0:
                self.loop.offer(self.chunk(**changes))
            self.tick()

    @property
    def state(self):
        return self.loop.snapshot().state.value

    def causes(self, kind):
        return [event.cause for event in self.events if event.kind.value == kind]


def test_nothing_is_made_before_the_first_chunk():
    robot = Robot()
    robot.tick(3)
    assert robot.loop.columns == ()
    assert robot.made == []
    assert robot.state == 'unarmed'
    assert robot.loop.snapshot().strategy == 'offset_fade'
    robot.loop.offer(robot.chunk())
    ((columns, limits),) = robot.made
    assert columns == robot.loop.columns == ARM
    assert limits.columns == ARM


def test_a_chunk_before_arm_is_refused_and_nothing_goes_out():
    robot = Robot()
    assert robot.loop.offer(robot.chunk()).cause == 'not_armed'
    robot.tick(100)
    assert robot.outputs.sent == []
    assert robot.loop.snapshot().refused == {'not_armed': 1}


@pytest.mark.parametrize('armed', ['before the first chunk', 'after it'])
def test_chunks_become_commands(armed):
    robot = Robot()
    if armed == 'after it':
        robot.loop.offer(robot.chunk())
    assert robot.loop.arm().is_done
    robot.run(300)
    assert robot.state == 'tracking'
    assert robot.outputs.begun == 1
    assert len(robot.outputs.sent) == 300
    assert robot.causes('transition') == ['armed', 'first_chunk', 'reached']


def test_a_stop_before_the_first_chunk_stays():
    robot = Robot()
    robot.loop.stop('stop_topic')
    assert robot.loop.offer(robot.chunk()).cause == 'not_armed'
    robot.tick()
    assert robot.state == 'stopped'
    assert robot.loop.snapshot().cause == 'stop_topic'
    assert robot.loop.arm().cause == 'not_unarmed'
    assert robot.loop.release().cause == 'cooling_down'
    robot.clock.advance(1000 * MS)
    robot.tick()
    assert robot.loop.release().is_done
    assert robot.loop.arm().is_done


def test_a_stop_latches_until_its_cool_down_is_over():
    robot = Robot(cool_down_ms=200.0)
    robot.loop.arm()
    robot.run(200)
    robot.loop.stop('stop_topic')
    robot.tick(200)
    sent = len(robot.outputs.sent)
    assert robot.state == 'stopped'
    assert robot.outputs.sent[-1][2] == 'stopped'
    robot.run(20)
    assert len(robot.outputs.sent) == sent
    assert robot.loop.release().is_done


@pytest.mark.parametrize(
    ('columns', 'cause'),
    [
        ((*ARM, Column('hand', '')), 'missing_column'),
        (ARM[:1], 'unknown_column'),
    ],
)
def test_a_file_that_does_not_fit_is_told_and_not_armed(columns, cause):
    robot = Robot()
    robot.loop.arm()
    for _ in range(2):
        assert robot.loop.offer(robot.chunk(columns=columns)).cause == cause
    assert robot.loop.columns == ()
    assert robot.made == []
    snapshot = robot.loop.snapshot()
    assert snapshot.refused == {cause: 2}
    assert snapshot.offered == 2
    assert 'expected' in robot.loop.fault
    robot.loop.disarm()
    answer = robot.loop.arm()
    assert answer.cause == 'does_not_fit'
    assert answer.detail == robot.loop.fault


def test_a_chunk_that_fits_ends_the_fault():
    robot = Robot()
    robot.loop.offer(robot.chunk(columns=ARM[:1]))
    robot.loop.arm()
    robot.loop.offer(robot.chunk())
    assert robot.loop.fault == ''
    assert robot.loop.arm().is_done


def test_limits_that_are_missing_are_a_fault_and_looked_for_once():
    asked = []

    def refuse(columns):
        asked.append(columns)
        raise ConfigurationError(
            'limits.elbow', got='no velocity', expected='one', next_step='Add it.', code='no_limit'
        )

    robot = Robot(limits=refuse)
    for _ in range(3):
        assert robot.loop.offer(robot.chunk()).cause == 'no_limit'
    assert len(asked) == 1
    assert 'limits.elbow' in robot.loop.fault


def test_a_strategy_that_does_not_fit_the_chunk_closes_what_was_made():
    strategy = {'name': 'receding', 'parameters': {'execution_horizon': 100}}
    robot = Robot(strategy=strategy)
    assert robot.loop.offer(robot.chunk()).cause
    assert robot.outputs.is_closed
    assert robot.loop.columns == ()
    assert robot.loop.fault


def test_other_columns_later_are_refused():
    robot = Robot()
    robot.loop.arm()
    robot.run(10)
    other = (ARM[0], Column('wrist', 'rad'))
    assert robot.loop.offer(robot.chunk(columns=other)).cause == 'wrong_columns'
    assert robot.loop.offer(robot.chunk(step_ns=2 * STEP_NS)).cause == 'wrong_step'
    assert robot.loop.columns == ARM


def test_a_message_that_cannot_be_read_is_counted():
    robot = Robot()
    error = ChunkRejectedError('chunk', got='x', expected='y', next_step='z', code='bad_message')
    robot.loop.refuse(error)
    assert robot.loop.snapshot().refused == {'bad_message': 1}
    assert robot.loop.snapshot().offered == 1


def test_commands_are_made_ahead_and_put_at_the_time_of_the_tick():
    robot = Robot(lead_ns=LEAD_NS)
    robot.loop.arm()
    robot.run(10)
    (due_ns, (time_ns, _, _)) = robot.outputs.put_commands[-1]
    assert due_ns == robot.clock.now_ns()
    assert time_ns == robot.clock.now_ns() + LEAD_NS


def test_the_lead_changes_nothing_about_the_motion():
    def run(lead_ns):
        robot = Robot(lead_ns=lead_ns)
        robot.loop.arm()
        robot.run(400, level=0.2)
        return robot.outputs.sent[-1][1]

    np.testing.assert_allclose(run(0), run(LEAD_NS), atol=1e-6)


@pytest.mark.parametrize('lead_ns', [0, LEAD_NS])
def test_ages_do_not_hold_the_lead(lead_ns):
    watchdogs = {'chunk': {'timeout_ms': 500, 'action': 'decelerate'}}
    robot = Robot(lead_ns=lead_ns, watchdogs=watchdogs)
    robot.loop.arm()
    robot.run(1)
    robot.tick(99)
    assert robot.loop.snapshot().chunk_age_ms == 500.0
    assert robot.causes('alarm') == []
    robot.tick(2)
    assert robot.causes('alarm') == ['chunk_timeout']


@pytest.mark.parametrize('lead_ns', [0, LEAD_NS])
def test_quiet_is_when_the_last_command_has_been_due(lead_ns):
    robot = Robot(lead_ns=lead_ns)
    assert robot.loop.is_quiet
    robot.loop.arm()
    robot.run(200)
    assert not robot.loop.is_quiet
    robot.loop.disarm()
    while robot.state != 'unarmed':
        robot.tick()
    while not robot.loop.is_quiet:
        assert robot.loop.arm().cause == 'not_still'
        robot.tick()
    assert robot.clock.now_ns() == robot.outputs.sent[-1][0]
    assert robot.loop.arm().is_done


def test_a_dry_run_tells_commands_and_sends_none():
    robot = Robot(dry_run=True, missing=['arm'])
    robot.loop.arm()
    robot.run(100)
    assert all(position is not None for position in robot.told)
    assert robot.outputs.sent == []
    assert robot.loop.snapshot().is_dry_run


def test_nothing_starts_while_nobody_listens():
    robot = Robot(missing=['arm'])
    robot.loop.arm()
    assert robot.loop.offer(robot.chunk()).cause == 'no_subscriber'
    assert robot.loop.missing == ('arm',)
    robot.run(100)
    assert robot.outputs.sent == []
    robot.loop.note_subscribers(())
    robot.run(10)
    assert len(robot.outputs.sent) == 10


def test_a_robot_without_a_watch_starts_for_nobody():
    robot = Robot(missing=['arm'], watchdogs={'subscriber': {'timeout_ms': None}})
    robot.loop.arm()
    robot.run(10)
    assert len(robot.outputs.sent) == 10


def test_a_lost_subscriber_stops_the_robot():
    robot = Robot()
    robot.loop.arm()
    robot.run(200)
    robot.loop.note_subscribers(['arm'])
    robot.run(400)
    assert robot.state == 'stopped'
    assert robot.loop.snapshot().cause == 'subscriber_timeout'


def test_time_between_ticks_does_not_overtake_the_next_one():
    robot = Robot()
    robot.loop.arm()
    robot.run(100)
    robot.clock.advance(20 * PERIOD_NS)  # nobody ticks meanwhile
    assert robot.loop.offer(robot.chunk()).cause == ''
    robot.clock.advance(-20 * PERIOD_NS)
    robot.tick(10)
    times_ns = [time_ns for time_ns, _, _ in robot.outputs.sent]
    assert np.diff(times_ns).min() == PERIOD_NS
    assert robot.state != 'starved'


def test_a_closed_loop_closes_its_outputs():
    robot = Robot()
    robot.loop.close()
    robot.loop.offer(robot.chunk())
    robot.loop.close()
    assert robot.outputs.is_closed


def test_threads_may_ask_while_it_ticks():
    robot = Robot()
    robot.loop.arm()
    is_over = threading.Event()
    faults = []

    def ask():
        try:
            while not is_over.is_set():
                robot.loop.snapshot()
                robot.loop.note_subscribers(())
                robot.loop.is_quiet  # noqa: B018
        except Exception as error:  # noqa: BLE001 - told by the test's own thread
            faults.append(error)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    robot.run(300)
    is_over.set()
    for thread in threads:
        thread.join()
    assert faults == []
    assert robot.state == 'tracking'
    assert len(robot.outputs.sent) == 300
