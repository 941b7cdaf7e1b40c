# SPDX-License-Identifier: Apache-2.0
"""Replay, policy and recorder as three processes: everything arrives, everything is answered, the verdict is honest."""

import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from support.recordings import HORIZON, NUM_STEPS, STEP_NS, write_patient_deployment
from support.ros_processes import PATIENCE_S, RosProcess, RosProcesses

from vla_policy_ros.evaluation.recording import ChunkRecording
from vla_policy_ros.evaluation.report import load_run
from vla_policy_ros.evaluation.truth import recorded_chunk
from vla_policy_ros.msg import ActionChunk

pytestmark = pytest.mark.ros


@dataclass
class Run:
    """Three processes and the folder of their report."""

    policy: RosProcess
    replay: RosProcess
    recorder: RosProcess
    folder: Path

    def finish(self):
        """Wait for replay and recorder, stop the policy, and return their statuses."""
        statuses = (self.replay.wait(), self.recorder.wait(), self.policy.end())
        return dict(zip(('replay', 'recorder', 'policy'), statuses, strict=True))

    @property
    def log(self):
        return '\n'.join(node.log for node in (self.policy, self.replay, self.recorder))

    @property
    def report(self):
        return json.loads((self.folder / 'report.json').read_text())

    @property
    def timing(self):
        return self.report['verdict']['timing']

    @property
    def chunks(self) -> ChunkRecording:
        return load_run(self.folder).recordings.policy

    @property
    def truth(self) -> ChunkRecording:
        return load_run(self.folder).recordings.truth


def start_run(processes, recording, folder, *, tolerances='', **replay):
    """Start the three nodes; keywords are parameters of the replay."""
    is_lockstep = replay['mode'] == 'lockstep'
    policy = processes.start_node(
        'policy_node',
        config=write_patient_deployment(folder.with_suffix('.yaml'), recording.bundle),
        qos_depth=1000,
        autostart=True,
        use_sim_time=is_lockstep,
        image_transport=replay.get('image_transport', ''),
        status_period_s=0.1,
    )
    recorder = processes.start_node(
        'recorder_node',
        out=folder,
        dataset=recording.dataset,
        tolerances=tolerances,
        use_sim_time=is_lockstep,
        autostart=True,
    )
    player = processes.start_node(
        'replay_node',
        dataset=recording.dataset,
        horizon=HORIZON,
        wait_for_recorder=True,
        autostart=True,
        exit_at_end=True,
        **replay,
    )
    return Run(policy, player, recorder, folder)


RUNS = {
    'timed raw': {'mode': 'timed', 'image_transport': 'raw'},
    'timed compressed': {'mode': 'timed', 'image_transport': 'compressed'},
    'best effort': {'mode': 'timed', 'reliability': 'best_effort'},
}


@pytest.fixture(scope='module', params=RUNS)
def timed_run(request, recording, tmp_path_factory):
    folder = tmp_path_factory.mktemp('timed')
    with RosProcesses(folder) as processes:
        run = start_run(processes, recording, folder / 'run', **RUNS[request.param])
        assert run.finish() == {'replay': 0, 'recorder': 0, 'policy': 0}, run.log
    return run


@pytest.fixture(scope='module')
def lockstep_runs(recording, tmp_path_factory):
    """Two runs of one episode, side by side."""
    runs = []
    with ExitStack() as stack:
        for _ in range(2):
            folder = tmp_path_factory.mktemp('lockstep')
            processes = stack.enter_context(RosProcesses(folder))
            runs.append(start_run(processes, recording, folder / 'run', mode='lockstep'))
        for run in runs:
            assert run.finish() == {'replay': 0, 'recorder': 0, 'policy': 0}, run.log
    return runs


def check_complete(run, num_steps=NUM_STEPS):
    """Every step was answered with a chunk, every chunk arrived, nothing was lost or refused."""
    timing = run.timing
    assert run.report['passed']
    assert timing['counts']['reference_samples'] == num_steps
    assert timing['counts']['refusals'] == {}
    assert timing['counts']['missing'] == 0
    assert (timing['num_chunks'], timing['sequence_gaps']) == (num_steps, 0)
    assert run.chunks.sequences.tolist() == list(range(num_steps))
    assert len(run.truth) == num_steps
    assert set(run.truth.observation_stamps_ns) == set(run.chunks.observation_stamps_ns)


def test_timed_is_complete(timed_run):
    check_complete(timed_run)
    assert timed_run.timing['counts']['drops'] == {}


