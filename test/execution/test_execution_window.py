# SPDX-License-Identifier: Apache-2.0
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_policy_ros.core.specs import Column, ColumnKind
from vla_policy_ros.evaluation.controller_model import Goal, JointTrajectoryController
from vla_policy_ros.execution.kinds import ColumnMath
from vla_policy_ros.execution.limiter import MotionLimiter
from vla_policy_ros.execution.limits import ColumnLimits, check_limits, choose_limits
from vla_policy_ros.execution.window import CommandWindow, DelayLine

MS = 1_000_000
PERIOD_NS = 5 * MS
LEAD_NS = 50 * MS
EVERY_NS = 20 * MS
START_NS = 100_000 * MS
COLUMNS = (
    Column('lift', 'm'),
    Column('wrist', 'rad', ColumnKind.ANGLE),
    Column('elbow', 'rad'),
    Column('hand', '', ColumnKind.GRIPPER),
)
NAMES = tuple(column.name for column in COLUMNS)
VELOCITY, ACCELERATION = 2.0, 10.0
LIMITS = check_limits(
    COLUMNS,
    {
        'lift': ColumnLimits(
            position_min=-1.0, position_max=1.0, velocity=VELOCITY, acceleration=ACCELERATION
        ),
        'wrist': ColumnLimits(velocity=VELOCITY, acceleration=ACCELERATION),
        'elbow': ColumnLimits(
            position_min=-1.0,
            position_max=1.0,
            velocity=VELOCITY,
            acceleration=ACCELERATION,
            jerk=200.0,
        ),
        'hand': ColumnLimits(
            position_min=0.0, position_max=1.0, velocity=VELOCITY, acceleration=ACCELERATION
        ),
    },
)
CONTROLLERS = {
    'humble': {'rules': 'humble', 'allow_nonzero_velocity_at_trajectory_end': False},
    'humble from desired': {'rules': 'humble', 'interpolate_from_desired_state': True},
    'jazzy': {'rules': 'jazzy'},
    'jazzy from desired': {'rules': 'jazzy', 'interpolate_from_desired_state': True},
    'lyrical': {'rules': 'lyrical', 'allow_trajectory_replacement': False},
}


class Wanted(NamedTuple):
    position: np.ndarray
    velocity: np.ndarray


class Commands:
    """A limited stream of commands towards targets that jump."""

    def __init__(self, seed, limits=LIMITS, *, start=None):
        self.rng = np.random.default_rng(seed)
        size = len(limits.columns)
        self.limiter = MotionLimiter(limits, ColumnMath(limits.columns), period_ns=PERIOD_NS)
        self.start = np.full(size, 0.1) if start is None else start
        self.limiter.start(self.start)
        self.target, self.rate = self.start.copy(), np.zeros(size)

    def next(self, *, is_ending=False):
        if is_ending:
            limited = self.limiter.stop_step()
        else:
            if self.rng.random() < 0.05:
                self.target = self.rng.uniform(-1.2, 1.2, len(self.start))
                self.rate = self.rng.uniform(-1, 1, len(self.start))
                self.rate[-1] = 0.0
            self.target = self.target + self.rate * PERIOD_NS * 1e-9
            limited = self.limiter.step(Wanted(self.target, self.rate))
        return limited.position.copy(), limited.velocity.copy()


class Robot:
    """One simulated controller behind a lossy, slow line; it updates between the ticks of the executor."""

    UPDATE_NS = 4 * MS

    def __init__(self, start, *, now_ns=START_NS, lag=0.0, **parameters):
        self.model = JointTrajectoryController(NAMES, start, **parameters)
        self.inbox = []
        self.now_ns = now_ns
        self.lag, self.measured = lag, start
        self.trace = []

    def send(self, points, *, arrives_ns):
        message = Goal(
            names=NAMES,
            after_ns=points.after_ns,
            positions=points.positions,
            velocities=points.velocities,
            stamp_ns=points.stamp_ns,
        )
        self.inbox.append((arrives_ns, message))

    def run_until(self, end_ns):
        while self.now_ns + self.UPDATE_NS <= end_ns:
            self.now_ns += self.UPDATE_NS
            for arrives_ns, message in [item for item in self.inbox if item[0] <= self.now_ns]:
                self.inbox.remove((arrives_ns, message))
                self.model.accept(message, self.now_ns)
            self.model.measure(self.measured)
            position, velocity = self.model.update(self.now_ns)
            self.measured = self.lag * self.measured + (1 - self.lag) * position
            self.trace.append((self.now_ns, position, velocity))

    def assert_within_limits(self):
        assert not self.model.refused
        assert (self.model.largest_velocity <= VELOCITY * (1 + 1e-6)).all()
        assert (self.model.largest_acceleration <= ACCELERATION * (1 + 1e-6)).all()
        positions = np.array([position for _, position, _ in self.trace])
        assert (positions >= LIMITS.position_min - 1e-9).all()
        assert (positions <= LIMITS.position_max + 1e-9).all()


