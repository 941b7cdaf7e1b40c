# SPDX-License-Identifier: Apache-2.0
"""What a description may not say of its network: every fault is one clear error, and no bundle is left behind."""

import copy
import re
from pathlib import Path

import pytest
import yaml
from onnx import helper
from support.bundles import save_model
from support.described import (
    POSITION,
    ROTATION,
    SIX,
    levels_description,
    parts_description,
    pose_description,
    save_levels,
    save_parts,
    save_pose,
    write_description,
)

from vla_policy_ros.bundle.onnx_model import ModelTensor
from vla_policy_ros.core.errors import ConfigurationError
from vla_policy_ros.core.specs import TensorSpec
from vla_policy_ros.export.network.convert import export_network
from vla_policy_ros.export.network.description import NetworkAction, NetworkDescription
from vla_policy_ros.export.network.fit import fit_inputs, fit_outputs
from vla_policy_ros.export.network.shapes import fill


def refusal(tmp_path, network, description):
    describe = write_description(tmp_path / 'd.yaml', description)
    with pytest.raises(ConfigurationError) as error:
        export_network(network, tmp_path / 'bundle', describe=describe)
    return error.value


def with_camera(**camera):
    return pose_description(**camera)


def with_action(**action):
    description = pose_description()
    return {**description, 'action': {**description['action'], **action}}


STATE = {'tensors': ['state'], 'groups': [{'name': 'arm', 'names': ['a'], 'units': ['rad']}]}


@pytest.mark.parametrize(
    ('description', 'code', 'told'),
    [
        (with_camera(tensor='imagee'), 'unknown_input', "Did you mean 'image'?"),
        (
            {**pose_description(), 'cameras': []},
            'unfilled_input',
            "'image': float32[batch, 3, 8, 12]",
        ),
        ({**pose_description(), 'state': STATE}, 'unknown_input', 'state.tensors[0]'),
        (
            {**pose_description(), 'state': {**STATE, 'tensors': ['image']}},
            'input_twice',
            'cameras',
        ),
        (
            {**pose_description(), 'constants': [{'tensor': 'image', 'value': 1}]},
            'input_twice',
            'constants[0]',
        ),
        (with_camera(layout='hwc'), 'wrong_channels', 'layout: chw'),
        (
            with_camera(geometry=[{'kind': 'resize', 'height': 9, 'width': 12}]),
            'wrong_size',
            '9 x 12 px',
        ),
        (with_camera(geometry=[{'kind': 'center_crop', 'fraction': 0.5}]), 'bad_value', 'last'),
        (with_camera(std=[1, 0, 1]), 'bad_value', 'without zeros'),
        (with_camera(history_ns=[-5, 0]), 'wrong_width', '18 numbers in each of 1 row'),
        (with_camera(range=[0, 1]), 'bad_value', 'not both'),
        (with_camera(colour='rgb'), 'unknown_key', "Did you mean 'color'?"),
        (with_action(tensors=['poses']), 'unknown_output', "Did you mean 'pose'?"),
        (with_action(groups=[POSITION]), 'wrong_width', '9 numbers in each of 1 row'),
        (with_action(horizon=2), 'wrong_width', '4.5 numbers in each of 2 row'),
        (with_action(step_ms=0), 'bad_value', 'greater than 0'),
    ],
)
def test_faults_of_a_pose(tmp_path, description, code, told):
    fault = refusal(tmp_path, save_pose(tmp_path / 'pose.onnx'), description)
    assert fault.code == code
    assert told in str(fault)
    assert str(tmp_path / 'd.yaml') in fault.where
    assert not (tmp_path / 'bundle').exists()


def test_a_free_size_must_be_said(tmp_path):
    network = save_pose(tmp_path / 'pose.onnx', size=('rows', 12))
    fault = refusal(tmp_path, network, pose_description())
    assert fault.code == 'free_dimension'
    assert 'no height' in fault.got
    assert not (tmp_path / 'bundle').exists()


def test_a_batch_takes_as_many_cameras_as_it_has_images(tmp_path):
    network = save_levels(tmp_path / 'encoder.onnx', [6, 3, 8, 12])
    description = levels_description()
    description['cameras'].pop()
    fault = refusal(tmp_path, network, description)
    assert fault.code == 'wrong_batch'
    assert 'for 5 camera(s)' in fault.got


def test_cameras_of_one_input_are_alike(tmp_path):
    network = save_levels(tmp_path / 'encoder.onnx', ['n', 3, 'h', 'w'])
    description = levels_description(geometry=[{'kind': 'resize', 'height': 8, 'width': 12}])
    description['cameras'][2]['geometry'] = [{'kind': 'resize', 'height': 8, 'width': 16}]
    assert refusal(tmp_path, network, description).code == 'unlike_cameras'


