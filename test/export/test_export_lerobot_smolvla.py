# SPDX-License-Identifier: Apache-2.0
"""SmolVLA built by LeRobot's own classes around a small language model against its bundle, words included.

Runs where lerobot with its extra `smolvla` is installed; doc/howto/export_a_policy.md says how.
"""

import json
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.lerobot_library import Library
from support.small_vlm import PAD, write_small_vlm

from vla_policy_ros.bundle.bundle import load_bundle
from vla_policy_ros.bundle.instruction import InstructionEncoder
from vla_policy_ros.bundle.limits import ACCURACY_LIMITS
from vla_policy_ros.bundle.normalization import ActionDenormalizer
from vla_policy_ros.bundle.probe import check_probe
from vla_policy_ros.core.errors import BundleError, InstructionError
from vla_policy_ros.core.observation import Instruction
from vla_policy_ros.datasets.registry import open_dataset
from vla_policy_ros.evaluation.parity import measure_parity
from vla_policy_ros.evaluation.sampling import sample_observations
from vla_policy_ros.export.lerobot.convert import export_checkpoint
from vla_policy_ros.export.lerobot.library import require_lerobot
from vla_policy_ros.export.lerobot.random_init import write_random_checkpoint
from vla_policy_ros.export.lerobot.time_embedding import embed_time
from vla_policy_ros.policies.engine_policy import EnginePolicy
from vla_policy_ros.sample import sample_dataset_path
from vla_policy_ros.tools.main import main

# LeRobot and its libraries warn about each other.
pytestmark = pytest.mark.filterwarnings('ignore')

SMALL = {
    'resize_imgs_with_padding': (64, 64),
    'chunk_size': 6,
    'n_action_steps': 4,
    'num_steps': 4,
    'num_vlm_layers': 4,
}
FRONT = 'observation.images.front'
HAS_PROCESSORS = hasattr(require_lerobot('policies.factory'), 'make_pre_post_processors')
needs_processors = pytest.mark.skipif(
    not HAS_PROCESSORS, reason='this lerobot writes no processor files'
)
TEXTS = ('Pick up the red cube.', 'go', 'put two CUBES into the box, then wait')


@pytest.fixture(scope='module')
def dataset():
    with closing(open_dataset(sample_dataset_path())) as dataset:
        yield dataset


@pytest.fixture
def write(tmp_path, dataset):
    """Returns the folder of a policy with random weights."""

    def write(settings=None, **text):
        vlm = write_small_vlm(tmp_path / 'vlm', **text)
        folder = tmp_path / 'checkpoint'
        write_random_checkpoint(
            folder, dataset, policy_type='smolvla', settings={**SMALL, **(settings or {})}, vlm=vlm
        )
        return folder

    return write


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def observations_of(dataset, bundle):
    for observation, text in zip(
        sample_observations(dataset, bundle.spec, count=len(TEXTS)), TEXTS, strict=True
    ):
        yield replace(observation, instruction=Instruction(text))


def compare(folder, bundle, dataset):
    """Hold our actions against LeRobot's, in their units, over observations and words."""
    library = Library(folder)
    action = bundle.manifest.action
    denormalizer = ActionDenormalizer(action, bundle.manifest.state, bundle.statistics)
    pairs = []
    with closing(EnginePolicy(bundle)) as policy:
        for seed, observation in enumerate(observations_of(dataset, bundle)):
            shape = (1, SMALL['chunk_size'], 32)
            noise = np.random.default_rng(seed).standard_normal(shape, np.float32)
            wanted = library.flow(observation, noise)
            assert wanted.shape == (6, 6)
            assert np.ptp(wanted) > 0.1
            inputs, _ = policy.pool_inputs(observation)
            raw = policy.run_pool(inputs, noise)
            actions = np.empty(wanted.shape, np.float32)
            denormalizer.write(raw[0], observation.state[-1], actions)
            pairs.append((actions, wanted))
    return measure_parity(*np.stack(pairs, axis=1))


