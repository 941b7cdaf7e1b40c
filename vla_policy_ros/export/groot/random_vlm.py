# SPDX-License-Identifier: Apache-2.0
"""Vision-language models for checkpoints with random weights: configuration, processor and a tokenizer that is trained here."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from vla_policy_ros.export.checkpoint_files import read_json
from vla_policy_ros.export.groot.library import require_gr00t

NetworkSize = Literal['small', 'full']
"""A few narrow layers, or the shape of the published checkpoints."""
_TEXTS = ['pick up the red cube', 'put the cube into the box', 'user push pull and turn it\n']
_PAD, _END = '<|endoftext|>', '<|im_end|>'
_MARKS = {
    'image_token_id': '<|image_pad|>',
    'video_token_id': '<|video_pad|>',
    'vision_start_token_id': '<|vision_start|>',
    'vision_end_token_id': '<|vision_end|>',
}
# A turn of the user as Qwen's models are shown it: images where they stand, then the words.
_TEMPLATE = (
    "{% for turn in messages %}<|im_start|>{{ turn['role'] }}\n{% for part in turn['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
)
# Shape of Qwen3-VL-2B, which Cosmos-Reason2-2B has, with the 16 text layers that N1.7 keeps.
_QWEN_TEXT = {
    'vocab_size': 151936,
    'hidden_size': 2048,
    'intermediate_size': 6144,
    'num_hidden_layers': 16,
    'num_attention_heads': 16,
    'num_key_value_heads': 8,
    'head_dim': 128,
    'rope_theta': 5_000_000.0,
    'rope_scaling': {
        'rope_type': 'default',
        'mrope_section': [24, 20, 20],
        'mrope_interleaved': True,
    },
}
_QWEN_VISION = {
    'depth': 24,
    'hidden_size': 1024,
    'intermediate_size': 4096,
    'num_heads': 16,
    'out_hidden_size': 2048,
    'num_position_embeddings': 2304,
    'deepstack_visual_indexes': [5, 11, 17],
}
_SMALL_QWEN_TEXT = {
    'vocab_size': 384,
    'hidden_size': 48,
    'intermediate_size': 64,
    'num_hidden_layers': 4,
    'num_attention_heads': 4,
    'num_key_value_heads': 2,
    'head_dim': 16,
    'rope_theta': 10_000.0,
    'rope_scaling': {
        'rope_type': 'default',
        'mrope_section': [4, 2, 2],
        'mrope_interleaved': True,
    },
    'initializer_range': 0.2,
}
_SMALL_QWEN_VISION = {
    'depth': 4,
    'hidden_size': 32,
    'intermediate_size': 48,
    'num_heads': 2,
    'out_hidden_size': 48,
    'num_position_embeddings': 64,
    'deepstack_visual_indexes': [0, 2],
    'initializer_range': 0.2,
}
_QWEN: Mapping[NetworkSize, tuple[dict[str, Any], dict[str, Any], int]] = {
    'small': (_SMALL_QWEN_TEXT, _SMALL_QWEN_VISION, 32 * 32),
    'full': (_QWEN_TEXT, _QWEN_VISION, 256 * 256),
}
"""Text, vision, and fewest pixels of an image."""
_SMALL_EAGLE_TEXT = {
    'hidden_size': 48,
    'intermediate_size': 64,
    'num_hidden_layers': 4,
    'num_attention_heads': 4,
    'num_key_value_heads': 2,
    'head_dim': 16,
    'initializer_range': 0.2,
}
_SMALL_EAGLE_VISION = {
    'hidden_size': 48,
    'intermediate_size': 64,
    'num_hidden_layers': 2,
    'num_attention_heads': 4,
}
# The library's module beside which its own configuration lies, and where.
_EAGLE_HOMES = {
    'n1.5': ('model.backbone.eagle_backbone', 'eagle2_hg_model'),
    'n1.6': ('model.modules.eagle_backbone', 'nvidia/Eagle-Block2A-2B-v2'),
}


def write_qwen(folder: Path, *, size: NetworkSize) -> None:
    """Write configuration, processor and tokenizer of a Qwen3-VL; no weights."""
    transformers = importlib.import_module('transformers')
    tokenizer = _make_tokenizer()
    text, vision, min_pixels = _QWEN[size]
    marks = {key: tokenizer.convert_tokens_to_ids(token) for key, token in _MARKS.items()}
    transformers.Qwen3VLConfig(
        text_config=text, vision_config=vision, tie_word_embeddings=True, **marks
    ).save_pretrained(folder)
    pixels = {'shortest_edge': min_pixels, 'longest_edge': 16_777_216}
    look = {'size': pixels, 'patch_size': 16, 'image_mean': [0.5] * 3, 'image_std': [0.5] * 3}
    transformers.Qwen3VLProcessor(
        transformers.Qwen2VLImageProcessorFast(**look),
        tokenizer,
        transformers.Qwen3VLVideoProcessor(**look),
        chat_template=_TEMPLATE,
    ).save_pretrained(folder)


def write_small_eagle(folder: Path, *, version: str) -> None:
    """Write the configuration of a small Eagle: the one of N1.5 or N1.6 with fewer and narrower layers."""
    module, home = _EAGLE_HOMES[version]
    own = Path(str(require_gr00t(module, version=version).__file__)).parent / home
    config = read_json(own / 'config.json')
    config['text_config'].update(_SMALL_EAGLE_TEXT)
    config['vision_config'].update(_SMALL_EAGLE_VISION)
    folder.mkdir(parents=True)
    (folder / 'config.json').write_text(json.dumps(config))


def _make_tokenizer() -> Any:
    """Train a byte-level tokenizer on a few words; it knows every byte, so it takes any text."""
    tokenizers = importlib.import_module('tokenizers')
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=[_PAD, '<|im_start|>', _END, *_MARKS.values()],
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXTS, trainer)
    fast = importlib.import_module('transformers').Qwen2TokenizerFast
    return fast(tokenizer_object=tokenizer, pad_token=_PAD, eos_token=_END)
