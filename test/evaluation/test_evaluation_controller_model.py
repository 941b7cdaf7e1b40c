# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import numpy as np
import pytest

from vla_policy_ros.core.errors import ConfigurationError
from vla_policy_ros.evaluation.controller_model import Goal, JointTrajectoryController

MS = 1_000_000
PERIOD_NS = 5 * MS
STEP_NS = 50 * MS
HORIZON = 16
JOINTS = ('pan', 'lift', 'elbow')
LIMIT = 8.0  # rad/s^2


def controller(rules='jazzy', *, joints=('a',), position=(0.0,), **kwargs):
    return JointTrajectoryController(joints, np.array(position), rules=rules, **kwargs)


def goal(times_ms, positions, velocities=None, accelerations=None, **kwargs):
    def column(values):
        return None if values is None else np.array(values, np.float64)[:, None]

    return Goal(
        names=('a',),
        after_ns=np.array(times_ms, np.int64) * MS,
        positions=column(positions),
        velocities=column(velocities),
        accelerations=column(accelerations),
        **kwargs,
    )


def positions_at(model, *times_ms):
    return [float(model.update(at * MS)[0][0]) for at in times_ms]


def test_it_holds_until_something_comes():
    assert positions_at(controller(position=(0.3,)), 0, 500) == [0.3, 0.3]


@pytest.mark.parametrize(
    ('message', 'cause'),
    [
        (replace(goal([100], [1]), names=('b',)), 'wrong_joints'),
        (replace(goal([100], [1]), names=('a', 'b')), 'wrong_joints'),
        (goal([], []), 'no_points'),
        (goal([100, 200], [1]), 'wrong_size'),
        (goal([100, 200], [1, 2], [0]), 'wrong_size'),
        (goal([100, 200], [1, 2], [0, 0], [0]), 'wrong_size'),
        (goal([100, 200], [1, 2], [0, 1e-6]), 'ends_moving'),
        (goal([100, 200], [1, 2], [0, 0], stamp_ns=1 * MS), 'all_past'),
        (goal([200, 200], [1, 2]), 'not_increasing'),
        (goal([200, 100], [1, 2], stamp_ns=900 * MS), 'not_increasing'),
    ],
)
def test_what_is_refused_and_why(message, cause):
    model = controller()
    assert model.accept(message, 1000 * MS) == cause
    assert dict(model.refused) == {cause: 1}
    assert model.accepted == 0
    assert positions_at(model, 1000, 1300) == [0.0, 0.0]


def test_partly_past_and_stamped_zero_is_taken():
    model = controller()
    assert model.accept(goal([100, 300], [1, 2], stamp_ns=800 * MS), 1000 * MS) is None
    assert model.accept(goal([1], [1]), 1000 * MS) is None
    assert model.accept(goal([100, 200], [1, 2], [0, 1e-8]), 0) is None
    assert model.accepted == 3


@pytest.mark.parametrize(('rules', 'cause'), [('humble', None), ('jazzy', 'ends_moving')])
def test_the_default_for_a_moving_end_depends_on_the_release(rules, cause):
    moving = goal([100, 200], [1, 2], [1, 1])
    assert controller(rules).accept(moving, 0) == cause
    allowed = controller(rules, allow_nonzero_velocity_at_trajectory_end=True)
    assert allowed.accept(moving, 0) is None


def test_joints_may_come_in_any_order():
    model = controller(joints=('a', 'b'), position=(0.0, 0.0))
    model.update(0)
    message = Goal(
        names=('b', 'a'), after_ns=np.array([100 * MS]), positions=np.array([[2.0, 1.0]])
    )
    assert model.accept(message, 0) is None
    assert model.update(100 * MS)[0].tolist() != [1.0, 2.0]
    assert model.update(200 * MS)[0].tolist() == [1.0, 2.0]


def test_positions_alone_are_joined_linearly():
    model = controller()
    model.accept(goal([100, 200], [1, 3]), 0)
    assert positions_at(model, 0, 50, 100, 150, 200, 400) == pytest.approx([0, 0.5, 1, 2, 3, 3])
    assert model.largest_velocity_step[0] == pytest.approx(20.0)


def polynomial(order):
    """Return a polynomial and its derivatives at given times."""
    factors = np.polynomial.Polynomial([0.1, 0.4, -1.5, 2.0, 0.7, -0.9][: order + 1])
    return factors, factors.deriv(), factors.deriv(2)


