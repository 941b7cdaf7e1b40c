# SPDX-License-Identifier: Apache-2.0
import numpy as np

from vla_policy_ros.deployment.executor import load_executor
from vla_policy_ros.msg import ExecutorStatus, MotionCommand
from vla_policy_ros.ros.convert import to_time
from vla_policy_ros.ros.motion_messages import executor_facts, motion_sample
from vla_policy_ros.sample import sample_executor_path


def test_a_command_becomes_a_sample():
    message = MotionCommand(
        state='tracking',
        names=['lift', 'hand'],
        positions=[0.1, 0.2],
        velocities=[1.0, 2.0],
        accelerations=[3.0, 4.0],
        is_limited=[False, True],
        sequence=7,
        epoch=2,
        is_seam=True,
    )
    message.header.stamp = to_time(1_234_567_890)
    sample = motion_sample(message)
    assert (sample.time_ns, sample.names, sample.state) == (
        1_234_567_890,
        ('lift', 'hand'),
        'tracking',
    )
    assert (sample.sequence, sample.epoch, sample.is_seam) == (7, 2, True)
    np.testing.assert_array_equal(sample.positions, [0.1, 0.2])
    np.testing.assert_array_equal(sample.velocities, [1.0, 2.0])
    np.testing.assert_array_equal(sample.accelerations, [3.0, 4.0])
    assert sample.is_limited.tolist() == [False, True]


def test_a_status_becomes_facts():
    status = ExecutorStatus(
        strategy='latest',
        offered=9,
        used=8,
        waiting=1,
        seams=7,
        starvations=2,
        is_dry_run=True,
        refusal_causes=['late_chunk'],
        refusal_counts=[3],
        discard_causes=['overtaken'],
        discard_counts=[4],
        violation_causes=['velocity_limit'],
        violation_counts=[5],
        delay_mean_steps=0.5,
        delay_p95_steps=1.5,
        delay_max_steps=2.5,
        lateness_p50_ms=0.25,
        lateness_p95_ms=0.5,
        lateness_p99_ms=1.0,
        lateness_max_ms=4.0,
        scheduling='core 3',
    )
    facts = executor_facts(status, load_executor(sample_executor_path()), robot_topic='robot')
    assert (facts.strategy, facts.period_ns, facts.is_dry_run) == ('latest', 5_000_000, True)
    assert facts.chunks == {'offered': 9, 'used': 8, 'waiting': 1}
    assert (facts.seams, facts.starvations, facts.scheduling) == (7, 2, 'core 3')
    assert (facts.refusals, facts.discards) == ({'late_chunk': 3}, {'overtaken': 4})
    assert facts.violations == {'velocity_limit': 5}
    assert facts.delay_steps == {'mean': 0.5, 'p95': 1.5, 'max': 2.5}
    assert facts.lateness_ms == {'p50': 0.25, 'p95': 0.5, 'p99': 1.0, 'max': 4.0}
    assert facts.robot_topic == 'robot'


def test_without_a_status_the_file_tells_what_it_can():
    facts = executor_facts(None, load_executor(sample_executor_path()), robot_topic='')
    assert (facts.strategy, facts.period_ns, facts.chunks) == ('offset_fade', 5_000_000, {})
