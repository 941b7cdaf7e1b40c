# SPDX-License-Identifier: Apache-2.0
"""Policies built by LeRobot's own classes against their bundles, preprocessing and normalisation included.

Runs where lerobot and torch are installed; doc/howto/export_a_policy.md says how.
"""

import json
from contextlib import closing

import numpy as np
import pytest
from support.lerobot_library import Library

from vla_policy_ros.bundle.bundle import load_bundle
from vla_policy_ros.bundle.normalization import ActionDenormalizer
from vla_policy_ros.bundle.probe import check_probe
from vla_policy_ros.core.errors import BundleError
from vla_policy_ros.datasets.registry import open_dataset
from vla_policy_ros.evaluation.sampling import sample_observations
from vla_policy_ros.export.lerobot.convert import export_checkpoint
from vla_policy_ros.export.lerobot.library import require_lerobot
from vla_policy_ros.export.lerobot.random_init import write_random_checkpoint
from vla_policy_ros.policies.engine_policy import EnginePolicy
from vla_policy_ros.sample import sample_dataset_path
from vla_policy_ros.tools.main import main

# LeRobot and its libraries warn about each other.
pytestmark = pytest.mark.filterwarnings('ignore')

SMALL_ACT = {
    'dim_model': 64,
    'n_heads': 4,
    'dim_feedforward': 128,
    'n_encoder_layers': 2,
    'chunk_size': 12,
    'n_action_steps': 6,
}
SMALL_DIFFUSION = {
    'down_dims': (32, 64),
    'diffusion_step_embed_dim': 32,
    'spatial_softmax_num_keypoints': 8,
    'horizon': 8,
    'n_action_steps': 4,
    'num_train_timesteps': 20,
}
HAS_RESIZE = hasattr(
    require_lerobot('policies.diffusion.configuration_diffusion').DiffusionConfig, 'resize_shape'
)


@pytest.fixture(scope='module')
def dataset():
    with closing(open_dataset(sample_dataset_path())) as dataset:
        yield dataset


@pytest.fixture
def make(tmp_path, dataset):
    """Returns checkpoint folder and export of a policy with random weights."""

    def make(policy_type, settings, alter=None):
        folder = tmp_path / 'checkpoint'
        write_random_checkpoint(folder, dataset, policy_type=policy_type, settings=settings)
        if alter:
            alter(folder)
        return folder, export_checkpoint(folder, tmp_path / 'bundle', dataset=dataset)

    return make


def observations_of(dataset, export):
    return list(sample_observations(dataset, export.bundle.spec, count=3))


@pytest.mark.parametrize(
    'settings',
    [
        {},
        {
            'vision_backbone': 'resnet34',
            'pre_norm': True,
            'use_vae': False,
            'n_decoder_layers': 2,
            'feedforward_activation': 'gelu',
        },
        {
            'normalization_mapping': {
                'VISUAL': 'IDENTITY',
                'STATE': 'MIN_MAX',
                'ACTION': 'MIN_MAX',
            }
        },
    ],
    ids=['default', 'other_layers', 'min_max'],
)
def test_act_gives_the_actions_of_lerobot(make, dataset, settings):
    folder, export = make('act', {**SMALL_ACT, **modes(settings)})
    library = Library(folder)
    with closing(EnginePolicy(load_bundle(export.bundle.folder))) as policy:
        for observation in observations_of(dataset, export):
            wanted = library.act(observation)
            actions = policy.infer(observation).actions
            assert wanted.shape == actions.shape == (12, 6)
            assert np.ptp(wanted) > 0.1
            assert np.abs(actions - wanted).max() < 1e-4
    assert export.executed_rows == 6