@pytest.mark.parametrize(
    'settings',
    [
        {},
        {
            'attention_mode': 'self_attn',
            'add_image_special_tokens': True,
            'prefix_length': 150,
            'empty_cameras': 1,
            'pad_language_to': 'max_length',
            'tokenizer_max_length': 40,
        },
        {'num_expert_layers': 2, 'self_attn_every_n_layers': -1, 'num_vlm_layers': 2},
    ],
    ids=['default', 'self_attention', 'few_layers'],
)
def test_actions_are_those_of_lerobot(write, tmp_path, dataset, settings):
    folder = write(settings)
    export = export_checkpoint(folder, tmp_path / 'bundle', dataset=dataset)
    assert compare(folder, export.bundle, dataset).max_error < 1e-4
    assert export.executed_rows == 4
    assert list(export.stages) == ['vision', 'prefix', 'expert']


def test_language_model_in_bfloat16(write, tmp_path, dataset):
    """LeRobot then computes the expert in bfloat16; the bundle has the same weights and does not round in between."""
    folder = write(dtype='bfloat16')
    export = export_checkpoint(folder, tmp_path / 'bundle', dataset=dataset)
    parity = compare(folder, export.bundle, dataset)
    assert parity.is_within(ACCURACY_LIMITS['bf16'])
    assert parity.max_error > 1e-4  # else nobody has rounded, and this is no test


@needs_processors
def test_fine_tuned_policy_keeps_cameras_it_never_saw(write, tmp_path, dataset):
    """As after a fine-tuning of `smolvla_base`: its cameras, image size and state width, one camera hidden, one left out."""
    folder = write({'empty_cameras': 1})
    camera = {'type': 'VISUAL', 'shape': [3, 256, 256]}
    kept = {'observation.state': {'type': 'STATE', 'shape': [3]}}
    names = [f'observation.images.camera{index}' for index in (1, 2, 3, 4)]
    edit_json(
        folder / 'config.json',
        input_features={**kept, **dict.fromkeys(names, camera)},
    )
    steps = json.loads((folder / 'policy_preprocessor.json').read_text())['steps']
    steps[0]['config']['rename_map'] = {
        FRONT: names[1],
        'observation.images.wrist': names[0],
    }
    edit_json(folder / 'policy_preprocessor.json', steps=steps)
    export = export_checkpoint(folder, tmp_path / 'bundle', dataset=dataset)
    cameras = export.bundle.manifest.cameras
    assert [(camera.name, camera.size) for camera in cameras] == [
        ('wrist', (240, 320)),
        ('front', (240, 320)),
    ]
    assert compare(folder, export.bundle, dataset).max_error < 1e-4


def test_bundle_says_what_the_checkpoint_says(write, tmp_path):
    export = export_checkpoint(
        write({'empty_cameras': 2}), tmp_path / 'bundle', step_ns=50_000_000
    )
    manifest = export.bundle.manifest
    assert [camera.name for camera in manifest.cameras] == ['front', 'wrist']
    loop, words = manifest.loop, manifest.instruction
    assert (loop.kind, loop.steps, loop.noise_at) == ('flow_matching_euler', 4, 1)
    assert (words.max_tokens, words.pad_token, words.template) == (48, PAD, '{instruction}\n')
    assert [stage.in_loop for stage in manifest.stages] == [False, False, True]
    assert set(manifest.stages[2].inputs) == {'sample', 'timestep', 'memory', 'token_mask'}
    with closing(EnginePolicy(load_bundle(export.bundle.folder))) as policy:
        assert check_probe(policy, export.bundle).max_error < 1e-4


