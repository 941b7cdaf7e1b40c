# SPDX-License-Identifier: Apache-2.0
"""The backbone of GR00T N1.7, a Qwen3-VL: images to tokens, then tokens and words to the context."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vla_policy_ros.core.specs import Array
from vla_policy_ros.export.checkpoint_files import unsupported
from vla_policy_ros.export.groot.backbone import (
    CONTEXT,
    TOKEN_MASK,
    TOKENS,
    Backbone,
    TokenLayout,
)
from vla_policy_ros.export.groot.images import Size
from vla_policy_ros.export.groot.library import require_gr00t
from vla_policy_ros.export.groot.qwen_network import Grid, QwenParts, QwenText, QwenVision
from vla_policy_ros.export.groot.weights import left_empty, load_weights
from vla_policy_ros.export.traced_policy import Words
from vla_policy_ros.export.tracing import TracedStage, quiet_library, replaced, require_torch
from vla_policy_ros.export.vlm_files import find_vlm, missing_vlm

_IMAGES = 'image_tokens'
_WHERE = 'processor of the vision-language model'
_MARK = 'the words of the instruction'
_FILES = ('config.json', 'tokenizer.json')  # without them transformers fails in odd ways
_FILTERS = {0: 'nearest', 2: 'bilinear', 3: 'bicubic'}  # PIL's numbers
_STEPS = ('do_convert_rgb', 'do_resize', 'do_rescale', 'do_normalize')


def build_n17(config: Any, *, vlm: Path | None = None) -> Any:
    """Return a `Gr00tN1d7` with random weights, on the CPU, in float32, for inference; downloads nothing.

    The library would make its backbone of the weights of the vision-language model.

    Args:
        config: Its `Gr00tN1d7Config`.
        vlm: Folder with configuration and tokenizer of the vision-language model; when None, those that `config.model_name`
            names: a folder, or what the cache of the Hugging Face hub keeps of a name.

    Raises:
        MissingDependencyError: Isaac-GR00T N1.7, or what it needs, is not installed.
        BundleError: The vision-language model's files are not there (`missing_vlm`).
    """
    backbone = _require('model.modules.qwen3_backbone')
    processing = _require('model.gr00t_n1d7.processing_gr00t_n1d7')
    folder = find_vlm(str(vlm or config.model_name))
    processor, shape = _read_vlm(folder)
    text = shape.text_config
    # The library drops the rest.
    text.num_hidden_layers = min(text.num_hidden_layers, config.select_layer)
    untrained = _Untrained(backbone.Qwen3VLForConditionalGeneration, shape)
    with (
        quiet_library(),
        replaced(backbone, Qwen3VLForConditionalGeneration=untrained),
        replaced(processing, build_processor=lambda *_: processor),
    ):
        policy = _require('model.gr00t_n1d7.gr00t_n1d7').Gr00tN1d7(config)
    policy.collator.model_name = folder
    return policy.float().eval()


def load_n17(folder: Path, *, vlm: Path | None = None) -> Any:
    """Return the `Gr00tN1d7` of a checkpoint, on the CPU, in float32, for inference; downloads nothing.

    Args:
        folder: The checkpoint.
        vlm: As for `build_n17`; its weights are in the checkpoint.

    Raises:
        MissingDependencyError: Isaac-GR00T N1.7, or what it needs, is not installed.
        BundleError: The vision-language model's files are not there (`missing_vlm`) or are those of another
            (`other_vlm`), or the checkpoint lacks weights (`missing_weights`).
    """
    library = _require('model.gr00t_n1d7.gr00t_n1d7')
    config = library.Gr00tN1d7Config.from_pretrained(str(folder))
    with left_empty():
        policy = build_n17(config, vlm=vlm)
    load_weights(policy, folder)
    return policy


def _require(module: str) -> Any:
    return require_gr00t(module, version='n1.7')


class _Untrained:
    """Stands in for the class of a vision-language model: makes it of a configuration alone."""

    def __init__(self, model_class: Any, config: Any) -> None:
        self._class = model_class
        self._config = config

    def from_pretrained(self, *_: Any, **__: Any) -> Any:
        """Return it in float32, whatever attention and type the library asks for."""
        return self._class(self._config).float()


def _read_vlm(folder: str) -> tuple[Any, Any]:
    """Return processor and configuration of a vision-language model; its attention is one that every machine has."""
    transformers = importlib.import_module('transformers')
    for name in _FILES:
        if not Path(folder, name).is_file():
            raise missing_vlm(folder, f'no {name}')
    try:
        with quiet_library():
            return (
                transformers.Qwen3VLProcessor.from_pretrained(folder, local_files_only=True),
                transformers.Qwen3VLConfig.from_pretrained(
                    folder, local_files_only=True, attn_implementation='eager'
                ),
            )
    except (OSError, ValueError) as fault:
        raise missing_vlm(folder, fault) from fault


def camera_format(processor: Any, size: Size) -> dict[str, Any]:
    """Return the entries of a camera in the manifest, from the images that GR00T's own steps leave to the tensor.

    Args:
        processor: The `Qwen3VLProcessor` of the model.
        size: Height and width in pixels after GR00T's own steps.

    Returns:
        Entries of `bundle.manifest.Camera`; `geometry` goes behind the steps that are there already.

    Raises:
        BundleError: The processor leaves out a step that a bundle has (`unsupported_setting`).
    """
    library = processor.image_processor
    left_out = [step for step in _STEPS if getattr(library, step, True) is False]
    if left_out:
        raise unsupported(_WHERE, f'{left_out[0]}: false', f'{left_out[0]}: true')
    if library.resample not in _FILTERS:
        raise unsupported(_WHERE, f'resample: {library.resample}', 'one of 0, 2 and 3')
    rows, columns = _find_grid(processor, size)
    parents = {parent.__name__ for parent in type(library).__mro__}
    by_torch = parents & {'BaseImageProcessorFast', 'TorchvisionBackend'}
    resize = {
        'kind': 'resize',
        'height': rows * library.patch_size,
        'width': columns * library.patch_size,
        'library': 'torchvision' if by_torch else 'pil',
        'filter': _FILTERS[library.resample],
    }
    return {
        'geometry': (resize,),
        'scale': library.rescale_factor,
        'mean': tuple(library.image_mean),
        'std': tuple(library.image_std),
        'layout': 'patches',
        'patch_size': library.patch_size,
        'merge_size': library.merge_size,
        'temporal': library.temporal_patch_size,
    }


def _find_grid(processor: Any, size: Size) -> Grid:
    """Return rows and columns of the patches that the library makes of an image of a height and width."""
    blank = np.zeros((*size, 3), np.uint8)
    with quiet_library():
        found = processor.image_processor(images=[blank], return_tensors='pt')
    _, rows, columns = found['image_grid_thw'][0].tolist()
    return rows, columns


def plan_qwen(
    model: Any,
    processor: Any,
    images: Mapping[str, Array],
    *,
    sizes: Mapping[str, Size],
    max_words: int,
) -> Backbone:
    """Return how the backbone of an N1.7 becomes stages.

    Args:
        model: The policy, in float32, on the CPU, in evaluation mode.
        processor: Its `Qwen3VLProcessor`.
        images: Pool tensor of each camera, in their order, to example values, as `camera_format` shapes them.
        sizes: Pool tensor of each camera to height and width of its images in pixels, `Camera.size`.
        max_words: Most tokens of an instruction, without what the template puts behind it.

    Raises:
        BundleError: The chat template puts no fixed text around images and words (`unsupported_setting`).
    """
    parts = QwenParts.of_policy(model)
    edge = processor.image_processor.patch_size
    cameras = {name: (sizes[name][0] // edge, sizes[name][1] // edge) for name in images}
    moments = _moments(images, cameras)
    shown = moments * tuple(cameras.values())
    prompt = _find_prompt(processor, shown, image_token=parts.image_token)
    room = max_words + len(_encode(processor, prompt.after))
    vision = TracedStage(
        name='vision',
        owner=parts.vision,
        function=QwenVision(parts, shown, moments=moments).encode,
        inputs=images,
        output=_IMAGES,
    )
    network = QwenText(parts, prompt.tokens, images=shown, num_words=room)
    language = TracedStage(
        name='language',
        owner=parts.text,
        function=network.compute_context,
        inputs={_IMAGES: vision.run(), TOKENS: np.arange(room)[None]},
        output=CONTEXT,
    )
    return Backbone(
        stages=(vision, language),
        layout=TokenLayout(
            images=tuple(token == parts.image_token for token in prompt.tokens),
            num_words=room,
        ),
        words=_words(processor, prompt, room),
        library_inputs=lambda tensors: _library_inputs(tensors, cameras, prompt),
    )


def _moments(images: Mapping[str, Array], cameras: Mapping[str, Grid]) -> int:
    """Return how many images of a camera the policy looks at."""
    name, (rows, columns) = next(iter(cameras.items()))
    return int(images[name].shape[1]) // (rows * columns)


@dataclass(frozen=True, slots=True)
class _Prompt:
    """The text around the words.

    Attributes:
        tokens: Ids before the words.
        after: Text after the words.
    """

    tokens: tuple[int, ...]
    after: str


def _find_prompt(processor: Any, images: Sequence[Grid], *, image_token: int) -> _Prompt:
    """Return what the library puts around the words, for images in their order."""
    window = processor.image_processor.merge_size**2
    before, mark, after = _fill_template(processor, len(images), _MARK).partition(_MARK)
    texts = before.split(processor.image_token)
    if not mark or len(texts) != len(images) + 1:
        raise unsupported(
            _WHERE, 'a chat template that leaves out images or words', 'one with both'
        )
    tokens = _encode(processor, texts[0])
    for (rows, columns), text in zip(images, texts[1:], strict=True):
        tokens += [image_token] * (rows * columns // window) + _encode(processor, text)
    if tokens[-1] not in processor.tokenizer.added_tokens_decoder:
        got = f'{before[-20:]!r} before the words'
        raise unsupported(_WHERE, got, 'a special token, which does not merge with them')
    return _Prompt(tuple(tokens), after)


def _fill_template(processor: Any, num_images: int, words: str) -> str:
    parts = [*[{'type': 'image'}] * num_images, {'type': 'text', 'text': words}]
    turn = {'role': 'user', 'content': parts}
    text: str = processor.apply_chat_template([turn], tokenize=False, add_generation_prompt=False)
    return text


def _encode(processor: Any, text: str) -> list[int]:
    ids: list[int] = processor.tokenizer(text)['input_ids']
    return ids


def _words(processor: Any, prompt: _Prompt, room: int) -> Words:
    tokenizer = processor.tokenizer
    return Words(
        tokens=TOKENS,
        mask=TOKEN_MASK,
        max_tokens=room,
        pad_token=tokenizer.pad_token,
        template='{instruction}' + prompt.after,
        tokenizer=tokenizer.backend_tokenizer.to_str(),
    )


def _library_inputs(
    tensors: Mapping[str, Array], cameras: Mapping[str, Grid], prompt: _Prompt
) -> dict[str, Any]:
    """Return what the library's backbone takes: images of one moment together, words without padding."""
    torch = require_torch()
    moments = _moments(tensors, cameras)
    patches = [np.split(tensors[name][0], moments) for name in cameras]
    words = tensors[TOKENS][0][tensors[TOKEN_MASK][0] != 0]
    ids = torch.from_numpy(np.concatenate([prompt.tokens, words])[None])
    rows = [part for moment in zip(*patches, strict=True) for part in moment]
    return {
        'input_ids': ids,
        'attention_mask': torch.ones_like(ids),
        'pixel_values': torch.from_numpy(np.concatenate(rows)),
        'image_grid_thw': torch.tensor([[1, *grid] for grid in cameras.values()] * moments),
    }