class Run:
    """Executor, line and robot in one time."""

    def __init__(self, seed, *, columns=LIMITS, **parameters):
        self.commands = Commands(seed)
        self.window = CommandWindow(columns, period_ns=PERIOD_NS)
        self.robot = Robot(self.commands.start, **parameters)
        self.now_ns = START_NS
        self.sent_ns = None
        self.due = {}
        self.messages = []

    def tick(self, *, delay_ns=0, is_lost=False, is_ending=False, command=None):
        """One tick of the executor; what it sends is lost or arrives late."""
        self.robot.run_until(self.now_ns)
        position, velocity = command or self.commands.next(is_ending=is_ending)
        due_ns = self.now_ns + LEAD_NS
        self.due[due_ns] = position
        self.window.put(position, velocity, due_ns, now_ns=self.now_ns)
        if self.sent_ns is None or self.now_ns - self.sent_ns >= EVERY_NS:
            self.sent_ns = self.now_ns
            points = self.window.points(self.now_ns)
            self.messages.append(points)
            if points is not None and not is_lost:
                self.robot.send(points, arrives_ns=self.now_ns + delay_ns)
        self.now_ns += PERIOD_NS

    def ticks(self, count, **changes):
        for _ in range(count):
            self.tick(**changes)


@pytest.mark.parametrize('parameters', CONTROLLERS.values(), ids=CONTROLLERS)
@settings(max_examples=8)
@given(seed=st.integers(0, 10_000), lag=st.sampled_from([0.0, 0.9]))
def test_a_controller_follows_within_the_limits(parameters, seed, lag):
    """Messages get lost or come late, but before the stop of the last one begins."""
    run = Run(seed, lag=lag, **parameters)
    line = np.random.default_rng(seed)
    last_was_lost = True
    for _ in range(300):
        is_lost = not last_was_lost and line.random() < 0.3
        late_ns = 2 * MS if last_was_lost else 20 * MS
        before = len(run.messages)
        run.tick(delay_ns=int(line.integers(0, late_ns)), is_lost=is_lost)
        if len(run.messages) > before:
            last_was_lost = is_lost
    run.ticks(120, is_ending=True)
    run.robot.run_until(run.now_ns + LEAD_NS)
    assert run.robot.model.accepted > 40
    assert (run.robot.model.largest_velocity > 0.5).all()
    run.robot.assert_within_limits()
    assert np.allclose(run.robot.measured, run.commands.limiter.position, atol=1e-9) or lag
    half_bow = ACCELERATION * (PERIOD_NS * 1e-9) ** 2 / 8
    followed = [(p, run.due[t]) for t, p, _ in run.robot.trace if t in run.due]
    assert len(followed) > 50
    assert max(np.abs(p - command).max() for p, command in followed) <= half_bow + 1e-9


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000))
def test_points_lie_half_way_between_commands_with_the_acceleration_of_the_commands_between(seed):
    run = Run(seed, rules='jazzy')
    run.ticks(80)
    limits = np.full(4, ACCELERATION)
    for points in run.messages:
        spans_s = np.diff(points.times_ns)[:, None] * 1e-9
        ways, velocities = np.diff(points.positions, axis=0), points.velocities
        trapezoid = 0.5 * spans_s * (velocities[1:] + velocities[:-1])
        assert np.abs(ways - trapezoid).max() <= 1e-12  # a cubic between them is a parabola
        assert np.abs(velocities).max() <= VELOCITY * (1 + 1e-9)
        accelerations = np.diff(velocities, axis=0) / spans_s
        assert (np.abs(accelerations) <= limits * (1 + 1e-6)).all()
        assert (velocities[-1] == 0.0).all()
        assert (np.diff(points.after_ns) > 0).all()
        assert len(points.times_ns) < 120
    points = run.messages[5]
    time_ns = points.stamp_ns + PERIOD_NS // 2
    middle = 0.5 * (run.due[time_ns] + run.due[time_ns - PERIOD_NS])
    assert points.positions[0] == pytest.approx(middle, abs=1e-12)


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000), ticks=st.integers(1, 150))
def test_an_executor_that_dies_leaves_a_robot_at_rest(seed, ticks):
    run = Run(seed, rules='jazzy')
    run.ticks(ticks)
    run.robot.run_until(run.now_ns + 3000 * MS)
    run.robot.assert_within_limits()
    assert (run.robot.trace[-1][2] == 0.0).all()


