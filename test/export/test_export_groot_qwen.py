# SPDX-License-Identifier: Apache-2.0
"""The backbone of GR00T N1.7 as stages, small, against the library's own, from images and words on.

Runs where Isaac-GR00T N1.7, or LeRobot 0.6 with its port of it, and transformers are installed.
"""

from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
from support import small_qwen

from vla_policy_ros.bundle.instruction import InstructionEncoder
from vla_policy_ros.bundle.manifest import Camera, InstructionInput
from vla_policy_ros.core.errors import BundleError
from vla_policy_ros.core.frame import Frame
from vla_policy_ros.evaluation.parity import measure_parity
from vla_policy_ros.export.groot import qwen_network
from vla_policy_ros.export.groot.qwen import camera_format, plan_qwen
from vla_policy_ros.export.tracing import trace
from vla_policy_ros.preprocess.camera import CameraPreprocessor

pytestmark = pytest.mark.filterwarnings('ignore')  # of the libraries about their own parts

LIBRARIES = ('gr00t.model.modules.qwen3_backbone', 'lerobot.policies.groot.groot_n1_7')
SELECT_LAYER = 3
MAX_WORDS = 12
CAMERAS = {
    'one': ([(64, 64)], 1),
    'two': ([(64, 96), (64, 96)], 1),
    'two sizes': ([(96, 64), (64, 96)], 1),
    'history': ([(64, 96), (64, 96)], 2),
    'history of two sizes': ([(64, 96), (128, 64), (64, 96)], 2),
}


@pytest.fixture(scope='module')
def vlm(tmp_path_factory):
    """Folder of a small vision-language model with weights, whose name the library accepts."""
    folder = tmp_path_factory.mktemp('hub') / 'nvidia' / 'Cosmos-Reason2-small'
    return small_qwen.write_weights(small_qwen.write_small_qwen(folder))


@pytest.fixture(scope='module', params=LIBRARIES, ids=['gr00t', 'lerobot'])
def policy(request, vlm):
    """What has the library's own backbone, loaded by its own code."""
    module = pytest.importorskip(request.param, exc_type=ImportError)
    backbone = module.Qwen3Backbone(str(vlm), select_layer=SELECT_LAYER)
    return SimpleNamespace(backbone=backbone.float().eval())


@pytest.fixture(scope='module')
def processor(vlm):
    return transformers.Qwen3VLProcessor.from_pretrained(vlm)


