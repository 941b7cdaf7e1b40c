# SPDX-License-Identifier: Apache-2.0
"""How LeRobot normalises against what a bundle makes of its statistics: no lerobot is needed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_policy_ros.bundle.manifest import Action, State
from vla_policy_ros.bundle.normalization import ActionDenormalizer, StateNormalizer
from vla_policy_ros.export.lerobot.rules import EPSILON, make_rule

FINITE = st.floats(-100, 100, width=32)
SPAN = st.one_of(st.just(0.0), st.floats(0.125, 50, width=32))


@given(low=FINITE, span=SPAN, share=st.floats(-1, 2, width=32))
@pytest.mark.parametrize('mode', ['MEAN_STD', 'MIN_MAX', 'QUANTILES', 'IDENTITY'])
def test_normalization_is_that_of_lerobot(mode, low, span, share):
    # A column that never moved in training stays where it is; LeRobot divides anything else by its epsilon.
    value = low + span * share
    first, second = np.array([low]), np.array([low + span if mode != 'MEAN_STD' else span])
    names = {'MEAN_STD': ('mean', 'std'), 'MIN_MAX': ('min', 'max'), 'QUANTILES': ('q01', 'q99')}
    statistics = dict(zip(names.get(mode, 'ab'), (first, second), strict=True))
    rule = make_rule('x', mode, statistics, width=1)
    if mode == 'MEAN_STD':
        wanted, back = (value - low) / (span + EPSILON), value * span + low
    elif mode == 'IDENTITY':
        wanted, back = value, value
    else:
        width = span or EPSILON
        wanted, back = 2 * (value - low) / width - 1, (value + 1) / 2 * width + low
    group = {'names': ('a',), 'units': ('',), 'normalization': rule.normalization}
    state = State(tensor='s', groups=({'name': 'state', **group},))
    action = Action(tensor='a', groups=({'name': 'action', **group},), horizon=1, step_ns=1)
    used = {} if mode == 'IDENTITY' else {'state': rule.for_state(), 'action': rule.for_action()}
    out = np.empty((1, 1))
    StateNormalizer(state, used).write(np.array([[value]]), out)
    assert out[0, 0] == pytest.approx(wanted, rel=1e-6, abs=1e-5)
    ActionDenormalizer(action, state, used).write(np.array([[value]]), np.zeros(1), out)
    assert out[0, 0] == pytest.approx(back, rel=1e-6, abs=1e-5)


@given(value=st.floats(-1e9, 1e9, width=32))
@pytest.mark.parametrize('mode', ['MIN_MAX', 'QUANTILES'])
def test_still_column_is_exactly_at_the_border(mode, value):
    """LeRobot's -1; where the state is told in words, what is below would be another one."""
    names = ('min', 'max') if mode == 'MIN_MAX' else ('q01', 'q99')
    rule = make_rule('x', mode, dict.fromkeys(names, np.array([value])), width=1)
    group = {'name': 'state', 'names': ('a',), 'units': ('',), 'normalization': rule.normalization}
    out = np.empty((1, 1), np.float32)
    normalizer = StateNormalizer(State(tensor='s', groups=(group,)), {'state': rule.for_state()})
    normalizer.write(np.array([[value]], np.float32), out)
    assert out[0, 0] == -1
    center, spread = rule.center_and_spread()
    assert (value - center[0]) / spread[0] == -1
