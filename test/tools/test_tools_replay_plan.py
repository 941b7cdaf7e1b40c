# SPDX-License-Identifier: Apache-2.0
import dataclasses
import sys

import pytest
import yaml
from support.recordings import HORIZON, JOINTS, NUM_STEPS

from vla_policy_ros.core.errors import BundleError, ConfigurationError, DatasetError
from vla_policy_ros.evaluation.verdict import Tolerances
from vla_policy_ros.tools.motion_plan import EXECUTOR, ROBOT, ROBOT_TOPIC
from vla_policy_ros.tools.node_launch import NodeLaunch, make_child
from vla_policy_ros.tools.replay_plan import (
    POLICY,
    RECORDER,
    REPLAY,
    ReplaySettings,
    make_plan,
    prepare_folder,
)


@pytest.fixture
def settings(recording, tmp_path):
    return ReplaySettings(
        dataset=str(recording.dataset),
        bundle=str(recording.bundle),
        episode=1,
        mode='timed',
        rate=1.0,
        out=tmp_path / 'run',
    )


@pytest.fixture
def with_config(settings, recording, tmp_path):
    """Settings with a deployment file instead of a bundle; keywords replace its keys."""

    def write(*, transport='', **changes):
        document = {
            'policy': {'bundle': str(recording.bundle)},
            'cameras': {
                'front': {'topic': '/head/image/compressed', 'transport': 'compressed'},
                'wrist': {'topic': '/hand/image/compressed', 'transport': 'compressed'},
            },
            'joint_states': [{'topic': '/robot/joints'}],
            'instruction': {'topic': '/robot/task'},
            'output': {'chunk_topic': '/robot/chunk'},
            **changes,
        }
        path = tmp_path / 'robot.yaml'
        path.write_text(yaml.safe_dump(document), encoding='utf-8')
        return dataclasses.replace(settings, bundle='', config=path, transport=transport)

    return write


def nodes_of(settings, **changes):
    plan = make_plan(dataclasses.replace(settings, **changes))
    return {node.name: node for node in plan.nodes}


def test_what_is_played(settings, recording):
    plan = make_plan(dataclasses.replace(settings, rate=2.0))
    assert plan.num_steps == NUM_STEPS
    assert plan.duration_s == pytest.approx((NUM_STEPS - 1) / 30 / 2, rel=1e-3)
    assert plan.title == f'untrained on {recording.dataset.name}, episode 1'
    assert [node.name for node in plan.nodes] == [POLICY, RECORDER, REPLAY]
    assert [node.may_end for node in plan.nodes] == [False, False, True]


@pytest.mark.parametrize('mode', ['fast', 'lockstep'])
def test_nobody_knows_how_long_other_modes_take(settings, mode):
    assert make_plan(dataclasses.replace(settings, mode=mode)).duration_s is None


@pytest.mark.parametrize(
    ('mode', 'expected'), [('timed', False), ('fast', False), ('lockstep', True)]
)
def test_only_lockstep_needs_the_replayed_clock(settings, mode, expected):
    nodes = nodes_of(settings, mode=mode)
    assert nodes[POLICY].parameters['use_sim_time'] is expected
    assert nodes[REPLAY].parameters['mode'] == mode


def test_every_node_starts_by_itself_and_the_replay_waits(settings, recording):
    nodes = nodes_of(settings)
    assert all(node.parameters['autostart'] for node in nodes.values())
    replay = nodes[REPLAY].parameters
    assert replay['exit_at_end'] is replay['wait_for_recorder'] is True
    assert (replay['episodes'], replay['rate']) == ('1', 1.0)
    assert replay['dataset'] == nodes[RECORDER].parameters['dataset'] == str(recording.dataset)
    assert nodes[POLICY].parameters['bundle'] == str(recording.bundle)


def test_a_true_chunk_reaches_the_last_row_of_the_policy(settings):
    assert nodes_of(settings)[REPLAY].parameters['horizon'] == HORIZON
    assert nodes_of(settings, horizon=3)[REPLAY].parameters['horizon'] == 3


