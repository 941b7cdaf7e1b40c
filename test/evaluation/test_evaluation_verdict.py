# SPDX-License-Identifier: Apache-2.0
import math
from dataclasses import replace

import numpy as np
import pytest
from evaluation_builders import MS, chunk, columns, record, stream

from vla_policy_ros.core.errors import ConfigurationError
from vla_policy_ros.core.latency import LatencySummary
from vla_policy_ros.core.specs import Column
from vla_policy_ros.evaluation.metrics import Comparison, ErrorSummary, compare
from vla_policy_ros.evaluation.motion_metrics import ExecutorFacts, MotionFigures
from vla_policy_ros.evaluation.recording import ChunkRecording
from vla_policy_ros.evaluation.smoothness import Smoothness
from vla_policy_ros.evaluation.timing import RunCounts, measure_timing
from vla_policy_ros.evaluation.verdict import RunFacts, Tolerances, judge

RAMP = np.arange(12, dtype=np.float32)[:, None]
RUN = RunFacts(name='run')
ALL = Tolerances(
    max_mae=1, max_mse=1, max_joint_mae=1, max_error=1, min_compared_share=0.9,
    max_boundary_jump=10, max_p99_ms=50, min_rate_hz=1, min_chunk_share=0.5, max_refused=3,
    max_missing=0, max_sequence_gaps=0,
)  # fmt: skip
OF_MOTION = Tolerances(
    max_command_mae=0.1, max_lag=0.1, max_starvations=1, max_command_jump=0.1,
    max_chunk_age_ms=500, max_lateness_p99_ms=2,
)  # fmt: skip
SMALL = ErrorSummary(mae=0.05, mse=0.01, max_error=0.2, count=9)
MOTION = MotionFigures(
    num_commands=9,
    outside={},
    error=SMALL,
    lag=SMALL,
    smoothness=Smoothness(max_boundary_jump=0.05),
    chunk_age=LatencySummary(9, 100.0, 100.0, 100.0, 400.0),
    executor=ExecutorFacts(starvations=1, lateness_ms={'p99': 1.0}),
)


def verdict(policy, truth, tolerances, counts=None, motion=None):
    counts = counts or RunCounts(reference_samples=12)
    comparison = compare(policy, truth)
    timing = measure_timing(policy, counts)
    return judge(RUN, comparison, timing=timing, tolerances=tolerances, motion=motion)


def asked(tolerances):
    return tolerances.model_dump(exclude_none=True)


def outcomes(result):
    return {check.name: check.passed for check in result.checks}


def test_every_tolerance_makes_a_check_and_a_perfect_policy_passes_them():
    truth = stream(RAMP, horizon=4)
    every = Tolerances(**asked(ALL), **asked(OF_MOTION))
    result = verdict(stream(RAMP, horizon=4, stride=2), truth, every, motion=MOTION)
    always = {'chunks', 'commands', 'commands_outside_limits'}
    assert set(outcomes(result)) == always | set(Tolerances.model_fields)
    assert result.passed, [check for check in result.checks if not check.passed]
    assert result.exit_status == 0


@pytest.mark.parametrize(
    ('motion', 'failed'),
    [
        (MotionFigures(num_commands=0, outside={}), 'commands'),
        (replace(MOTION, outside={'velocity joint_0': 2}), 'commands_outside_limits'),
        (replace(MOTION, outside=None), 'commands_outside_limits'),
    ],
)
def test_an_executor_is_always_held_against_its_limits(motion, failed):
    chunks = record([chunk([[1.0]])])
    result = verdict(chunks, None, Tolerances(), motion=motion)
    assert [name for name, passed in outcomes(result).items() if not passed] == [failed]


def test_every_limit_on_the_motion_can_fail():
    halved = {name: limit / 3 for name, limit in asked(OF_MOTION).items()}
    halved['max_starvations'] = 0
    result = verdict(record([chunk([[1.0]])]), None, Tolerances(**halved), motion=MOTION)
    failed = {name for name, passed in outcomes(result).items() if not passed}
    assert failed == set(halved)


def test_limits_on_a_motion_that_is_not_there_fail():
    result = verdict(record([chunk([[1.0]])]), None, OF_MOTION)
    assert [check.got for check in result.checks[1:]] == [None] * len(asked(OF_MOTION))
    assert not result.passed


