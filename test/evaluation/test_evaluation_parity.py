# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from vla_policy_ros.bundle.limits import AccuracyLimit
from vla_policy_ros.evaluation.parity import Parity, measure_columns, measure_parity

LIMIT = AccuracyLimit(min_cosine=0.99, max_error=0.1)


def test_figures():
    parity = measure_parity(np.array([0.5, 0.6]), np.array([0.5, 0.5]))
    assert parity.max_error == pytest.approx(0.1)
    assert parity.mean_error == pytest.approx(0.05)
    assert parity.cosine == pytest.approx(1.1 / np.sqrt(2 * 0.61))
    assert parity.count == 2


def test_errors_are_relative_to_large_references_only():
    wide = measure_parity(np.array([101.0, -100.0]), np.array([100.0, -100.0]))
    assert (wide.max_error, wide.mean_error) == pytest.approx((0.01, 0.005))
    small = measure_parity(np.array([0.02]), np.array([0.01]))
    assert small.max_error == pytest.approx(0.01)


@pytest.mark.parametrize(
    ('cosine', 'max_error', 'passed'),
    [
        (0.99, 0.1, True),
        (0.98, 0.1, False),
        (0.99, 0.11, False),
        (np.nan, 0.0, False),
        (1.0, np.nan, False),
    ],
)
def test_limits(cosine, max_error, passed):
    assert Parity(cosine, max_error, 0.0, 1).is_within(LIMIT) is passed


@pytest.mark.parametrize(
    ('cosine', 'max_error', 'grade'),
    [
        (0.995, 0.05, 'PASS'),
        (0.9949, 0.05, 'WARN'),
        (1.0, 0.0501, 'WARN'),
        (0.99, 0.1, 'WARN'),
        (0.99, 0.101, 'FAIL'),
        (np.nan, 0.0, 'FAIL'),
        (1.0, np.nan, 'FAIL'),
    ],
)
def test_grades(cosine, max_error, grade):
    assert Parity(cosine, max_error, 0.0, 1).grade(LIMIT) == grade


def test_columns_are_measured_in_the_unit_of_the_whole():
    reference = np.array([[[10.0, 1.0], [-10.0, 0.0]]])
    found = reference + np.array([0.0, 0.1])
    left, right = measure_columns(found, reference)
    assert (left.max_error, left.cosine, left.count) == (0.0, pytest.approx(1.0), 2)
    assert (right.max_error, right.mean_error) == pytest.approx((0.01, 0.01))
    assert max(left.max_error, right.max_error) == measure_parity(found, reference).max_error


def test_joined_takes_the_worst_and_weighs_the_mean():
    joined = Parity(0.9, 0.1, 0.1, 1).joined(Parity(0.8, 0.3, 0.2, 3))
    assert (joined.cosine, joined.max_error, joined.count) == (0.8, 0.3, 4)
    assert joined.mean_error == pytest.approx(0.175)
    assert not Parity(1, 0, 0, 1).joined(Parity(1, np.nan, 0, 1)).is_within(LIMIT)
