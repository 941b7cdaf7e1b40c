# SPDX-License-Identifier: Apache-2.0
"""The files of the sample bundle: tokenizer and statistics before training, networks and probe after it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from layout import (
    HORIZON,
    IMAGE_PX,
    MAX_TOKENS,
    PROBE,
    STATISTICS,
    TOKENIZER,
    describe,
    vocabulary,
)
from network import CONTEXT, Encoder, Velocity
from samples import CAMERAS, Samples, record
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor, nn

from vla_policy_ros.bundle.bundle import Bundle
from vla_policy_ros.bundle.probe import make_probe, write_probe
from vla_policy_ros.bundle.statistics import Statistics, compute_statistics, write_statistics
from vla_policy_ros.bundle.writer import write_bundle
from vla_policy_ros.core.frame import Frame
from vla_policy_ros.core.observation import Instruction, Observation
from vla_policy_ros.policies.engine_policy import EnginePolicy

OPSET = 17


def write_tokenizer(folder: Path) -> int:
    """Write the tokenizer, one token per word, and return the size of its vocabulary."""
    words = {word: number for number, word in enumerate(('[PAD]', '[UNK]', *vocabulary()))}
    tokenizer = Tokenizer(WordLevel(words, unk_token='[UNK]'))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(folder / TOKENIZER))
    return len(words)


def write_sample_statistics(folder: Path, samples: Samples) -> Statistics:
    """Write the statistics of the training samples and return them."""
    action = samples.chunk.reshape(-1, samples.chunk.shape[-1])
    statistics = {
        f'{name}.{part}': compute_statistics(values[:, columns])
        for name, values in (('state', samples.state), ('action', action))
        for part, columns in (('arm', slice(0, 5)), ('gripper', slice(5, 6)))
    }
    write_statistics(folder / STATISTICS, statistics)
    return statistics


def export_bundle(folder: Path, encoder: Encoder, velocity: Velocity, *, note: str) -> Bundle:
    """Write both networks as ONNX, run the bundle once to make its probe, and return the finished bundle."""
    joints = velocity.shape[1]
    image = torch.zeros(1, 3, IMAGE_PX, IMAGE_PX)
    tokens = torch.zeros(1, MAX_TOKENS, dtype=torch.int64)
    inputs = {'front': image, 'wrist': image, 'state': torch.zeros(1, joints), 'tokens': tokens}
    _export(folder / 'encoder.onnx', encoder, inputs, output='context')
    inputs = {
        'actions': torch.zeros(1, HORIZON, joints),
        'time': torch.zeros(1),
        'context': torch.zeros(1, CONTEXT),
    }
    _export(folder / 'velocity.onnx', velocity, inputs, output='velocity')
    manifest = describe(note)
    unproven = {key: value for key, value in manifest.items() if key != 'probe'}
    policy = EnginePolicy(write_bundle(folder, unproven))
    write_probe(folder / PROBE, make_probe(policy, first_observation()))
    policy.close()
    return write_bundle(folder, manifest)


def first_observation() -> Observation:
    """Return what the policy sees at the start of episode 0, as the renderer gives it."""
    episode = record(0)
    images = episode.worlds[0].images()
    return Observation(
        images={name: (Frame.from_rgb(name, 0, images[name]),) for name in CAMERAS},
        state=np.array(episode.state[:1]),
        instruction=Instruction(episode.instruction),
        stamp_ns=0,
    )


def _export(path: Path, network: nn.Module, inputs: dict[str, Tensor], *, output: str) -> None:
    torch.onnx.export(
        network.eval().to(memory_format=torch.contiguous_format),
        tuple(inputs.values()),
        str(path),
        input_names=list(inputs),
        output_names=[output],
        opset_version=OPSET,
        dynamo=False,  # the exporter that knows this opset
    )