@pytest.mark.parametrize('order', [3, 5])
def test_splines_reproduce_polynomials_of_their_order(order):
    model = controller(position=(0.1,), allow_nonzero_velocity_at_trajectory_end=True)
    curves = polynomial(order)
    times_ms = np.array([0, 300, 400, 1000])
    fields = [curve(times_ms / 1e3) for curve in curves[: 2 if order == 3 else 3]]
    model.accept(goal(times_ms, *fields), 0)
    for at_ms in range(0, 1000, 40):
        position, velocity = model.update(at_ms * MS)
        assert position[0] == pytest.approx(curves[0](at_ms / 1e3))
        assert velocity[0] == pytest.approx(curves[1](at_ms / 1e3))


def test_without_interpolation_the_next_point_is_taken():
    model = controller(interpolation='none')
    model.accept(goal([100, 200], [1, 3]), 0)
    assert positions_at(model, 0, 99, 100, 199, 200, 300) == [0, 0, 3, 3, 3, 3]


def test_a_start_in_the_future_is_waited_for():
    model = controller('lyrical')
    model.update(0)
    model.accept(goal([0, 100], [0, 1], [0, 0], stamp_ns=200 * MS), 0)
    assert positions_at(model, 100, 200, 250, 300) == pytest.approx([0, 0, 0.5, 1])


RAMP = goal([0, 1000], [0, 1], [1, 1])
NEW = goal([0, 400], [0.6, 1], [1, 1], stamp_ns=600 * MS)


def ramping(rules, **kwargs):
    model = controller(rules, allow_nonzero_velocity_at_trajectory_end=True, **kwargs)
    model.accept(RAMP, 0)
    for at_ms in range(0, 500, 5):
        model.update(at_ms * MS)
    model.accept(NEW, 496 * MS)
    return model


def test_jazzy_goes_from_the_measured_state_to_the_first_point():
    model = ramping('jazzy')
    model.measure(np.array([0.3]), np.array([1.0]))
    assert positions_at(model, 500, 600) == pytest.approx([0.3, 0.6])


def test_a_state_without_velocity_counts_as_still():
    model = ramping('jazzy')
    model.measure(np.array([0.3]))
    assert model.update(500 * MS)[1][0] == 0.0


def test_jazzy_goes_on_from_the_desired_state():
    model = ramping('jazzy', interpolate_from_desired_state=True)
    model.measure(np.array([0.3]), np.array([0.0]))
    assert positions_at(model, 500, 550, 600) == pytest.approx([0.5, 0.55, 0.6])


def test_humble_repeats_the_last_command():
    model = ramping('humble', interpolate_from_desired_state=True)
    assert positions_at(model, 500) == pytest.approx([0.495])
    assert model.largest_velocity_step[0] == pytest.approx(1.0)
    assert positions_at(model, 600) == pytest.approx([0.6])


@pytest.mark.parametrize('splices', [True, False])
def test_lyrical_keeps_the_old_trajectory_up_to_the_stamp(splices):
    model = controller(
        'lyrical', allow_trajectory_replacement=splices, interpolate_from_desired_state=True
    )
    model.accept(goal([0, 100, 200, 1000], [0, 0.5, 0, 0], [0, 0, 0, 0]), 0)
    model.update(0)
    model.accept(goal([0, 100], [0, 1], [0, 0], stamp_ns=300 * MS), 2 * MS)
    old = positions_at(model, 5, 100, 200, 300, 400)
    expected = [0.5, 0.0] if splices else [0.0, 0.0]
    assert old[1:] == pytest.approx([*expected, 0.0, 1.0], abs=1e-9)


def test_lyrical_starts_smoothly_where_the_first_point_lies_later_than_the_stamp():
    model = controller('lyrical', interpolate_from_desired_state=True)
    model.accept(goal([0, 1000], [0, 1], [1, 0]), 0)
    model.update(0)
    model.accept(goal([500], [0], [0], stamp_ns=100 * MS), 1 * MS)
    reference = controller('jazzy')
    reference.accept(goal([0, 1000], [0, 1], [1, 0]), 0)
    reference.update(0)
    assert model.update(100 * MS)[0] == pytest.approx(reference.update(100 * MS)[0])
    assert model.update(110 * MS)[1][0] == pytest.approx(reference.update(110 * MS)[1][0], rel=0.2)
    assert positions_at(model, 600) == pytest.approx([0.0], abs=1e-12)


def test_lyrical_moves_a_start_in_the_past_to_now():
    model = controller('lyrical')
    model.accept(goal([0, 1000], [0, 0], [0, 0]), 0)
    model.update(0)
    model.accept(goal([0, 100], [0.2, 1], [0, 0], stamp_ns=100 * MS), 150 * MS)
    assert positions_at(model, 155, 255) == pytest.approx([0.2, 1.0])


