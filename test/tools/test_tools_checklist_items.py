# SPDX-License-Identifier: Apache-2.0
import pytest

from vla_policy_ros.evaluation.process_memory import ProcessMemory
from vla_policy_ros.export.limit_check import LimitFindings
from vla_policy_ros.tools.checklist_items import (
    MemoryMark,
    MemoryMarks,
    judge_limits,
    judge_memory,
)


@pytest.mark.parametrize(
    ('mode', 'code', 'status'),
    [
        ('clamp', 'position_limit', 'WARN'),
        ('stretch', 'jerk_limit', 'WARN'),
        ('stretch', 'position_limit', 'FAIL'),
        ('reject', 'jerk_limit', 'FAIL'),
    ],
)
def test_what_the_executor_mends_is_a_warning(mode, code, status):
    item = judge_limits(LimitFindings(9, {('elbow', code): 2}), mode=mode)
    assert (item.status, 'would mend' in item.found) == (status, status == 'WARN')


@pytest.mark.parametrize(
    ('grown', 'device_grown', 'status'),
    [
        (0, 0, 'PASS'),
        (-5, -5, 'PASS'),
        (9, 0, 'WARN'),
        (0, 9, 'WARN'),
        (16, 0, 'FAIL'),
        (0, 16, 'FAIL'),
    ],
)
def test_growth_of_process_and_gpu(grown, device_grown, status):
    warm = MemoryMark(ProcessMemory(100 << 20, 200 << 20), 500 << 20)
    ended = MemoryMark(ProcessMemory((100 + grown) << 20, 200 << 20), (500 - device_grown) << 20)
    marks = MemoryMarks(MemoryMark(ProcessMemory(1, 1), 900 << 20), warm, warm, ended)
    item = judge_memory(marks, runs=3, on_device=True)
    assert (item.status, item.details['device_bytes']) == (status, 400 << 20)
    assert item.details['growth_bytes'] == grown << 20
    alone = judge_memory(marks, runs=3, on_device=False)
    assert (alone.status == 'PASS') == (grown <= 8)
