# SPDX-License-Identifier: Apache-2.0
"""π0 and π0.5 built by LeRobot's own classes, small, against their bundles, words and state in words included.

Runs where lerobot 0.6 or later with its extra `pi` is installed; doc/howto/export_a_policy.md says how.
"""

import json
from contextlib import closing
from dataclasses import replace
from importlib import metadata

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.lerobot_library import Library
from support.small_vlm import PAD, write_small_vlm
from tokenizers import Tokenizer, processors

from vla_policy_ros.bundle.bundle import load_bundle
from vla_policy_ros.bundle.instruction import InstructionEncoder
from vla_policy_ros.bundle.limits import ACCURACY_LIMITS
from vla_policy_ros.bundle.normalization import ActionDenormalizer, StateNormalizer
from vla_policy_ros.bundle.probe import check_probe
from vla_policy_ros.core.errors import BundleError, InstructionError, MissingDependencyError
from vla_policy_ros.core.observation import Instruction
from vla_policy_ros.datasets.registry import open_dataset
from vla_policy_ros.evaluation.parity import measure_parity
from vla_policy_ros.evaluation.sampling import sample_observations
from vla_policy_ros.export.lerobot.checkpoint import ImageFeature
from vla_policy_ros.export.lerobot.convert import export_checkpoint
from vla_policy_ros.export.lerobot.library import require_lerobot
from vla_policy_ros.export.lerobot.pi0 import LINE_STEP, PROMPT_STEP, make_resize
from vla_policy_ros.export.lerobot.random_init import write_random_checkpoint
from vla_policy_ros.policies.engine_policy import EnginePolicy
from vla_policy_ros.sample import sample_dataset_path
from vla_policy_ros.tools.main import main

# LeRobot and its libraries warn about each other.
pytestmark = pytest.mark.filterwarnings('ignore')

TYPES = ('pi0', 'pi05')
SMALL = {
    'image_resolution': (56, 56),
    'chunk_size': 6,
    'n_action_steps': 4,
    'num_inference_steps': 4,
    'tokenizer_max_length': 96,
}
FRONT = 'observation.images.front'
PALIGEMMA = 'google/paligemma-3b-pt-224'
TEXTS = ('Pick up the red cube.', 'go', ' put two_CUBES\ninto the box, then {state} wait')


@pytest.fixture(scope='module')
def dataset():
    with closing(open_dataset(sample_dataset_path())) as dataset:
        yield dataset


@pytest.fixture(autouse=True)
def small_networks(monkeypatch):
    """Let LeRobot build narrow and shallow networks with weights that matter; its variants have billions of weights."""
    for kind in TYPES:
        module = require_lerobot(f'policies.{kind}.modeling_{kind}')
        widths = {'gemma_2b': 64, 'gemma_300m': 48}

        def small(variant, module=module, widths=widths):
            return module.GemmaConfig(
                width=widths[variant],
                depth=3,
                mlp_dim=96,
                num_heads=8,
                num_kv_heads=1,
                head_dim=16,
            )

        monkeypatch.setattr(module, 'get_gemma_config', small)
        for name in ('PaliGemmaForConditionalGenerationWithPiGemma', 'PiGemmaForCausalLM'):
            monkeypatch.setattr(module, name, _shrink(getattr(module, name)))


def _shrink(network):
    def build(config):
        text = getattr(config, 'text_config', config)
        text.vocab_size, text.pad_token_id = 400, 0
        if text is not config:
            config.image_token_id = 399
            vision = config.vision_config
            vision.hidden_size, vision.intermediate_size, vision.projection_dim = 32, 64, 64
            vision.num_hidden_layers, vision.num_attention_heads = 2, 4
        built = network(config)
        for name, values in built.named_parameters():
            # LeRobot begins with norms that change nothing, and that are told nothing of the time.
            if 'norm' in name or values.ndim > 1:
                torch.nn.init.normal_(values, std=0.2)
        return built

    return build