def example_images(sizes, moments, seed=0):
    random = np.random.default_rng(seed)
    return {
        f'image_{index}': random.standard_normal(
            (1, moments * height * width // 256, 1536), np.float32
        )
        for index, (height, width) in enumerate(sizes)
    }


def make_plan(policy, processor, sizes=((64, 96), (64, 96)), moments=1):
    images = example_images(sizes, moments)
    edges = dict(zip(images, sizes, strict=True))
    return plan_qwen(policy, processor, images, sizes=edges, max_words=MAX_WORDS)


def example_words(room, count, seed=0):
    tokens = np.random.default_rng(seed).integers(10, 300, (1, room))
    return tokens, (np.arange(room) < count)[None].astype(np.int64)


def run_stages(plan, images, tokens):
    vision, language = plan.stages
    with torch.inference_mode():
        seen = vision.function(*map(torch.from_numpy, images.values()))
        return language.function(seen, torch.from_numpy(tokens)).numpy()


def run_library(policy, plan, images, tokens, mask):
    inputs = plan.library_inputs({**images, 'tokens': tokens, 'token_mask': mask})
    with torch.inference_mode():
        return {name: value.numpy() for name, value in policy.backbone(inputs).items()}


def compare(policy, plan, sizes, moments, count):
    """Hold the context against the library's for other images, and for words of a count."""
    images = example_images(sizes, moments, seed=1)
    tokens, mask = example_words(plan.layout.num_words, count)
    wanted = run_library(policy, plan, images, tokens, mask)
    context = run_stages(plan, images, tokens)
    length = wanted['backbone_features'].shape[1]
    assert length == len(plan.layout.images) + count
    pictured = plan.layout.pictured()[:, :length].numpy()
    np.testing.assert_array_equal(pictured, wanted['image_mask'])
    assert np.isfinite(context).all()
    return measure_parity(context[:, :length], wanted['backbone_features'])


@pytest.mark.parametrize('count', [1, 5, MAX_WORDS])
@pytest.mark.parametrize('cameras', CAMERAS.values(), ids=CAMERAS)
def test_context_is_that_of_the_library(policy, processor, cameras, count):
    plan = make_plan(policy, processor, *cameras)
    assert compare(policy, plan, *cameras, count).max_error < 1e-4


def test_image_tokens_are_those_of_the_library(policy, processor):
    sizes = [(96, 64), (64, 96)]
    plan = make_plan(policy, processor, sizes)
    words = example_words(plan.layout.num_words, 3)
    inputs = plan.library_inputs(
        {**example_images(sizes, 1), 'tokens': words[0], 'token_mask': words[1]}
    )
    with torch.inference_mode():
        found = policy.backbone.model.model.visual(
            inputs['pixel_values'], grid_thw=inputs['image_grid_thw']
        )
        if isinstance(found, tuple):
            tokens, deep = found
        else:
            tokens, deep = found.pooler_output, found.deepstack_features
    wanted = torch.stack([tokens, *deep])[None].numpy()
    assert measure_parity(plan.stages[0].run(), wanted).max_error < 1e-4


def test_padding_does_not_count(policy, processor):
    plan = make_plan(policy, processor)
    images = example_images([(64, 96)] * 2, 1)
    tokens, _ = example_words(plan.layout.num_words, 5)
    other = tokens.copy()
    other[:, 5:] = 7
    known = len(plan.layout.images) + 5
    contexts = [run_stages(plan, images, words)[:, :known] for words in (tokens, other)]
    np.testing.assert_array_equal(*contexts)


def without_columns(pictured, images):
    return ((start, row, start) for start, row, _ in find_places(pictured, images))


def without_jump(pictured, images):
    return ((place, place, place) for place in range(len(pictured)))


find_places = qwen_network.find_places
FAULTS = {
    'no columns': ('find_places', without_columns),
    'images count as words': ('find_places', without_jump),
    'all see all': ('hide', lambda visible: torch.zeros(visible.shape)),
    'nothing is turned': ('rotate', lambda values, _: values),
    'no places of patches': (
        '_find_patch_places',
        lambda _, grid: torch.zeros(grid[0] * grid[1], 32),
    ),
}


@pytest.mark.parametrize(('name', 'fault'), FAULTS.values(), ids=FAULTS)
def test_a_fault_shows(policy, processor, monkeypatch, name, fault):
    sizes = [(64, 96), (64, 96)]
    monkeypatch.setattr(qwen_network, name, fault)
    plan = make_plan(policy, processor, sizes)
    assert compare(policy, plan, sizes, 1, 5).max_error > 0.01


def test_missing_features_of_deep_layers_show(policy, processor):
    sizes = [(64, 96), (64, 96)]
    plan = make_plan(policy, processor, sizes)
    vision, language = plan.stages
    tokens, mask = example_words(plan.layout.num_words, 5)
    images = example_images(sizes, 1)
    wanted = run_library(policy, plan, images, tokens, mask)['backbone_features']
    seen = torch.from_numpy(vision.run())
    assert seen.shape[:2] == (1, 3)
    for kept in (1, 2, 3):
        with torch.inference_mode():
            context = language.function(seen[:, :kept], torch.from_numpy(tokens))
        error = measure_parity(context[:, : wanted.shape[1]].numpy(), wanted).max_error
        assert (error < 1e-4) == (kept == 3)
        assert error < 1e-4 or error > 0.01


def test_moments_come_in_the_order_of_the_library(policy, processor):
    """Images of one moment stand together: exchanging two moments of one camera is something else."""
    sizes, moments = [(64, 96), (64, 96)], 2
    plan = make_plan(policy, processor, sizes, moments)
    images = example_images(sizes, moments, seed=1)
    tokens, mask = example_words(plan.layout.num_words, 5)
    wanted = run_library(policy, plan, images, tokens, mask)['backbone_features']
    images['image_1'] = np.roll(images['image_1'], 24, axis=1)
    context = run_stages(plan, images, tokens)[:, : wanted.shape[1]]
    assert measure_parity(context, wanted).max_error > 0.01


@pytest.mark.parametrize('cameras', ['two', 'history of two sizes'])
def test_onnx_runtime_computes_the_same(policy, processor, tmp_path, cameras):
    sizes, moments = CAMERAS[cameras]
    for stage in make_plan(policy, processor, sizes, moments).stages:
        session = onnxruntime.InferenceSession(
            trace(stage, tmp_path), providers=['CPUExecutionProvider']
        )
        assert {value.name for value in session.get_inputs()} == set(stage.inputs)
        (output,) = session.run([stage.output], dict(stage.inputs))
        assert measure_parity(output, stage.run()).max_error < 1e-4


def constants_of(path):
    return {
        value.name: onnx.numpy_helper.to_array(value)
        for value in onnx.load(path).graph.initializer
    }


@pytest.mark.parametrize('cameras', ['two', 'history of two sizes'])
def test_files_hold_every_weight_once(policy, processor, tmp_path, cameras):
    """No float64, nothing twice, the embeddings of all words once, and little besides."""
    sizes, moments = CAMERAS[cameras]
    plan = make_plan(policy, processor, sizes, moments)
    inner = policy.backbone.model.model
    used = {
        'vision': [*inner.visual.parameters()],
        'language': [*inner.language_model.embed_tokens.parameters()]
        + [*inner.language_model.layers.parameters()],
    }
    length = len(plan.layout.images) + plan.layout.num_words
    patches = sum(rows * columns // 256 for rows, columns in set(sizes))
    # Places and turns of patches; mask, order of tokens, turns and fixed embeddings of the language model.
    besides = {'vision': patches * (32 + 16), 'language': length * (length + 16 + 2 * 2 + 48)}
    for stage in plan.stages:
        constants = constants_of(trace(stage, tmp_path))
        assert {value.dtype.name for value in constants.values()} <= {'float32', 'int64'}
        big = [value.tobytes() for value in constants.values() if value.size > 64]
        assert len(set(big)) == len(big)
        weights = sum(weight.numel() for weight in used[stage.name])
        assert sum(value.size for value in constants.values()) < (
            weights + besides[stage.name] + 1000
        )
    rows = inner.language_model.embed_tokens.num_embeddings
    shapes = [value.shape for value in constants.values()]
    assert sum(rows in shape for shape in shapes) == 1


@pytest.mark.parametrize('size', [(64, 96), (100, 130), (60, 85), (50, 40)])
def test_images_become_what_the_library_makes_of_them(processor, size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    entries = camera_format(processor, size)
    camera = Camera.model_validate({'name': 'front', 'tensor': 'image_0', **entries})
    preprocessor = CameraPreprocessor(camera)
    out = np.empty(preprocessor.image_shape, preprocessor.dtype)
    preprocessor.run(Frame.from_rgb('front', 0, image), out)
    wanted = processor.image_processor(images=[image], return_tensors='pt')
    assert out.shape == wanted['pixel_values'].shape
    grid = [edge // camera.patch_size for edge in camera.size]
    assert wanted['image_grid_thw'].tolist() == [[1, *grid]]
    level = 1 / 255 / min(camera.std)
    errors = np.abs(out - wanted['pixel_values'].numpy())
    exact = grid == [edge / 16 for edge in size]
    assert errors.max() < (1e-6 if exact else 1.01 * level)
    assert (errors > 1e-6).mean() < 0.02  # torchvision's last bit


@pytest.mark.parametrize('text', ['pick up the red cube', 'go', ' two  blanks ', 'Grüße, 猫 7!'])
def test_words_become_what_the_library_makes_of_them(policy, processor, tmp_path, text):
    plan = make_plan(policy, processor)
    (tmp_path / 'tokenizer.json').write_text(plan.words.tokenizer, encoding='utf-8')
    words = plan.words
    rules = InstructionInput(
        tokenizer='tokenizer.json',
        tokens=words.tokens,
        mask=words.mask,
        max_tokens=words.max_tokens + 20,
        pad_token=words.pad_token,
        template=words.template,
    )
    assert words.pad_token == small_qwen.PAD
    tokens, mask = np.empty((2, 1, rules.max_tokens), np.int64)
    InstructionEncoder(rules, tmp_path).write(text, tokens, mask)
    images = example_images([(64, 96)] * 2, 1)
    ours = plan.library_inputs({**images, 'tokens': tokens, 'token_mask': mask})
    parts = [{'type': 'image'}, {'type': 'image'}, {'type': 'text', 'text': text}]
    prompt = processor.apply_chat_template(
        [{'role': 'user', 'content': parts}], tokenize=False, add_generation_prompt=False
    )
    blank = np.zeros((64, 96, 3), np.uint8)
    wanted = processor(text=[prompt], images=[blank] * 2, return_tensors='pt', padding=True)
    assert ours['input_ids'].tolist() == wanted['input_ids'].tolist()
    assert ours['image_grid_thw'].tolist() == wanted['image_grid_thw'].tolist()
    assert ours['pixel_values'].shape == wanted['pixel_values'].shape


@pytest.mark.parametrize(
    ('text', 'other'),
    [
        ('<|image_pad|>', ''),
        ("{{ part['text'] }}", ''),
        ("{{ part['text'] }}", "{{ ' red' + part['text'] }}"),
    ],
    ids=['no images', 'no words', 'merging words'],
)
def test_templates_that_no_bundle_can_follow(policy, vlm, text, other):
    processor = transformers.Qwen3VLProcessor.from_pretrained(vlm)
    assert text in processor.chat_template
    processor.chat_template = processor.chat_template.replace(text, other)
    with pytest.raises(BundleError) as error:
        make_plan(policy, processor)
    assert error.value.code == 'unsupported_setting'


@pytest.mark.parametrize('change', [{'do_resize': False}, {'resample': 1}])
def test_image_steps_that_no_bundle_can_follow(vlm, change):
    processor = transformers.Qwen3VLProcessor.from_pretrained(vlm)
    for name, value in change.items():
        setattr(processor.image_processor, name, value)
    with pytest.raises(BundleError, match=next(iter(change))) as error:
        camera_format(processor, (64, 64))
    assert error.value.code == 'unsupported_setting'
