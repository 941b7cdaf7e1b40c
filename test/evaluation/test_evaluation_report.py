# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from evaluation_builders import stream
from motion_builders import PERIOD_NS, collect, wide_limits

from vla_policy_ros.core.errors import DatasetError
from vla_policy_ros.evaluation.frames import SampleFrame
from vla_policy_ros.evaluation.junit import render_junit
from vla_policy_ros.evaluation.metrics import compare
from vla_policy_ros.evaluation.motion_metrics import ExecutorFacts, measure_motion
from vla_policy_ros.evaluation.recording import ChunkRecording
from vla_policy_ros.evaluation.report import Recordings, load_run, render_report, write_reports
from vla_policy_ros.evaluation.timing import RunCounts, measure_timing
from vla_policy_ros.evaluation.verdict import RunFacts, Tolerances, judge

NASTY = '<script>alert("&")</script>\x00 pick'
VOID = {'meta', 'br', 'img'}


class Page(HTMLParser):
    """Checks that tags are balanced and collects what the page refers to."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text, self.references = [], [], '', []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [value for name, value in attrs if name in ('src', 'href')]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def motion(num_steps, num_joints):
    phase = np.arange(num_joints) * 0.7
    return np.sin(np.arange(num_steps)[:, None] * 0.1 + phase).astype(np.float32)


def run(policy, truth, *, tolerances=None, counts=None, name='a run'):
    facts = RunFacts(
        name=name,
        command=f'vla-policy infer {name}',
        versions={'numpy': '2'},
        details={'dataset': name},
    )
    timing = measure_timing(policy, counts or RunCounts(reference_samples=40))
    return judge(
        facts, compare(policy, truth), timing=timing, tolerances=tolerances or Tolerances()
    )


@pytest.fixture
def streams():
    actions = motion(40, 3)
    return stream(actions, horizon=8, stride=4, offset=0.1), stream(actions, horizon=8)


@pytest.fixture
def frames():
    image = np.random.default_rng(0).integers(0, 255, (48, 64, 3)).astype(np.uint8)
    return [SampleFrame('wrist <left>', 1_500_000_000, image)]


def write(tmp_path, streams, *, frames=(), **kwargs):
    policy, truth = streams
    result = run(policy, truth, **kwargs)
    return write_reports(
        tmp_path, result, recordings=Recordings(policy, truth), sample_frames=frames
    )


def test_a_finished_run_is_read_back_as_it_was(tmp_path, streams, frames):
    tolerances = Tolerances(max_mae=0.2, max_p99_ms=0.1)
    counts = RunCounts(reference_samples=12, refusals={'front/bad': 2}, drops={'front': 1})
    write(tmp_path, streams, frames=frames, tolerances=tolerances, counts=counts)
    loaded = load_run(tmp_path)
    assert loaded.report.verdict == run(*streams, tolerances=tolerances, counts=counts)
    assert loaded.report.policy_digest == streams[0].digest()
    assert loaded.recordings.truth.digest() == streams[1].digest()
    assert [(frame.camera, frame.stamp_ns) for frame in loaded.frames] == [
        ('wrist <left>', 1_500_000_000)
    ]


def executed(streams, *, num=80):
    """A motion along the truth in four states, with a limit that acts, and its robot a little behind."""
    policy, truth = streams
    motion = np.repeat(truth.actions[:, 0], 2, axis=0)[:num].astype(np.float64)
    states = np.repeat(['soft_start', 'tracking', 'starved', 'stopping'], -(-num // 4))[:num]
    changes = {
        i: {'state': str(state), 'is_seam': i in (30, 40)} for i, state in enumerate(states)
    }
    changes[35]['is_limited'] = np.array([True, False, False])
    cols = policy.columns
    collector = collect(motion, cols=cols, changes=changes, robot=motion - 0.01)
    facts = ExecutorFacts(
        strategy='offset_fade',
        period_ns=PERIOD_NS,
        starvations=1,
        robot_topic='robot/states',
        refusals={NASTY: 2},
    )
    return collector.finish(cols, wide_limits(cols)), facts


def write_executed(tmp_path, streams):
    policy, truth = streams
    motion, facts = executed(streams)
    figures = measure_motion(motion, policy, truth, executor=facts)
    verdict = dataclasses.replace(run(policy, truth), motion=figures)
    recordings = Recordings(policy, truth, motion)
    return write_reports(tmp_path, verdict, recordings=recordings), verdict


def test_a_run_with_an_executor_shows_what_the_robot_was_told(tmp_path, streams):
    path, verdict = write_executed(tmp_path, streams)
    text = path.read_text()
    page = Page(text)
    for words in ('What the robot was told', 'offset_fade', 'robot/states', 'soft start', 'alert'):
        assert words in page.text
    assert text.count('over time: velocity') == 3
    for style in ('line robot', 'line truth', 'acted', 'seam', 'band stopping', 'band starved'):
        assert f'class="{style}"' in text
    loaded = load_run(tmp_path)
    assert loaded.report.verdict == verdict
    assert len(loaded.recordings.motion) == 80
    document = json.loads((tmp_path / 'report.json').read_text())
    assert document['verdict']['motion']['executor']['starvations'] == 1
    assert document['verdict']['motion']['smoothness']['num_boundaries'] == 2


def test_the_page_of_a_run_with_an_executor_can_be_made_again(tmp_path, streams):
    first = write_executed(tmp_path, streams)[0].read_bytes()
    assert render_report(tmp_path).read_bytes() == first


def test_a_run_without_an_executor_has_no_such_section(tmp_path, streams):
    assert 'What the robot was told' not in write(tmp_path, streams).read_text()
    assert not (tmp_path / 'motion').exists()


def test_an_executor_that_sent_nothing_is_told(tmp_path, streams):
    motion = collect(np.zeros((0, 3))).finish(streams[0].columns, None)
    figures = measure_motion(motion, *streams, executor=ExecutorFacts())
    verdict = dataclasses.replace(run(*streams), motion=figures)
    path = write_reports(tmp_path, verdict, recordings=Recordings(*streams, motion))
    assert 'sent no command' in Page(path.read_text()).text


def test_the_json_says_what_matters_at_the_top(tmp_path, streams):
    write(tmp_path, streams, tolerances=Tolerances(max_mae=0.05))
    document = json.loads((tmp_path / 'report.json').read_text())
    assert list(document)[:2] == ['schema_version', 'passed']
    assert document['passed'] is False
    assert document['verdict']['comparison']['overall']['whole']['mae'] == pytest.approx(0.1)


def test_the_page_is_well_formed_and_needs_nothing_else(tmp_path, streams, frames):
    counts = RunCounts(reference_samples=12, refusals={NASTY: 2}, drops={NASTY: 1})
    tolerances = Tolerances(max_mae=0.05, max_p99_ms=12)
    path = write(
        tmp_path, streams, frames=frames, counts=counts, name=NASTY, tolerances=tolerances
    )
    text = path.read_text()
    page = Page(text)
    assert 'script' not in page.tags
    assert not re.search(r'https?:|url\(|@import', text)
    assert all(reference.startswith('data:image/png;base64,') for reference in page.references)
    assert len(page.references) == 1
    assert page.text.count('alert("&")') > 3


def test_the_page_shows_the_verdict_and_its_numbers(tmp_path, streams):
    text = Page(write(tmp_path, streams, tolerances=Tolerances(max_mae=0.2)).read_text()).text
    assert 'PASSED' in text
    assert 'FAILED' not in text
    assert '0.100 rad' in text
    assert '10.0 ms' in text
    assert '10 of 40' in text
    text = Page(write(tmp_path, streams, tolerances=Tolerances(max_mae=0.05)).read_text()).text
    assert 'FAILED' in text
    assert '1 of 3 checks failed' in text


def test_the_same_run_gives_the_same_page(tmp_path, streams, frames):
    first = write(tmp_path, streams, frames=frames).read_bytes()
    (tmp_path / 'report.html').unlink()
    assert render_report(tmp_path).read_bytes() == first


def test_a_run_without_anything_has_a_page(tmp_path):
    page = Page(write(tmp_path, (ChunkRecording(), ChunkRecording())).read_text())
    assert 'FAILED' in page.text
    assert 'not compared' in page.text


def test_a_run_without_truth_has_plots_and_no_errors(tmp_path, streams):
    tolerances = Tolerances(max_mae=0.1)
    page = Page(write(tmp_path, (streams[0], ChunkRecording()), tolerances=tolerances).read_text())
    assert page.tags.count('svg') > 3
    assert 'joint_2' in page.text
    assert 'not compared' in page.text


@pytest.mark.parametrize(('num_steps', 'horizon', 'stride'), [(1, 1, 1), (2, 1, 1), (3, 2, 2)])
def test_tiny_runs_have_a_page(tmp_path, num_steps, horizon, stride):
    actions = motion(num_steps, 1)
    pair = (
        stream(actions, horizon=horizon, stride=stride),
        stream(actions, horizon=horizon),
    )
    Page(write(tmp_path, pair).read_text())


def test_a_humanoid_episode_stays_small_and_shows_the_worst_joints(tmp_path):
    actions = motion(400, 44)
    policy = stream(actions + np.linspace(0, 1, 44, dtype=np.float32), horizon=16)
    path = write(tmp_path, (policy, stream(actions, horizon=16)))
    assert path.stat().st_size < 3_000_000
    text = path.read_text()
    assert text.count('over time, policy and recorded') == 12
    assert 'joint_43 over time' in text
    assert 'joint_0 over time' not in text
    assert '12 of 44' in text
    assert '32 more joints' in text


def test_junit_has_a_case_per_check_and_a_message_per_failure(streams):
    tolerances = Tolerances(max_mae=0.05, max_mse=1)
    suite = ET.fromstring(render_junit(run(*streams, tolerances=tolerances, name=NASTY)))[0]
    assert (suite.get('tests'), suite.get('failures')) == ('4', '1')
    assert [case.get('name') for case in suite] == [
        'chunks',
        'max_mae',
        'max_mse',
        'max_left_out',
    ]
    failures = suite.findall('testcase/failure')
    assert ['at most 0.05' in failure.get('message') for failure in failures] == [True]
    assert 'alert("&")' in suite.get('name')


def test_the_junit_file_is_written(tmp_path, streams):
    write(tmp_path, streams)
    assert ET.parse(tmp_path / 'report.xml').getroot().tag == 'testsuites'


@pytest.mark.parametrize('content', [None, '{', '{"schema_version": 1}'])
def test_a_broken_report_is_a_dataset_error(tmp_path, streams, content):
    write(tmp_path, streams)
    if content is None:
        (tmp_path / 'report.json').unlink()
    else:
        (tmp_path / 'report.json').write_text(content)
    with pytest.raises(DatasetError, match=r'report\.json'):
        render_report(tmp_path)


def test_another_schema_version_is_refused(tmp_path, streams):
    write(tmp_path, streams)
    path = tmp_path / 'report.json'
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 2'))
    with pytest.raises(DatasetError, match='schema version 2'):
        load_run(tmp_path)


def test_frames_are_read_from_the_run_s_own_folder_only(tmp_path, streams, frames):
    write(tmp_path / 'run', streams, frames=frames)
    (tmp_path / 'secret.png').write_bytes(b'secret')
    path = tmp_path / 'run' / 'report.json'
    path.write_text(path.read_text().replace('frames/00.png', '../secret.png'))
    with pytest.raises(DatasetError):
        load_run(tmp_path / 'run')
