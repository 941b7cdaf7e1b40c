# SPDX-License-Identifier: Apache-2.0
"""A GR00T built small by Isaac-GR00T's own classes against its bundle: from camera images and words to physical actions.

Runs where Isaac-GR00T N1.6 or N1.7 is installed; doc/howto/export_a_policy.md says how.
"""

import importlib
import json
from contextlib import closing
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from support.groot_version import VERSION

from vla_policy_ros.bundle.bundle import load_bundle
from vla_policy_ros.bundle.manifest import Camera
from vla_policy_ros.bundle.normalization import ActionDenormalizer
from vla_policy_ros.bundle.probe import check_probe
from vla_policy_ros.core.errors import BundleError, ConfigurationError
from vla_policy_ros.core.observation import Instruction
from vla_policy_ros.datasets.registry import open_dataset
from vla_policy_ros.evaluation.parity import measure_parity
from vla_policy_ros.evaluation.sampling import sample_observations
from vla_policy_ros.export.groot.checkpoint import processor_folder
from vla_policy_ros.export.groot.convert import TrainingData, export_groot
from vla_policy_ros.export.groot.images import read_geometry
from vla_policy_ros.export.groot.library import require_gr00t, silent_library
from vla_policy_ros.export.groot.random_init import TAG, write_random_checkpoint
from vla_policy_ros.export.groot.versions import VERSIONS
from vla_policy_ros.policies.engine_policy import EnginePolicy
from vla_policy_ros.preprocess.geometry import GeometryPlan
from vla_policy_ros.sample import sample_dataset_path

if VERSION == 'n1.5':
    pytest.skip('neither N1.6 nor N1.7 of Isaac-GR00T', allow_module_level=True)

# The library and its libraries warn about each other.
pytestmark = pytest.mark.filterwarnings('ignore')


FOLDER = {'n1.6': 'model.gr00t_n1d6', 'n1.7': 'model.gr00t_n1d7'}[VERSION]
PROCESSING = require_gr00t(f'{FOLDER}.processing_{FOLDER[6:]}', version=VERSION)
IMAGES = require_gr00t(f'{FOLDER}.image_augmentations', version=VERSION)
TEXTS = ('Pick up the red cube.', 'go', 'put two CUBES into the box, then wait')


class Library:
    """A checkpoint in the library's hands: observations of ours, raw, through its own processor, policy and decoding."""

    def __init__(self, folder, vlm):
        version = VERSIONS[VERSION]
        with silent_library():
            checkpoint = version.read(folder, None)
            self.model = version.load(checkpoint, vlm)
            self.processor = version.make_processor(checkpoint, self.model)
        self.processor.eval()
        self.tag = importlib.import_module('gr00t.data.embodiment_tags').EmbodimentTag(TAG)
        self.config = self.processor.modality_configs[TAG]

    def act(self, bundle, observation, seed):
        """Return (K, D) actions in their units, and the noise of them."""
        types = importlib.import_module('gr00t.data.types')
        groups = bundle.manifest.state.groups
        bounds = np.cumsum([len(group.names) for group in groups])[:-1]
        parts = np.split(observation.state.astype(np.float32), bounds, axis=1)
        states = dict(zip(self.config['state'].modality_keys, parts, strict=True))
        images = {
            key: [frame.data.reshape(frame.height, frame.width, 3) for frame in frames]
            for key, frames in zip(
                self.config['video'].modality_keys, observation.images.values(), strict=True
            )
        }
        step = types.VLAStepData(
            images=images,
            states=states,
            actions={},
            text=observation.instruction.text,
            embodiment=self.tag,
        )
        batch = self.processor.collator([self.processor([{'type': 'x', 'content': step}])])
        head = self.model.action_head
        torch.manual_seed(seed)
        noise = torch.randn((1, head.action_horizon, head.action_dim)).numpy()
        torch.manual_seed(seed)
        with torch.inference_mode():
            raw = self.model.get_action(**batch)['action_pred'].float().numpy()
        state = {key: value[None] for key, value in states.items()}
        decoded = self.processor.decode_action(raw, self.tag, state)
        return np.concatenate([decoded[key][0] for key in decoded], axis=1), noise


