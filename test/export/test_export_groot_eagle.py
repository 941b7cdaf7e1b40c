# SPDX-License-Identifier: Apache-2.0
"""The vision-language half of a small GR00T N1.5 or N1.6, made by Isaac-GR00T's own classes, against its stages.

Runs where one of them is installed, with transformers 4.51.3; doc/howto/export_a_policy.md says how.
"""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from support.groot_version import VERSION
from support.small_eagle import (
    library_chat,
    make_processor,
    small_config,
    write_small_vlm,
)

from vla_policy_ros.bundle.instruction import InstructionEncoder
from vla_policy_ros.bundle.manifest import Camera, InstructionInput
from vla_policy_ros.core.errors import BundleError
from vla_policy_ros.core.frame import Frame
from vla_policy_ros.export.groot import eagle, eagle_network
from vla_policy_ros.export.groot.backbone import CONTEXT, TOKEN_MASK, TOKENS
from vla_policy_ros.export.traced_policy import image_tensor, random_values
from vla_policy_ros.export.tracing import trace
from vla_policy_ros.preprocess.camera import CameraPreprocessor

# The library and its own libraries warn about each other.
pytestmark = pytest.mark.filterwarnings('ignore')

IS_N16 = VERSION == 'n1.6'
TEXTS = ('go', 'pick up the red cube', 'put two CUBES into the box, then wait.')
ODD_TEXTS = ('  two  blanks ', 'Grüße, 猫!', '"quoted_"', '-1 <tag', '\n')
SIZES = [(252, 252), (224, 280), (56, 84)] if IS_N16 else [(224, 224)]
BUILD, LOAD = (eagle.build_n16, eagle.load_n16) if IS_N16 else (eagle.build_n15, eagle.load_n15)


@pytest.fixture(scope='module')
def processor():
    return make_processor()


@pytest.fixture(scope='module')
def vlm(tmp_path_factory):
    return write_small_vlm(tmp_path_factory.mktemp('vlm'))


@pytest.fixture(scope='module')
def model(vlm):
    torch.manual_seed(0)
    return sharpen(BUILD(small_config(), vlm=vlm))


def sharpen(model):
    """Make what tokens see of each other and where they stand matter: small weights let attention look at all alike."""
    with torch.no_grad():
        for name, values in model.backbone.named_parameters():
            if 'q_proj.weight' in name or 'k_proj.weight' in name or 'q_norm' in name:
                values.mul_(4)
            if 'position_embedding' in name:
                values.mul_(3)
    return model


def random_images(*sizes, moments=1):
    return {
        image_tensor(index): random_values((1, 3 * moments, *size)) * (1 + index)
        for index, size in enumerate(sizes)
    }


def encode_words(plan, folder, text):
    words = plan.words
    (folder / 'tokenizer.json').write_text(words.tokenizer, encoding='utf-8')
    rules = InstructionInput(
        tokenizer='tokenizer.json',
        tokens=words.tokens,
        mask=words.mask,
        max_tokens=words.max_tokens,
        pad_token=words.pad_token,
        template=words.template,
        allow_empty=True,
    )
    tokens, mask = np.empty((2, 1, words.max_tokens), np.int64)
    InstructionEncoder(rules, folder).write(text, tokens, mask)
    return {TOKENS: tokens, TOKEN_MASK: mask}


def run_stages(plan, tensors):
    """Run the stages' PyTorch functions on other tensors than their examples."""
    pool = dict(tensors)
    with torch.inference_mode():
        for stage in plan.stages:
            inputs = [torch.from_numpy(pool[name]) for name in stage.inputs]
            pool[stage.output] = stage.function(*inputs).numpy()
    return pool[CONTEXT][0]


def run_library(model, plan, tensors):
    with torch.inference_mode():
        return model.backbone(model.backbone.prepare_input(plan.library_inputs(tensors)))


def in_order_of_library(plan, context, tensors):
    """Return the tokens of the context as the library keeps them: words among the fixed ones, no padding."""
    pictured = plan.layout.images
    # N1.6 puts the images after the words and a mark; N1.5 the end of the turn and the start of the next one.
    before = pictured.index(True) - 1 if IS_N16 else len(pictured) - 5
    words = len(pictured) + int(tensors[TOKEN_MASK].sum())
    parts = [context[:before], context[len(pictured) : words], context[before : len(pictured)]]
    return np.concatenate(parts)


def measure_error(model, plan, tensors):
    output = run_library(model, plan, tensors)
    wanted = output['backbone_features'][0].numpy()
    context = run_stages(plan, tensors)
    assert context.shape[0] == plan.words.max_tokens + len(plan.layout.images)
    ours = in_order_of_library(plan, context, tensors)
    assert ours.shape == wanted.shape
    assert np.ptp(wanted) > 1
    return np.abs(ours - wanted).max()


