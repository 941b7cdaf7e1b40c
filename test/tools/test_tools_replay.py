# SPDX-License-Identifier: Apache-2.0
"""The command around the nodes; the nodes are stand-ins, real ones run in test/end_to_end."""

import shutil
import sys

import pytest

from vla_policy_ros.tools import replay
from vla_policy_ros.tools.session import Child

WAIT = 'import signal; signal.pause()'


@pytest.fixture(scope='module')
def finished_run(recording, bundle, tmp_path_factory):
    """A run whose report the stand-in of the recorder hands in."""
    from vla_policy_ros.tools.main import main

    folder = tmp_path_factory.mktemp('finished') / 'run'
    words = ['--dataset', str(recording.dataset), '--bundle', str(bundle)]
    assert main(['infer', *words, '--out', str(folder)]) == 0
    return folder


@pytest.fixture
def launched():
    """Node to the parameters it was launched with."""
    return {}


@pytest.fixture
def nodes(monkeypatch, finished_run, launched, tmp_path):
    """Scripts that stand in for the nodes; tests change them."""
    copy = f'import shutil; shutil.copytree({str(finished_run)!r}, {str(tmp_path / "out")!r}, dirs_exist_ok=True)'
    scripts = {'policy_node': WAIT, 'replay_node': 'pass', 'recorder_node': copy}

    def make_child(node, _folder):
        launched[node.name] = node.parameters
        command = (sys.executable, '-c', scripts[node.name])
        return Child(node.name, command, may_end=node.may_end)

    monkeypatch.setattr(replay, 'make_child', make_child)
    monkeypatch.setattr(replay, 'check_ros', lambda: None)
    return scripts


@pytest.fixture
def run(cli, recording, bundle, tmp_path):
    """Run `vla-policy replay` on the recording."""
    words = ('--dataset', recording.dataset, '--bundle', bundle, '--episode', 1)

    def run(*more):
        return cli('replay', *words, '--out', tmp_path / 'out', *more)

    return run


def test_a_passed_run_in_words(run, nodes, tmp_path):
    result = run('--domain', 7)
    assert result.status == 0
    assert result.out.startswith('PASSED  ')
    for line in ('ok      chunks published', 'mean absolute error', 'capture to chunk, p99'):
        assert line in result.out
    assert result.out.rstrip().endswith(str(tmp_path / 'out' / 'report.html'))
    assert 'ROS domain 7' in result.err
    assert 'about 2 s' in result.err


def test_a_passed_run_as_json(run, nodes, tmp_path):
    document = run('--json').document
    assert document['passed'] is True
    assert document['page'] == str(tmp_path / 'out' / 'report.html')
    assert document['report']['verdict']['checks'][0]['name'] == 'chunks'


def test_the_status_of_the_recorder_counts_too(run, nodes):
    nodes['recorder_node'] += '; raise SystemExit(1)'
    result = run('--json')
    assert (result.status, result.document['passed']) == (1, False)
    assert run().out.startswith('FAILED  ')


def test_a_recorder_without_a_report_has_failed(run, nodes):
    nodes['recorder_node'] = 'print("the disk is full"); raise SystemExit(1)'
    result = run('--json')
    assert result.status == 1
    error = result.document['error']
    assert (error['where'], error['code']) == ('recorder_node', 'node_failed')
    assert 'the disk is full' in error['got']


def test_an_old_report_is_not_taken_for_a_new_one(run, nodes, finished_run, tmp_path):
    shutil.copytree(finished_run, tmp_path / 'out')
    nodes['recorder_node'] = 'raise SystemExit(0)'
    assert run().status == 1
    assert not (tmp_path / 'out' / 'report.json').exists()


def test_a_policy_that_dies_is_named(run, nodes):
    nodes['policy_node'] = 'print("no such bundle"); raise SystemExit(1)'
    nodes['recorder_node'] = WAIT
    result = run()
    assert result.status == 1
    assert 'error: policy_node' in result.err
    assert 'no such bundle' in result.err
    assert result.out == ''


def test_the_nodes_get_a_domain_of_their_own(run, nodes, tmp_path):
    nodes['recorder_node'] += '; import os; print(os.environ["ROS_DOMAIN_ID"])'
    run('--domain', 42)
    log = tmp_path / 'out' / 'log' / 'recorder_node.log'
    assert log.read_text(encoding='utf-8') == '42\n'


def test_the_nodes_get_the_options_and_the_recorder_the_command_line(run, nodes, launched):
    run('--tolerances', 'max_mae: 0.5', '--rate', '2')
    recorder = launched['recorder_node']
    assert recorder['command'].startswith('vla-policy replay --dataset ')
    assert recorder['command'].endswith("--tolerances 'max_mae: 0.5' --rate 2")
    assert recorder['tolerances'] == 'max_mae: 0.5\n'
    assert launched['replay_node']['rate'] == 2.0


def test_without_ros_the_remedy_is_named(run, monkeypatch):
    from vla_policy_ros.tools import ros_environment

    monkeypatch.setattr(ros_environment, 'find_spec', lambda _: None)
    result = run('--json')
    assert result.status == 1
    assert result.document['error']['code'] == 'missing_dependency'
    assert 'scripts/shell' in result.document['error']['next_step']


def test_a_folder_of_something_else_gives_2(run, nodes, tmp_path):
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'thesis.tex').write_text('', encoding='utf-8')
    assert run().status == 2