@pytest.mark.parametrize('tolerances', [Tolerances(), ALL])
def test_a_run_without_chunks_fails(tolerances):
    result = verdict(ChunkRecording(), stream(RAMP, horizon=4), tolerances)
    assert not result.passed
    assert result.exit_status == 1
    assert not outcomes(result)['chunks']


def test_one_chunk_and_no_tolerance_passes():
    assert verdict(record([chunk([[1.0]])]), None, Tolerances()).passed


def test_errors_without_truth_are_not_compared_and_not_passed():
    result = verdict(stream(RAMP, horizon=4, stride=2), None, ALL)
    checks = {check.name: check for check in result.checks}
    for name in ('max_mae', 'max_mse', 'max_joint_mae', 'max_error'):
        assert not checks[name].passed
        assert checks[name].got is None
        assert 'not compared' in checks[name].detail
    assert checks['max_boundary_jump'].passed
    assert not result.passed


@pytest.mark.parametrize(
    ('name', 'limit', 'offset'),
    [
        ('max_mae', 0.5, 0.75),
        ('max_mse', 0.5, 0.75),
        ('max_joint_mae', 0.5, 0.75),
        ('max_error', 0.5, 0.75),
    ],
)
def test_an_error_over_its_limit_fails(name, limit, offset):
    policy = stream(RAMP, horizon=4, stride=2, offset=offset)
    result = verdict(policy, stream(RAMP, horizon=4), Tolerances(**{name: limit}))
    assert outcomes(result) == {'chunks': True, 'max_left_out': True, name: False}


def test_a_limit_that_is_met_exactly_passes():
    policy = stream(RAMP, horizon=4, stride=2, offset=0.5)
    assert verdict(policy, stream(RAMP, horizon=4), Tolerances(max_mae=0.5)).passed


def test_the_worst_joint_counts():
    motion = np.repeat(RAMP, 2, axis=1)
    off = motion + np.float32([0, 1])
    policy, truth = stream(off, horizon=4, stride=4), stream(motion, horizon=4)
    result = verdict(policy, truth, Tolerances(max_mae=0.6, max_joint_mae=0.6))
    assert outcomes(result) == {
        'chunks': True,
        'max_mae': True,
        'max_joint_mae': False,
        'max_left_out': True,
    }


def test_chunks_without_a_partner_lower_the_compared_share():
    policy = record([chunk(RAMP[:4], 0), chunk(RAMP[:4], 99)])
    truth = stream(RAMP, horizon=4)
    assert verdict(policy, truth, Tolerances(min_compared_share=0.5)).passed
    assert not verdict(policy, truth, Tolerances(min_compared_share=0.6)).passed


def test_timing_and_counts_by_hand():
    recording = record(
        [chunk([[0.0]], 0, sequence=0), chunk([[0.0]], 1, sequence=1)], latency_ns=10 * MS
    )
    recording.append(
        chunk([[0.0]], 3, sequence=4), publish_stamp_ns=180 * MS, receive_stamp_ns=185 * MS
    )
    counts = RunCounts(reference_samples=6, refusals={'a/b': 1, 'c/d': 2})
    timing = measure_timing(recording, counts)
    assert timing.capture_to_chunk.max_ms == pytest.approx(30.0)
    assert timing.capture_to_chunk.p50_ms == pytest.approx(10.0)
    assert timing.delivery.max_ms == pytest.approx(5.0)
    assert timing.rate_hz == pytest.approx(2 / 0.17)
    assert (timing.sequence_gaps, timing.chunk_share) == (2, 0.5)
    tolerances = Tolerances(
        max_p99_ms=20, min_rate_hz=20, min_chunk_share=0.6, max_refused=2, max_sequence_gaps=1
    )
    result = judge(RUN, compare(recording, None), timing=timing, tolerances=tolerances)
    assert [check.name for check in result.checks if check.passed] == ['chunks']


def test_epochs_restart_sequences_and_rates():
    recording = record([chunk([[0.0]], 5, sequence=9), chunk([[0.0]], 0, epoch=1)])
    timing = measure_timing(recording, RunCounts())
    assert (timing.sequence_gaps, timing.rate_hz, timing.chunk_share) == (0, None, None)


def test_shares_that_nobody_counted_do_not_pass():
    result = verdict(stream(RAMP, horizon=4), None, Tolerances(min_chunk_share=0.0), RunCounts())
    assert not outcomes(result)['min_chunk_share']


