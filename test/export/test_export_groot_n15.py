# SPDX-License-Identifier: Apache-2.0
"""A checkpoint of GR00T N1.5, read with the library's data configs and held against what the library does with it.

Runs where Isaac-GR00T n1.5-release is installed, with transformers 4.51.3; doc/howto/export_a_policy.md says how.
"""

import json
import sys

import numpy as np
import pytest
import torch
from support.small_eagle import small_config, write_small_vlm

from vla_policy_ros.bundle.manifest import Action, Camera, State
from vla_policy_ros.bundle.normalization import ActionDenormalizer, StateNormalizer
from vla_policy_ros.core.errors import BundleError
from vla_policy_ros.core.frame import Frame
from vla_policy_ros.core.specs import Representation
from vla_policy_ros.export.groot import checkpoint_n15, eagle, versions
from vla_policy_ros.export.groot.checkpoint_n15 import (
    METADATA,
    format_camera_n15,
    make_processor_n15,
    read_checkpoint_n15,
)
from vla_policy_ros.export.groot.convert import TrainingData, export_groot
from vla_policy_ros.export.groot.library import require_gr00t
from vla_policy_ros.export.groot.manifest import make_statistics
from vla_policy_ros.preprocess.camera import CameraPreprocessor

# The library and its own libraries warn about each other.
pytestmark = pytest.mark.filterwarnings('ignore')

TAG, ROWS, STILL = 'new_embodiment', 16, 3
SIZE = (240, 320)
WIDTHS = {'single_arm': 5, 'gripper': 1}
CONFIGS = """
from gr00t.data.transform.base import ComposedModalityTransform
from gr00t.data.transform.state_action import StateActionSinCosTransform, StateActionTransform
from gr00t.experiment.data_config import So100DataConfig


class Own(So100DataConfig):
    video_keys = ['video.wrist', 'video.front']
    state_keys = ['state.gripper', 'state.single_arm']
    observation_indices = [-2, 0]
    action_indices = list(range(1, 9))
    states = {'state.gripper': 'q99', 'state.single_arm': 'mean_std'}
    actions = {'action.single_arm': 'q99', 'action.gripper': 'mean_std'}

    def transform(self):
        steps = list(super().transform().transforms)
        for step in steps:
            if isinstance(step, StateActionTransform):
                is_state = step.apply_to[0].startswith('state')
                step.normalization_modes = self.states if is_state else self.actions
        return ComposedModalityTransform(transforms=steps)


class Turning(Own):
    states = {'state.gripper': 'min_max'}

    def transform(self):
        steps = list(super().transform().transforms)
        steps.insert(-4, StateActionSinCosTransform(apply_to=['state.single_arm']))
        return ComposedModalityTransform(transforms=steps)


class Now(Turning):
    observation_indices = [0]


class Binary(Own):
    actions = {'action.single_arm': 'min_max', 'action.gripper': 'binary'}


class Twice(Turning):
    states = {'state.single_arm': 'min_max'}


class Gaps(Own):
    action_indices = [0, 2, 4]


class Unknown(Own):
    action_keys = ['action.tail']
"""


def statistics_of(width, seed):
    """One column of several does not move."""
    values = np.random.default_rng(seed).normal(seed, 2 + seed, (200, width))
    if width > STILL:
        values[:, STILL] = 0.25
    still = np.ptp(values, axis=0) == 0
    parts = {
        'min': values.min(0),
        'max': values.max(0),
        'mean': values.mean(0),
        'std': np.where(still, 0, values.std(0)),
        'q01': np.where(still, values[0], np.quantile(values, 0.01, axis=0)),
        'q99': np.where(still, values[0], np.quantile(values, 0.99, axis=0)),
    }
    return {name: part.tolist() for name, part in parts.items()}


def entry_of(width, **more):
    return {
        'absolute': True,
        'rotation_type': None,
        'shape': [width],
        'continuous': True,
        **more,
    }