def test_past_points_are_passed_over_where_the_old_trajectory_is_forgotten():
    model = controller('jazzy')
    model.update(140 * MS)
    model.accept(goal([0, 100], [0.2, 1], stamp_ns=100 * MS), 149 * MS)
    assert positions_at(model, 150, 200) == pytest.approx([0.6, 1.0])


def test_after_the_timeout_the_measured_position_is_held():
    model = controller(cmd_timeout_ns=100 * MS)
    model.accept(goal([0, 100], [0, 1]), 0)
    positions_at(model, 0, 100)
    model.measure(np.array([0.9]))
    assert positions_at(model, 200, 201, 400) == [1.0, 0.9, 0.9]
    assert model.timeouts == 1


@pytest.mark.parametrize(
    'wrong', [{'rules': 'noetic'}, {'rules': 'humble', 'allow_trajectory_replacement': True}]
)
def test_what_a_release_does_not_have_is_refused(wrong):
    with pytest.raises(ConfigurationError):
        controller(**wrong)


# Streams of chunks


class Rows:
    """A chunk with central differences as velocities."""

    def __init__(self, rows, start_ns):
        self.start_ns = start_ns
        self.positions = rows
        self.velocities = np.gradient(rows, STEP_NS / 1e9, axis=0)
        self.after_ns = np.arange(len(rows)) * STEP_NS


class Policy:
    """A slow motion of three joints; every chunk sees it with an error of its own."""

    def __init__(self, seed):
        self._rng = np.random.default_rng(seed)
        self._phase = self._rng.uniform(0, 2 * np.pi, 3)
        self._rate = self._rng.uniform(0.5, 1.5, 3)

    def motion(self, times_s):
        return np.sin(np.multiply.outer(times_s, self._rate) + self._phase)

    def chunk(self, start_ns):
        times_s = (start_ns + np.arange(HORIZON) * STEP_NS) / 1e9
        drift = self._rng.normal(0, 0.05, 3) * (times_s - times_s[0])[:, None]
        return Rows(self.motion(times_s) + self._rng.normal(0, 0.02, 3) + drift, start_ns)

    def delay_ns(self):
        return int(self._rng.integers(0, HORIZON // 2 * STEP_NS))

    def transport_ns(self):
        return int(self._rng.integers(0, 12 * MS))


def run(model, policy, send, *, duration_ns=3000 * MS, lag=0.0):
    """Run a stream: one inference after the other, each message some time under way; the robot lags behind."""
    inbox, chunk, done_ns = [], None, 0
    measured = policy.motion(0.0)
    for now_ns in range(PERIOD_NS, duration_ns, PERIOD_NS):
        if now_ns >= done_ns:
            if chunk is not None and policy.delay_ns() > STEP_NS // 4:  # else: a lost chunk
                message = send(chunk, now_ns)
                inbox += [] if message is None else [(now_ns + policy.transport_ns(), message)]
            chunk, done_ns = policy.chunk(now_ns), now_ns + policy.delay_ns()
        while inbox and inbox[0][0] <= now_ns:
            model.accept(inbox.pop(0)[1], now_ns)
        model.measure(measured)
        position, _ = model.update(now_ns)
        measured = lag * measured + (1 - lag) * position


def send_next_row(chunk, now_ns):
    """Send what comes next as a single position, now."""
    row = min((now_ns - chunk.start_ns) // STEP_NS + 1, HORIZON - 1)
    return Goal(names=JOINTS, after_ns=np.array([STEP_NS]), positions=chunk.positions[row][None])


def send_chunk(chunk, now_ns, *, has_velocities=False):
    """Send all rows as they are, starting now."""
    velocities = chunk.velocities if has_velocities else None
    return Goal(
        names=JOINTS, after_ns=chunk.after_ns, positions=chunk.positions, velocities=velocities
    )


@pytest.mark.parametrize('send', [send_next_row, send_chunk])
@pytest.mark.parametrize('rules', ['humble', 'jazzy', 'lyrical'])
def test_naive_trajectories_show_velocity_steps(rules, send):
    policy = Policy(3)
    model = controller(rules, joints=JOINTS, position=policy.motion(0.0))
    run(model, policy, send, lag=0.9)
    assert model.accepted > 3
    assert (model.largest_velocity_step > 3 * LIMIT * PERIOD_NS / 1e9).all()


@pytest.mark.parametrize('rules', ['jazzy', 'lyrical'])
def test_chunks_that_end_moving_are_all_refused(rules):
    policy = Policy(3)
    model = controller(rules, joints=JOINTS, position=policy.motion(0.0))
    run(model, policy, lambda chunk, now_ns: send_chunk(chunk, now_ns, has_velocities=True))
    assert model.accepted == 0
    assert set(model.refused) == {'ends_moving'}
