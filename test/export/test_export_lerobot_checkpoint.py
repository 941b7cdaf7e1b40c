# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint says, read from files made here: no lerobot is needed."""

import json
from dataclasses import replace

import numpy as np
import pytest

from vla_policy_ros.core.dataset import DatasetCamera, DatasetInfo
from vla_policy_ros.core.errors import BundleError, ConfigurationError, DatasetError
from vla_policy_ros.core.specs import Column, ColumnKind
from vla_policy_ros.export.lerobot.checkpoint import read_checkpoint
from vla_policy_ros.export.lerobot.convert import export_checkpoint
from vla_policy_ros.export.lerobot.flow import settle_cameras
from vla_policy_ros.export.lerobot.manifest import find_names, make_manifest, make_statistics
from vla_policy_ros.export.lerobot.plan import Plan
from vla_policy_ros.export.lerobot.tensor_file import TensorFile

FRONT, WRIST = 'observation.images.front', 'observation.images.wrist'
CONFIG = {
    'type': 'act',
    'input_features': {
        WRIST: {'type': 'VISUAL', 'shape': [3, 48, 64]},
        'observation.state': {'type': 'STATE', 'shape': [2]},
        FRONT: {'type': 'VISUAL', 'shape': [3, 48, 64]},
    },
    'output_features': {'action': {'type': 'ACTION', 'shape': [2]}},
    'normalization_mapping': {'VISUAL': 'IDENTITY', 'STATE': 'MEAN_STD', 'ACTION': 'MIN_MAX'},
}
IMAGE = {'mean': np.full((3, 1, 1), 0.5), 'std': np.full((3, 1, 1), 0.25)}
NUMBERS = {
    'observation.state.mean': np.array([1.0, 2.0]),
    'observation.state.std': np.array([0.5, 4.0]),
    'action.min': np.array([-1.0, 0.0]),
    'action.max': np.array([3.0, 10.0]),
    **{f'{WRIST}.{name}': value for name, value in IMAGE.items()},
}
EPS = 1e-8


def write_tensors(path, tensors):
    """Write a safetensors file of float32 numbers."""
    header, data = {'__metadata__': {'format': 'pt'}}, b''
    for name, value in tensors.items():
        part = np.asarray(value, '<f4').tobytes()
        place = [len(data), len(data) + len(part)]
        header[name] = {'dtype': 'F32', 'shape': list(np.shape(value)), 'data_offsets': place}
        data += part
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, 'little') + text + data)


def step(name, *, state_file=None, **config):
    return {'registry_name': name, 'config': config, 'state_file': state_file}


def write_checkpoint(folder, *, config=CONFIG, weights=None, before=None, after=None):
    """Write the files of lerobot 0.4; without `before` those of 0.3."""
    folder.mkdir()
    (folder / 'config.json').write_text(json.dumps(config))
    write_tensors(folder / 'model.safetensors', weights or {'model.weight': np.zeros(3)})
    for name, steps in (('policy_preprocessor', before), ('policy_postprocessor', after)):
        if steps is not None:
            (folder / f'{name}.json').write_text(json.dumps({'name': name, 'steps': steps}))
    return folder


def normalizer(name='normalizer_processor', **config):
    features = {**CONFIG['input_features'], **CONFIG['output_features']}
    norm_map = {'VISUAL': 'MEAN_STD', 'STATE': 'MEAN_STD', 'ACTION': 'MIN_MAX'}
    return step(
        name,
        state_file='numbers.safetensors',
        **{'features': features, 'norm_map': norm_map, 'eps': EPS, **config},
    )


@pytest.fixture
def write(tmp_path):
    def write(*, numbers=NUMBERS, before=(), **config):
        folder = write_checkpoint(
            tmp_path / 'checkpoint',
            before=[*before, step('to_batch_processor'), normalizer(**config)],
            after=[normalizer('unnormalizer_processor'), step('device_processor', device='cpu')],
        )
        write_tensors(folder / 'numbers.safetensors', numbers)
        return folder

    return write


