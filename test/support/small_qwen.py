# SPDX-License-Identifier: Apache-2.0
"""A folder with configuration, processor and tokenizer of a small Qwen3-VL, made by transformers' own classes."""

import json

import torch
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor

from vla_policy_ros.export.groot.random_vlm import write_qwen

PAD = '<|endoftext|>'


def write_small_qwen(folder, **text):
    """Write the folder, without weights; `text` changes the language model. Channels differ, so that none can be exchanged."""
    write_qwen(folder, size='small')
    path = folder / 'config.json'
    config = json.loads(path.read_text())
    config['text_config'].update(text)
    path.write_text(json.dumps(config))
    processor = Qwen3VLProcessor.from_pretrained(folder)
    processor.image_processor.image_mean = [0.5, 0.4, 0.3]
    processor.image_processor.image_std = [0.5, 0.25, 0.2]
    processor.save_pretrained(folder)
    return folder


def write_weights(folder):
    """Add random weights to the folder, biases and norms included."""
    torch.manual_seed(0)
    model = Qwen3VLForConditionalGeneration(Qwen3VLConfig.from_pretrained(folder)).float()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(('bias', 'norm.weight', 'norm1.weight', 'norm2.weight')):
                weight.add_(0.2 * torch.randn_like(weight))
    model.save_pretrained(folder)
    return folder