def test_four_channels_are_refused(tmp_path):
    nodes = [helper.make_node('ReduceMean', ['image'], ['pose'], axes=[2, 3], keepdims=0)]
    network = save_model(
        tmp_path / 'rgbd.onnx',
        nodes,
        [('image', 'FLOAT', [1, 4, 8, 8])],
        [('pose', 'FLOAT', [1, 4])],
    )
    fault = refusal(tmp_path, network, pose_description())
    assert fault.code == 'wrong_channels'
    assert '4 channels' in fault.got


@pytest.mark.parametrize(
    ('shape', 'element', 'code'),
    [
        ([3, 8], 'FLOAT', 'wrong_rank'),
        ([1, 3, 8, 8], 'INT64', 'unsupported_type'),
        ([1, 3, 8, 8], 'BFLOAT16', 'unsupported_type'),
    ],
)
def test_inputs_that_are_no_images_are_refused(tmp_path, shape, element, code):
    nodes = [helper.make_node('Identity', ['image'], ['pose'])]
    network = save_model(
        tmp_path / 'x.onnx', nodes, [('image', element, shape)], [('pose', element, shape)]
    )
    assert refusal(tmp_path, network, pose_description()).code == code


@pytest.mark.parametrize(
    ('change', 'code'),
    [
        (lambda d: d['state']['groups'][0]['names'].pop(), 'wrong_width'),
        (lambda d: d['state'].update(history_ns=[-1000, 0]), 'wrong_rank'),
        (lambda d: d['constants'][0].update(dtype='int64'), 'shape_mismatch'),
        (lambda d: d['constants'][0].update(shape=[2]), 'shape_mismatch'),
        (lambda d: d['state'].update(pad_to=8), 'wrong_width'),
    ],
    ids=['columns', 'rows', 'type', 'shape', 'padding'],
)
def test_faults_of_a_state(tmp_path, change, code):
    description = copy.deepcopy(parts_description())
    change(description)
    assert refusal(tmp_path, save_parts(tmp_path / 'parts.onnx'), description).code == code


def test_one_symbol_has_one_size():
    cameras = [{'name': name, 'tensor': 'images'} for name in SIX]
    groups = [{'name': 'arm', 'names': ['a', 'b'], 'units': ['rad']}]
    description = NetworkDescription.model_validate(
        {
            'cameras': cameras,
            'state': {'tensors': ['state'], 'groups': groups},
            'action': {'groups': [POSITION], 'step_ms': 10},
        }
    )
    tensors = {
        'images': ModelTensor('images', 'float32', ('batch', 3, 8, 8)),
        'state': ModelTensor('state', 'float32', ('batch', 2)),
    }
    with pytest.raises(ConfigurationError, match='6 in') as error:
        fit_inputs(description, tensors, 'd.yaml')
    assert error.value.code == 'shape_mismatch'
    tensors['state'] = ModelTensor('state', 'float32', ('other', 2))
    feeds = fit_inputs(description, tensors, 'd.yaml').feeds
    assert [feed.spec.shape for feed in feeds] == [(6, 3, 8, 8), (1, 2)]


def test_outputs_that_are_actions_already_need_no_stage():
    action = NetworkAction.model_validate({'groups': [POSITION, ROTATION], 'step_ms': 10})
    whole = fit_outputs(action, [TensorSpec('pose', (1, 4, 9), 'float32')], 'd.yaml')
    assert (whole.horizon, whole.is_direct) == (4, True)
    half = fit_outputs(action, [TensorSpec('pose', (1, 4, 9), 'float16')], 'd.yaml')
    assert (half.horizon, half.is_direct) == (4, False)
    parts = [TensorSpec('r', (1, 6), 'float32'), TensorSpec('p', (3,), 'float32')]
    assert fit_outputs(action, parts, 'd.yaml').widths == (6, 3)


@pytest.mark.parametrize(
    ('dims', 'total', 'shape'),
    [
        (('n', 3), 18, (6, 3)),
        ((None, None, 3), 18, (1, 6, 3)),
        ((2, 'n'), 6, (2, 3)),
        ((), 1, ()),
        ((4, 'n'), 6, None),
        ((5,), 6, None),
    ],
)
def test_free_dimensions_are_filled(dims, total, shape):
    assert fill(dims, total) == shape


def test_descriptions_of_the_documentation_are_right():
    page = Path(__file__).parents[2] / 'doc' / 'howto' / 'export_a_policy.md'
    blocks = re.findall(r'```yaml\n(.*?)```', page.read_text(encoding='utf-8'), re.DOTALL)
    found = [NetworkDescription.model_validate(yaml.safe_load(block)) for block in blocks]
    assert [len(description.cameras) for description in found] == [1, 6]
