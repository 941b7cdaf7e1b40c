# SPDX-License-Identifier: Apache-2.0
"""The launch files and the `ros2` command, started for real."""

import json
import re
import shutil
import time
from pathlib import Path

import pytest
import yaml
from support.recordings import HORIZON, NUM_STEPS, STEP_NS, write_patient_deployment
from support.ros_processes import PATIENCE_S, RosProcesses, echoed_message

from vla_policy_ros.datasets.registry import open_dataset
from vla_policy_ros.export.untrained import create_untrained_bundle

EXAMPLES = Path(__file__).parents[2] / 'examples'

pytestmark = [pytest.mark.ros, pytest.mark.launch]

# Without the daemon nothing of a test outlives it.
NO_DAEMON = ('--no-daemon', '--spin-time', '1')


def launch(processes, name, **arguments):
    texts = [f'{key}:={value}' for key, value in arguments.items()]
    return processes.start('ros2', 'launch', 'vla_policy_ros', f'{name}.launch.py', *texts)


def ros2(processes, command, verb, *arguments, says):
    """Run a `ros2` command until it says something: its own discovery may not have seen all yet."""
    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        process = processes.start('ros2', command, verb, *NO_DAEMON, *arguments)
        process.wait()
        if re.search(says, process.log):
            return process.log
        assert time.monotonic() < deadline_s, f'{process.command}:\n{process.log}'


def check_ended_cleanly(process, *nodes):
    """Launch ended with 0, every node finished cleanly, and no process is left."""
    assert process.wait() == 0, process.log
    for node in nodes:
        assert re.search(rf'\[{node}-\d\]: process has finished cleanly', process.log), process.log
    assert process.group_is_empty()


@pytest.fixture(scope='module')
def active(recording, tmp_path_factory):
    """An active policy node under `ros2 launch`, and the processes of its domain; ended with Ctrl-C."""
    with RosProcesses(tmp_path_factory.mktemp('active')) as processes:
        process = launch(
            processes, 'policy', bundle=recording.bundle, instruction='follow curve 0'
        )
        process.wait_for('waiting No samples from')
        yield processes
        process.interrupt_group()
        check_ended_cleanly(process, 'policy_node')


@pytest.mark.parametrize(
    ('name', 'arguments'),
    [
        ('policy', 'config bundle engine preprocess image_transport instruction autostart'),
        ('replay', 'dataset episodes mode rate loop reliability faults seed exit_at_end'),
        ('demo', 'dataset bundle config executor episodes mode rate faults tolerances out'),
        ('robot', 'folder bundle instruction dry_run armed_at_start simulate'),
        ('simulated_robot', 'config rate_hz lag_ms release initial_names start_from autostart'),
    ],
)
def test_every_argument_is_listed_with_a_description(processes, name, arguments):
    text = processes.run('ros2', 'launch', 'vla_policy_ros', f'{name}.launch.py', '-s')
    listed = re.findall(r"^ {4}'(\w+)':\n {8}(\S.*)$", text, re.MULTILINE)
    assert set(arguments.split()) <= {argument for argument, _ in listed}
    assert all(description != 'no description given' for _, description in listed)


def test_demo_ends_by_itself_with_a_report(processes, recording, tmp_path):
    process = launch(
        processes,
        'demo',
        dataset=recording.dataset,
        config=write_patient_deployment(tmp_path / 'robot.yaml', recording.bundle),
        bundle=recording.bundle,
        mode='lockstep',
        horizon=HORIZON,
        tolerances='{max_refused: 0, max_missing: 0, min_compared_share: 1.0}',
        out=tmp_path / 'run',
    )
    check_ended_cleanly(process, 'policy_node', 'replay_node', 'recorder_node')
    report = json.loads((tmp_path / 'run' / 'report.json').read_text())
    assert report['passed']
    assert report['verdict']['timing']['num_chunks'] == NUM_STEPS
    # On the published clock, which does not go further than the episode.
    assert report['verdict']['timing']['delivery']['max_ms'] <= NUM_STEPS * STEP_NS / 1e6
    assert [check['name'] for check in report['verdict']['checks']] == [
        'chunks',
        'min_compared_share',
        'max_refused',
        'max_missing',
    ]


def test_the_demo_of_the_sample_ends_in_motion(processes, tmp_path):
    out = tmp_path / 'run'
    process = launch(processes, 'demo', episodes=11, out=out)
    check_ended_cleanly(process, 'policy_node', 'executor_node', 'simulated_robot_node')
    motion = json.loads((out / 'report.json').read_text())['verdict']['motion']
    assert motion['num_commands'] > 500
    assert motion['outside'] == {}
    assert motion['lag']['mae'] < 0.05