@pytest.fixture
def vlm(tmp_path):
    """Folder of a tokenizer that begins with a token of its own, as PaliGemma's does."""
    folder = write_small_vlm(tmp_path / 'vlm')
    path = folder / 'tokenizer.json'
    tokenizer = Tokenizer.from_file(str(path))
    begin = '<|endoftext|>'
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f'{begin} $A', special_tokens=[(begin, tokenizer.token_to_id(begin))]
    )
    tokenizer.save(str(path))
    return folder


@pytest.fixture
def write(tmp_path, dataset, vlm):
    """Returns the folder of a policy with random weights, its tokenizer named by a folder."""

    def write(kind, settings=None, seed=0):
        folder = tmp_path / 'checkpoint'
        settings = {**SMALL, **(settings or {})}
        write_random_checkpoint(
            folder, dataset, policy_type=kind, settings=settings, vlm=vlm, seed=seed
        )
        path = folder / 'policy_preprocessor.json'
        text = path.read_text()
        assert PALIGEMMA in text
        path.write_text(text.replace(PALIGEMMA, str(vlm)))
        return folder

    return write


def edit_step(folder, name, **changes):
    for path in folder.glob('policy_*processor.json'):
        document = json.loads(path.read_text())
        for step in document['steps']:
            if step['registry_name'] == name:
                step['config'] |= changes
        path.write_text(json.dumps(document))


def observations_of(dataset, bundle):
    for observation, text in zip(
        sample_observations(dataset, bundle.spec, count=len(TEXTS)), TEXTS, strict=True
    ):
        yield replace(observation, instruction=Instruction(text))


def compare(folder, bundle, dataset):
    """Hold our actions against LeRobot's, in their units, over observations and words."""
    library = Library(folder)
    manifest = bundle.manifest
    denormalizer = ActionDenormalizer(manifest.action, manifest.state, bundle.statistics)
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


@pytest.mark.parametrize('kind', TYPES)
@pytest.mark.parametrize(
    'settings',
    [
        {},
        {
            'image_resolution': (84, 84),
            'empty_cameras': 1,
            'gradient_checkpointing': True,
            'compile_model': True,
            'normalization_mapping': {
                'VISUAL': 'MEAN_STD',
                'STATE': 'MIN_MAX',
                'ACTION': 'QUANTILES',
            },
        },
    ],
    ids=['default', 'others'],
)
def test_actions_are_those_of_lerobot(write, tmp_path, dataset, kind, settings):
    folder = write(kind, settings)
    export = export_checkpoint(folder, tmp_path / 'bundle', dataset=dataset)
    assert compare(folder, export.bundle, dataset).max_error < 1e-4
    assert export.executed_rows == 4
    assert list(export.stages) == ['vision', 'prefix', 'expert']


@pytest.mark.parametrize('kind', TYPES)
def test_language_model_in_bfloat16(write, tmp_path, dataset, kind):
    """LeRobot then computes in bfloat16; the bundle has the same weights and does not round in between."""
    folder = write(kind, {'dtype': 'bfloat16'})
    export = export_checkpoint(folder, tmp_path / 'bundle', dataset=dataset)
    parity = compare(folder, export.bundle, dataset)
    assert parity.is_within(ACCURACY_LIMITS['bf16'])
    assert parity.max_error > 1e-4  # else nobody has rounded, and this is no test


