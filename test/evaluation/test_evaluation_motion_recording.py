# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from evaluation_builders import columns
from motion_builders import PERIOD_NS, collect, sample, wide_limits

from vla_policy_ros.core.errors import DatasetError, SpecMismatchError
from vla_policy_ros.core.specs import Column, ColumnKind
from vla_policy_ros.evaluation.motion_recording import MotionCollector, MotionRecording

RAMP = np.stack([np.linspace(0, 1, 50), np.linspace(1, 0, 50)], axis=1)
COLUMNS = (Column('lift', 'm'), Column('grip', '1', ColumnKind.GRIPPER))


def test_what_was_saved_is_read_back(tmp_path):
    motion = collect(RAMP, cols=COLUMNS, changes={3: {'is_seam': True}}, robot=RAMP).finish(
        COLUMNS, wide_limits(COLUMNS)
    )
    motion.save(tmp_path)
    loaded = MotionRecording.load(tmp_path)
    assert loaded.columns == COLUMNS
    assert loaded.seams_ns.tolist() == [3 * PERIOD_NS]
    np.testing.assert_array_equal(loaded.positions, motion.positions)
    np.testing.assert_array_equal(loaded.robot_positions, RAMP)
    np.testing.assert_array_equal(loaded.states, motion.states)
    np.testing.assert_array_equal(loaded.limits.velocity, motion.limits.velocity)


def test_without_limits_none_are_read(tmp_path):
    collect(RAMP).finish(columns(2), None).save(tmp_path)
    assert MotionRecording.load(tmp_path).limits is None


def test_a_run_without_a_command_can_be_saved(tmp_path):
    MotionCollector().finish(COLUMNS, None).save(tmp_path)
    assert len(MotionRecording.load(tmp_path)) == 0


def test_a_run_of_no_known_column_can_be_told():
    assert MotionCollector().finish((), None).positions.shape == (0, 0)


def test_a_missing_file_is_a_dataset_error(tmp_path):
    with pytest.raises(DatasetError, match=r'commands\.npz'):
        MotionRecording.load(tmp_path)


def test_time_that_goes_back_is_left_out():
    collector = collect(RAMP)
    names = ('joint_0', 'joint_1')
    collector.add_command(sample(20, RAMP[0], velocity=RAMP[0], acceleration=RAMP[0], names=names))
    motion = collector.finish(columns(2), None)
    assert len(motion) == len(RAMP)
    assert (np.diff(motion.times_ns) > 0).all()


def test_other_columns_are_refused():
    collector = collect(RAMP)
    other = sample(99, [0.0], velocity=[0.0], acceleration=[0.0], names=('other',))
    with pytest.raises(SpecMismatchError, match='other'):
        collector.add_command(other)


def test_the_robot_between_its_poses():
    motion = collect(RAMP, robot=RAMP).finish(columns(2), None)
    at = np.array([PERIOD_NS // 2, 10_000 * PERIOD_NS])
    found = motion.robot_at(at)
    np.testing.assert_allclose(found[0], (RAMP[0] + RAMP[1]) / 2)
    assert np.isnan(found[1]).all()


def test_a_twist_has_no_place_to_be_compared_with():
    cols = (Column('base', 'm/s', ColumnKind.TWIST), Column('lift', 'm'))
    motion = collect(RAMP, cols=cols, robot=RAMP).finish(cols, None)
    assert np.isnan(motion.robot_positions[:, 0]).all()
    np.testing.assert_array_equal(motion.robot_positions[:, 1], RAMP[:, 1])
