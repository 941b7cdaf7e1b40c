# SPDX-License-Identifier: Apache-2.0
from dataclasses import asdict

import numpy as np
import pytest
from evaluation_builders import STEP_NS, columns, stream
from motion_builders import PERIOD_NS, collect, wide_limits

from vla_policy_ros.core.specs import Column, ColumnKind
from vla_policy_ros.evaluation.motion_metrics import ExecutorFacts, find_outside, measure_motion
from vla_policy_ros.evaluation.recording import ChunkRecording

FACTS = ExecutorFacts(period_ns=PERIOD_NS, starvations=1)
PER_STEP = STEP_NS // PERIOD_NS
STEPS = np.sin(np.arange(40)[:, None] * 0.1 + np.arange(2))
TIMES = np.arange(39 * PER_STEP + 1) / PER_STEP
FOLLOWED = np.stack(
    [np.interp(TIMES, np.arange(40), STEPS[:, index]) for index in range(2)], axis=1
)


def finish(positions, *, limits=True, changes=None, robot=None, cols=None):
    cols = cols or columns(np.shape(positions)[1])
    collector = collect(positions, cols=cols, changes=changes, robot=robot)
    return collector.finish(cols, wide_limits(cols) if limits else None)


def measure(motion, truth=None):
    chunks = stream(STEPS, horizon=4)
    return measure_motion(motion, chunks, chunks if truth is None else truth, executor=FACTS)


def outside(positions, **limits):
    cols = columns(np.shape(positions)[1])
    motion = collect(positions).finish(cols, wide_limits(cols, **limits))
    return find_outside(motion, period_ns=PERIOD_NS)


def test_commands_that_are_the_recording_have_no_error():
    figures = measure(finish(FOLLOWED))
    assert figures.error.max_error < 1e-6
    assert figures.num_outside == 0
    assert figures.duration_s == pytest.approx((len(FOLLOWED) - 1) * 0.01)
    assert figures.state_s == {'tracking': pytest.approx(len(FOLLOWED) * 0.01)}


def test_an_offset_is_the_error():
    figures = measure(finish(FOLLOWED + [0.0, 0.25]))
    assert figures.joint_errors['joint_0'].mae == pytest.approx(0.0, abs=1e-6)
    assert figures.joint_errors['joint_1'].mae == pytest.approx(0.25, abs=1e-6)


def test_only_what_follows_chunks_is_compared():
    far = FOLLOWED.copy()
    far[:20] += 5.0
    changes = {index: {'state': 'soft_start'} for index in range(20)}
    assert measure(finish(far, changes=changes)).error.max_error < 1e-6


def test_without_a_recording_there_is_no_error():
    figures = measure(finish(FOLLOWED), ChunkRecording())
    assert figures.error is None
    assert figures.truth_smoothness.mean_acceleration is None
    assert figures.smoothness.mean_acceleration > 0


def test_the_lag_is_what_lies_between_robot_and_command():
    assert measure(finish(FOLLOWED, robot=FOLLOWED - 0.01)).lag.mae == pytest.approx(0.01)
    assert measure(finish(FOLLOWED)).lag is None


def test_smoothness_of_a_motion_with_a_jump_at_its_seam():
    seam = 20 * PER_STEP
    jumping = FOLLOWED.copy()
    jumping[seam:] += [0.3, 0.4]
    changes = {seam: {'is_seam': True}}
    smooth, rough = (measure(finish(m, changes=changes)) for m in (FOLLOWED, jumping))
    assert rough.smoothness.max_boundary_jump == pytest.approx(0.5, abs=0.05)
    assert smooth.smoothness.max_boundary_jump < 0.02
    for name, value in asdict(rough.truth_smoothness).items():
        assert value == pytest.approx(getattr(smooth.smoothness, name), abs=1e-4), name
    assert rough.smoothness.num_boundaries == 1
    assert smooth.smoothness.mean_direction_cosine > 0.9 > rough.smoothness.mean_direction_cosine
    assert rough.smoothness.mean_acceleration > smooth.smoothness.mean_acceleration


def test_the_acceleration_is_that_of_the_chunks_on_the_same_motion():
    figures = measure(finish(FOLLOWED))
    second = np.diff(STEPS, 2, axis=0) / (STEP_NS / 1e9) ** 2
    expected = np.linalg.norm(second, axis=1).mean()
    assert figures.smoothness.mean_acceleration == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ('limits', 'names'),
    [
        ({}, set()),
        ({'position_max': [10.0, 0.5]}, {'position joint_1'}),
        ({'velocity': [1.0, 50.0]}, {'velocity joint_0'}),
        ({'acceleration': [1e5, 1.0]}, {'acceleration joint_1'}),
    ],
)
def test_what_is_outside_of_a_limit_is_counted(limits, names):
    assert outside(FOLLOWED, **limits).keys() == names


def test_rounding_is_not_outside():
    still = np.full((5, 1), 1.0 + 1e-8)
    assert outside(still, position_max=[1.0]) == {}


def test_a_jump_that_the_velocities_hide_is_found():
    positions = np.zeros((30, 1))
    positions[15:] = 1.0
    cols = columns(1)
    motion = collect(positions).finish(cols, wide_limits(cols))
    motion.velocities[:] = motion.accelerations[:] = 0.0
    assert find_outside(motion, period_ns=PERIOD_NS) == {'velocity joint_0': 1}


def test_a_pause_is_no_jump():
    collector = collect(np.zeros((10, 1)))
    motion = collector.finish(columns(1), wide_limits(columns(1)))
    motion.positions[5:] = 3.0
    motion.times_ns[5:] += 100 * PERIOD_NS
    assert find_outside(motion, period_ns=PERIOD_NS) == {}


def test_without_limits_nobody_knows():
    assert measure(finish(FOLLOWED, limits=False)).num_outside is None


def test_a_rotation_is_held_against_its_angular_velocity():
    cols = tuple(Column(name, '', ColumnKind.QUATERNION) for name in 'xyzw')
    collector = collect(np.tile([0.0, 0.0, 0.0, 1.0], (5, 1)), cols=cols)
    limits = wide_limits(
        cols,
        position_min=np.full(4, -np.inf),
        position_max=np.full(4, np.inf),
        velocity=np.full(4, 1.0),
    )
    motion = collector.finish(cols, limits)
    motion.velocities[2] = [0.8, 0.8, 0.0, 0.0]  # 1.13 rad/s, though no component is above 1
    assert find_outside(motion, period_ns=PERIOD_NS).keys() == {f'velocity {n}' for n in 'xyzw'}


def test_the_age_of_what_is_executed():
    changes = {index: {'sequence': index // PER_STEP} for index in range(len(FOLLOWED))}
    age = measure(finish(FOLLOWED, changes=changes)).chunk_age
    assert age.max_ms == pytest.approx((PER_STEP - 1) * 10)
    assert measure(finish(FOLLOWED, changes={0: {}})).chunk_age.max_ms > 1000


def test_a_run_without_commands():
    motion = collect(np.zeros((0, 2))).finish(columns(2), None)
    assert measure(motion).num_commands == 0


def test_what_a_limit_changed_is_counted():
    changes = {index: {'is_limited': np.array([False, True])} for index in (3, 4)}
    assert measure(finish(FOLLOWED, changes=changes)).acted == {'joint_1': 2}
