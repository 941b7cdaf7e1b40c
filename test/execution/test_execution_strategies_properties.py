# SPDX-License-Identifier: Apache-2.0
"""What holds for every stream of chunks, however it is delayed, dropped, repeated or reordered."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from support.chunk_streams import (
    COLUMNS,
    INSTANT_NS,
    STEP_NS,
    chunk_streams,
    deliver,
    play,
    seams,
)

from vla_policy_ros.execution.kinds import ColumnMath
from vla_policy_ros.execution.strategies import STRATEGIES, make_strategy

MATH = ColumnMath(COLUMNS)
# The limit of every column, per second; a window this short asks for far more.
VELOCITY_LIMIT = 1.0
CAUSES = {'duplicate_chunk', 'out_of_order', 'late_chunk'}

every_strategy = pytest.mark.parametrize('name', STRATEGIES)
continuous_strategy = pytest.mark.parametrize(
    'name', [name for name, s in STRATEGIES.items() if s.promises_continuity]
)


def make(name, horizon, **parameters):
    return make_strategy(name, MATH, step_ns=STEP_NS, horizon=horizon, **parameters)


def jumps(before, behind):
    """Return the largest steps in position and velocity, less the way that is made between the two ticks."""
    is_gap = behind.time_ns - before.time_ns > INSTANT_NS
    position, velocity = before.position.copy(), before.velocity.copy()
    if is_gap:
        MATH.rest(position, velocity)
    moved = MATH.difference(behind.position, MATH.add(position, velocity * INSTANT_NS * 1e-9))
    steps = np.abs(np.stack([moved, behind.velocity - velocity]))[:, MATH.is_continuous]
    return steps.max(axis=1), is_gap


@continuous_strategy
@settings(deadline=None, max_examples=300)
@given(chunk_streams(), st.sampled_from([20.0, 130.0, 900.0]), st.sampled_from([0.0, 0.3, 1.0]))
def test_a_promised_hand_over_has_no_step(name, stream, fade_ms, share):
    horizon, stretches = stream
    parameters = {'fade_ms': fade_ms}
    if name == 'rtc':
        parameters['delay_steps'] = round(share * (horizon // 2))
    run = play(make(name, horizon, **parameters), stretches)
    for stretch in run.stretches:
        for before, behind in seams(stretch):
            (position, velocity), is_gap = jumps(before, behind)
            event('seam after a gap' if is_gap else 'seam in motion')
            assert position <= 1e-6
            assert velocity <= 1e-3 * VELOCITY_LIMIT


@continuous_strategy
@settings(deadline=None)
@given(chunk_streams())
def test_no_position_steps_anywhere_when_a_hand_over_is_promised(name, stream):
    horizon, stretches = stream
    run = play(make(name, horizon), stretches)
    for stretch in run.stretches:
        for before, behind in pairwise(stretch):
            is_pair = behind.time_ns - before.time_ns == INSTANT_NS
            if is_pair and before.position is not None and behind.position is not None:
                (position, _), _ = jumps(before, behind)
                assert position <= 1e-6


@every_strategy
@settings(deadline=None)
@given(chunk_streams())
def test_what_is_wanted_makes_sense(name, stream):
    horizon, stretches = stream
    run = play(make(name, horizon), stretches)
    assert set(run.causes) <= CAUSES
    for stretch in run.stretches:
        given_ticks = [tick for tick in stretch if tick.position is not None]
        for before, behind in zip([None, *given_ticks], given_ticks, strict=False):
            assert np.isfinite(behind.position).all()
            assert np.isfinite(behind.velocity).all()
            assert behind.position[-1] in (0.0, 1.0)
            assert np.linalg.norm(behind.position[2:6]) == pytest.approx(1.0)
            is_new = before is not None and behind.sequence != before.sequence
            assert behind.seam == is_new
            assert not is_new or behind.sequence > before.sequence


@every_strategy
@settings(deadline=None)
@given(chunk_streams())
def test_the_plan_does_not_depend_on_when_the_ticks_are(name, stream):
    horizon, stretches = stream
    coarse, fine = (
        play(make(name, horizon), stretches, period_ns=period_ns)
        for period_ns in (31_000_000, 7_000_000)
    )
    wanted = {(place, t.time_ns): t for place, s in enumerate(fine.stretches) for t in s}
    for place, stretch in enumerate(coarse.stretches):
        for tick in stretch:
            twin = wanted.get((place, tick.time_ns))
            if twin is None:
                continue
            assert twin.sequence == tick.sequence
            if tick.position is not None:
                np.testing.assert_array_equal(twin.position, tick.position)


@settings(deadline=None)
@given(chunk_streams(), st.integers(0, 4))
def test_the_prefix_is_what_is_executed(stream, delay_steps):
    horizon, stretches = stream
    strategy = make('rtc', horizon, delay_steps=min(delay_steps, horizon // 2))
    for arrival in stretches[0] if stretches else []:
        now_ns = arrival.time_ns
        deliver(strategy, arrival.chunk, now_ns)
        planned = strategy.prefix(now_ns)
    if not stretches:
        return
    for place, row in enumerate(planned):
        target = strategy.target(now_ns + place * STEP_NS)
        if target is not None:
            np.testing.assert_allclose(target.position, row, atol=1e-12)