def plan(**changes):
    facts = {
        'observation_steps': 1,
        'crop': None,
        'squeeze_state': True,
        'action_tensor': 'action',
        'horizon': 4,
        'first_row': 0,
        'executed_rows': 2,
        'stages': (),
        'loop': None,
        'reference': lambda tensors: None,
    }
    return Plan(**{**facts, **changes})


def info(**changes):
    joints = tuple(Column(name, 'rad') for name in ('hip', 'gripper'))
    cameras = tuple(
        DatasetCamera(name, key, 48, 64) for name, key in (('eye', FRONT), ('hand', WRIST))
    )
    return DatasetInfo(
        **{
            'name': 'demo',
            'format': 'made up',
            'robot_type': '',
            'step_ns': 50_000_000,
            'num_episodes': 1,
            'cameras': cameras,
            'state': joints,
            'action': joints,
            **changes,
        }
    )


def test_reads_the_files_of_04(write):
    checkpoint = read_checkpoint(write())
    assert [image.key for image in checkpoint.images] == [WRIST, FRONT]
    wrist, front = checkpoint.images
    assert (wrist.height, wrist.width) == (48, 64)
    assert wrist.rule.normalization == 'mean_std'
    # LeRobot leaves a feature without statistics as it is.
    assert front.rule.normalization == 'identity'
    assert checkpoint.state.rule.normalization == 'mean_std'
    assert checkpoint.action.rule.normalization == 'min_max'
    assert checkpoint.action.rule.statistics['max'].tolist() == [3, 10]


def test_reads_the_files_of_03(tmp_path):
    weights = {
        'model.weight': np.zeros(3),
        'normalize_inputs.buffer_observation_state.mean': [1, 2],
        'normalize_inputs.buffer_observation_state.std': [3, 4],
        'unnormalize_outputs.buffer_action.min': [-1, -2],
        'unnormalize_outputs.buffer_action.max': [1, 2],
    }
    checkpoint = read_checkpoint(write_checkpoint(tmp_path / 'old', weights=weights))
    assert checkpoint.images[0].rule.normalization == 'identity'
    assert checkpoint.state.rule.statistics['std'].tolist() == [3, 4]
    statistics = make_statistics(checkpoint)
    assert statistics['action'].max.tolist() == [1, 2]
    # What old files do not hold is filled in, and nothing reads it.
    assert statistics['state'].min.tolist() == pytest.approx([-8, -10])


def test_untrained_statistics_of_03_are_refused(tmp_path):
    weights = {
        'normalize_inputs.buffer_observation_state.mean': [np.inf, np.inf],
        'normalize_inputs.buffer_observation_state.std': [np.inf, np.inf],
    }
    with pytest.raises(BundleError, match='finite'):
        read_checkpoint(write_checkpoint(tmp_path / 'old', weights=weights))


@pytest.mark.parametrize('length', [{'max_length': 48}, {}, {'max_length': None}])
def test_room_for_words(write, length):
    folder = write(before=[step('tokenizer_processor', **length)])
    checkpoint = read_checkpoint(folder, own_steps=('tokenizer_processor',))
    if length.get('max_length'):
        assert checkpoint.max_words() == 48
        return
    with pytest.raises(BundleError, match='max_length') as error:
        checkpoint.max_words()
    assert error.value.code == 'bad_checkpoint'


def test_renamed_camera_is_called_as_in_the_dataset(write):
    names = {'observation.images.top': FRONT}
    folder = write(before=[step('rename_observations_processor', rename_map=names)])
    assert read_checkpoint(folder).images[1].source == 'observation.images.top'
    assert find_names(read_checkpoint(folder), None).cameras == ('wrist', 'top')


def test_only_chosen_observations_are_normalized(write):
    checkpoint = read_checkpoint(write(normalize_observation_keys=[WRIST]))
    assert checkpoint.state.rule.normalization == 'identity'
    assert checkpoint.images[0].rule.normalization == 'mean_std'
    assert set(make_statistics(checkpoint)) == {'action'}


