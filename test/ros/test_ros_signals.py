# SPDX-License-Identifier: Apache-2.0
"""Every way to end a node's process, with real processes and real signals."""

import shutil
import signal

import pytest

from vla_policy_ros.msg import ReplayStatus
from vla_policy_ros.ros.qos import LATCHED

pytestmark = pytest.mark.ros

SIGNALS = pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM], ids=['INT', 'TERM'])


@pytest.fixture
def nodes(processes, recording, tmp_path):
    """All three nodes as processes, unconfigured; the replay waits for a policy that never comes."""
    return {
        'policy_node': processes.start_node('policy_node', bundle=recording.bundle),
        'replay_node': processes.start_node('replay_node', dataset=recording.dataset),
        'recorder_node': processes.start_node('recorder_node', out=tmp_path / 'run'),
    }


@SIGNALS
@pytest.mark.parametrize('state', ['inactive', 'active'])
def test_a_signal_ends_every_node_with_0(graph, nodes, number, state):
    replay = graph.collect(ReplayStatus, 'replay_status', LATCHED)
    for name in nodes:
        assert graph.transition(name, 'configure')
        if state == 'active':
            assert graph.transition(name, 'activate')
        assert graph.state(name) == state
    if state == 'active':
        graph.spin_until(lambda: replay and replay[-1].state == 'waiting', 'a waiting replay')
    for node in nodes.values():
        node.send(number)
    for node in nodes.values():
        assert node.wait() == 0, node.log
        assert 'Traceback' not in node.log


@SIGNALS
def test_a_signal_ends_a_playing_replay_with_0(graph, processes, recording, number):
    replay = graph.collect(ReplayStatus, 'replay_status', LATCHED)
    node = processes.start_node(
        'replay_node',
        dataset=recording.dataset,
        wait_for_policy=False,
        loop=True,
        autostart=True,
    )
    graph.spin_until(lambda: replay and replay[-1].state == 'playing', 'a playing replay')
    assert node.end(number) == 0, node.log
    assert 'Traceback' not in node.log


def test_shutdown_ends_the_process_with_0(graph, nodes):
    for name, node in nodes.items():
        assert graph.transition(name, 'shutdown')
        assert node.wait() == 0, node.log


def test_autostart_with_a_broken_bundle_ends_with_1(processes, recording, tmp_path):
    bundle = shutil.copytree(recording.bundle, tmp_path / 'bundle')
    (bundle / 'policy.onnx').unlink()
    node = processes.start_node('policy_node', bundle=bundle, autostart=True)
    assert node.wait() == 1, node.log
    node.wait_for(r'cannot configure: .*policy\.onnx.*: got .*, expected .*\.')
    assert 'Traceback' not in node.log


def test_a_wrong_parameter_ends_with_1(processes):
    node = processes.start_node('replay_node', rate=1000.0)
    assert node.wait() == 1, node.log
    node.wait_for(r'error: parameters of replay_node: rate: got .*1000.*, expected .* 1\.0')
    assert 'Traceback' not in node.log


@pytest.mark.parametrize(
    ('parameters', 'message'),
    [
        ({'dataset': '/nowhere'}, r'/nowhere.*: got .*, expected '),
        ({'episodes': '7'}, r"got '7', expected .*0 to 1"),
        ({'faults': 'drop:elbow:1'}, r"target 'elbow', expected one of front, wrist, joint_0"),
    ],
)
def test_a_replay_that_cannot_start_ends_with_1(processes, recording, parameters, message):
    settings = {'dataset': recording.dataset, 'autostart': True, **parameters}
    node = processes.start_node('replay_node', **settings)
    assert node.wait() == 1, node.log
    node.wait_for(f'cannot configure: .*{message}')


def test_a_missing_video_ends_the_replay_with_1(processes, recording, tmp_path):
    dataset = shutil.copytree(recording.dataset, tmp_path / 'dataset')
    (video,) = dataset.glob('videos/**/*wrist*/episode_000000.mp4')
    video.unlink()
    node = processes.start_node(
        'replay_node',
        dataset=dataset,
        wait_for_policy=False,
        autostart=True,
        exit_at_end=True,
    )
    assert node.wait() == 1, node.log
    node.wait_for(r'wrist/episode_000000\.mp4.*: got .*, expected ')
    assert 'Traceback' not in node.log


def test_a_recorder_without_a_folder_ends_with_1(processes):
    node = processes.start_node('recorder_node', autostart=True)
    assert node.wait() == 1, node.log
    node.wait_for(r'cannot configure: parameter out: got nothing')
