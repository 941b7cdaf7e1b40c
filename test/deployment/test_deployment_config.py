# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest
import yaml
from support.policies import make_spec

from vla_policy_ros.core.errors import ConfigurationError
from vla_policy_ros.deployment.config import (
    Deployment,
    check_deployment,
    default_deployment,
    find_deployment_faults,
    load_deployment,
    to_ns,
    topic_part,
)

EXAMPLES = Path(__file__).parents[2] / 'examples'
MINIMAL = {'policy': {'bundle': 'sample'}}


def write(folder, document):
    path = folder / 'robot.yaml'
    path.write_text(document if isinstance(document, str) else yaml.safe_dump(document))
    return path


def codes(faults):
    return [fault.code for fault in faults]


def test_a_file_needs_no_more_than_a_bundle(tmp_path):
    deployment = load_deployment(write(tmp_path, MINIMAL))
    assert deployment.policy.bundle == 'sample'
    assert deployment.policy.engine == 'onnxruntime'
    assert deployment.output.chunk_topic == 'action_chunk'


@pytest.mark.parametrize(
    ('given', 'expected'),
    [('bundles/arm', 'robots/bundles/arm'), ('../arm', 'arm'), ('/opt/arm', '/opt/arm')],
)
def test_the_bundle_lies_relative_to_the_file(tmp_path, given, expected):
    folder = tmp_path / 'robots'
    folder.mkdir()
    deployment = load_deployment(str(write(folder, {'policy': {'bundle': given}})))
    assert deployment.policy.bundle == str((tmp_path / expected).resolve())


def test_plans_lie_relative_to_the_file(tmp_path):
    policy = {'bundle': 'sample', 'plan_folder': 'plans'}
    deployment = load_deployment(write(tmp_path, {'policy': policy}))
    assert deployment.policy.bundle == 'sample'
    assert deployment.policy.plan_folder == str((tmp_path / 'plans').resolve())
    assert load_deployment(write(tmp_path, MINIMAL)).policy.plan_folder == ''


@pytest.mark.parametrize(
    ('change', 'place', 'code'),
    [
        ({'policy': {'bundle': 'a', 'jpeg': 'gpu'}}, 'policy.jpeg', 'bad_value'),
        ({'policy': {'bundle': 'a', 'precision': 'half'}}, 'policy.precision', 'bad_value'),
        ({'policy': {'bundle': 'a', 'cuda_graph': 'maybe'}}, 'policy.cuda_graph', 'bad_value'),
        ({'policy': {'bundle': 'a', 'device': -1}}, 'policy.device', 'bad_value'),
        ({'policy': {}}, 'policy.bundle', 'missing_key'),
        ({'policy': {'bundle': ''}}, 'policy.bundle', 'bad_value'),
        ({'policy': {'bundle': 'a', 'slots': 11}}, 'policy', 'bad_value'),
        ({'camera': {}}, 'camera', 'unknown_key'),
        ({'cameras': {'front': {'topik': '/a'}}}, 'cameras.front.topik', 'unknown_key'),
        ({'cameras': {'front': {'topic': 'a b'}}}, 'cameras.front.topic', 'bad_value'),
        ({'cameras': {'f': {'topic': 'a', 'rate_hz': 0}}}, 'cameras.f.rate_hz', 'bad_value'),
        ({'joint_states': [{'topic': 'j', 'match': 'x'}]}, 'joint_states[0].match', 'bad_value'),
        ({'matching': {'patience_ms': -1}}, 'matching.patience_ms', 'bad_value'),
        ({'matching': {'patience_ms': float('nan')}}, 'matching.patience_ms', 'bad_value'),
        ({'matching': {'time_jump_ms': float('inf')}}, 'matching.time_jump_ms', 'bad_value'),
        ({'matching': {'time_source': 'now'}}, 'matching.time_source', 'bad_value'),
        ({'output': {'chunk_topic': '/a/'}}, 'output.chunk_topic', 'bad_value'),
        ({'output': {'trajectory_topic': '/a'}}, 'output.trajectory_topic', 'unknown_key'),
        ({'instruction': {'topic': '1st'}}, 'instruction.topic', 'bad_value'),
        ({'schema_version': 2}, 'schema_version', 'bad_value'),
    ],
)
def test_names_what_is_wrong(tmp_path, change, place, code):
    path = write(tmp_path, {**MINIMAL, **change})
    faults = find_deployment_faults(path)
    assert (f'{path}: {place}', code) in [(fault.where, fault.code) for fault in faults]
    with pytest.raises(ConfigurationError):
        load_deployment(path)