@pytest.mark.parametrize('kind', TYPES)
def test_fine_tuned_policy_keeps_cameras_it_never_saw(write, tmp_path, dataset, kind):
    """As after a fine-tuning of `pi0_base`: its cameras, image size and state width, one camera hidden, one left out."""
    folder = write(kind, {'empty_cameras': 1})
    camera = {'type': 'VISUAL', 'shape': [3, 224, 224]}
    kept = {'observation.state': {'type': 'STATE', 'shape': [32]}}
    names = [f'observation.images.{name}_0_rgb' for name in ('base', 'left_wrist', 'right_wrist')]
    config = json.loads((folder / 'config.json').read_text())
    config['input_features'] = {**kept, **dict.fromkeys(names, camera)}
    (folder / 'config.json').write_text(json.dumps(config))
    renamed = {FRONT: names[1], 'observation.images.wrist': names[0]}
    edit_step(folder, 'rename_observations_processor', rename_map=renamed)
    export = export_checkpoint(folder, tmp_path / 'bundle', dataset=dataset)
    cameras = export.bundle.manifest.cameras
    assert [(camera.name, camera.size) for camera in cameras] == [
        ('wrist', (240, 320)),
        ('front', (240, 320)),
    ]
    assert compare(folder, export.bundle, dataset).max_error < 1e-4


def test_bundle_says_what_the_checkpoint_says(write, tmp_path):
    folder = write('pi05', {'empty_cameras': 2})
    manifest = export_checkpoint(folder, tmp_path / 'bundle', step_ns=50_000_000).bundle.manifest
    assert (manifest.family, [camera.name for camera in manifest.cameras]) == (
        'pi05',
        ['front', 'wrist'],
    )
    loop, words = manifest.loop, manifest.instruction
    assert (loop.kind, loop.steps, loop.noise_at) == ('flow_matching_euler', 4, 1)
    assert (words.max_tokens, words.pad_token) == (96, PAD)
    assert words.template == 'Task: {instruction}, State: {state};\nAction: '
    assert (words.state_bins, words.cleaning) == (256, 'one_line')
    assert {group.normalization for group in manifest.state.groups} == {'quantile'}
    assert {group.normalization for group in manifest.action.groups} == {'quantile'}
    assert [stage.in_loop for stage in manifest.stages] == [False, False, True]
    assert set(manifest.stages[1].inputs) == {'image_tokens', 'tokens', 'token_mask'}
    assert set(manifest.stages[2].inputs) == {'sample', 'timestep', 'memory', 'token_mask'}
    bundle = load_bundle(tmp_path / 'bundle')
    with closing(EnginePolicy(bundle)) as policy:
        assert check_probe(policy, bundle).max_error < 1e-4


def test_prefix_holds_what_is_needed_once(write, tmp_path, dataset):
    """No head of the language model, no last layer behind its keys and values; the state of π0 runs there too."""
    bundle = export_checkpoint(write('pi0'), tmp_path / 'bundle', dataset=dataset).bundle
    assert bundle.manifest.instruction.template == '{instruction}\n'
    assert bundle.tensors['memory'].shape == (1, 6, 1, 2 * 16 + 96 + 1, 16)
    assert 'state' in bundle.manifest.stages[1].inputs
    assert 'state' not in bundle.manifest.stages[2].inputs
    sizes = {
        stage: sum(
            np.prod(weight.dims)
            for weight in onnx.load(bundle.folder / f'{stage}.onnx').graph.initializer
        )
        for stage in ('prefix', 'expert')
    }
    width, mlp, heads = 64, 96, 8 * 16
    keys_values, queries_output = 2 * width * 16, 2 * width * heads
    whole = 2 * (keys_values + queries_output + 3 * width * mlp)
    state = 3 * 2 * 48 * 16 + 2 * (2 * 48 * heads + 3 * 48 * mlp)
    assert sizes['prefix'] == pytest.approx(400 * width + whole + keys_values + state, rel=0.05)
    action = 3 * (2 * 48 * 16 + 2 * 48 * heads + 3 * 48 * mlp) + 3 * 48 * 48 + 2 * 48 * 32
    assert sizes['expert'] == pytest.approx(action, rel=0.05)


