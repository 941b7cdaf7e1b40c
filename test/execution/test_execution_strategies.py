# SPDX-License-Identifier: Apache-2.0
import tracemalloc

import numpy as np
import pytest
from support.chunk_streams import STEP_NS, line, make, make_chunk, offer, ramp, time, value, values

from vla_policy_ros.core.errors import ChunkRejectedError, ConfigurationError
from vla_policy_ros.core.specs import Column, ColumnKind
from vla_policy_ros.execution.curve import ActionCurve
from vla_policy_ros.execution.grippers import GripperRule
from vla_policy_ros.execution.kinds import ColumnMath
from vla_policy_ros.execution.strategies import STRATEGIES


def cause(strategy, chunk, now):
    with pytest.raises(ChunkRejectedError) as info:
        offer(strategy, chunk, now)
    return info.value.code


every_strategy = pytest.mark.parametrize('name', STRATEGIES)


def test_the_table():
    assert list(STRATEGIES) == [
        'open_loop',
        'receding',
        'latest',
        'aggregate',
        'temporal_ensemble',
        'offset_fade',
        'rtc',
    ]
    assert {name for name, s in STRATEGIES.items() if s.promises_continuity} == {
        'offset_fade',
        'rtc',
    }


@every_strategy
@pytest.mark.parametrize('horizon', [1, 2, 50])
def test_defaults_fit_every_horizon(name, horizon):
    strategy = make(name, horizon=horizon)
    assert strategy.name == name
    for key, parameter in strategy.parameters.items():
        assert parameter.allows(parameter.initial(horizon), horizon), key


@pytest.mark.parametrize(
    ('name', 'parameters', 'code'),
    [
        ('newest', {}, 'unknown_strategy'),
        ('latest', {'fade_ms': 100.0}, 'unknown_parameter'),
        ('receding', {'execution_horizon': 0}, 'bad_parameter'),
        ('receding', {'execution_horizon': 9}, 'bad_parameter'),
        ('receding', {'execution_horizon': 2.5}, 'bad_parameter'),
        ('receding', {'execution_horizon': True}, 'bad_parameter'),
        ('rtc', {'delay_steps': 5}, 'bad_parameter'),
        ('offset_fade', {'fade_ms': 9.9}, 'bad_parameter'),
        ('offset_fade', {'fade_ms': '100'}, 'bad_parameter'),
        ('offset_fade', {'fade_ms': float('nan')}, 'bad_parameter'),
        ('aggregate', {'function': 'mean'}, 'bad_parameter'),
    ],
)
def test_wrong_names_and_values_are_refused(name, parameters, code):
    with pytest.raises(ConfigurationError) as info:
        make(name, **parameters)
    assert info.value.code == code


@every_strategy
def test_nothing_is_wanted_before_the_first_chunk(name):
    strategy = make(name)
    assert strategy.target(time(0)) is None
    assert strategy.remaining_ns(time(0)) == 0


@every_strategy
def test_one_chunk_is_executed_to_its_end(name):
    strategy = make(name)
    offer(strategy, ramp(0), 0)
    assert values(strategy, 0, 2.5, 7) == pytest.approx([0.0, 2.5, 7.0])
    assert strategy.remaining_ns(time(5)) == 2 * STEP_NS
    assert strategy.target(time(7.01)) is None
    assert strategy.remaining_ns(time(7.01)) == 0


@every_strategy
def test_a_chunk_waits_for_its_row_0(name):
    strategy = make(name)
    offer(strategy, ramp(0, start=3), 0)
    assert values(strategy, 0, 2.99, 3) == [None, None, 0.0]


@every_strategy
def test_the_first_target_is_no_seam_and_says_its_chunk(name):
    strategy = make(name)
    offer(strategy, ramp(0, sequence=7), 0)
    targets = [strategy.target(time(now)) for now in (0, 1)]
    assert [(t.sequence, t.seam) for t in targets] == [(7, False)] * 2
    assert targets[0] is targets[1]
    assert targets[0].velocity[0] == pytest.approx(1e9 / STEP_NS)


