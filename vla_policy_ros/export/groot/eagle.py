# SPDX-License-Identifier: Apache-2.0
"""The vision-language half of GR00T N1.5 and N1.6: loaded by the library's own classes, and as stages of a bundle."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
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
from vla_policy_ros.export.groot.eagle_library import eagle_on_cpu
from vla_policy_ros.export.groot.eagle_network import (
    EagleParts,
    EagleText,
    EagleVision,
    image_size,
)
from vla_policy_ros.export.groot.images import Size
from vla_policy_ros.export.groot.library import require_gr00t
from vla_policy_ros.export.groot.weights import load_weights
from vla_policy_ros.export.traced_policy import Words
from vla_policy_ros.export.tracing import TracedStage, quiet_library, require_torch

_IMAGES = 'image_tokens'
_MARK = 'the instruction'


def build_n16(config: Any, *, vlm: Path | None = None, draws: bool = True) -> Any:
    """Return a `Gr00tN1d6` as a training would begin it, on the CPU, in float32, for inference.

    Args:
        config: Its `Gr00tN1d6Config`.
        vlm: Folder with the `config.json` of the vision-language model; the library's own when None.
        draws: Whether weights are drawn; else they are as the memory is.

    Raises:
        MissingDependencyError: Isaac-GR00T N1.6, or what it needs, is not installed.
    """
    library = require_gr00t('model.gr00t_n1d6.gr00t_n1d6', version='n1.6')
    backbone = require_gr00t('model.modules.eagle_backbone', version='n1.6')
    with eagle_on_cpu(backbone, vlm, draws=draws):
        return library.Gr00tN1d6(config).float().eval()


def load_n16(folder: Path, *, vlm: Path | None = None) -> Any:
    """Return the `Gr00tN1d6` of a checkpoint, on the CPU, in float32, for inference.

    Args:
        folder: The checkpoint.
        vlm: As for `build_n16`.

    Raises:
        MissingDependencyError: Isaac-GR00T N1.6, or what it needs, is not installed.
        BundleError: The checkpoint lacks weights (`missing_weights`), or they do not fit (`other_vlm`).
    """
    library = require_gr00t('model.gr00t_n1d6.gr00t_n1d6', version='n1.6')
    config = library.Gr00tN1d6Config.from_pretrained(str(folder))
    model = build_n16(config, vlm=vlm, draws=False)
    load_weights(model, folder)
    return model


def build_n15(config: Any, *, vlm: Path | None = None, draws: bool = True) -> Any:
    """Return a `GR00T_N1_5`, as `build_n16` does.

    Args:
        config: Its `GR00T_N1_5_Config`.
        vlm: As for `build_n16`.
        draws: As for `build_n16`.

    Raises:
        MissingDependencyError: Isaac-GR00T N1.5, or what it needs, is not installed.
    """
    library = require_gr00t('model.gr00t_n1', version='n1.5')
    backbone = require_gr00t('model.backbone.eagle_backbone', version='n1.5')
    with eagle_on_cpu(backbone, vlm, draws=draws):
        return library.GR00T_N1_5(config, local_model_path='').float().eval()


def load_n15(folder: Path, *, rows: int | None = None, vlm: Path | None = None) -> Any:
    """Return the `GR00T_N1_5` of a checkpoint, on the CPU, in float32, for inference.

    Args:
        folder: The checkpoint.
        rows: Rows of a chunk, as the data config says; the library makes an action head of them. The checkpoint's when None.
        vlm: As for `build_n16`.

    Raises:
        MissingDependencyError: Isaac-GR00T N1.5, or what it needs, is not installed.
        BundleError: The checkpoint lacks weights (`missing_weights`), or they do not fit (`other_vlm`).
    """
    library = require_gr00t('model.gr00t_n1', version='n1.5')
    config = library.GR00T_N1_5_Config.from_pretrained(str(folder))
    if rows is not None:
        config.action_horizon = config.action_head_cfg['action_horizon'] = rows
    model = build_n15(config, vlm=vlm, draws=False)
    load_weights(model, folder)
    return model


def camera_format(processor: Any, size: Size) -> dict[str, Any]:
    """Return what happens to an image of `size` before the network, as keys of a camera in `bundle.yaml`.

    Args:
        processor: The library's `Eagle3_VLProcessor` or `Eagle2_5_VLProcessor`.
        size: Height and width after the policy's own steps.

    Returns:
        Entries of `bundle.manifest.Camera`; `geometry` goes behind the steps that are there already.

    Raises:
        BundleError: An image becomes several (`unsupported_setting`).
    """
    values = processor.image_processor
    return {
        'geometry': _further_steps(processor, size),
        'scale': values.rescale_factor,
        'mean': list(values.image_mean),
        'std': list(values.image_std),
    }


def _further_steps(processor: Any, size: Size) -> list[dict[str, Any]]:
    resize = getattr(sys.modules[type(processor).__module__], 'smart_resize', None)
    if resize:  # N1.6: to whole windows of patches
        target, library = resize(*size), 'pil'
    else:  # N1.5: to tiles of one size
        shape = processor.image_processor([_blank(size)], return_tensors='pt')[
            'pixel_values'
        ].shape
        if shape[0] != 1:
            raise unsupported(
                'images of the vision-language model',
                f'{shape[0]} tiles of an image of {size[0]} x {size[1]} px',
                f'one tile, as of {shape[2]} x {shape[3]} px',
            )
        target, library = tuple(shape[2:]), 'torchvision'
    step = {'kind': 'resize', 'height': target[0], 'width': target[1]}
    return [{**step, 'library': library, 'filter': 'bicubic'}]


def _blank(size: Size) -> Any:
    image = importlib.import_module('PIL.Image')
    return image.fromarray(np.zeros((*size, 3), np.uint8))


def plan_eagle(
    model: Any, processor: Any, images: Mapping[str, Array], *, max_words: int
) -> Backbone:
    """Return how the vision-language half of an N1.5 or N1.6 becomes stages.

    Args:
        model: The library's policy, as `load_n15` or `load_n16` returns it.
        processor: The library's `Eagle3_VLProcessor` or `Eagle2_5_VLProcessor`.
        images: Pool tensor of each camera, in the order of the policy, to example values, (1, 3 T, H, W) float32.
        max_words: Most tokens of an instruction.

    Raises:
        BundleError: A setting cannot be followed (`unsupported_setting`).
    """
    parts = EagleParts.of_policy(model)
    _check_settings(parts)
    chat = _read_chat(parts, processor, images)
    tokenizer = processor.tokenizer
    room = max_words + len(tokenizer(chat.template.replace('{instruction}', ''))['input_ids'])
    vision = TracedStage(
        name='vision',
        owner=parts.owner(parts.vision, parts.eagle.mlp1),
        function=EagleVision(parts, [image_size(value) for value in images.values()]).encode,
        inputs=images,
        output=_IMAGES,
    )
    language = TracedStage(
        name='language',
        owner=parts.owner(parts.text, parts.projection),
        function=EagleText(parts, chat.before, chat.after, num_words=room).compute_context,
        inputs={_IMAGES: vision.run(), **_example_words(processor, chat, room)},
        output=CONTEXT,
    )
    token = parts.eagle.image_token_index
    return Backbone(
        stages=(vision, language),
        layout=TokenLayout(tuple(item == token for item in (*chat.before, *chat.after)), room),
        words=Words(
            tokens=TOKENS,
            mask=TOKEN_MASK,
            max_tokens=room,
            pad_token=tokenizer.pad_token,
            template=chat.template,
            tokenizer=tokenizer.backend_tokenizer.to_str(),
        ),
        library_inputs=lambda tensors: _library_inputs(parts, chat, list(images), tensors),
    )


@dataclass(frozen=True, slots=True)
class _Chat:
    """The library's chat around an instruction.

    Attributes:
        before: Tokens before the words.
        template: Text between two special tokens in which the words stand.
        after: Tokens after the words.
    """

    before: tuple[int, ...]
    template: str
    after: tuple[int, ...]


def _check_settings(parts: EagleParts) -> None:
    config = parts.eagle.config
    vision, text = config.vision_config, parts.text.config
    found = {
        'select_layer': (parts.eagle.select_layer, -1),
        'vision_config.model_type': (
            vision.model_type,
            vision.model_type if parts.has_packed_vision else 'siglip_vision_model',
        ),
        'vision_config.use_rope': (getattr(vision, 'use_rope', False), False),
        'vision_config.use_windows_attn': (getattr(vision, 'use_windows_attn', False), False),
        'text_config.model_type': (text.model_type, 'qwen3'),
        'text_config.rope_scaling': (text.rope_scaling, None),
        'text_config.use_sliding_window': (text.use_sliding_window, False),
    }
    for name, (value, wanted) in found.items():
        if value != wanted:
            raise unsupported(f'vision-language model: {name}', value, str(wanted))


def _read_chat(parts: EagleParts, processor: Any, images: Mapping[str, Array]) -> _Chat:
    """Let the library write a chat around a text that is found again.

    Words are split from what stands beside them at special tokens only, so the template reaches that far.
    """
    tokenizer = processor.tokenizer
    sizes = [image_size(value) for value in images.values()]
    moments = next(iter(images.values())).shape[1] // 3
    pictures = [{'type': 'image', 'image': _blank(size)} for size in sizes * moments]
    words = [{'type': 'text', 'text': _MARK}]
    # N1.6 puts the words first and N1.5 lets the answer begin.
    first = parts.has_packed_vision
    content = [*words, *pictures] if first else [*pictures, *words]
    chat = [{'role': 'user', 'content': content}]
    with quiet_library():
        text = processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=not first)
        shown, _ = processor.process_vision_info([chat])
        tokens = processor(text=[text], images=shown, return_tensors='pt')['input_ids'][0].tolist()
    ends = [at for at, token in enumerate(tokens) if token in tokenizer.added_tokens_decoder]
    for start, stop in pairwise(ends):
        between = tokenizer.decode(tokens[start + 1 : stop], clean_up_tokenization_spaces=False)
        if _MARK in between:
            template = between.replace(_MARK, '{instruction}')
            return _Chat(tuple(tokens[: start + 1]), template, tuple(tokens[stop:]))
    raise unsupported('chat template of the vision-language model', text, 'a text with the words')


def _example_words(processor: Any, chat: _Chat, room: int) -> dict[str, Array]:
    tokens = processor.tokenizer(chat.template.replace('{instruction}', _MARK))['input_ids']
    places = np.arange(room)[None]
    mask = (places < len(tokens)).astype(np.int64)
    return {TOKENS: np.resize(tokens, (1, room)).astype(np.int64) * mask, TOKEN_MASK: mask}


def _library_inputs(
    parts: EagleParts, chat: _Chat, cameras: Sequence[str], tensors: Mapping[str, Array]
) -> dict[str, Any]:
    torch = require_torch()
    words = tensors[TOKENS][tensors[TOKEN_MASK] != 0]
    ids = torch.tensor([[*chat.before, *words.tolist(), *chat.after]])
    moments = zip(
        *(torch.from_numpy(tensors[name]).split(3, dim=1) for name in cameras), strict=True
    )
    images = [image for moment in moments for image in moment]
    inputs = {'input_ids': ids, 'attention_mask': torch.ones_like(ids), 'pixel_values': images}
    if parts.has_packed_vision:
        return inputs
    sizes = torch.tensor([image.shape[2:] for image in images])
    inputs |= {'pixel_values': torch.cat(images), 'image_sizes': sizes}
    return {f'eagle_{name}': value for name, value in inputs.items()}
