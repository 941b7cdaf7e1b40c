# SPDX-License-Identifier: Apache-2.0
"""Names of cameras and columns, and the manifest of a GR00T checkpoint: the library is not needed."""

import json
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from support.groot_files import TAG, changed, modalities, read, write_files

from vla_policy_ros.bundle.manifest import Manifest
from vla_policy_ros.bundle.normalization import ActionDenormalizer, StateNormalizer
from vla_policy_ros.core.dataset import DatasetCamera, DatasetInfo
from vla_policy_ros.core.errors import BundleError, ConfigurationError, DatasetError
from vla_policy_ros.core.specs import Column, ColumnKind
from vla_policy_ros.export.groot.manifest import Plan, make_manifest, make_statistics
from vla_policy_ros.export.groot.names import find_names, make_names
from vla_policy_ros.export.traced_policy import Words


@pytest.fixture
def write(tmp_path):
    """Returns the folder of a checkpoint's files."""
    return partial(write_files, tmp_path / 'checkpoint')


def columns(*names):
    return tuple(Column(name, 'rad', ColumnKind.ANGLE) for name in names)


def info(**changes):
    facts = {
        'name': 'd',
        'format': 'lerobot v2.1',
        'robot_type': 'arm',
        'step_ns': 50_000_000,
        'num_episodes': 1,
        'cameras': (
            DatasetCamera('hand', 'observation.images.hand', 240, 320),
            DatasetCamera('front', 'observation.images.front', 480, 640),
        ),
        'state': columns('heading', 'speed', 'hip', 'knee'),
        'action': columns('hip_goal', 'knee_goal', 'grip', 'drive'),
    }
    return DatasetInfo(**{**facts, **changes})


MODALITY = {
    'video': {'wrist': {'original_key': 'observation.images.hand'}, 'front': {}},
    'state': {
        'arm': {'start': 2, 'end': 4},
        'heading': {'start': 0, 'end': 1},
        'speed': {'start': 1, 'end': 2, 'original_key': 'observation.state'},
    },
    'action': {
        'arm': {'start': 0, 'end': 2},
        'gripper': {'start': 2, 'end': 3},
        'speed': {'start': 3, 'end': 4},
    },
}


@pytest.fixture
def modality(tmp_path):
    def write(**changes):
        path = tmp_path / 'modality.json'
        path.write_text(json.dumps({**MODALITY, **changes}))
        return path

    return write


def names_of(group):
    return {key: [column.name for column in held] for key, held in group.items()}


def test_names_of_a_dataset(write, modality):
    names = find_names(read(write()).embodiment, info(), modality())
    assert [(camera.name, camera.height) for camera in names.cameras] == [
        ('front', 480),
        ('hand', 240),
    ]
    assert names_of(names.state) == {
        'arm': ['hip', 'knee'],
        'heading': ['heading'],
        'speed': ['speed'],
    }
    # What is relative is called as what it starts from.
    assert names_of(names.action) == {
        'arm': ['hip', 'knee'],
        'gripper': ['grip'],
        'speed': ['drive'],
    }


def test_names_without_modality_file(write):
    robot = read(write()).embodiment
    cameras = (info().cameras[1], DatasetCamera('hand', 'camera.wrist', 240, 320))
    names = find_names(robot, info(cameras=cameras), None)
    assert [camera.name for camera in names.cameras] == ['front', 'hand']
    assert names_of(names.state)['arm'] == ['heading', 'speed']
    with pytest.raises(DatasetError, match=r'5 columns, and no meta/modality\.json') as error:
        find_names(robot, info(cameras=cameras, state=columns(*'abcde')), None)
    assert error.value.code == 'other_dataset'


@pytest.mark.parametrize(
    ('change', 'text'),
    [
        ({'video': {'front': {}}}, 'the key wrist'),
        ({'video': {'front': {}, 'wrist': {}}}, 'the camera wrist'),
        ({'state': {**MODALITY['state'], 'arm': {'start': 3, 'end': 5}}}, '2 of the 4 columns'),
        ({'state': {**MODALITY['state'], 'arm': {'start': 0, 'end': 3}}}, '2 of the 4 columns'),
        ({'state': {**MODALITY['state'], 'arm': {'end': 3}}}, '2 of the 4 columns'),
        (
            {
                'action': {
                    **MODALITY['action'],
                    'arm': {**MODALITY['action']['arm'], 'original_key': 'x'},
                }
            },
            '2 of the 4 columns of action',
        ),
    ],
    ids=['no_entry', 'no_camera', 'outside', 'wide', 'no_start', 'other_feature'],
)
def test_other_dataset_is_refused(write, modality, change, text):
    with pytest.raises(DatasetError, match=text) as error:
        find_names(read(write()).embodiment, info(), modality(**change))
    assert error.value.code == 'other_dataset'