@needs_processors
def test_tokens_are_those_of_lerobot(write, tmp_path, dataset):
    folder = write()
    bundle = export_checkpoint(folder, tmp_path / 'bundle', dataset=dataset).bundle
    library, rules = Library(folder), bundle.manifest.instruction
    encoder = InstructionEncoder(rules, bundle.folder)
    tokens, mask = np.empty((2, 1, rules.max_tokens), np.int64)
    (observation,) = sample_observations(dataset, bundle.spec, count=1)
    for text in (*TEXTS, '  two  blanks ', 'Grüße, 猫!', '<image> is no word'):
        batch = library.read(replace(observation, instruction=Instruction(text)), -1)
        wanted = batch['observation.language.tokens'][0].numpy()
        encoder.write(text, tokens, mask)
        assert mask.sum() == len(wanted) > 1
        assert tokens[0, : len(wanted)].tolist() == wanted.tolist()
        assert set(tokens[0, len(wanted) :]) <= {find_id(bundle, PAD)}
    with pytest.raises(InstructionError) as error:
        encoder.write('0 ' * 48, tokens, mask)
    assert error.value.code == 'instruction_too_long'


def find_id(bundle, token):
    document = json.loads((bundle.folder / 'tokenizer.json').read_text())
    return next(entry['id'] for entry in document['added_tokens'] if entry['content'] == token)


def test_time_is_as_exact_as_in_float64():
    """Where a plain product in float32 is wrong by 1e-4."""
    lerobot = require_lerobot('policies.smolvla.modeling_smolvla')
    config = require_lerobot('policies.smolvla.configuration_smolvla').SmolVLAConfig()
    for time in torch.linspace(0, 1, 41)[:, None]:
        wanted = lerobot.create_sinusoidal_pos_embedding(
            time, 720, config.min_period, config.max_period, device=time.device
        )
        embedded = embed_time(time, 720, config)
        assert embedded.dtype == torch.float32
        assert (embedded - wanted).abs().max() < 5e-7


def test_missing_language_model(write, tmp_path, dataset):
    folder = write()
    nowhere = str(tmp_path / 'nowhere')
    for path in folder.glob('*.json'):
        path.write_text(path.read_text().replace(str(tmp_path / 'vlm'), nowhere))
    with pytest.raises(BundleError, match='--vlm') as error:
        export_checkpoint(folder, tmp_path / 'bundle', dataset=dataset)
    assert error.value.code == 'missing_vlm'
    export_checkpoint(folder, tmp_path / 'bundle', dataset=dataset, vlm=tmp_path / 'vlm')


def test_folder_without_processor(tmp_path, dataset):
    (tmp_path / 'empty').mkdir()
    with pytest.raises(BundleError, match='processing class') as error:
        write_random_checkpoint(
            tmp_path / 'checkpoint', dataset, policy_type='smolvla', vlm=tmp_path / 'empty'
        )
    assert error.value.code == 'missing_vlm'


@needs_processors
def test_other_tokenizer_than_the_networks(write, tmp_path, dataset):
    folder = write()
    edit_json(folder / 'config.json', vlm_model_name='other/model')
    with pytest.raises(BundleError, match='other/model') as error:
        export_checkpoint(folder, tmp_path / 'bundle', dataset=dataset)
    assert error.value.code == 'other_tokenizer'


@pytest.mark.parametrize(
    ('settings', 'text'),
    [
        ({'adapt_to_pi_aloha': True}, 'adapt_to_pi_aloha: True'),
        ({'use_cache': False}, 'use_cache: False'),
    ],
)
def test_settings_that_no_bundle_can_follow(write, tmp_path, dataset, settings, text):
    with pytest.raises(BundleError, match=text) as error:
        export_checkpoint(write(settings), tmp_path / 'bundle', dataset=dataset)
    assert error.value.code == 'unsupported_setting'
    assert not (tmp_path / 'bundle').exists()


def test_command_takes_the_language_model(tmp_path, capsys):
    vlm = write_small_vlm(tmp_path / 'vlm')
    words = ['--random-init', 'smolvla', '--dataset', 'sample', '--vlm', str(vlm)]
    out = tmp_path / 'bundle'
    assert main(['export', 'lerobot', *words, '--out', str(out), '--json']) == 0
    document = json.loads(capsys.readouterr().out)
    parts = [part['part'] for part in document['parity']]
    assert parts == ['vision', 'prefix', 'expert', 'policy']
    assert main(['check', str(out)]) == 0