def test_the_stop_keeps_jerk_limits():
    run = Run(3, rules='jazzy')
    run.ticks(60)
    run.window.points(run.now_ns)
    stop = run.window._stop.rows(run.window._rows[-3:])
    rows = np.concatenate([run.window._rows, stop])[:, 2]
    jerks = np.diff(rows, 3) / (PERIOD_NS * 1e-9) ** 3
    assert len(stop) > 5
    assert np.abs(jerks).max() <= 200.0 * (1 + 1e-5)


@pytest.mark.parametrize('stall_ms', [30, 45, 60, 200, 1500])
@settings(max_examples=8)
@given(seed=st.integers(0, 10_000))
def test_an_executor_that_stood_still_catches_up_within_the_limits(stall_ms, seed):
    """The stop has begun meanwhile; the commands go on where they were."""
    run = Run(seed, rules='jazzy')
    run.ticks(60)
    run.now_ns += stall_ms * MS
    run.ticks(200)
    run.ticks(200, is_ending=True)
    run.robot.run_until(run.now_ns + 2 * LEAD_NS)
    run.robot.assert_within_limits()
    assert run.robot.measured == pytest.approx(run.commands.limiter.position, abs=1e-8)


def test_late_ticks_take_from_the_lead_and_give_it_back_at_rest():
    run = Run(1, rules='jazzy')
    run.ticks(60)
    run.now_ns += 10 * MS
    run.ticks(20)
    assert run.window._times_ns[-1] == run.now_ns - PERIOD_NS + LEAD_NS - 10 * MS
    assert not run.window._is_following
    run.ticks(200, is_ending=True)
    assert run.window._times_ns[-1] == run.now_ns - PERIOD_NS + LEAD_NS
    run.robot.assert_within_limits()


@pytest.mark.parametrize('back_ms', [200, 10_000])
def test_a_clock_that_jumps_back_begins_at_rest(back_ms):
    run = Run(2, rules='jazzy')
    run.ticks(60)
    run.now_ns -= back_ms * MS
    run.sent_ns = None
    run.due.clear()
    position, velocity = run.commands.next()
    run.window.put(position, velocity, run.now_ns + LEAD_NS, now_ns=run.now_ns)
    points = run.window.points(run.now_ns)
    assert (points.velocities[0] == 0.0).all()
    assert run.now_ns < points.stamp_ns < run.now_ns + LEAD_NS


def test_consecutive_messages_agree_up_to_the_stop():
    run = Run(4, rules='jazzy')
    run.ticks(80)
    for one, other in zip(run.messages[3:], run.messages[4:], strict=False):
        models = [JointTrajectoryController(NAMES, one.positions[0], rules='jazzy') for _ in '12']
        robot_times = np.arange(other.stamp_ns + MS, one.stamp_ns + LEAD_NS - PERIOD_NS, 2 * MS)
        traces = []
        for model, points in zip(models, (one, other), strict=True):
            message = Goal(
                names=NAMES,
                after_ns=points.after_ns,
                positions=points.positions,
                velocities=points.velocities,
                stamp_ns=points.stamp_ns,
            )
            model.update(0)
            model.accept(message, int(robot_times[0]))
            traces.append([model.update(int(time_ns))[0] for time_ns in robot_times])
        assert len(robot_times) > 10
        assert np.abs(np.array(traces[0]) - np.array(traces[1])).max() <= 1e-12


def test_splicing_on_lyrical_moves_what_has_begun_and_must_be_off():
    run = Run(5, rules='lyrical')
    line = np.random.default_rng(5)
    for _ in range(200):
        run.tick(delay_ns=int(line.integers(0, 15 * MS)))
    assert not run.robot.model.refused
    assert (run.robot.model.largest_acceleration > 3 * ACCELERATION).any()


