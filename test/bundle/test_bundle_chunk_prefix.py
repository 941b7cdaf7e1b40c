# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_policy_ros.bundle.chunk_prefix import whole_steps, write_gains, write_weights

HORIZON = 16


def gains(num_rows, num_frozen, rate=6.0):
    out = np.full(HORIZON, np.nan, np.float32)
    write_gains(out, num_rows=num_rows, num_frozen=num_frozen, ramp_rate=rate)
    return out


def weights(num_rows, num_frozen, schedule):
    out = np.full(HORIZON, np.nan, np.float32)
    write_weights(out, num_rows=num_rows, num_frozen=num_frozen, schedule=schedule)
    return out


def test_the_ramp_is_that_of_gr00t():
    # torch.linspace(0, 1, 4 + 2), 1 - exp(-2 t), divided by its last value, without both ends.
    ramp = [(1 - math.exp(-2 * t)) / (1 - math.exp(-2)) for t in (0.2, 0.4, 0.6, 0.8)]
    np.testing.assert_allclose(gains(7, 3, 2.0)[:8], [0, 0, 0, *ramp, 1], rtol=1e-6)


rows = st.integers(0, HORIZON).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n)))


@given(rows, st.floats(0.01, 50))
def test_gains_rise_from_frozen_to_free(counts, rate):
    num_rows, num_frozen = counts
    found = gains(num_rows, num_frozen, rate)
    assert (found[:num_frozen] == 0).all()
    assert (found[num_rows:] == 1).all()
    assert (np.diff(found) >= 0).all()
    assert ((found[num_frozen:num_rows] > 0) & (found[num_frozen:num_rows] <= 1)).all()


def test_a_prefix_without_rows_changes_nothing():
    assert (gains(0, 0) == 1).all()
    assert (weights(0, 0, 'exp') == 0).all()


def test_weights_are_those_of_the_paper():
    """Equation 5 of arXiv 2506.07339 with d = 2, H - s = 6."""
    fall = [(6 - i) / (6 - 2 + 1) for i in range(2, 6)]
    expected = [1, 1, *(c * (math.exp(c) - 1) / (math.e - 1) for c in fall), 0]
    np.testing.assert_allclose(weights(6, 2, 'exp')[:7], expected, rtol=1e-6)
    np.testing.assert_allclose(weights(6, 2, 'linear')[:7], [1, 1, *fall, 0], rtol=1e-6)


@given(rows, st.sampled_from(['zeros', 'ones', 'linear', 'exp']))
def test_weights_fall_from_frozen_to_free(counts, schedule):
    num_rows, num_frozen = counts
    found = weights(num_rows, num_frozen, schedule)
    assert (found[:num_frozen] == 1).all()
    assert (found[num_rows:] == 0).all()
    assert (np.diff(found) <= 0).all()
    assert set(found[num_frozen:num_rows]) <= {'zeros': {0}, 'ones': {1}}.get(
        schedule, set(found[num_frozen:num_rows])
    )


@pytest.mark.parametrize(
    ('duration', 'tolerance', 'steps'),
    [
        (0, 0.0, 0),
        (200, 0.0, 2),
        (201, 0.0, None),
        (224, 0.25, 2),
        (225, 0.25, 2),
        (226, 0.25, None),
        (274, 0.25, None),
        (275, 0.25, 3),
        (249, 0.5, 2),
        (251, 0.5, 3),
        (-95, 0.25, -1),
    ],
)
def test_steps_are_whole_within_the_tolerance(duration, tolerance, steps):
    assert whole_steps(duration, 100, tolerance=tolerance) == steps