@pytest.mark.parametrize('text', [None, '[]', 'a: [', ''])
def test_a_broken_file_is_one_fault(tmp_path, text):
    path = tmp_path / 'none.yaml' if text is None else write(tmp_path, text)
    assert len(find_deployment_faults(path)) == 1
    with pytest.raises(ConfigurationError):
        load_deployment(path)


def test_every_key_is_explained():
    def undocumented(model):
        for name, field in model.model_fields.items():
            if not field.description:
                yield f'{model.__name__}.{name}'
            for inner in (field.annotation, *getattr(field.annotation, '__args__', ())):
                if hasattr(inner, 'model_fields'):
                    yield from undocumented(inner)

    assert list(undocumented(Deployment)) == []


def test_the_default_fits_its_policy():
    spec = make_spec(['front', 'left.wrist-1', '2nd'], needs_instruction=True)
    deployment = default_deployment(spec, bundle='sample')
    assert check_deployment(deployment, spec) == []
    assert [camera.topic for camera in deployment.cameras.values()] == [
        '/camera/front/image_raw',
        '/camera/left_wrist_1/image_raw',
        '/camera/_2nd/image_raw',
    ]
    assert [source.topic for source in deployment.joint_states] == ['/joint_states']
    assert deployment.reference_stream(spec) == 'front'


@pytest.mark.parametrize(
    ('name', 'part'),
    [('top.left-1', 'top_left_1'), ('rig/0', 'rig/_0'), ('höhe', 'h_he'), ('/a', '_/a')],
)
def test_a_camera_name_becomes_part_of_a_topic(name, part):
    assert topic_part(name) == part
    Deployment.model_validate({**MINIMAL, 'cameras': {name: {'topic': f'/camera/{part}/raw'}}})


def test_the_default_of_a_policy_without_state_has_no_joint_source():
    spec = make_spec(state=())
    deployment = default_deployment(spec, bundle='sample')
    assert (deployment.joint_states, check_deployment(deployment, spec)) == ((), [])


def test_the_default_of_a_blind_policy_is_triggered_by_joints():
    spec = make_spec(cameras=())
    deployment = default_deployment(spec, bundle='sample')
    assert check_deployment(deployment, spec) == []
    assert deployment.reference_stream(spec) == 'joint_states[0]'


def test_the_reference_may_be_chosen():
    spec = make_spec(['front', 'wrist'])
    document = default_deployment(spec, bundle='sample').model_dump()
    for reference, stream in [('wrist', 'wrist'), ('joint_states', 'joint_states[0]')]:
        document['matching']['reference'] = reference
        assert Deployment.model_validate(document).reference_stream(spec) == stream


