# SPDX-License-Identifier: Apache-2.0
"""A folder with configuration and tokenizer of a small SmolVLM, made by transformers' own classes; no weights."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

PAD = '<|im_end|>'
_OWN = {
    'fake_image_token': '<fake_token_around_image>',
    'global_image_token': '<global-img>',
    'image_token': '<image>',
    'end_of_utterance_token': '<end_of_utterance>',
}
_TEXTS = ['pick up the red cube', 'put the cube into the box', 'push, pull and turn it\n']


def write_small_vlm(folder, **text):
    """Write the folder; `text` changes the language model."""
    tokenizer = _make_tokenizer()
    config = SmolVLMConfig(
        vision_config={
            'hidden_size': 32,
            'intermediate_size': 64,
            'num_hidden_layers': 2,
            'num_attention_heads': 4,
            'image_size': 64,
            'patch_size': 8,
        },
        text_config={
            'model_type': 'llama',
            'vocab_size': len(tokenizer),
            'hidden_size': 48,
            'intermediate_size': 96,
            'num_hidden_layers': 4,
            'num_attention_heads': 6,
            'num_key_value_heads': 2,
            'head_dim': 8,
            'rope_theta': 100_000.0,
            'initializer_range': 0.2,
            **text,
        },
        scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids('<image>'),
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.2,
    )
    config.save_pretrained(folder)
    SmolVLMProcessor(
        SmolVLMImageProcessor(), tokenizer, SmolVLMVideoProcessor(), image_seq_len=16
    ).save_pretrained(folder)
    return folder


def _make_tokenizer():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=['<|endoftext|>', PAD, *_OWN.values()],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXTS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token='<|endoftext|>',
        eos_token=PAD,
        pad_token=PAD,
        extra_special_tokens=_OWN,
    )