@pytest.mark.parametrize('size', SIZES, ids=str)
@pytest.mark.parametrize('text', [*TEXTS, ''])
def test_context_is_the_librarys(model, processor, tmp_path, size, text):
    images = random_images(size, size)
    plan = eagle.plan_eagle(model, processor, images, max_words=16)
    tensors = {**images, **encode_words(plan, tmp_path, text)}
    assert measure_error(model, plan, tensors) < 1e-4


@pytest.mark.skipif(not IS_N16, reason='N1.5 takes images of one size')
def test_cameras_of_several_sizes(model, processor, tmp_path):
    images = random_images((56, 84), (84, 56), (56, 84))
    plan = eagle.plan_eagle(model, processor, images, max_words=8)
    tensors = {**images, **encode_words(plan, tmp_path, TEXTS[0])}
    assert measure_error(model, plan, tensors) < 1e-4


def test_images_of_several_moments(model, processor, tmp_path):
    images = random_images(SIZES[-1], SIZES[-1], moments=2)
    plan = eagle.plan_eagle(model, processor, images, max_words=8)
    tensors = {**images, **encode_words(plan, tmp_path, TEXTS[0])}
    shown = plan.library_inputs(tensors)['pixel_values' if IS_N16 else 'eagle_pixel_values']
    second = torch.from_numpy(images['image_1'][:, :3])
    assert torch.equal(shown[1].reshape(second.shape), second)
    assert measure_error(model, plan, tensors) < 1e-4


@pytest.mark.parametrize('text', [*TEXTS, *ODD_TEXTS])
def test_tokens_are_the_librarys(model, processor, tmp_path, text):
    images = random_images(SIZES[0], SIZES[0])
    plan = eagle.plan_eagle(model, processor, images, max_words=24)
    tensors = {**images, **encode_words(plan, tmp_path, text)}
    inputs = plan.library_inputs(tensors)
    blank = Image.fromarray(np.zeros((*SIZES[0], 3), np.uint8))
    wanted = library_chat(processor, text, [blank, blank])
    ours = inputs['input_ids' if IS_N16 else 'eagle_input_ids']
    assert ours.tolist() == wanted['input_ids'].tolist()
    token = processor.image_token_id
    assert sum(plan.layout.images) == wanted['input_ids'][0].tolist().count(token)


@pytest.mark.parametrize('size', [(256, 256), (256, 341), (224, 224)], ids=str)
def test_pixels_are_the_librarys(processor, size):
    if size == (256, 341) and not IS_N16:
        with pytest.raises(BundleError, match='tiles') as error:
            eagle.camera_format(processor, size)
        assert error.value.code == 'unsupported_setting'
        return
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    wanted = library_chat(processor, 'go', [Image.fromarray(pixels)])['pixel_values'][0]
    form = eagle.camera_format(processor, size)
    camera = Camera.model_validate({'name': 'front', 'tensor': 'image_0', **form})
    ours = np.empty(camera.tensor_shape, np.float32)
    CameraPreprocessor(camera).run(Frame.from_rgb('front', 0, pixels), ours[0])
    error = np.abs(ours[0] - wanted.reshape(ours[0].shape).numpy())
    # PIL's arithmetic is ours to the bit; torchvision's may round one step of the 255 apart.
    assert error.max() < (1e-6 if IS_N16 else 1e-6 + 2 / 255)
    assert error.mean() < 1e-4


def test_stages_in_onnx_runtime(model, processor, tmp_path):
    images = random_images(SIZES[-1], SIZES[-1])
    plan = eagle.plan_eagle(model, processor, images, max_words=16)
    for text in TEXTS:
        pool = {**images, **encode_words(plan, tmp_path, text)}
        for stage in plan.stages:
            path = tmp_path / stage.file
            if not path.exists():
                trace(stage, tmp_path)
            session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
            inputs = {name: pool[name] for name in stage.inputs}
            (pool[stage.output],) = session.run(None, inputs)
        assert np.abs(pool[CONTEXT][0] - run_stages(plan, pool)).max() < 1e-4


def test_networks_scatter_nothing(model, processor, tmp_path):
    images = random_images(SIZES[-1], SIZES[-1])
    for stage in eagle.plan_eagle(model, processor, images, max_words=8).stages:
        network = onnx.load(trace(stage, tmp_path))
        found = {node.op_type for node in network.graph.node}
        assert not found & {'ScatterND', 'ScatterElements', 'NonZero', 'If', 'Loop', 'Range'}
        assert {'MatMul', 'Softmax'} <= found