@pytest.fixture(scope='module')
def dataset():
    with closing(open_dataset(sample_dataset_path())) as dataset:
        yield dataset


@pytest.fixture
def write(tmp_path, dataset):
    """Returns the folder of a policy with random weights and that of its vision-language model."""

    def write(**settings):
        folder = tmp_path / 'checkpoint'
        return folder, write_random_checkpoint(folder, dataset, version=VERSION, settings=settings)

    return write


def edit_processor(folder, **changes):
    path = folder / 'processor_config.json'
    document = json.loads(path.read_text())
    document['processor_kwargs'].update(changes)
    path.write_text(json.dumps(document))


def edit_modality(folder, kind, **changes):
    path = folder / 'processor_config.json'
    document = json.loads(path.read_text())
    document['processor_kwargs']['modality_configs'][TAG][kind].update(changes)
    path.write_text(json.dumps(document))


def edit_statistics(folder, edit):
    path = folder / 'statistics.json'
    document = json.loads(path.read_text())
    edit(document[TAG])
    path.write_text(json.dumps(document))


def compare(folder, vlm, bundle, dataset):
    """Hold our actions against the library's, in their units, over observations and words."""
    library, action = Library(folder, vlm), bundle.manifest.action
    denormalizer = ActionDenormalizer(action, bundle.manifest.state, bundle.statistics)
    pairs = []
    with closing(EnginePolicy(bundle)) as policy:
        recorded = sample_observations(dataset, bundle.spec, count=len(TEXTS))
        for seed, (plain, text) in enumerate(zip(recorded, TEXTS, strict=True)):
            observation = replace(plain, instruction=Instruction(text))
            wanted, noise = library.act(bundle, observation, seed)
            inputs, _ = policy.pool_inputs(observation)
            raw = policy.run_pool(inputs, noise)
            actions = np.empty(wanted.shape, np.float32)
            denormalizer.write(raw[0], observation.state[-1], actions)
            assert np.ptp(wanted) > 0.1
            pairs.append((actions, wanted))
    return measure_parity(*np.stack(pairs, axis=1))


def export(folder, vlm, out, dataset, **more):
    return export_groot(folder, out, data=TrainingData(dataset=dataset), vlm=vlm, **more)


def leave(folder):
    """As it was written: relative joints, quantiles, clipped."""


def plain_bounds(folder):
    edit_processor(folder, use_percentiles=False, clip_outliers=False, use_relative_action=False)


def other_rules(folder):
    edit_processor(folder, apply_sincos_state_encoding=True, formalize_language=False)
    edit_modality(
        folder, 'state', sin_cos_embedding_keys=['joints'], mean_std_embedding_keys=['gripper']
    )
    edit_modality(folder, 'action', mean_std_embedding_keys=['gripper'])


def still_columns(folder):
    """Columns that hardly moved in training, or not at all."""

    def edit(statistics):
        gripper = statistics['state']['gripper']
        gripper['q99'] = [gripper['q01'][0] * (1 + 1e-6)]
        joints = statistics['state']['joints']
        joints['q99'][1] = joints['q01'][1]
        statistics['action']['gripper']['q99'] = statistics['action']['gripper']['q01']

    edit_statistics(folder, edit)


def earlier_images(folder):
    edit_modality(folder, 'video', delta_indices=[-3, 0])


def poses(folder):
    """One key of six columns, which stand for a position and a rotation vector."""
    whole = {'delta_indices': [0], 'modality_keys': ['pose']}
    edit_modality(folder, 'state', **whole)
    rule = {'rep': 'RELATIVE', 'type': 'EEF', 'format': 'XYZ_ROTVEC', 'state_key': 'pose'}
    edit_modality(folder, 'action', modality_keys=['pose'], action_configs=[rule])

    def edit(statistics):
        for kind in ('state', 'action'):
            joints, gripper = statistics[kind]['joints'], statistics[kind]['gripper']
            statistics[kind] = {'pose': {name: joints[name] + gripper[name] for name in joints}}
        moves = statistics['relative_action']['joints']
        last = {name: [[*row, value] for row in moves[name]] for name, value in BOUNDS.items()}
        statistics['relative_action'] = {'pose': last}

    edit_statistics(folder, edit)