def metadata_of(cameras=('front', 'wrist')):
    statistics = {
        kind: {
            key: statistics_of(width, at + place) for at, (key, width) in enumerate(WIDTHS.items())
        }
        for place, kind in ((0, 'state'), (2, 'action'))
    }
    entries = {key: entry_of(width) for key, width in WIDTHS.items()}
    video = {'resolution': [SIZE[1], SIZE[0]], 'channels': 3, 'fps': 30.0}
    return {
        'statistics': statistics,
        'modalities': {
            'video': dict.fromkeys(cameras, video),
            'state': entries,
            'action': {**entries, 'gripper': entry_of(1, absolute=False)},
        },
        'embodiment_tag': TAG,
    }


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Returns the folder of a checkpoint without weights, beside a module with data configs."""
    (tmp_path / 'own_configs.py').write_text(CONFIGS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'own_configs', raising=False)
    folder = tmp_path / 'checkpoint'
    (folder / METADATA).parent.mkdir(parents=True)
    write_metadata(folder, {TAG: metadata_of()})
    (folder / 'config.json').write_text(json.dumps({'model_type': 'gr00t_n1_5'}))
    return folder


def write_metadata(folder, document):
    (folder / METADATA).write_text(json.dumps(document))


def library_transform(folder, name):
    library = require_gr00t('experiment.data_config', version='n1.5')
    schema = require_gr00t('data.schema', version='n1.5')
    transform = library.load_data_config(name).transform()
    document = json.loads((folder / METADATA).read_text())[TAG]
    transform.set_metadata(schema.DatasetMetadata.model_validate(document))
    transform.eval()
    return transform


def groups_of(kind, keys):
    return [
        {
            'name': f'{kind}.{key.key}',
            'names': [f'{key.key}_{index}' for index in range(key.width)],
            'units': ['rad'],
            'normalization': key.normalization,
            'clip': key.clip,
        }
        for key in keys
    ]


OWN = ['own_configs:Own', 'own_configs:Turning']


@pytest.mark.parametrize('name', ['so100_dualcam', *OWN])
def test_state_and_action_are_the_librarys(folder, name):
    checkpoint = read_checkpoint_n15(folder, embodiment=name)
    robot = checkpoint.embodiment
    transform = library_transform(folder, name)
    random = np.random.default_rng(1)
    steps = len(robot.state_steps)
    raw = {key: random.normal(0.2, 4, (steps, width)) for key, width in WIDTHS.items()}
    images = random.integers(0, 256, (steps, *SIZE, 3), np.uint8)
    batch = transform(
        {
            **{f'state.{key}': value[None] for key, value in raw.items()},
            **{f'video.{camera}': images[None] for camera in robot.cameras},
            'annotation.human.task_description': np.array(['go']),
        }
    )
    state = State.model_validate(
        {
            'tensor': 'state',
            'groups': groups_of('state', robot.state),
            'pad_to': checkpoint.state_width,
            'history_ns': [step * 50 for step in robot.state_steps],
        }
    )
    statistics = make_statistics(robot)
    ours = np.empty((steps, checkpoint.state_width), np.float32)
    values = np.concatenate([raw[key.key] for key in robot.state], axis=1)
    StateNormalizer(state, statistics).write(values.astype(np.float32), ours)
    np.testing.assert_allclose(ours, batch['state'][0], atol=2e-6, rtol=2e-6)
    assert np.ptp(ours) > 0.5

    action = Action.model_validate(
        {
            'tensor': 'actions',
            'groups': groups_of('action', robot.action),
            'horizon': robot.rows,
            'step_ns': 50,
        }
    )
    output = random.normal(0, 2, (robot.rows, 32)).astype(np.float32)
    wanted = transform.unapply({'action': torch.from_numpy(output)[None]})
    wanted = np.concatenate([wanted[f'action.{key.key}'][0] for key in robot.action], axis=1)
    actions = np.empty((robot.rows, 6), np.float32)
    ActionDenormalizer(action, state, statistics).write(output, values[-1], actions)
    np.testing.assert_allclose(actions, wanted, atol=1e-5, rtol=1e-5)


def test_robot_of_a_data_config(folder):
    checkpoint = read_checkpoint_n15(folder, embodiment=f'{TAG}/own_configs:Own')
    robot = checkpoint.embodiment
    assert (robot.tag, robot.number) == (f'{TAG}/own_configs:Own', 31)
    assert robot.cameras == ('wrist', 'front')
    assert robot.camera_steps == robot.state_steps == (-2, 0)
    assert [key.key for key in robot.state] == ['gripper', 'single_arm']
    assert [key.normalization for key in robot.action] == ['quantile', 'mean_std']
    assert [key.representation for key in robot.action] == [
        Representation.ABSOLUTE,
        Representation.DELTA,
    ]
    assert (robot.first_row, robot.rows) == (1, 8)
    assert (checkpoint.state_width, checkpoint.cleans_words) == (64, False)
    assert checkpoint.image_size == SIZE


@pytest.mark.parametrize('wanted', [None, TAG, 'so100_dualcam', f'{TAG}/so100_dualcam'])
def test_data_config_with_the_keys_of_the_training(folder, wanted):
    robot = read_checkpoint_n15(folder, embodiment=wanted).embodiment
    assert robot.tag == f'{TAG}/so100_dualcam'
    assert (robot.cameras, robot.rows) == (('front', 'wrist'), ROWS)


@pytest.mark.parametrize(
    ('wanted', 'got'),
    [
        ('so101', 'no so101'),
        (f'{TAG}/so101', 'no so101'),
        ('nowhere:Own', 'nowhere'),
        ('so100', 'webcam'),
        ('own_configs:Unknown', 'tail'),
    ],
)
def test_unknown_data_config(folder, wanted, got):
    path = list(sys.path)
    with pytest.raises(BundleError, match=got):
        read_checkpoint_n15(folder, embodiment=wanted)
    assert sys.path == path


def test_several_robots(folder):
    write_metadata(folder, {TAG: metadata_of(), 'gr1': metadata_of()})
    with pytest.raises(BundleError, match='2 embodiments') as error:
        read_checkpoint_n15(folder)
    assert error.value.code == 'unknown_embodiment'
    assert read_checkpoint_n15(folder, embodiment=TAG).embodiment.number == 31


def test_no_data_config_has_the_keys(folder):
    write_metadata(folder, {TAG: metadata_of(cameras=('front', 'wrist', 'top'))})
    with pytest.raises(BundleError, match='--embodiment') as error:
        read_checkpoint_n15(folder)
    assert error.value.code == 'unknown_embodiment'
    assert read_checkpoint_n15(folder, embodiment='so100_dualcam').embodiment.rows == ROWS


@pytest.mark.parametrize(
    ('name', 'got'), [('Binary', 'binary'), ('Twice', 'single_arm'), ('Gaps', 'action_indices')]
)
def test_steps_that_no_bundle_can_follow(folder, name, got):
    with pytest.raises(BundleError, match=got) as error:
        read_checkpoint_n15(folder, embodiment=f'own_configs:{name}')
    assert error.value.code == 'unsupported_setting'


def test_broken_metadata(folder):
    document = metadata_of()
    del document['statistics']['state']
    write_metadata(folder, {TAG: document})
    with pytest.raises(BundleError, match='statistics') as error:
        read_checkpoint_n15(folder)
    assert error.value.code == 'bad_checkpoint'
    (folder / METADATA).unlink()
    with pytest.raises(BundleError, match='metadata') as error:
        read_checkpoint_n15(folder)
    assert error.value.code == 'bad_checkpoint'


def test_images_are_the_librarys_within_half_a_step(folder):
    checkpoint = read_checkpoint_n15(folder)
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    smooth = np.kron(pixels[::16, ::16], np.ones((16, 16, 1), np.uint8))
    blank = np.zeros((1, 1, *SIZE, 3), np.uint8)
    processor = make_processor_n15(checkpoint)
    transform = library_transform(folder, 'so100_dualcam')
    entry = format_camera_n15(processor, SIZE)
    camera = Camera.model_validate({'name': 'front', 'tensor': 'image_0', **entry})
    for picture in (pixels, smooth):
        batch = transform(
            {
                **{f'state.{key}': np.zeros((1, 1, width)) for key, width in WIDTHS.items()},
                'video.front': picture[None, None],
                'video.wrist': blank,
                'annotation.human.task_description': np.array(['go']),
            }
        )
        ours = np.empty(camera.tensor_shape, np.float32)
        CameraPreprocessor(camera).run(Frame.from_rgb('front', 0, picture), ours[0])
        error = ours[0] - batch['eagle_pixel_values'][0].numpy()
        assert np.abs(error).max() < 0.51 * 2 / 255


def test_images_of_another_size(folder):
    processor = make_processor_n15(read_checkpoint_n15(folder))
    with pytest.raises(BundleError, match='320 x 240') as error:
        format_camera_n15(processor, (480, 640))
    assert error.value.code == 'other_image_size'


@pytest.fixture
def trained(folder):
    """Returns the folder with random weights, and that of the vision-language model."""
    vlm = write_small_vlm(folder.parent / 'vlm')
    torch.manual_seed(0)
    policy = eagle.build_n15(small_config(rows=12), vlm=vlm)
    for layer in policy.action_head.modules():
        if type(layer).__name__ == 'CategorySpecificLinear':
            layer.W.data = torch.randn_like(layer.W) / layer.W.shape[1] ** 0.5
    policy.save_pretrained(folder)
    return folder, vlm


@pytest.fixture
def known_version(monkeypatch):
    """N1.5 as `versions` names it."""
    own = versions.Version(
        model_type='gr00t_n1_5',
        read=lambda folder, wanted: read_checkpoint_n15(folder, embodiment=wanted),
        load=checkpoint_n15.load_n15,
        make_processor=lambda checkpoint, _: make_processor_n15(checkpoint),
        format_camera=format_camera_n15,
        plan_backbone=versions._plan_eagle,
    )
    monkeypatch.setattr(versions, 'VERSIONS', {'n1.5': own})


def test_policy_has_the_rows_of_the_data_config(trained):
    folder, vlm = trained
    checkpoint = read_checkpoint_n15(folder, embodiment='own_configs:Own')
    policy = checkpoint_n15.load_n15(checkpoint, vlm)
    assert policy.action_head.action_horizon == policy.action_head.config.action_horizon == 8
    assert eagle.load_n15(folder, vlm=vlm).action_head.action_horizon == 12


@pytest.mark.usefixtures('known_version')
def test_whole_policy(trained, tmp_path):
    folder, vlm = trained
    proven = export_groot(
        folder,
        tmp_path / 'bundle',
        data=TrainingData(step_ns=33_000_000, image_size=SIZE),
        embodiment='own_configs:Now',
        vlm=vlm,
        max_words=16,
    )
    assert proven.policy.max_error < 1e-4
    assert list(proven.stages)[:3] == ['vision', 'language', 'memory']
    action = proven.bundle.manifest.action
    assert (action.horizon, action.offset_ns) == (8, 33_000_000)
    assert [camera.name for camera in proven.bundle.manifest.cameras] == ['wrist', 'front']