def test_a_whole_robot_is_launched_from_a_folder(processes, tmp_path):
    folder = EXAMPLES / 'mobile_manipulator'
    bundle = tmp_path / 'bundle'
    create_untrained_bundle(bundle, open_dataset(folder / 'recording.yaml'), image_size=32)
    process = launch(
        processes, 'robot', folder=folder, bundle=bundle, simulate='true', armed_at_start='true'
    )
    process.wait_for('armed: unarmed -> idle')
    process.wait_for('waiting No samples from head, wrist')
    process.interrupt_group()
    check_ended_cleanly(process, 'policy_node', 'executor_node', 'simulated_robot_node')


def test_demo_ends_when_a_node_cannot_start(processes, recording, tmp_path):
    bundle = shutil.copytree(recording.bundle, tmp_path / 'bundle')
    (bundle / 'policy.onnx').unlink()
    process = launch(
        processes, 'demo', dataset=recording.dataset, bundle=bundle, out=tmp_path / 'run'
    )
    process.wait()
    assert 'cannot configure: ' in process.log
    assert 'policy.onnx' in process.log
    died = r'\[policy_node-\d\]: process has died .*exit code 1,'
    assert re.search(died, process.log), process.log
    assert process.group_is_empty()


def test_lifecycle_by_command(processes, graph, recording):
    process = launch(processes, 'policy', bundle=recording.bundle, autostart='false')
    for transition, state in [
        ('configure', 'inactive'),
        ('activate', 'active'),
        ('deactivate', 'inactive'),
        ('cleanup', 'unconfigured'),
    ]:
        ros2(processes, 'lifecycle', 'set', '/policy_node', transition, says='successful')
        assert graph.state('policy_node') == state
    ros2(processes, 'lifecycle', 'set', '/policy_node', 'shutdown', says='successful')
    check_ended_cleanly(process, 'policy_node')


def test_parameters_are_described(active):
    names = ('qos_depth', 'instruction')
    text = ros2(active, 'param', 'describe', '/policy_node', *names, says='Parameter name')
    depth, instruction = text.split('Parameter name: ')[1:]
    assert 'Messages that wait per topic' in depth
    assert 'Read only: true' in depth
    assert 'Min value: 1' in depth
    assert 'Max value: 1000' in depth
    assert 'Read only: true' not in instruction


def test_the_instruction_can_be_set_and_the_bundle_cannot(active, recording):
    node = '/policy_node'
    ros2(active, 'param', 'set', node, 'instruction', 'follow curve 1', says='successful')
    ros2(active, 'param', 'get', node, 'instruction', says='follow curve 1')
    ros2(active, 'param', 'set', node, 'bundle', 'elsewhere', says='failed.*read-only')
    text = ros2(active, 'param', 'dump', node, says='ros__parameters')
    parameters = yaml.safe_load(text[text.index(f'{node}:') :])[node]['ros__parameters']
    assert parameters['bundle'] == str(recording.bundle)
    assert parameters['instruction'] == 'follow curve 1'


def test_topics_tell_what_the_node_does(active):
    topics = {
        '/action_chunk [vla_policy_ros/msg/ActionChunk]',
        '/camera/front/image_raw [sensor_msgs/msg/Image]',
        '/camera/wrist/image_raw [sensor_msgs/msg/Image]',
        '/joint_states [sensor_msgs/msg/JointState]',
        '/policy_status [vla_policy_ros/msg/PolicyStatus]',
    }
    # Discovery tells publishers and subscriptions one by one, so ask until all of them are there.
    every = ''.join(f'(?=.*^{re.escape(topic)}$)' for topic in sorted(topics))
    ros2(active, 'topic', 'list', '-t', says=f'(?ms)\\A{every}')
    # The node's name comes by another way than its publisher.
    publisher = '(?s)Publisher count: 1.*Node name: policy_node.*Reliability: RELIABLE'
    ros2(active, 'topic', 'info', '/action_chunk', '-v', says=publisher)


def test_the_status_can_be_read_by_command(active):
    text = ros2(active, 'topic', 'echo', '--once', '/policy_status', says='header:')
    status = echoed_message(text)
    assert status['state'] == 'waiting'
    assert status['detail'] == 'No samples from front, wrist, joint_states[0].'
    names = [stream['name'] for stream in status['streams']]
    assert names == ['front', 'wrist', 'joint_states[0]']