@pytest.mark.parametrize(
    ('change', 'code', 'text'),
    [
        ({'before': [step('tokenizer_processor')]}, 'unknown_step', 'tokenizer_processor'),
        ({'norm_map': {'STATE': 'QUANTILE10'}}, 'unknown_normalization', 'QUANTILE10'),
        ({'norm_map': {'STATE': 'QUANTILES'}}, 'bad_checkpoint', 'q01'),
        ({'numbers': {**NUMBERS, 'action.max': np.ones(3)}}, 'bad_checkpoint', 'action'),
    ],
)
def test_what_a_bundle_cannot_say_is_refused(write, change, code, text):
    with pytest.raises(BundleError, match=text) as error:
        read_checkpoint(write(**change))
    assert error.value.code == code


@pytest.mark.parametrize(
    'inputs',
    [
        {'observation.state': {'type': 'STATE', 'shape': [2]}, 'x': {'type': 'ENV', 'shape': [3]}},
        {FRONT: {'type': 'VISUAL', 'shape': [3, 4, 5]}},
        {
            'observation.state': {'type': 'STATE', 'shape': [2]},
            FRONT: {'type': 'VISUAL', 'shape': [1, 4, 5]},
        },
    ],
    ids=['environment', 'no_state', 'depth'],
)
def test_other_inputs_are_refused(tmp_path, inputs):
    config = {**CONFIG, 'input_features': inputs}
    weights = {'normalize_inputs.x': [1.0]}
    with pytest.raises(BundleError, match='of one dimension') as error:
        read_checkpoint(write_checkpoint(tmp_path / 'c', config=config, weights=weights))
    assert error.value.code == 'unknown_feature'


@pytest.mark.parametrize(
    'content', [b'', b'\xff' * 20, (5).to_bytes(8, 'little') + b'[1,2]'], ids=len
)
def test_broken_tensor_file(tmp_path, content):
    (tmp_path / 'x').write_bytes(content)
    with pytest.raises(BundleError, match='safetensors'):
        TensorFile(tmp_path / 'x')


def test_tensor_file_that_ends_early(tmp_path):
    write_tensors(tmp_path / 'x', {'a': np.ones(4), 'b': np.arange(6.0).reshape(2, 3)})
    assert TensorFile(tmp_path / 'x').read('b').tolist() == [0, 1, 2, 3, 4, 5]
    (tmp_path / 'x').write_bytes((tmp_path / 'x').read_bytes()[:-4])
    with pytest.raises(BundleError, match="5 values of 'b'"):
        TensorFile(tmp_path / 'x').read('b')


def test_folder_without_checkpoint(tmp_path):
    with pytest.raises(BundleError, match=r'config\.json'):
        read_checkpoint(tmp_path)


def test_checkpoint_without_statistics(tmp_path):
    with pytest.raises(BundleError, match='normalize_inputs'):
        read_checkpoint(write_checkpoint(tmp_path / 'c'))


def test_config_without_features(tmp_path):
    folder = write_checkpoint(
        tmp_path / 'c', config={'type': 'act'}, weights={'normalize_inputs.x': [1.0]}
    )
    with pytest.raises(BundleError, match='input_features'):
        read_checkpoint(folder)


def test_manifest_of_a_plain_checkpoint(write):
    checkpoint = read_checkpoint(write())
    manifest = make_manifest(
        checkpoint, plan(), find_names(checkpoint, None), name='pick', step_ns=20_000_000
    )
    wrist, front = manifest['cameras']
    assert (wrist['name'], wrist['tensor'], wrist['mean']) == ('wrist', 'image_0', [0.5] * 3)
    assert wrist['std'] == pytest.approx([0.25] * 3)
    assert (front['name'], front['mean'], front['std']) == ('front', [0.0] * 3, [1.0] * 3)
    assert front['geometry'] == [
        {'kind': 'resize', 'height': 48, 'width': 64, 'library': 'torchvision'}
    ]
    assert manifest['state']['groups'][0]['names'] == ['joint_0', 'joint_1']
    assert manifest['state']['history_ns'] == [0]
    assert manifest['action']['offset_ns'] == 0
    assert 'loop' not in manifest


