# SPDX-License-Identifier: Apache-2.0
"""The training loop of the sample policy: flow matching on the CPU, the same result for the same seed."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass

import torch
from network import CONTEXT, Encoder, Velocity
from torch import Tensor, nn
from torch.nn.functional import smooth_l1_loss


@dataclass(frozen=True)
class TrainingData:
    """What training reads, all normalised but the images.

    Attributes:
        images: (N, 2, 3, 96, 96) uint8.
        state: (N, 6) float32.
        tokens: (N, L) int64.
        chunk: (N, 16, 6) float32.
        target: (N, 2) float32, place of the block, decimetres.
    """

    images: Tensor
    state: Tensor
    tokens: Tensor
    chunk: Tensor
    target: Tensor


class Policy(nn.Module):
    """Encoder, velocity, and a head that only training needs: it must tell where the block is."""

    def __init__(self, vocabulary: int, joints: int, horizon: int) -> None:
        super().__init__()
        self.encoder = Encoder(vocabulary, joints)
        self.velocity = Velocity(horizon, joints)
        self.locator = nn.Linear(CONTEXT, 2)


def normalize_images(images: Tensor) -> Tensor:
    """Return uint8 images in [-1, 1], as the cameras of the bundle scale them."""
    return images.float().mul_(2 / 255).sub_(1)


def augment(images: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Vary light and colour balance of images, in place; blur the state, and hide it now and then.

    A state that cannot be trusted makes the policy look at the images.
    """
    batch = len(images)
    gain = 1 + 0.1 * (2 * torch.rand(batch, 2, 1, 1, 1) - 1)
    balance = 1 + 0.04 * (2 * torch.rand(batch, 2, 3, 1, 1) - 1)
    shade = 0.06 * (2 * torch.rand(batch, 2, 1, 1, 1) - 1)
    scale = gain * balance
    images = images.mul_(scale).add_(scale - 1 + shade)
    state = state + 0.01 * torch.randn_like(state)
    return images, state * (torch.rand(batch, 1) > 0.05)


def loss_of(policy: Policy, data: TrainingData, rows: Tensor, *, draws: int = 4) -> Tensor:
    """Return the flow-matching loss of some rows, every one with several draws of noise and time."""
    images, state = augment(normalize_images(data.images[rows]), data.state[rows])
    context = policy.encoder(images[:, 0], images[:, 1], state, data.tokens[rows])
    place = smooth_l1_loss(policy.locator(context), data.target[rows], beta=0.1)
    actions = data.chunk[rows].repeat(draws, 1, 1)
    time_of = torch.rand(len(actions))
    share = time_of[:, None, None]
    noisy = share * actions + (1 - share) * torch.randn_like(actions)
    clean = policy.velocity.clean(noisy, time_of, context.repeat(draws, 1))
    return smooth_l1_loss(clean, actions, beta=0.02) + 0.3 * place


def fit(data: TrainingData, vocabulary: int, *, epochs: int, seed: int, batch: int = 32) -> Policy:
    """Train a policy and return the running average of its weights, which is steadier than the last ones."""
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(mode=True)
    torch.utils.deterministic.fill_uninitialized_memory = (
        False  # slow, and nothing here reads such memory
    )
    policy = Policy(vocabulary, data.state.shape[1], data.chunk.shape[1])
    policy.to(memory_format=torch.channels_last)
    average = copy.deepcopy(policy).eval()
    steps = epochs * (len(data.state) // batch)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1.5e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1.5e-3, total_steps=steps, pct_start=0.05
    )
    started, done, total = time.perf_counter(), 0, 0.0
    for epoch in range(epochs):
        order = torch.randperm(len(data.state))
        for rows in order[: len(order) // batch * batch].split(batch):
            optimizer.zero_grad(set_to_none=True)
            loss = loss_of(policy, data, rows)
            loss.backward()
            nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            done += 1
            total += loss.item()
            _follow(average, policy, min(0.998, done / (done + 10)))
        spent = time.perf_counter() - started
        print(f'epoch {epoch + 1}/{epochs}  loss {total * batch / len(order):.4f}  {spent:.0f} s')
        total = 0.0
    return average


def _follow(average: nn.Module, policy: nn.Module, keep: float) -> None:
    with torch.no_grad():
        for slow, fast in zip(average.parameters(), policy.parameters(), strict=True):
            slow.lerp_(fast, 1 - keep)