BOUNDS = {'min': -1.0, 'max': 1.0, 'mean': 0.0, 'std': 0.5, 'q01': -0.9, 'q99': 0.9}


@pytest.mark.parametrize(
    'change', [leave, plain_bounds, other_rules, still_columns, earlier_images, poses]
)
def test_actions_are_those_of_the_library(write, tmp_path, dataset, change):
    folder, vlm = write()
    change(folder)
    proven = export(folder, vlm, tmp_path / 'bundle', dataset)
    assert compare(folder, vlm, proven.bundle, dataset).max_error < 1e-4
    assert proven.policy.max_error < 1e-4
    assert list(proven.stages) == ['vision', 'language', 'memory', 'state', 'velocity', 'chunk']


def settings_of_version():
    if VERSION == 'n1.6':
        return {'action_horizon': 8, 'num_inference_timesteps': 3}
    return {'action_horizon': 8, 'num_inference_timesteps': 3, 'state_history_length': 2}


def test_other_settings_of_the_policy(write, tmp_path, dataset):
    """All rows are used, another number of steps, and where the library has it an earlier state."""
    settings = settings_of_version()
    folder, vlm = write(**settings)
    if 'state_history_length' in settings:
        edit_modality(folder, 'state', delta_indices=[-2, 0])
    proven = export(folder, vlm, tmp_path / 'bundle', dataset)
    assert compare(folder, vlm, proven.bundle, dataset).max_error < 1e-4
    assert list(proven.stages)[-1] == 'velocity'
    assert proven.bundle.manifest.loop.steps == 3


def without_letterbox(monkeypatch):
    """As later versions of the library do when they are not told to pad."""
    build = PROCESSING.build_image_transformations_albumentations
    compose = importlib.import_module('albumentations').Compose

    def build_other(*args, **rules):
        training, chain = build(*args, **rules)
        kept = [part for part in chain.transforms if type(part).__name__ != 'LetterBoxPad']
        assert len(kept) == 3
        return training, compose(kept)

    monkeypatch.setattr(PROCESSING, 'build_image_transformations_albumentations', build_other)


def test_wide_images(write, tmp_path, dataset, monkeypatch):
    without_letterbox(monkeypatch)
    folder, vlm = write()
    proven = export(folder, vlm, tmp_path / 'bundle', dataset)
    height, width = proven.bundle.manifest.cameras[0].size
    assert height < width
    assert compare(folder, vlm, proven.bundle, dataset).max_error < 1e-4


def test_torchvision_images(write, tmp_path, dataset):
    folder, vlm = write()
    edit_processor(
        folder, use_albumentations=False, image_target_size=[96, 96], image_crop_size=[90, 91]
    )
    proven = export(folder, vlm, tmp_path / 'bundle', dataset)
    # Pillow stands in for torchvision: a level here and there, each way.
    assert compare(folder, vlm, proven.bundle, dataset).max_error < 1e-2


def transformations():
    settings = [[256, 256], [230, 230], None, None]
    yield (
        'albumentations',
        IMAGES.build_image_transformations_albumentations(*settings, 256, 0.95)[1],
    )
    padded = IMAGES.build_image_transformations_albumentations(*settings, 256, 0.95)[1]
    compose = importlib.import_module('albumentations').Compose
    yield 'no_letterbox', compose(padded.transforms[1:])
    yield 'torchvision', IMAGES.build_image_transformations(*settings)[1]