@pytest.mark.parametrize('kind', TYPES)
def test_tokens_are_those_of_lerobot(write, tmp_path, dataset, kind):
    folder = write(kind, {'tokenizer_max_length': 120})
    bundle = export_checkpoint(folder, tmp_path / 'bundle', dataset=dataset).bundle
    library, manifest = Library(folder), bundle.manifest
    encoder = InstructionEncoder(manifest.instruction, bundle.folder)
    normalizer = StateNormalizer(manifest.state, bundle.statistics)
    tokens, mask = np.empty((2, 1, 120), np.int64)
    texts = (*TEXTS, '  two  blanks ', 'Grüße, 猫!', '<image> is no word', '_\n_a')
    observations = list(sample_observations(dataset, bundle.spec, count=len(texts)))
    observations[1] = replace(observations[1], state=observations[1].state + 9)  # never seen
    for observation, text in zip(observations, texts, strict=True):
        batch = library.read(replace(observation, instruction=Instruction(text)), -1)
        wanted = batch['observation.language.tokens'][0].numpy()
        state = np.empty((1, normalizer.width), np.float32)
        normalizer.write(observation.state, state)
        encoder.write(text, tokens, mask, state=state)
        assert tokens[0].tolist() == wanted.tolist()
        assert mask[0].tolist() == batch['observation.language.attention_mask'][0].tolist()
    with pytest.raises(InstructionError) as error:
        encoder.write('0 ' * 120, tokens, mask, state=state)
    assert error.value.code == 'instruction_too_long'


@pytest.mark.parametrize('size', [(240, 320), (320, 240), (56, 56), (55, 56), (30, 41), (57, 230)])
def test_resize_is_that_of_lerobot(size):
    resize = require_lerobot('policies.common.vla_utils').resize_with_pad_torch
    image = ImageFeature('', '', *size, rule=None)
    pixels = torch.rand((1, 3, *size), generator=torch.Generator().manual_seed(0)) * 1.2 - 0.1
    wanted = resize(pixels, 56, 56) if size != (56, 56) else pixels  # LeRobot leaves it alone
    found = make_resize(image, (56, 56))(pixels)
    assert found.shape == (1, 3, 56, 56)
    assert (found - wanted).abs().max() < 1e-6


def test_missing_tokenizer(write, tmp_path, dataset, vlm):
    folder = write('pi05')
    nowhere = str(tmp_path / 'nowhere')
    edit_step(folder, 'tokenizer_processor', tokenizer_name=nowhere)
    with pytest.raises(BundleError, match='--vlm') as error:
        export_checkpoint(folder, tmp_path / 'bundle', dataset=dataset)
    assert error.value.code == 'missing_vlm'
    assert nowhere in str(error.value)
    assert not (tmp_path / 'bundle').exists()
    export_checkpoint(folder, tmp_path / 'bundle', dataset=dataset, vlm=vlm)


def test_random_weights_need_the_tokenizer_and_no_network(tmp_path, dataset):
    with pytest.raises(BundleError, match=PALIGEMMA) as error:
        write_random_checkpoint(
            tmp_path / 'checkpoint', dataset, policy_type='pi0', settings=SMALL
        )
    assert error.value.code == 'missing_vlm'


@pytest.mark.parametrize('name', ['relative_actions_processor', 'absolute_actions_processor'])
def test_relative_actions_are_refused(write, tmp_path, dataset, name):
    folder = write('pi0')
    edit_step(folder, name, enabled=True)
    with pytest.raises(BundleError, match=name) as error:
        export_checkpoint(folder, tmp_path / 'bundle', dataset=dataset)
    assert error.value.code == 'unknown_step'


@pytest.mark.parametrize(('kind', 'name'), [('pi0', LINE_STEP), ('pi05', PROMPT_STEP)])
def test_missing_step_is_refused(write, tmp_path, dataset, kind, name):
    folder = write(kind)
    path = folder / 'policy_preprocessor.json'
    document = json.loads(path.read_text())
    document['steps'] = [step for step in document['steps'] if step['registry_name'] != name]
    path.write_text(json.dumps(document))
    with pytest.raises(BundleError, match=name) as error:
        export_checkpoint(folder, tmp_path / 'bundle', dataset=dataset)
    assert error.value.code == 'bad_checkpoint'