def test_the_recorder_gets_limits_and_command(settings):
    parameters = nodes_of(
        settings,
        tolerances={'max_mae': 0.5, 'max_refused': 0},
        execution_horizon=4,
        command='vla-policy replay "x: y"',
    )[RECORDER].parameters
    limits = Tolerances.from_dict(yaml.safe_load(parameters['tolerances']))
    assert limits == Tolerances(max_mae=0.5, max_refused=0)
    assert parameters['execution_horizon'] == 4
    assert parameters['command'] == 'vla-policy replay "x: y"'


def test_transport_engine_and_faults_reach_their_nodes(settings):
    nodes = nodes_of(settings, transport='compressed', engine='none', faults='drop:front:3')
    assert nodes[POLICY].parameters['image_transport'] == 'compressed'
    assert nodes[REPLAY].parameters['image_transport'] == 'compressed'
    assert nodes[POLICY].parameters['engine'] == 'none'
    assert nodes[REPLAY].parameters['faults'] == 'drop:front:3'


def test_a_deployment_file_leads_the_replay_to_its_topics(with_config, recording):
    settings = with_config()
    nodes = nodes_of(settings)
    assert nodes[POLICY].parameters['config'] == str(settings.config)
    assert nodes[POLICY].parameters['bundle'] == str(recording.bundle)
    assert nodes[REPLAY].parameters['image_transport'] == 'compressed'
    assert nodes[REPLAY].parameters['instruction_topic'] == '/robot/task'
    assert nodes[REPLAY].remaps == {
        '/camera/front/image_raw/compressed': '/head/image/compressed',
        '/camera/wrist/image_raw/compressed': '/hand/image/compressed',
    }
    assert nodes[RECORDER].parameters['chunk_topic'] == '/robot/chunk'
    for name in (REPLAY, RECORDER):
        assert nodes[name].parameters['joint_topic'] == '/robot/joints'


def test_a_chosen_transport_wins_over_the_deployment_file(with_config):
    nodes = nodes_of(with_config(transport='raw'))
    assert nodes[REPLAY].parameters['image_transport'] == 'raw'
    assert nodes[REPLAY].remaps['/camera/front/image_raw'] == '/head/image'


def test_a_replay_has_one_transport_and_one_joint_topic(with_config):
    cameras = {
        'front': {'topic': '/f'},
        'wrist': {'topic': '/w', 'transport': 'compressed'},
    }
    with pytest.raises(ConfigurationError, match='--transport'):
        make_plan(with_config(cameras=cameras))
    sources = [{'topic': '/a', 'names': ['joint_0']}, {'topic': '/b', 'names': ['joint_1']}]
    with pytest.raises(ConfigurationError, match='/a, /b'):
        make_plan(with_config(joint_states=sources))


def executor_file(folder, **changes):
    entry = {f'has_{name}_limits': True for name in ('position', 'velocity', 'acceleration')}
    entry |= {'min_position': -9.0, 'max_position': 9.0, 'max_velocity': 9.0}
    entry |= {'max_acceleration': 9.0}
    limits = {'joint_limits': dict.fromkeys(JOINTS, entry)}
    (folder / 'limits.yaml').write_text(yaml.safe_dump(limits), encoding='utf-8')
    document = {
        'limits': {'urdf_topic': '', 'file': 'limits.yaml'},
        'measured': {'topic': '/robot/joints'},
        'controllers': [
            {'kind': 'forward_command', 'name': 'arm', 'topic': 'arm', 'columns': list(JOINTS)}
        ],
        **changes,
    }
    path = folder / 'executor.yaml'
    path.write_text(yaml.safe_dump(document), encoding='utf-8')
    return path