@pytest.mark.parametrize('size', [(256, 256), (480, 640), (720, 1280), (270, 481)], ids=str)
@pytest.mark.parametrize(
    ('kind', 'transform'), list(transformations()), ids=lambda value: str(value)[:14]
)
def test_pixels_are_those_of_the_library(size, kind, transform):
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    smooth = cv2.resize(noise[::16, ::16], size[::-1], interpolation=cv2.INTER_CUBIC)
    for image in (noise, smooth):
        if kind == 'torchvision':
            wanted = transform(image).permute(1, 2, 0).numpy()
        else:
            wanted = transform(image=image)['image']
        steps, found = read_geometry(transform, size)
        camera = Camera.model_validate({'name': 'c', 'tensor': 't', 'geometry': steps})
        result = GeometryPlan(camera.geometry, size, where='c').run(image)
        assert found == camera.size == wanted.shape[:2]
        error = np.abs(result.astype(int) - wanted)
        assert error.max() <= (1 if kind == 'torchvision' else 0)


def test_observations_show_in_the_actions(write, tmp_path, dataset):
    """Else equal actions would prove little: random weights may drown what goes in."""
    folder, vlm = write()
    bundle = export(folder, vlm, tmp_path / 'bundle', dataset).bundle
    with closing(EnginePolicy(bundle)) as policy:
        first, second = sample_observations(dataset, bundle.spec, count=2)
        noise = np.random.default_rng(0).standard_normal((1, 12, 32), np.float32)

        def act(**changes):
            inputs, _ = policy.pool_inputs(replace(first, **changes))
            return policy.run_pool(inputs, noise).copy()

        known = act()
        for name, value in (
            ('images', second.images),
            ('state', second.state),
            ('instruction', Instruction('something else')),
        ):
            assert np.abs(act(**{name: value}) - known).max() > 1e-3, name


def test_bundle_says_what_the_checkpoint_says(write, tmp_path, dataset):
    folder, vlm = write()
    export(folder, vlm, tmp_path / 'bundle', dataset, max_words=30, origin='there')
    bundle = load_bundle(tmp_path / 'bundle')
    manifest = bundle.manifest
    assert (manifest.family, manifest.source.checkpoint) == (f'groot {VERSION}', 'there')
    assert [camera.name for camera in manifest.cameras] == ['front', 'wrist']
    assert (manifest.state.pad_to, manifest.action.horizon) == (32, 8)
    assert [group.representation.value for group in manifest.action.groups] == [
        'relative_to_observation',
        'absolute',
    ]
    assert bundle.statistics['action.joints'].min.shape == (8, 5)
    assert manifest.instruction.cleaning == 'lower_no_punctuation'
    assert 30 <= manifest.instruction.max_tokens < 40
    assert [stage.in_loop for stage in manifest.stages] == [False] * 4 + [True, False]
    with closing(EnginePolicy(bundle)) as policy:
        assert check_probe(policy, bundle).max_error < 1e-4


def test_export_without_dataset(write, tmp_path):
    folder, vlm = write()
    inner = folder / 'processor'
    inner.mkdir()
    for name in ('processor_config', 'statistics', 'embodiment_id'):
        (folder / f'{name}.json').rename(inner / f'{name}.json')
    assert processor_folder(folder) == inner
    data = TrainingData(step_ns=50_000_000, image_size=(120, 100))
    manifest = export_groot(folder, tmp_path / 'bundle', data=data, vlm=vlm).bundle.manifest
    assert manifest.action.groups[0].names[4] == 'joints_4'
    assert manifest.action.step_ns == 50_000_000
    with pytest.raises(ConfigurationError, match='--fps'):
        export_groot(folder, tmp_path / 'b', data=TrainingData(image_size=(9, 9)), vlm=vlm)


def test_unknown_version(tmp_path, dataset):
    (tmp_path / 'config.json').write_text('{"model_type": "Gr00tN2"}')
    with pytest.raises(BundleError, match='Gr00tN2') as error:
        export(tmp_path, None, tmp_path / 'b', dataset)
    assert error.value.code == 'unsupported_policy'