@pytest.mark.parametrize(
    ('cameras', 'sources', 'reference', 'expected'),
    [
        (['front'], [[]], '', []),
        (['front'], [['elbow'], ['shoulder']], '', []),
        ([], [[]], '', ['missing_camera']),
        (['front', 'top'], [[]], '', ['unknown_camera']),
        (['frontt'], [[]], '', ['missing_camera', 'unknown_camera']),
        (['front'], [], '', ['missing_joint']),
        (['front'], [['elbow']], '', ['missing_joint']),
        (['front'], [[], ['elbow']], '', ['duplicate_joint']),
        (['front'], [['elbow', 'elbow', 'shoulder']], '', ['duplicate_joint']),
        (['front'], [['elbow', 'shoulder', 'knee']], '', ['unknown_joint']),
        (['front'], [[]], 'top', ['unknown_reference']),
        (['front'], [[]], 'joint_states', []),
    ],
)
def test_cross_checks(cameras, sources, reference, expected):
    document = {
        **MINIMAL,
        'cameras': {name: {'topic': f'/{name}'} for name in cameras},
        'joint_states': [{'topic': '/joints', 'names': names} for names in sources],
        'matching': {'reference': reference},
    }
    faults = check_deployment(Deployment.model_validate(document), make_spec())
    assert codes(faults) == expected


def test_cross_checks_hint_at_typing_errors():
    document = {**MINIMAL, 'cameras': {'fron': {'topic': '/a'}}, 'joint_states': [{'topic': '/j'}]}
    *_, fault = check_deployment(Deployment.model_validate(document), make_spec())
    assert fault.next_step == "Did you mean 'front'?"


def test_a_policy_without_state_refuses_joint_sources():
    document = {
        **MINIMAL,
        'cameras': {'front': {'topic': '/a'}},
        'joint_states': [{'topic': '/j'}],
    }
    faults = check_deployment(Deployment.model_validate(document), make_spec(state=()))
    assert codes(faults) == ['unused_source']


def test_joints_cannot_trigger_where_there_are_none():
    document = {
        **MINIMAL,
        'cameras': {'front': {'topic': '/a'}},
        'matching': {'reference': 'joint_states'},
    }
    faults = check_deployment(Deployment.model_validate(document), make_spec(state=()))
    assert codes(faults) == ['unknown_reference']


def test_nothing_at_all_is_no_deployment():
    faults = check_deployment(Deployment.model_validate(MINIMAL), make_spec((), ()))
    assert codes(faults) == ['no_streams']


@pytest.mark.parametrize(
    ('name', 'cameras', 'joints'),
    [
        (
            'single_arm/deployment.yaml',
            ['front', 'wrist'],
            ['shoulder_pan', 'shoulder_lift', 'elbow_flex', 'wrist_flex', 'wrist_roll', 'gripper'],
        ),
        (
            'humanoid/deployment.yaml',
            ['ego_view'],
            [
                *(f'{side}_{j}' for side in ('left', 'right') for j in ('elbow', 'hand')),
                *(
                    f'{side}_shoulder_{axis}'
                    for side in ('left', 'right')
                    for axis in ('pitch', 'roll', 'yaw')
                ),
                'waist_yaw',
            ],
        ),
    ],
)
def test_the_examples_are_sound(name, cameras, joints):
    assert find_deployment_faults(EXAMPLES / name) == []
    deployment = load_deployment(EXAMPLES / name)
    assert check_deployment(deployment, make_spec(cameras, joints)) == []
    for source in deployment.joint_states:
        assert set(source.rename.values()) <= set(source.names or joints)


def test_a_joint_renamed_to_something_unknown_is_refused():
    spec = make_spec([], ['gripper'])
    document = {
        'policy': {'bundle': 'sample'},
        'joint_states': [{'topic': '/joint_states', 'rename': {'joint6': 'griper'}}],
    }
    faults = check_deployment(Deployment.model_validate(document), spec)
    assert codes(faults) == ['unknown_joint']
    assert "Did you mean 'gripper'?" in faults[0].next_step


def test_milliseconds_are_rounded():
    assert (to_ns(0.1), to_ns(33.3), to_ns(1e-7)) == (100_000, 33_300_000, 0)


def test_no_camera_may_be_called_like_the_joint_streams():
    spec = make_spec(['joint_states'])
    faults = check_deployment(default_deployment(spec, bundle='sample'), spec)
    assert codes(faults) == ['reserved_name']
