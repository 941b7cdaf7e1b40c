# SPDX-License-Identifier: Apache-2.0
import re
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from evaluation_builders import MS, columns

from vla_policy_ros.core.specs import Column, ColumnKind
from vla_policy_ros.evaluation.motion_plot import motion_figure
from vla_policy_ros.execution.limits import JointLimits

TIMES_NS = 7_000 * MS + np.arange(200) * 10 * MS
MOTION = np.stack([np.sin(np.arange(200) / 30), np.cos(np.arange(200) / 30)], axis=1)
SEAMS_NS = TIMES_NS[[50, 100]]


def limits(*, position_min=(-1.2, -1.2), position_max=(1.2, 1.2), velocity=(5.0, 400.0)):
    return JointLimits(
        columns=columns(2),
        position_min=position_min,
        position_max=position_max,
        velocity=velocity,
        acceleration=np.full(2, 1e3),
        jerk=np.full(2, np.inf),
    )


def figure(
    command=MOTION, truth=None, limits=None, seams_ns=SEAMS_NS, cols=None, times_ns=TIMES_NS
):
    cols = cols or columns(command.shape[1])
    return motion_figure(times_ns, command, truth, limits, seams_ns, cols)


def charts(text):
    return re.findall(r'<svg class="chart".*?</svg></svg>', text)


def paths(chart, style):
    return re.findall(rf'<path class="{style}" d="([^"]*)"', chart)


def heights(path):
    return [float(point.split()[1]) for point in path[1:].split('L')]


def test_every_column_has_its_position_and_its_velocity():
    text = figure()
    assert len(charts(text)) == 4
    assert [label.split('"')[0] for label in text.split('aria-label="')[1:]] == [
        f'joint_{index} over time: {what}' for index in (0, 1) for what in ('position', 'velocity')
    ]
    assert text.count('<span>rad, rad/s</span>') == 2
    position, velocity = charts(text)[:2]
    assert paths(position, 'line policy')[0].count('L') == 199
    assert paths(velocity, 'line policy')[0].count('L') == 198


def test_the_figure_is_well_formed():
    ET.fromstring(f'<div>{figure(truth=MOTION, limits=limits())}</div>')


def test_seams_stand_where_chunks_took_over():
    for chart in charts(figure()):
        seams = paths(chart, 'seam')[0]
        assert [float(at) for at in re.findall(r'M([\d.]+) ', seams)] == pytest.approx(
            [324 * 50 / 199, 324 * 100 / 199], abs=0.06
        )
    assert 'class="seam"' not in charts(figure(seams_ns=np.zeros(0, np.int64)))[0]


def test_the_truth_lies_under_the_command():
    text = figure(truth=MOTION + 0.1)
    for chart in charts(text):
        assert chart.index('line truth') < chart.index('line policy')
    assert 'line truth' not in figure()


def test_the_legend_names_what_is_drawn():
    full = figure(truth=MOTION, limits=limits()).split('<div class="joints">')[0]
    assert [name in full for name in ('truth', 'command', 'limit', 'takes over')] == [True] * 4
    bare = figure().split('<div class="joints">')[0]
    assert [name in bare for name in ('truth', 'limit')] == [False] * 2


def test_limits_are_drawn_where_they_are_near():
    bounds = limits(position_max=(1.2, 90.0), velocity=(4.0, 400.0))
    found = [len(paths(chart, 'limit')) for chart in charts(figure(limits=bounds))]
    assert found == [2, 2, 1, 0]


@pytest.mark.parametrize(
    ('unit', 'texts'),
    [
        ('m', ['-1.2 to 1.2 m, 5 m/s', '-90 to 90 m, 400 m/s']),
        ('', ['-1.2 to 1.2, 5 per s', '-90 to 90, 400 per s']),
    ],
)
def test_limits_stand_beside_the_name(unit, texts):
    bounds = limits(position_min=(-1.2, -90.0), position_max=(1.2, 90.0))
    shown = re.findall('<h3>[^<]*<span>([^<]*)', figure(limits=bounds, cols=columns(2, unit=unit)))
    assert shown == texts


def test_a_jump_at_a_seam_is_a_spike_of_the_velocity():
    command = MOTION.copy()
    command[100:, 0] += 0.2
    velocity = heights(paths(charts(figure(command))[1], 'line policy')[0])
    assert int(np.argmin(velocity)) == 99
    assert velocity[99] < 0.2 * np.median(velocity)


def test_a_wrapped_angle_is_no_jump():
    turning = (np.arange(200) / 20 + np.pi)[:, None] % (2 * np.pi) - np.pi
    cols = (Column('wheel', 'rad', ColumnKind.ANGLE),)
    velocity = heights(paths(charts(figure(turning, cols=cols))[1], 'line policy')[0])
    assert max(velocity) - min(velocity) < 0.2


def test_truth_that_is_not_known_is_left_out():
    truth = MOTION.copy()
    truth[:100, 0] = np.nan
    chart = charts(figure(truth=truth))[0]
    assert paths(chart, 'line truth')[0].count('L') == 99
    assert 'nan' not in chart


def test_one_sample_and_none():
    assert len(charts(figure(MOTION[:1], times_ns=TIMES_NS[:1]))) == 4
    assert figure(MOTION[:0], times_ns=TIMES_NS[:0]) == ''


def test_names_are_escaped():
    text = figure(MOTION[:, :1], cols=(Column('<b>', '<i>'),))
    assert '<b>' not in text
    assert '<i>' not in text