def test_manifest_with_history_crop_and_loop(write):
    checkpoint = read_checkpoint(write())
    changes = {
        'observation_steps': 3,
        'crop': (41, 60),
        'squeeze_state': False,
        'first_row': -2,
        'loop': {'kind': 'ddim'},
    }
    manifest = make_manifest(
        checkpoint, plan(**changes), find_names(checkpoint, info()), name='p', step_ns=50
    )
    # 3.5 pixels are rounded to the even number, as torchvision does.
    crop = {'kind': 'crop', 'top': 4, 'left': 2, 'height': 41, 'width': 60}
    assert manifest['cameras'][0]['geometry'][1] == crop
    assert manifest['cameras'][0]['history_ns'] == [-100, -50, 0]
    assert manifest['action']['offset_ns'] == -100
    assert [camera['name'] for camera in manifest['cameras']] == ['hand', 'eye']
    assert manifest['action']['groups'][0]['units'] == ['rad', 'rad']
    assert manifest['loop'] == {'kind': 'ddim'}


@pytest.mark.parametrize(
    'change',
    [
        {'cameras': info().cameras[:1]},
        {'state': info().state * 2},
        {'action': (Column('hip', 'rad', ColumnKind.ANGLE),)},
    ],
    ids=['cameras', 'state', 'action'],
)
def test_other_dataset_is_refused(write, change):
    with pytest.raises(DatasetError, match='as the checkpoint takes') as error:
        find_names(read_checkpoint(write()), replace(info(), **change))
    assert error.value.code == 'other_dataset'


def test_export_needs_the_rate(write, tmp_path):
    with pytest.raises(ConfigurationError, match='--fps') as error:
        export_checkpoint(write(), tmp_path / 'bundle')
    assert error.value.code == 'unknown_step_time'


def test_export_of_another_family_says_which_there_are(tmp_path):
    folder = write_checkpoint(
        tmp_path / 'c', config={**CONFIG, 'type': 'pi0_fast'}, before=[step('tokenizer_processor')]
    )
    with pytest.raises(BundleError, match='act, diffusion, smolvla') as error:
        export_checkpoint(folder, tmp_path / 'bundle', step_ns=1)
    assert error.value.code == 'unsupported_policy'


def test_export_into_a_full_folder_is_refused(write, tmp_path):
    (tmp_path / 'bundle').mkdir()
    (tmp_path / 'bundle' / 'old').touch()
    with pytest.raises(BundleError) as error:
        export_checkpoint(write(), tmp_path / 'bundle', step_ns=1)
    assert error.value.code == 'folder_not_empty'


def test_steps_that_a_family_follows_by_itself(write):
    folder = write(before=[step('tokenizer_processor', max_length=7)])
    checkpoint = read_checkpoint(folder, own_steps=('tokenizer_processor',))
    assert checkpoint.steps['tokenizer_processor'] == {'max_length': 7}


def test_width_of_a_state_that_the_network_pads(write):
    wide = {f'observation.state.{name}': np.ones(3) for name in ('mean', 'std')}
    folder = write(numbers={**NUMBERS, **wide})
    assert read_checkpoint(folder, takes_any_state=True).state.width == 3
    with pytest.raises(BundleError, match='2 finite numbers'):
        read_checkpoint(folder)


def test_cameras_of_a_policy_that_was_trained_further(write):
    checkpoint = read_checkpoint(write())
    bigger = DatasetCamera('hand', WRIST, 96, 128)
    (camera,) = settle_cameras(checkpoint, replace(info(), cameras=(bigger,))).images
    assert (camera.key, camera.height, camera.width) == (WRIST, 96, 128)
    assert settle_cameras(checkpoint, None).images == checkpoint.images
    with pytest.raises(BundleError, match=FRONT) as error:
        settle_cameras(checkpoint, replace(info(), cameras=()))
    assert error.value.code == 'no_camera'