def test_angles_go_on_beyond_a_turn():
    """The controller does not wrap, and neither does what it gets."""
    columns = (Column('wheel', 'rad', ColumnKind.ANGLE),)
    limits = check_limits(columns, {'wheel': ColumnLimits(velocity=4.0, acceleration=10.0)})
    limiter = MotionLimiter(limits, ColumnMath(columns), period_ns=PERIOD_NS)
    limiter.start(np.array([3.0]))
    window, newest = CommandWindow(limits, period_ns=PERIOD_NS), None
    for tick in range(1000):
        angle = 3.0 + 3.0 * tick * PERIOD_NS * 1e-9
        wrapped = np.array([(angle + np.pi) % (2 * np.pi) - np.pi])
        limited = limiter.step(Wanted(wrapped, np.array([3.0])))
        now_ns = START_NS + tick * PERIOD_NS
        window.put(limited.position, limited.velocity, now_ns + LEAD_NS, now_ns=now_ns)
        points = window.points(now_ns)
        if newest is not None:
            assert abs(points.positions[0, 0] - newest) <= 4.0 * PERIOD_NS * 1e-9 + 1e-9
        newest = points.positions[0, 0]
    assert newest > 15.0


def test_a_gripper_without_speed_limits_closes_within_a_period():
    columns = (Column('hand', '', ColumnKind.GRIPPER),)
    limits = check_limits(columns, {'hand': ColumnLimits(position_min=0, position_max=1)})
    limiter = MotionLimiter(limits, ColumnMath(columns), period_ns=PERIOD_NS)
    limiter.start(np.zeros(1))
    window = CommandWindow(limits, period_ns=PERIOD_NS)
    for tick, level in enumerate([0, 0, 0, 1, 1, 1]):
        limited = limiter.step(Wanted(np.array([float(level)]), np.zeros(1)))
        now_ns = START_NS + tick * PERIOD_NS
        window.put(limited.position, limited.velocity, now_ns + LEAD_NS, now_ns=now_ns)
    points = window.points(START_NS)
    assert points.positions[:, 0].tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]
    assert points.velocities[:, 0].tolist() == [0.0, 0.0, 200.0, 0.0, 0.0]


def test_nothing_is_left_after_the_last_point():
    window = CommandWindow(LIMITS, period_ns=PERIOD_NS)
    assert window.points(START_NS) is None
    still = np.full(4, 0.2), np.zeros(4)
    window.put(*still, START_NS + LEAD_NS, now_ns=START_NS)
    points = window.points(START_NS)
    assert (points.positions == 0.2).all()
    assert window.points(int(points.times_ns[-1]) - 1) is not None
    assert window.points(int(points.times_ns[-1])) is None
    window.clear()
    assert window.points(START_NS) is None


def test_points_at_the_beginning_of_simulated_time_have_no_stamp_of_zero():
    window = CommandWindow(LIMITS, period_ns=PERIOD_NS)
    for tick in range(4):
        now_ns = tick * PERIOD_NS
        window.put(np.full(4, 0.2), np.zeros(4), now_ns, now_ns=now_ns)
        assert window.points(now_ns).stamp_ns > 0


@pytest.mark.parametrize('num_ticks', [0, 1, 10])
def test_a_delay_line_gives_everything_back_in_order(num_ticks):
    line = DelayLine(num_ticks=num_ticks, num_columns=2)
    given = [(np.full(2, i), np.full(2, -i)) if i % 3 else None for i in range(30)]
    got = []
    for command in [*given, *[None] * num_ticks]:
        due = line.shift(command)
        got.append(None if due is None else due.copy())
    assert got[:num_ticks] == [None] * num_ticks
    for command, due in zip(given, got[num_ticks:], strict=True):
        assert (command is None) == (due is None)
        if command is not None:
            assert np.array_equal(due, command)
    line.shift((np.ones(2), np.ones(2)))
    line.clear()
    assert all(line.shift(None) is None for _ in range(num_ticks + 1))


def test_limits_of_some_columns():
    chosen = choose_limits(LIMITS, [2, 0])
    assert [column.name for column in chosen.columns] == ['elbow', 'lift']
    assert chosen.jerk.tolist() == [200.0, np.inf]