def test_other_text_of_lerobot_is_refused(write, tmp_path, dataset, monkeypatch):
    """As in lerobot 0.4, which tells a state of 32 numbers."""
    module = require_lerobot('policies.pi05.processor_pi05')
    monkeypatch.setattr(
        module, 'deepcopy', lambda state: torch.nn.functional.pad(state, (0, 32 - state.shape[1]))
    )
    with pytest.raises(BundleError, match='128 128') as error:
        export_checkpoint(write('pi05'), tmp_path / 'bundle', dataset=dataset)
    assert error.value.code == 'other_prompt'


def test_state_that_is_too_wide(write, tmp_path, dataset):
    folder = write('pi0', {'max_state_dim': 6})
    config = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps({**config, 'max_state_dim': 5}))
    weights = load_file(folder / 'model.safetensors')
    weights['model.state_proj.weight'] = weights['model.state_proj.weight'][:, :5].contiguous()
    save_file(weights, folder / 'model.safetensors')
    with pytest.raises(BundleError, match='max_state_dim') as error:
        export_checkpoint(folder, tmp_path / 'bundle', dataset=dataset)
    assert error.value.code == 'bad_checkpoint'


def _drop(weights):
    del weights['model.action_out_proj.bias']


def _widen(weights):
    weights['model.action_out_proj.weight'] = torch.zeros(33, 48)


@pytest.mark.parametrize(('change', 'name'), [(_drop, 'bias'), (_widen, 'weight')])
def test_weights_that_lerobot_did_not_load(write, tmp_path, dataset, change, name):
    """LeRobot prints a warning and goes on with weights as they were made."""
    folder = write('pi0')
    weights = load_file(folder / 'model.safetensors')
    change(weights)
    save_file(weights, folder / 'model.safetensors')
    with pytest.raises(BundleError, match=f'action_out_proj.{name}') as error:
        export_checkpoint(folder, tmp_path / 'bundle', dataset=dataset)
    assert error.value.code == 'missing_weights'


def test_weights_under_the_names_of_openpi(write, tmp_path, dataset):
    folder = write('pi0')
    weights = load_file(folder / 'model.safetensors')
    weights = {name.removeprefix('model.'): values for name, values in weights.items()}
    save_file(weights, folder / 'model.safetensors')
    export = export_checkpoint(folder, tmp_path / 'bundle', dataset=dataset)
    assert export.policy.max_error < 1e-4


@pytest.mark.parametrize('version', ['0.4.4', '0.5.0'])
def test_older_lerobot_is_refused(write, tmp_path, dataset, monkeypatch, version):
    folder = write('pi0')
    monkeypatch.setattr(metadata, 'version', lambda _name: version)
    with pytest.raises(MissingDependencyError, match=f'lerobot {version}'):
        export_checkpoint(folder, tmp_path / 'bundle', dataset=dataset)
    with pytest.raises(MissingDependencyError, match=f'lerobot {version}'):
        write_random_checkpoint(tmp_path / 'other', dataset, policy_type='pi05')
    assert not (tmp_path / 'bundle').exists()


@pytest.mark.parametrize('kind', TYPES)
def test_command_takes_the_tokenizer(tmp_path, capsys, caplog, vlm, kind):
    words = ['--random-init', kind, '--dataset', 'sample', '--vlm', str(vlm)]
    out = tmp_path / 'bundle'
    assert main(['export', 'lerobot', *words, '--out', str(out), '--json']) == 0
    document = json.loads(capsys.readouterr().out)
    parts = [part['part'] for part in document['parity']]
    assert parts == ['vision', 'prefix', 'expert', 'policy']
    assert 'might need handling' not in caplog.text  # LeRobot's warning about its own weights
    assert main(['check', str(out)]) == 0