FAULTS = {
    'padding_seen': (
        eagle_network.EagleText,
        'compute_context',
        lambda own: lambda self, images, tokens, mask: own(self, images, tokens, mask * 0 + 1),
    ),
    'places_do_not_move': (
        eagle_network.EagleText,
        '_find_places',
        lambda own: lambda self, count: own(self, count * 0 + self._num_words),
    ),
    'not_causal': (eagle_network, 'hide', lambda own: lambda sight: own(sight | True)),
    'cameras_exchanged': (
        eagle_network.EagleVision,
        'encode',
        lambda own: lambda self, *cameras: own(self, *reversed(cameras)),
    ),
    'cameras_see_each_other': (
        eagle_network,
        'attend',
        lambda own: (
            lambda *parts, **rules: (
                own(*parts, **rules)
                if len(parts) > 3
                else torch.cat([own(*(p[:1] for p in parts))] * parts[0].shape[0])
            )
        ),
    ),
    'no_turn': (eagle_network, 'rotate', lambda own: lambda values, turn: values),
    'patches_have_no_place': (
        eagle_network,
        '_find_places',
        lambda own: lambda parts, size: own(parts, size) * 0,
    ),
}


@pytest.mark.parametrize('fault', FAULTS)
def test_faults_are_seen(model, processor, tmp_path, monkeypatch, fault):
    owner, name, make = FAULTS[fault]
    images = random_images(SIZES[-1], SIZES[-1])
    monkeypatch.setattr(owner, name, make(getattr(owner, name)))
    plan = eagle.plan_eagle(model, processor, images, max_words=16)
    tensors = {**images, **encode_words(plan, tmp_path, TEXTS[1])}
    assert measure_error(model, plan, tensors) > 1e-2


def test_checkpoint_comes_back(model, vlm, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = LOAD(tmp_path, vlm=vlm)
    assert not loaded.training
    kept = loaded.state_dict()
    for name, values in model.state_dict().items():
        if 'lm_head' not in name:
            assert torch.equal(kept[name], values), name


def test_checkpoint_in_16_bits(model, vlm, tmp_path):
    weights = {name: part.bfloat16() for name, part in model.state_dict().items()}
    model.save_pretrained(tmp_path, state_dict=weights)
    loaded = LOAD(tmp_path, vlm=vlm)
    assert {part.dtype for part in loaded.parameters()} == {torch.float32}


def test_missing_weights(model, vlm, tmp_path):
    weights = dict(model.state_dict())
    left_out = next(name for name in weights if name.endswith('mlp1.0.weight'))
    del weights[left_out]
    model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(BundleError, match='mlp1') as error:
        LOAD(tmp_path, vlm=vlm)
    assert error.value.code == 'missing_weights'


def test_weights_of_another_model(model, tmp_path):
    model.save_pretrained(tmp_path)
    other = write_small_vlm(tmp_path / 'vlm', vision={'intermediate_size': 40})
    with pytest.raises(BundleError, match='--vlm') as error:
        LOAD(tmp_path, vlm=other)
    assert error.value.code == 'other_vlm'


@pytest.mark.parametrize(
    ('settings', 'name'),
    [
        ({'text': {'use_sliding_window': True}}, 'use_sliding_window'),
        ({'text': {'rope_scaling': {'rope_type': 'linear', 'factor': 2.0}}}, 'rope_scaling'),
        ({'select_layer': -2}, 'select_layer'),
        *([({'vision': {'use_windows_attn': True}}, 'use_windows_attn')] if IS_N16 else []),
        *([({'vision': {'use_rope': True}}, 'use_rope')] if IS_N16 else []),
    ],
    ids=lambda value: value if isinstance(value, str) else '',
)
def test_settings_that_no_bundle_can_follow(processor, tmp_path, settings, name):
    vlm = write_small_vlm(tmp_path / 'vlm', **settings)
    policy = BUILD(small_config(), vlm=vlm)
    with pytest.raises(BundleError, match=name) as error:
        eagle.plan_eagle(policy, processor, random_images(SIZES[0]), max_words=8)
    assert error.value.code == 'unsupported_setting'


@pytest.mark.skipif(IS_N16, reason='N1.6 has none')
def test_projection_behind_the_language_model(model, processor, tmp_path, monkeypatch):
    torch.manual_seed(1)
    monkeypatch.setattr(model.backbone, 'eagle_linear', torch.nn.Linear(48, 24))
    images = random_images(SIZES[0])
    plan = eagle.plan_eagle(model, processor, images, max_words=8)
    tensors = {**images, **encode_words(plan, tmp_path, TEXTS[0])}
    assert measure_error(model, plan, tensors) < 1e-4
    assert run_stages(plan, tensors).shape[1] == 24


@pytest.mark.skipif(IS_N16, reason='N1.6 always folds')
def test_folded_patches(processor, tmp_path, monkeypatch):
    vlm = write_small_vlm(tmp_path / 'vlm', use_pixel_shuffle=True)
    policy = sharpen(BUILD(small_config(), vlm=vlm))
    monkeypatch.setattr(processor, 'tokens_per_tile', 64)
    images = random_images(SIZES[0], SIZES[0])
    plan = eagle.plan_eagle(policy, processor, images, max_words=8)
    tensors = {**images, **encode_words(plan, tmp_path, TEXTS[0])}
    assert sum(plan.layout.images) == 128
    assert measure_error(policy, plan, tensors) < 1e-4