@pytest.mark.parametrize(
    'settings',
    [
        {'crop_shape': (216, 288)},
        {
            'noise_scheduler_type': 'DDIM',
            'num_inference_steps': 5,
            'use_separate_rgb_encoder_per_camera': True,
        },
        {'prediction_type': 'sample', 'n_obs_steps': 1, 'clip_sample': False},
        pytest.param(
            {'resize_shape': (120, 160), 'crop_ratio': 0.9, 'n_obs_steps': 3},
            marks=pytest.mark.skipif(not HAS_RESIZE, reason='this lerobot does not resize'),
        ),
    ],
    ids=['ddpm_crop', 'ddim', 'sample', 'resize_crop'],
)
def test_diffusion_gives_the_actions_of_lerobot(make, dataset, settings):
    folder, export = make('diffusion', {**SMALL_DIFFUSION, **settings})
    library, bundle = Library(folder), export.bundle
    action = bundle.manifest.action
    denormalizer = ActionDenormalizer(action, bundle.manifest.state, bundle.statistics)
    first = library.config.n_obs_steps - 1
    assert action.offset_ns == -first * action.step_ns
    with closing(EnginePolicy(bundle)) as policy:
        for seed, observation in enumerate(observations_of(dataset, export)):
            wanted, noise = library.diffuse(observation, seed)
            inputs, _ = policy.pool_inputs(observation)
            actions = np.empty((8, 6), np.float32)
            raw = policy.run_pool(inputs, noise)
            denormalizer.write(raw[0], observation.state[-1], actions)
            assert np.ptp(wanted) > 0.1
            assert np.abs(actions[first : first + 4] - wanted).max() < 1e-3


def test_bundle_says_what_the_checkpoint_says(make):
    _, export = make('diffusion', {**SMALL_DIFFUSION, 'crop_shape': (216, 288)})
    manifest = export.bundle.manifest
    assert [camera.name for camera in manifest.cameras] == ['front', 'wrist']
    assert [camera.size for camera in manifest.cameras] == [(216, 288)] * 2
    resize, crop = manifest.cameras[0].geometry
    assert (resize.height, resize.width, crop.top, crop.left) == (240, 320, 12, 16)
    assert manifest.state.history_ns == manifest.cameras[0].history_ns == (-66_666_667, 0)
    assert manifest.state.groups[0].names[:2] == ('shoulder_pan', 'shoulder_lift')
    assert (manifest.state.groups[0].normalization, manifest.action.horizon) == ('min_max', 8)
    assert (manifest.loop.kind, manifest.loop.steps, manifest.loop.clip_sample) == ('ddpm', 20, 1)
    assert manifest.stages[0].in_loop is False
    assert set(manifest.stages[1].inputs) == {'sample', 'timestep', 'context'}


def test_probe_is_lerobots_and_is_kept(make):
    _, export = make('act', SMALL_ACT)
    with closing(EnginePolicy(load_bundle(export.bundle.folder))) as policy:
        assert check_probe(policy, export.bundle).max_error < 1e-4


def test_same_seed_gives_the_same_weights(tmp_path, dataset):
    names = 'first', 'second', 'other'
    for name, seed in zip(names, (3, 3, 4), strict=True):
        write_random_checkpoint(
            tmp_path / name, dataset, policy_type='act', seed=seed, settings=SMALL_ACT
        )
    first, second, other = ((tmp_path / name / 'model.safetensors').read_bytes() for name in names)
    assert first == second != other


def test_unknown_setting_names_the_version(make):
    def add_setting(folder):
        config = json.loads((folder / 'config.json').read_text())
        (folder / 'config.json').write_text(json.dumps({**config, 'from_the_future': 1}))

    with pytest.raises(BundleError, match='from_the_future') as error:
        make('act', SMALL_ACT, add_setting)
    assert error.value.code == 'other_lerobot'


def test_missing_weights_are_refused(make):
    def drop_weights(folder):
        from safetensors.torch import load_file, save_file

        tensors = load_file(folder / 'model.safetensors')
        save_file(
            {name: value for name, value in tensors.items() if 'action_head' not in name},
            folder / 'model.safetensors',
        )

    with pytest.raises(BundleError, match='action_head') as error:
        make('act', SMALL_ACT, drop_weights)
    assert error.value.code == 'missing_weights'


def modes(settings):
    """Return settings with LeRobot's enum for the names of modes."""
    mode = require_lerobot('configs.types').NormalizationMode
    named = settings.get('normalization_mapping')
    if not named:
        return settings
    return {**settings, 'normalization_mapping': {key: mode(name) for key, name in named.items()}}


def test_command_prints_one_document(tmp_path, capsys):
    words = ['--random-init', 'act', '--dataset', 'sample', '--fps', '30']
    assert main(['export', 'lerobot', *words, '--out', str(tmp_path / 'act'), '--json']) == 0
    document = json.loads(capsys.readouterr().out)
    assert document['executed_rows'] == 100
    assert [part['part'] for part in document['parity']] == ['act', 'policy']
    bundle = load_bundle(tmp_path / 'act')
    assert bundle.manifest.source.checkpoint == 'lerobot act, random weights, seed 0'
    assert bundle.spec.action.step_ns == 33_333_333
    assert main(['check', str(tmp_path / 'act')]) == 0
