# SPDX-License-Identifier: Apache-2.0
import math

import pytest

from vla_policy_ros.core.errors import EngineError
from vla_policy_ros.evaluation import checklist
from vla_policy_ros.evaluation.checklist import (
    ITEMS,
    STATUSES,
    Item,
    failed,
    is_passed,
    judge,
    not_checked,
    worst,
)


@pytest.mark.parametrize(
    ('value', 'grade'),
    [
        (-1.0, 'PASS'),
        (0.0, 'PASS'),
        (0.01, 'PASS'),
        (0.0101, 'WARN'),
        (0.0199, 'WARN'),
        (0.02, 'FAIL'),
        (math.inf, 'FAIL'),
        (math.nan, 'FAIL'),
    ],
)
def test_a_figure_must_stay_below_its_limit(value, grade):
    assert judge(value, 0.02) == grade


def test_the_worst_counts():
    assert worst([]) == 'PASS'
    assert worst(['PASS', 'WARN']) == 'WARN'
    assert worst(['WARN', 'FAIL', 'PASS']) == 'FAIL'


def test_limits_are_those_of_the_issue():
    assert (checklist.MAX_LOSS, checklist.MAX_ERROR, checklist.MAX_PERIOD_SHARE) == (0.02, 0.01, 1)
    assert len(ITEMS) == 8
    assert STATUSES == ('PASS', 'WARN', 'FAIL', 'NOT CHECKED')


def test_a_fault_decides_an_item():
    fault = EngineError('a.onnx', got='steam', expected='a network', next_step='Export it again.')
    item = failed('operators', fault)
    assert (item.name, item.status) == ('operators', 'FAIL')
    assert (item.found, item.wanted) == ('a.onnx: steam', 'a network')
    assert item.next_step == 'Export it again.'
    assert item.details['error']['code'] == 'engine_failed'


def test_what_was_not_checked_neither_passes_nor_fails():
    item = not_checked('limits', 'no file')
    assert (item.status, item.found) == ('NOT CHECKED', 'no file')
    assert is_passed([item, Item(name='bundle', status='WARN', found='')])
    assert not is_passed([item, Item(name='bundle', status='FAIL', found='')])
