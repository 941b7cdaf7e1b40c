# SPDX-License-Identifier: Apache-2.0
"""Names of columns and cameras, and the choice of state, action and instruction."""

import json
import re

import pytest

from vla_policy_ros.core.errors import DatasetError
from vla_policy_ros.core.specs import ColumnKind
from vla_policy_ros.datasets.faults import raise_fault
from vla_policy_ros.datasets.lerobot_columns import (
    find_instruction_column,
    find_vector,
    make_cameras,
    make_columns,
)
from vla_policy_ros.datasets.lerobot_info import Feature, read_info


def vector(names, width=2, key='observation.state', dtype='float32'):
    return Feature(key, dtype, (width,), names, {})


def picture(key, shape=(4, 6, 3), names=None):
    return Feature(key, 'video', shape, names, {})


def write_info(root, **changes):
    info = {'codebase_version': 'v2.1', 'fps': 30, 'features': {}, **changes}
    (root / 'meta').mkdir(exist_ok=True)
    (root / 'meta/info.json').write_text(json.dumps(info))
    return root


@pytest.mark.parametrize(
    ('names', 'wanted'),
    [
        (['a', 'b'], ['a', 'b']),
        ([['a', 'b']], ['a', 'b']),
        ({'motors': ['a', 'b']}, ['a', 'b']),
        ({'left': ['a'], 'right': ['b']}, ['a', 'b']),
        ({'b': 1, 'a': 0}, ['a', 'b']),
        (None, ['state_0', 'state_1']),
        (['a'], ['state_0', 'state_1']),
        (['a', 'a'], ['state_0', 'state_1']),
        ([1, 2], ['state_0', 'state_1']),
        (['joint 1', 'gelenk/ü'], ['joint 1', 'gelenk/ü']),
        ([' a', 'b'], ['state_0', 'state_1']),
        (['a\n', 'b'], ['state_0', 'state_1']),
        (['', 'b'], ['state_0', 'state_1']),
        ({'axes': None}, ['state_0', 'state_1']),
    ],
)
def test_column_names(names, wanted):
    assert [column.name for column in make_columns([vector(names)])] == wanted


def test_a_name_of_two_features_makes_all_names_numbered():
    features = [vector(['a', 'b'], key='action.left'), vector(['a', 'b'], key='action.right')]
    names = [column.name for column in make_columns(features)]
    assert names == ['left_0', 'left_1', 'right_0', 'right_1']


def test_grippers_are_recognised():
    columns = make_columns([vector(['wrist.pos', 'Gripper.pos'])])
    assert [column.kind for column in columns] == [ColumnKind.LINEAR, ColumnKind.GRIPPER]
    assert {column.unit for column in columns} == {''}


@pytest.mark.parametrize(
    ('keys', 'names'),
    [
        (['observation.images.top', 'observation.image'], ['top', 'image']),
        (
            ['observation.images.left.rgb', 'observation.images.right.rgb'],
            ['left_rgb', 'right_rgb'],
        ),
        (
            ['observation.images.a', 'observation.image.a'],
            ['observation_images_a', 'observation_image_a'],
        ),
        (['wrist_image'], ['wrist_image']),
        (['observation.images.cam-high', 'observation.images.0'], ['cam_high', '_0']),
        (['observation.images.kinect v2', 'observation.images.größe'], ['kinect_v2', 'gr__e']),
        (['a-b', 'a_b', 'a b'], ['a_b_0', 'a_b_1', 'a_b_2']),
    ],
)
def test_camera_names(keys, names):
    cameras = make_cameras([picture(key) for key in keys])
    assert [camera.name for camera in cameras] == names
    assert [camera.key for camera in cameras] == keys
    assert all(re.fullmatch('[A-Za-z_][A-Za-z0-9_]*', name) for name in names)  # a topic's part


@pytest.mark.parametrize(
    ('shape', 'names'),
    [
        ((4, 6, 3), ['height', 'width', 'channel']),
        ((3, 4, 6), ['channels', 'height', 'width']),
        ((3, 4, 6), None),
        ((4, 6, 3), None),
    ],
)
def test_camera_sizes(shape, names):
    camera = make_cameras([picture('c', shape, names)])[0]
    assert (camera.height, camera.width) == (4, 6)


def test_state_is_put_together_when_there_is_none(tmp_path):
    features = {
        'observation.arm': {'dtype': 'float64', 'shape': [2]},
        'observation.images.top': {'dtype': 'video', 'shape': [4, 6, 3]},
        'observation.note': {'dtype': 'string', 'shape': [1]},
        'observation.hand': {'dtype': 'int64', 'shape': [1]},
        'action': {'dtype': 'float32', 'shape': [3]},
        'action.extra': {'dtype': 'float32', 'shape': [1]},
    }
    info = read_info(write_info(tmp_path, features=features), raise_fault)
    state = find_vector(info, 'observation.state', 'observation.')
    assert [feature.key for feature in state] == ['observation.arm', 'observation.hand']
    assert [column.name for column in make_columns(state)] == ['arm_0', 'arm_1', 'hand_0']
    assert [feature.key for feature in find_vector(info, 'action', 'action.')] == ['action']


def test_a_state_of_two_dimensions_is_laid_out_row_by_row(tmp_path):
    features = {
        'observation.state': {'dtype': 'float32', 'shape': [2, 3]},
        'action.arm': {'dtype': 'float32', 'shape': [2]},
        'action.grid': {'dtype': 'float32', 'shape': [2, 3]},
    }
    info = read_info(write_info(tmp_path, features=features), raise_fault)
    state = find_vector(info, 'observation.state', 'observation.')
    assert [c.name for c in make_columns(state)] == [f'state_{i}' for i in range(6)]
    action = find_vector(info, 'action', 'action.')
    assert [feature.key for feature in action] == ['action.arm']


@pytest.mark.parametrize(
    ('annotation', 'column'),
    [
        ({'human.validity': {}, 'human.action.task_description': {}}, None),
        ({'human.task_description': {'original_key': 'task_index'}}, 'task_index'),
        ({'human.validity': {}}, 'task_index'),
        ({'other.task_description': {}}, 'task_index'),
        ([], 'task_index'),
    ],
)
def test_instruction_column(tmp_path, annotation, column):
    described = 'annotation.human.action.task_description'
    number = {'dtype': 'int64', 'shape': [1]}
    features = {described: number, 'annotation.human.validity': number, 'task_index': number}
    info = read_info(write_info(tmp_path, features=features), raise_fault)
    (tmp_path / 'meta/modality.json').write_text(json.dumps({'annotation': annotation}))
    assert find_instruction_column(info, raise_fault) == (column or described)


@pytest.mark.parametrize(
    ('changes', 'place'),
    [
        ({'fps': 0}, 'fps'),
        ({'fps': 'fast'}, 'fps'),
        ({'features': []}, 'features'),
        ({'features': {'action': {'dtype': 'float32'}}}, 'features.action'),
        ({'chunks_size': 0}, 'chunks_size'),
        ({'codebase_version': None}, 'codebase_version'),
    ],
)
def test_wrong_values_of_info_are_named(tmp_path, changes, place):
    with pytest.raises(DatasetError) as fault:
        read_info(write_info(tmp_path, **changes), raise_fault)
    assert fault.value.where == f'{tmp_path}/meta/info.json: {place}'