def test_missing_answers_fail():
    counts = RunCounts(reference_samples=13, missing=1)
    result = verdict(stream(RAMP, horizon=4), None, Tolerances(max_missing=0), counts)
    assert outcomes(result) == {'chunks': True, 'max_missing': False}


@pytest.mark.parametrize('bad', [math.nan, math.inf])
def test_what_is_not_finite_never_passes(bad):
    truth = stream(RAMP, horizon=4)
    comparison = compare(truth, truth)
    broken = ErrorSummary(bad, bad, bad, 1)
    joints = tuple(replace(joint, open_loop=broken) for joint in comparison.joints)
    comparison = replace(
        comparison,
        overall=replace(comparison.overall, open_loop=broken),
        joints=joints,
        policy_smoothness=Smoothness(max_boundary_jump=bad),
    )
    timing = replace(
        measure_timing(truth, RunCounts(reference_samples=1)),
        capture_to_chunk=LatencySummary(1, bad, bad, bad, bad),
        rate_hz=bad,
        chunk_share=bad,
    )
    result = judge(RUN, comparison, timing=timing, tolerances=ALL)
    passed = {name for name, ok in outcomes(result).items() if ok}
    assert passed == {
        'chunks', 'min_compared_share', 'max_left_out',
        'max_refused', 'max_missing', 'max_sequence_gaps',
    }  # fmt: skip


def test_a_joint_that_could_not_be_compared_leaves_the_worst_unknown():
    truth = stream(np.repeat(RAMP, 2, axis=1), horizon=4)
    comparison: Comparison = compare(truth, truth)
    first, second = comparison.joints
    comparison = replace(comparison, joints=(first, replace(second, open_loop=None)))
    result = judge(
        RUN,
        comparison,
        timing=measure_timing(truth, RunCounts()),
        tolerances=Tolerances(max_joint_mae=1),
    )
    assert not outcomes(result)['max_joint_mae']


def test_a_misspelt_tolerance_is_refused_with_a_hint():
    with pytest.raises(ConfigurationError, match="Did you mean 'min_rate_hz'") as fault:
        Tolerances.from_dict({'min_rate': 0.1}, 'tolerances.yaml')
    assert fault.value.code == 'unknown_key'
    assert fault.value.where == 'tolerances.yaml: min_rate'


@pytest.mark.parametrize(
    'document',
    [{'max_mae': -1}, {'max_mae': math.nan}, {'min_chunk_share': 1.5}, {'max_missing': 0.5}],
)
def test_impossible_limits_are_refused(document):
    with pytest.raises(ConfigurationError):
        Tolerances.from_dict(document)


def test_tolerances_from_a_mapping():
    assert Tolerances.from_dict({'max_mae': 0.1, 'max_missing': 2}) == Tolerances(
        max_mae=0.1, max_missing=2
    )


def test_columns_in_another_unit_are_not_compared():
    policy = record([chunk([[1.0]], cols=columns(1, unit='deg'))])
    result = verdict(policy, record([chunk([[1.0]])]), Tolerances(max_mae=1))
    assert outcomes(result) == {'chunks': True, 'max_mae': False, 'max_left_out': False}


def test_a_small_error_on_some_columns_does_not_stand_for_all():
    policy = record([chunk([[1.0, 9.0]], cols=(*columns(1), Column('other', '')))])
    truth = record([chunk([[1.0]])])
    assert outcomes(verdict(policy, truth, Tolerances(max_mae=1))) == {
        'chunks': True,
        'max_mae': True,
        'max_left_out': False,
    }
    assert verdict(policy, truth, Tolerances(max_mae=1, max_left_out=1)).passed


def test_columns_of_an_unknown_unit_are_compared():
    policy = record([chunk([[1.0]], cols=columns(1, unit='rad'))])
    truth = record([chunk([[1.0]], cols=columns(1, unit=''))])
    assert verdict(policy, truth, Tolerances(max_mae=0)).passed


def test_a_clock_that_stands_still_measures_nothing():
    recording = record([chunk(RAMP[:4], step) for step in range(3)])
    still = ChunkRecording()
    for item in recording:
        now_ns = item.observation_stamp_ns
        still.append(item, publish_stamp_ns=now_ns, receive_stamp_ns=now_ns + 10**18)
    timing = measure_timing(still, RunCounts())
    assert (timing.capture_to_chunk.count, timing.delivery.count) == (0, 0)
    assert timing.num_chunks == 3
