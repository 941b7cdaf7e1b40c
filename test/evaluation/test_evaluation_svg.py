# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_policy_ros.evaluation.html_parts import format_number
from vla_policy_ros.evaluation.svg import Axes, Range, ticks

AXES = Axes(x=Range(0, 10), y=Range(-1, 1), width=156, height=132)


@pytest.mark.parametrize(
    ('low', 'high', 'expected'),
    [
        (0, 10, [0, 5, 10]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
        (0.001, 0.0045, [0.001, 0.002, 0.003, 0.004]),
        (117, 123, [118, 120, 122]),
    ],
)
def test_ticks_are_round(low, high, expected):
    assert ticks(Range(low, high), count=3) == expected


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_lie_within_the_range(low, width):
    span = Range(low, low + width)
    if span.high - span.low > 1e-9 * max(abs(low), 1):
        values = ticks(span, count=4)
        assert len(values) <= 8
        slack = 1e-6 * (span.high - span.low) + 1e-9 * abs(low)
        assert all(span.low - slack <= value <= span.high + slack for value in values)


def test_corners_of_the_plot_area():
    assert AXES.to_x(np.array([0, 10])).tolist() == [0, AXES.inner_width]
    assert AXES.to_y(np.array([-1, 1])).tolist() == [AXES.inner_height, 0]


def test_flat_and_empty_ranges_have_a_width():
    assert Range.around(np.array([2.0, 2.0])).high > 2.0
    assert Range.around(np.array([])).high > 0.0
    assert Range.around(np.array([0.0, np.nan])).low < 0.0


def test_a_long_line_keeps_its_extremes():
    y = np.zeros(100_000)
    y[54_321], y[77_777] = 1.0, -1.0
    path = AXES.line(np.linspace(0, 10, len(y)), y, style='line')
    assert path.count('L') < 1300
    heights = {point.split()[-1] for point in path.split('"')[3].replace('M', '').split('L')}
    assert {'0.0', f'{AXES.inner_height:.1f}'} <= heights


def test_labels_are_escaped():
    assert '<b>' not in AXES.render([], label='<b>') + AXES.rule(0, '<b>', style='limit')


@pytest.mark.parametrize(
    ('value', 'text'),
    [(None, '–'), (0.0, '0'), (51.0, '51'), (0.12, '0.120'), (123.4, '123'), (1234.5, '1,234')],
)
def test_numbers_are_short(value, text):
    assert format_number(value) == text
    assert format_number(value, 'ms') == (f'{text} ms' if value is not None else text)