@every_strategy
def test_what_is_refused_leaves_everything_as_it_was(name):
    strategy = make(name)
    offer(strategy, ramp(0, start=2, sequence=4), 2)
    assert cause(strategy, ramp(100, start=2, sequence=4), 3) == 'duplicate_chunk'
    assert cause(strategy, ramp(100, start=1, sequence=3), 3) == 'out_of_order'
    assert cause(strategy, ramp(100, start=1, sequence=5), 3) == 'out_of_order'
    assert cause(strategy, ramp(100, start=3, sequence=3), 3) == 'out_of_order'
    assert cause(strategy, ramp(100, start=2, sequence=5, horizon=1), 3) == 'late_chunk'
    assert cause(strategy, ramp(100, start=12, sequence=5), 3) == 'early_chunk'
    assert cause(strategy, ramp(100, start=3, sequence=5, step_ns=1), 3) == 'wrong_step'
    other = (Column('other', 'rad'),)
    stranger = make_chunk([1.0], columns=other, start_ns=time(3), sequence=5)
    curve = ActionCurve(stranger, ColumnMath(other))
    with pytest.raises(ChunkRejectedError) as info:
        strategy.offer(curve, time(3))
    assert info.value.code == 'wrong_columns'
    assert values(strategy, 4, 9) == pytest.approx([2.0, 7.0])


@every_strategy
def test_a_reset_forgets_chunks_and_their_numbers(name):
    strategy = make(name)
    offer(strategy, ramp(0, start=100, sequence=9), 100)
    assert value(strategy, 101) == pytest.approx(1.0)
    strategy.reset()
    assert strategy.target(time(101)) is None
    offer(strategy, ramp(50, sequence=0), 0)
    target = strategy.target(time(2))
    assert (target.position[0], target.sequence, target.seam) == (pytest.approx(52.0), 0, False)


@every_strategy
def test_a_clock_that_went_back_finds_nothing(name):
    strategy = make(name)
    offer(strategy, ramp(0, start=100), 100)
    assert strategy.target(time(50)) is None


@every_strategy
def test_a_chunk_after_a_gap_is_a_seam(name):
    strategy = make(name)
    offer(strategy, ramp(0), 0)
    strategy.target(time(7))
    assert strategy.target(time(9)) is None
    offer(strategy, ramp(7, start=10, sequence=1), 10)
    target = strategy.target(time(10))
    assert (target.sequence, target.seam) == (1, True)
    assert target.position[0] == pytest.approx(7.0)
    assert strategy.target(time(11)).seam is False


def test_open_loop_executes_all_rows_then_the_newest():
    strategy = make('open_loop')
    offer(strategy, ramp(0), 0)
    offer(strategy, ramp(100, start=2, sequence=1), 3)
    offer(strategy, ramp(200, start=4, sequence=2), 5)
    assert values(strategy, 6, 6.99, 7, 11) == pytest.approx([6.0, 6.99, 203.0, 207.0])
    assert value(strategy, 11.01) is None


def test_open_loop_drops_no_row_while_the_robot_waits():
    strategy = make('open_loop')
    offer(strategy, ramp(0), 2)
    assert values(strategy, 2, 9) == pytest.approx([0.0, 7.0])
    offer(strategy, ramp(100, start=10, sequence=1), 13.5)
    assert values(strategy, 13.5, 20.5) == pytest.approx([100.0, 107.0])
    offer(strategy, ramp(200, start=19.5, sequence=2), 22)
    assert values(strategy, 22, 28) == pytest.approx([201.0, 207.0])


def test_open_loop_refuses_what_is_over_before_its_turn():
    strategy = make('open_loop')
    offer(strategy, ramp(0), 0)
    assert cause(strategy, ramp(100, start=1, sequence=1, horizon=4), 2) == 'late_chunk'


def test_receding_executes_s_steps_then_the_newest_at_the_row_for_now():
    strategy = make('receding', execution_horizon=3)
    offer(strategy, ramp(0), 1)
    offer(strategy, ramp(100, start=1, sequence=1), 2)
    offer(strategy, ramp(200, start=2, sequence=2), 3)
    assert values(strategy, 3.99, 4, 6.99) == pytest.approx([3.99, 202.0, 204.99])
    assert strategy.target(time(7)).sequence == 2
    offer(strategy, ramp(300, start=6, sequence=3), 8)
    assert values(strategy, 8, 10) == pytest.approx([302.0, 304.0])


def test_latest_takes_the_newest_at_once():
    strategy = make('latest')
    offer(strategy, ramp(0), 0)
    assert value(strategy, 2.5) == pytest.approx(2.5)
    offer(strategy, ramp(100, start=1, sequence=1), 2.5)
    target = strategy.target(time(2.5))
    assert (target.seam, target.sequence) == (True, 1)
    assert target.position[0] == pytest.approx(101.5)


