# SPDX-License-Identifier: Apache-2.0
"""Render the training episodes, train the sample policy on the CPU, and write its bundle."""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from bundle_files import export_bundle, first_observation, write_sample_statistics, write_tokenizer
from fitting import Policy, TrainingData, fit
from layout import MAX_TOKENS, SEED, TRAIN_EPISODES, describe
from samples import Samples, make_samples
from torch import Tensor

from vla_policy_ros.bundle.bundle import Bundle
from vla_policy_ros.bundle.instruction import InstructionEncoder
from vla_policy_ros.bundle.manifest import Action, InstructionInput, State
from vla_policy_ros.bundle.normalization import ActionDenormalizer, StateNormalizer
from vla_policy_ros.bundle.statistics import Statistics
from vla_policy_ros.policies.engine_policy import EnginePolicy
from vla_policy_ros.sample import sample_bundle_path

STEPS_PER_EPISODE = 16
MAX_EXPORT_ERROR = 1e-3


def normalize(samples: Samples, statistics: Statistics, folder: Path) -> TrainingData:
    """Return samples as the policy's networks see them, by the rules and statistics of the bundle."""
    manifest = describe('')
    state_rules = State.model_validate(manifest['state'])
    state = np.empty_like(samples.state)
    StateNormalizer(state_rules, statistics).write(samples.state, state)
    action_rules = Action.model_validate(manifest['action'])
    actions = ActionDenormalizer(action_rules, state_rules, statistics)
    chunk = [actions.normalize(*pair) for pair in zip(samples.chunk, samples.state, strict=True)]
    words = InstructionEncoder(InstructionInput.model_validate(manifest['instruction']), folder)
    tokens = np.empty((len(state), MAX_TOKENS), np.int64)
    for row, text in enumerate(samples.instructions):
        words.write(text, tokens[row : row + 1])
    arrays = (samples.images, state, tokens, np.stack(chunk), samples.target * 10)
    return TrainingData(*(torch.from_numpy(array) for array in arrays))


def check_export(policy: Policy, bundle: Bundle) -> float:
    """Return the greatest difference between PyTorch and the exported bundle on one observation.

    Raises:
        RuntimeError: It is too large.
    """
    engine = EnginePolicy(bundle)
    inputs, noise = engine.pool_inputs(first_observation())
    found = torch.from_numpy(engine.run_pool(inputs, noise))
    engine.close()
    tensors = [torch.from_numpy(inputs[name]) for name in ('front', 'wrist', 'state', 'tokens')]
    wanted = _denoise(policy, tensors, torch.from_numpy(noise))
    error = float((found - wanted).abs().max())
    if error > MAX_EXPORT_ERROR:
        raise RuntimeError(f'the exported bundle is {error:.2g} off, limit {MAX_EXPORT_ERROR}')
    return error


def _denoise(policy: Policy, tensors: list[Tensor], actions: Tensor, *, steps: int = 4) -> Tensor:
    with torch.no_grad():
        context = policy.encoder(*tensors)
        for step in range(steps):
            velocity = policy.velocity(actions, torch.tensor([step / steps]), context)
            actions = actions + velocity / steps
    return actions


def main() -> None:
    """Train and write the bundle; an older one in the same folder is replaced."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', type=Path, default=sample_bundle_path(), help='bundle to write')
    parser.add_argument('--episodes', type=int, default=TRAIN_EPISODES)
    parser.add_argument('--epochs', type=int, default=16)
    parser.add_argument('--threads', type=int, default=2, help='sets the last bits of the weights')
    arguments = parser.parse_args()
    folder = arguments.out
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    torch.set_num_threads(arguments.threads)
    started = time.perf_counter()
    samples = make_samples(range(arguments.episodes), steps_per_episode=STEPS_PER_EPISODE)
    print(f'{len(samples.state)} samples rendered in {time.perf_counter() - started:.0f} s')
    vocabulary = write_tokenizer(folder)
    data = normalize(samples, write_sample_statistics(folder, samples), folder)
    policy = fit(data, vocabulary, epochs=arguments.epochs, seed=SEED)
    note = (
        f'Trained from scratch on {arguments.episodes} rendered episodes, seed {SEED}, '
        f'by examples/train_sample_policy; works in that scene only.'
    )
    bundle = export_bundle(folder, policy.encoder, policy.velocity, note=note)
    print(f'export error {check_export(policy, bundle):.1e}, bundle {bundle.spec.policy_id}')
    print(f'all done in {time.perf_counter() - started:.0f} s; now run evaluate.py')


if __name__ == '__main__':
    main()
