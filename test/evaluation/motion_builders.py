# SPDX-License-Identifier: Apache-2.0
"""Commands of an executor at 100 Hz, made of any motion."""

import numpy as np
from evaluation_builders import MS, columns

from vla_policy_ros.evaluation.motion_recording import MotionCollector, MotionSample
from vla_policy_ros.execution.limits import JointLimits

PERIOD_NS = 10 * MS


def sample(index, position, *, velocity, acceleration, names, **changes):
    given = {
        'is_limited': np.zeros(len(names), bool),
        'state': 'tracking',
        'sequence': 0,
        'epoch': 0,
        'is_seam': False,
        **changes,
    }
    return MotionSample(
        time_ns=index * PERIOD_NS,
        names=names,
        positions=np.asarray(position, np.float64),
        velocities=np.asarray(velocity, np.float64),
        accelerations=np.asarray(acceleration, np.float64),
        **given,
    )


def collect(positions, *, cols=None, changes=None, robot=None):
    """Commands of (N, D) positions; `changes` gives keywords of single samples, `robot` (N, D) poses."""
    positions = np.asarray(positions, np.float64)
    names = tuple(column.name for column in cols or columns(positions.shape[1]))
    velocities = np.diff(positions, axis=0, prepend=positions[:1]) / (PERIOD_NS / 1e9)
    accelerations = np.diff(velocities, axis=0, prepend=velocities[:1]) / (PERIOD_NS / 1e9)
    collector = MotionCollector()
    rows = zip(positions, velocities, accelerations, strict=True)
    for index, (position, velocity, acceleration) in enumerate(rows):
        collector.add_command(
            sample(
                index,
                position,
                velocity=velocity,
                acceleration=acceleration,
                names=names,
                **(changes or {}).get(index, {}),
            )
        )
    for index, pose in enumerate([] if robot is None else robot):
        collector.add_pose(index * PERIOD_NS, dict(zip(names, pose, strict=True)))
    return collector


def wide_limits(cols, **changes):
    num = len(cols)
    values = {
        'position_min': np.full(num, -10.0),
        'position_max': np.full(num, 10.0),
        'velocity': np.full(num, 50.0),
        'acceleration': np.full(num, 1e5),
        'jerk': np.full(num, np.inf),
    }
    return JointLimits(columns=tuple(cols), **(values | changes))