@pytest.mark.parametrize(
    ('function', 'expected'),
    [
        ('weighted_average', 71.3),
        ('latest_only', 101.0),
        ('average', 51.5),
        ('conservative', 31.7),
    ],
)
def test_aggregate_has_the_functions_of_lerobot(function, expected):
    strategy = make('aggregate', function=function)
    offer(strategy, ramp(0), 0)
    value(strategy, 1)
    offer(strategy, ramp(100, start=1, sequence=1), 1.5)
    # Row 1 is past and stays; row 2 is old 2 and new 101; row 8 has no old one.
    assert value(strategy, 2) == pytest.approx(expected)
    assert value(strategy, 8) == pytest.approx(107.0)


def test_aggregate_goes_on_from_what_it_has_mixed():
    strategy = make('aggregate')
    offer(strategy, ramp(0), 0)
    offer(strategy, ramp(100, start=1, sequence=1), 1)
    offer(strategy, ramp(200, start=2, sequence=2), 2)
    assert value(strategy, 3) == pytest.approx(0.3 * (0.3 * 3 + 0.7 * 102) + 0.7 * 201)


def test_aggregate_takes_the_plan_between_its_rows():
    strategy = make('aggregate', function='average')
    offer(strategy, ramp(0), 0)
    offer(strategy, ramp(100, start=0.5, sequence=1), 0.5)
    assert value(strategy, 2.5) == pytest.approx(0.5 * 2.5 + 0.5 * 102.0)


def test_the_temporal_ensemble_has_the_numbers_of_act():
    # LeRobot's ACTTemporalEnsembler(0.01, 4) given the chunks of which row k at step t is (7 t + 3 k) mod 5.
    expected = [0.0, 2.5025, 1.6566946, 2.5124996, 1.9875004, 1.5124996]
    strategy = make('temporal_ensemble', horizon=4, coefficient=0.01)
    got = []
    for step in range(6):
        rows = [(7 * step + 3 * row) % 5 for row in range(4)]
        offer(strategy, line(rows, start_ns=time(step), sequence=step), step)
        got.append(value(strategy, step))
    assert got == pytest.approx(expected, abs=1e-6)


def test_the_temporal_ensemble_weighs_the_oldest_most():
    strategy = make('temporal_ensemble', coefficient=0.5)
    chunks = [np.array([3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0]) * scale for scale in (1, 2, -1)]
    for step, rows in enumerate(chunks):
        offer(strategy, line(rows, start_ns=time(step), sequence=step), step)
    said = [chunks[0][4], chunks[1][3], chunks[2][2]]
    weights = np.exp(-0.5 * np.arange(3))
    assert value(strategy, 4) == pytest.approx(np.dot(weights, said) / weights.sum())


@every_strategy
def test_a_snapping_gripper_is_never_between_two_values(name):
    columns = (Column('gripper', '1', ColumnKind.GRIPPER),)
    strategy = make(name, columns=columns)
    seen = set()
    for step in range(6):
        rows = np.array([step % 2, 1, 0, 0, 1, 1, 0, 1], np.float32)
        offer(
            strategy, make_chunk(rows, columns=columns, start_ns=time(step), sequence=step), step
        )
        for part in (0, 0.3, 0.8):
            target = strategy.target(time(step + part))
            seen.add(float(target.position[0]))
            assert target.velocity[0] == 0.0
    assert seen == {0.0, 1.0}


@every_strategy
def test_thresholds_hold_for_targets(name):
    columns = (Column('gripper', '1', ColumnKind.GRIPPER),)
    rule = GripperRule(closed_above=0.7, open_below=0.3, closed_value=-1.0, open_value=2.0)
    strategy = make(name, columns=columns, grippers={'gripper': rule})
    offer(strategy, make_chunk([0.1, 0.5, 0.8, 0.5, 0.2], columns=columns), 0)
    assert values(strategy, 0, 1, 2, 3, 4) == [2.0, 2.0, -1.0, -1.0, 2.0]


@every_strategy
def test_nothing_grows(name):
    strategy = make(name)
    waiting = []
    for sequence in range(60):
        now = 0.1 * sequence
        offer(strategy, ramp(0, start=now, sequence=sequence), now)
        waiting.append(len(strategy._legs))
    assert max(waiting) <= 42  # rtc: what waits for its row 4, ten chunks a step
    for _ in range(3):
        strategy.target(time(6))
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for tick in range(1000):
            strategy.target(time(6 + 0.001 * tick))
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 2000