def test_timed_stamps_are_on_the_nodes_clock(timed_run):
    timing = timed_run.timing
    assert 0 < timing['capture_to_chunk']['p50_ms'] < PATIENCE_S * 1000
    assert 0 < timing['delivery']['p50_ms'] < PATIENCE_S * 1000


def test_truth_is_what_was_recorded(timed_run, recording):
    episode = recording.source.episode(0)
    wanted = [recorded_chunk(episode.action, step, HORIZON) for step in range(NUM_STEPS)]
    np.testing.assert_array_equal(timed_run.truth.actions, np.stack(wanted))


def test_reports_are_written(timed_run):
    for name in ('report.json', 'report.xml', 'report.html'):
        assert (timed_run.folder / name).stat().st_size > 100


def test_lockstep_is_complete(lockstep_runs):
    for run in lockstep_runs:
        check_complete(run)
        assert run.timing['counts']['drops'] == {}


def test_lockstep_runs_on_the_published_clock(lockstep_runs):
    for run in lockstep_runs:
        assert run.chunks.observation_stamps_ns[0] == 1_000_000_000
        assert run.timing['delivery']['max_ms'] <= NUM_STEPS * STEP_NS / 1e6


def test_two_lockstep_runs_give_the_same_bytes(lockstep_runs):
    first, second = (run.report['policy_digest'] for run in lockstep_runs)
    assert first == second
    assert len({chunk.tobytes() for chunk in lockstep_runs[0].chunks.actions}) == NUM_STEPS


def test_two_episodes_of_one_timed_run(processes, recording, tmp_path):
    run = start_run(
        processes, recording, tmp_path / 'run', mode='timed', episodes='0,1', end_s=0.5
    )
    assert run.finish() == {'replay': 0, 'recorder': 0, 'policy': 0}, run.log
    check_complete(run, 32)
    assert run.timing['capture_to_chunk']['p50_ms'] > 0
    assert run.truth.epochs.tolist() == [0] * 16 + [1] * 16
    assert list(dict.fromkeys(chunk.instruction.text for chunk in run.chunks)) == [
        'follow curve 0',
        'follow curve 1',
    ]


def test_a_second_replay_begins_an_epoch(processes, graph, recording):
    """Clock and stamps start anew, as when a bag loops."""
    policy = processes.start_node(
        'policy_node', bundle=recording.bundle, autostart=True, use_sim_time=True
    )
    chunks = graph.collect(ActionChunk, 'action_chunk')
    for turn in (1, 2):
        replay = processes.start_node(
            'replay_node',
            dataset=recording.dataset,
            mode='lockstep',
            autostart=True,
            exit_at_end=True,
        )
        assert replay.wait() == 0, replay.log
        graph.spin_until(lambda turn=turn: len(chunks) == turn * NUM_STEPS, 'every chunk')
    assert policy.end() == 0
    assert [chunk.epoch for chunk in chunks] == [0] * NUM_STEPS + [1] * NUM_STEPS
    values = [tuple(chunk.values) for chunk in chunks]
    assert values[:NUM_STEPS] == values[NUM_STEPS:]


def test_refusals_are_in_the_report_and_fail_a_limit(processes, recording, tmp_path):
    run = start_run(
        processes,
        recording,
        tmp_path / 'run',
        mode='lockstep',
        faults='encoding:front:10-14;truncate:front:30-32',
        tolerances='{max_refused: 7, min_chunk_share: 0.8}',
    )
    assert run.finish() == {'replay': 0, 'recorder': 1, 'policy': 0}, run.log
    counts = run.timing['counts']
    assert counts['refusals'] == {'front/unknown_encoding': 5, 'front/short_data': 3}
    assert (counts['missing'], run.timing['num_chunks']) == (0, NUM_STEPS - 8)
    checks = {check['name']: check['passed'] for check in run.report['verdict']['checks']}
    assert checks == {'chunks': True, 'max_refused': False, 'min_chunk_share': True}
    refused = {10, 11, 12, 13, 14, 30, 31, 32}
    stamps = run.truth.observation_stamps_ns
    wanted = [stamp for step, stamp in enumerate(stamps) if step not in refused]
    assert run.chunks.observation_stamps_ns.tolist() == wanted


def test_a_replay_that_is_stopped_does_not_pass(processes, graph, recording, tmp_path):
    run = start_run(processes, recording, tmp_path / 'run', mode='timed')
    chunks = graph.collect(ActionChunk, 'action_chunk')
    graph.spin_until(lambda: len(chunks) > 5, 'the first chunks')
    assert run.replay.end() == 0
    assert run.recorder.wait() == 1, run.log
    run.recorder.wait_for('NOT passed')
