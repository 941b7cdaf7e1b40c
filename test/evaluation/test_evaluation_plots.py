# SPDX-License-Identifier: Apache-2.0
import re

import numpy as np
import pytest
from evaluation_builders import STEP_NS, chunk, columns, record, stream

from vla_policy_ros.evaluation.html_parts import legend, meter, pill, section, table
from vla_policy_ros.evaluation.metrics import compare
from vla_policy_ros.evaluation.plots import plot_joints, plot_latency, plot_row_errors
from vla_policy_ros.evaluation.recording import ChunkRecording

RAMP = np.arange(12, dtype=np.float32)[:, None]


def path_of(chart, style):
    found = re.search(rf'<path class="{style}" d="([^"]*)"', chart)
    return found[1] if found else ''


def joint_charts(policy, truth, **kwargs):
    return plot_joints(policy, truth, comparison=compare(policy, truth, **kwargs))


def test_each_executed_chunk_is_a_line_with_a_tail_and_a_seam():
    (plot,) = joint_charts(stream(RAMP, horizon=4, stride=3), stream(RAMP, horizon=4))
    policy = path_of(plot.chart, 'line policy')
    assert policy.count('M') == 4
    assert policy.count('L') == 4 * 2
    assert path_of(plot.chart, 'line tail').count('L') == 4
    assert path_of(plot.chart, 'seam').count('M') == 4
    assert path_of(plot.chart, 'line truth').count('L') == 11


def test_single_executed_rows_are_joined():
    (plot,) = joint_charts(stream(RAMP, horizon=4), stream(RAMP, horizon=4))
    assert path_of(plot.chart, 'line policy').count('M') == 1


def test_the_first_epoch_is_shown_with_its_own_truth():
    policy, truth = (stream(RAMP, horizon=4, stride=stride) for stride in (4, 1))
    policy.extend(stream(RAMP, horizon=4, stride=4, epoch=1))
    truth.extend(stream(RAMP, horizon=4, epoch=1))
    (plot,) = joint_charts(policy, truth)
    assert path_of(plot.chart, 'seam').count('M') == 3
    assert path_of(plot.chart, 'line truth').count('L') == 11


def test_joints_come_by_their_error():
    motion = np.repeat(RAMP, 3, axis=1)
    policy = stream(motion + np.float32([1, 3, 2]), horizon=4, stride=4)
    plots = joint_charts(policy, stream(motion, horizon=4))
    assert [plot.name for plot in plots] == ['joint_1', 'joint_2', 'joint_0']


def test_a_joint_the_truth_lacks_is_drawn_alone():
    policy = record([chunk([[1, 2], [2, 3]], cols=columns(2))])
    plots = joint_charts(policy, stream(RAMP, horizon=2))
    truths = {plot.name: bool(path_of(plot.chart, 'line truth')) for plot in plots}
    assert truths == {'joint_0': True, 'joint_1': False}


def test_no_chunks_no_charts():
    empty = ChunkRecording()
    assert joint_charts(empty, empty) == ()
    assert plot_row_errors(compare(empty, empty)) == ''
    assert plot_latency(empty, limit_ms=5) == ('', '')


def test_rows_nobody_knows_are_left_out_of_the_error_by_row():
    policy = record([chunk([[0], [0], [0], [0]], 10)])
    chart = plot_row_errors(compare(policy, stream(RAMP, horizon=4)))
    assert path_of(chart, 'dots policy').count('M') == 2


@pytest.mark.parametrize(('limit_ms', 'is_drawn'), [(20, True), (31, False), (None, False)])
def test_a_limit_is_drawn_when_it_is_near(limit_ms, is_drawn):
    for chart in plot_latency(stream(RAMP, horizon=2), limit_ms=limit_ms):
        assert ('limit' in chart) is is_drawn


def test_latencies_below_zero_stay_in_the_chart():
    recording = record([chunk([[0.0]], 0), chunk([[0.0]], 1)], latency_ns=-STEP_NS)
    over_run, histogram = plot_latency(recording, limit_ms=None)
    heights = [
        float(point.split()[1]) for point in path_of(over_run, 'line policy thin')[1:].split('L')
    ]
    assert all(0 <= height <= 220 for height in heights)
    widths = [float(width) for width in re.findall(r'width="([\d.-]+)" height', histogram)]
    assert all(width > 0 for width in widths)


def test_pieces_escape_what_they_are_given():
    evil = '<i>&'
    made = [
        section(evil, '', note=evil),
        table((evil,), [(evil,)]),
        pill(evil, 'good').text,
        legend((('line policy', evil),)),
    ]
    for text in made:
        assert evil not in text
        assert '&lt;i&gt;&amp;' in text


@pytest.mark.parametrize(('share', 'width'), [(-1, '0.0%'), (0.5, '50.0%'), (7, '100.0%')])
def test_a_meter_stays_within_its_frame(share, width):
    assert f'width:{width}' in meter(share).text


def test_bad_meters_look_bad():
    assert 'meter bad' in meter(1, is_bad=True).text
    assert 'bad' not in meter(1).text