def test_names_without_dataset(write):
    robot = read(write()).embodiment
    names = make_names(robot, image_size=(480, 640))
    assert names.cameras[1] == DatasetCamera('wrist', 'wrist', 480, 640)
    assert names_of(names.action) == {
        'arm': ['arm_0', 'arm_1'],
        'gripper': ['gripper_0'],
        'speed': ['speed_0'],
    }
    with pytest.raises(ConfigurationError, match='--image-size') as error:
        make_names(robot, image_size=None)
    assert error.value.code == 'unknown_image_size'


def test_action_relative_to_another_width(write):
    new = modalities()
    new['action']['action_configs'][0]['state_key'] = 'speed'
    new['action']['action_configs'][0]['rep'] = 'RELATIVE'
    robot = read(write(modality_configs={TAG: new})).embodiment
    with pytest.raises(BundleError, match='1 columns of the state speed'):
        make_names(robot, image_size=(2, 2))


def make_plan():
    cameras = [{'geometry': [{'kind': 'resize', 'height': 32, 'width': 32}], 'std': [0.5] * 3}] * 2
    words = Words(
        tokens='tokens',
        mask='token_mask',
        max_tokens=9,
        pad_token='x',
        template='{instruction}!',
        tokenizer='{}',
    )
    loop = {
        'kind': 'flow_matching_euler',
        'steps': 4,
        'sample': 's',
        'prediction': 'v',
        'timestep': 't',
    }
    stages = SimpleNamespace(
        as_dict=lambda: {
            'name': 'v',
            'onnx': 'v.onnx',
            'inputs': {},
            'outputs': {'v': 'v'},
            'in_loop': True,
        }
    )
    return Plan(
        cameras=tuple(cameras), stages=(stages,), loop=loop, words=words, action_tensor='actions'
    )


def test_manifest(write):
    checkpoint = read(write())
    names = make_names(checkpoint.embodiment, image_size=(480, 640))
    document = make_manifest(checkpoint, make_plan(), names, name='p', step_ns=20)
    document.pop('statistics')
    instruction = document['instruction']
    assert (instruction['cleaning'], instruction['template']) == (
        'lower_no_punctuation',
        '{instruction}!',
    )
    assert 'tokenizer' in instruction
    manifest = Manifest.model_validate({**document, 'files': {}}, strict=False)
    assert manifest.family == 'groot n1.7'
    assert [camera.history_ns for camera in manifest.cameras] == [(-300, 0)] * 2
    assert (manifest.state.pad_to, manifest.action.horizon, manifest.action.offset_ns) == (8, 3, 0)
    assert [group.name for group in manifest.action.groups] == [
        'action.arm',
        'action.gripper',
        'action.speed',
    ]
    statistics_held = make_statistics(checkpoint.embodiment)
    assert set(statistics_held) == {
        'state.arm',
        'state.speed',
        'action.arm',
        'action.gripper',
        'action.speed',
    }
    # One observation, by hand: quantiles (clipped), sine and cosine, mean and deviation, padding.
    normalizer = StateNormalizer(manifest.state, statistics_held)
    out = np.empty((1, 8))
    normalizer.write(np.array([[0.5, 30.0, np.pi / 2, 3.0]]), out)
    assert out[0].tolist() == pytest.approx([0.5, 1, 1, 0, 2, 0, 0, 0], abs=1e-9)
    denormalizer = ActionDenormalizer(manifest.action, manifest.state, statistics_held)
    actions = np.empty((3, 4))
    raw = np.array([[0.5, -2, 0.5, 1]] * 3)
    denormalizer.write(raw, np.array([10.0, 20.0, 0, 0]), actions)
    assert actions[2].tolist() == pytest.approx([11.5, 14, 0.625, 2.5])


def test_offset_of_the_first_row(write):
    late = changed('action', delta_indices=[1, 2, 3])
    checkpoint = read(write(**late))
    assert checkpoint.embodiment.first_row == 1
    names = make_names(checkpoint.embodiment, image_size=(2, 2))
    document = make_manifest(checkpoint, make_plan(), names, name='p', step_ns=20)
    assert document['action']['offset_ns'] == 20


def test_names_of_one_robot_do_not_leak(write):
    robot = read(write()).embodiment
    twice = replace(robot, cameras=('a.b', 'a_b'))
    assert [camera.name for camera in make_names(twice, image_size=(2, 2)).cameras] == [
        'a_b_0',
        'a_b_1',
    ]