def test_an_executor_moves_a_robot_that_the_policy_does_not_see(settings, recording, tmp_path):
    path = executor_file(tmp_path)
    nodes = nodes_of(settings, executor=path)
    assert list(nodes) == [POLICY, ROBOT, EXECUTOR, RECORDER, REPLAY]
    for name in (ROBOT, EXECUTOR):
        assert nodes[name].parameters['config'] == str(path)
        assert nodes[name].remaps == {'/robot/joints': ROBOT_TOPIC, 'joint_states': ROBOT_TOPIC}
        assert not nodes[name].may_end
    assert nodes[EXECUTOR].parameters['armed_at_start']
    assert nodes[ROBOT].parameters['initial_names'] == list(JOINTS)
    first = recording.source.episode(1).state[0]
    assert nodes[ROBOT].parameters['initial_positions'] == pytest.approx(first.tolist())
    assert nodes[RECORDER].parameters['executor'] == str(path)
    assert nodes[RECORDER].parameters['robot_topic'] == ROBOT_TOPIC


def test_without_an_executor_there_is_no_robot(settings):
    nodes = nodes_of(settings)
    assert list(nodes) == [POLICY, RECORDER, REPLAY]
    assert nodes[RECORDER].parameters['executor'] == ''


@pytest.mark.parametrize(
    ('file', 'asked', 'words'),
    [
        ({'unused': ['elbow']}, {}, 'elbow'),
        ({'chunk_topic': 'elsewhere'}, {}, 'elsewhere'),
        ({'speed': 1}, {}, 'speed'),
        ({'limits': {'urdf_topic': ''}}, {}, 'joint_0'),
        ({'limits': {'file': 'limits.yaml'}}, {}, 'urdf_topic'),
        ({}, {'mode': 'fast'}, 'mode fast'),
        ({}, {'mode': 'lockstep'}, 'mode lockstep'),
    ],
)
def test_an_executor_that_does_not_fit_is_told(settings, tmp_path, file, asked, words):
    path = executor_file(tmp_path, **file)
    with pytest.raises(ConfigurationError, match=words):
        make_plan(dataclasses.replace(settings, executor=path, **asked))


@pytest.mark.parametrize(
    ('changes', 'fault', 'words'),
    [
        ({'engine': 'steam'}, ConfigurationError, 'steam'),
        ({'bundle': ''}, ConfigurationError, 'neither --bundle nor --config'),
        ({'bundle': 'nowhere'}, BundleError, 'nowhere'),
        ({'dataset': 'nowhere'}, DatasetError, 'nowhere'),
        ({'episode': 2}, DatasetError, 'episode 2'),
    ],
)
def test_what_is_wrong_is_told_before_a_node_starts(settings, changes, fault, words):
    with pytest.raises(fault, match=words):
        make_plan(dataclasses.replace(settings, **changes))


def test_parameters_survive_the_way_through_a_file(tmp_path):
    parameters = {
        'text': 'a "b" \'c\' #d: {e}\nand ' + 'long ' * 50,
        'digits': '0',
        'empty': '',
        'rate': 2.0,
        'autostart': True,
    }
    child = make_child(NodeLaunch(name='x', parameters=parameters, remaps={'/a': '/b'}), tmp_path)
    path = tmp_path / 'x.yaml'
    document = yaml.safe_load(path.read_text(encoding='utf-8'))
    assert document == {'/**': {'ros__parameters': parameters}}
    assert child.command == (
        sys.executable,
        '-m',
        'vla_policy_ros.ros.nodes.x',
        '--ros-args',
        '--params-file',
        str(path),
        '-r',
        '/a:=/b',
    )


def test_the_reports_of_an_earlier_run_are_removed(tmp_path):
    (tmp_path / 'policy').mkdir()
    (tmp_path / 'report.json').write_text('{}', encoding='utf-8')
    prepare_folder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ['policy']


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    for name in ('report.json', 'thesis.tex'):
        (tmp_path / name).write_text('', encoding='utf-8')
    with pytest.raises(ConfigurationError, match=r'thesis.tex'):
        prepare_folder(tmp_path)
    assert (tmp_path / 'report.json').exists()
