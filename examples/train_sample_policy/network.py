# SPDX-License-Identifier: Apache-2.0
"""The two networks of the sample policy: an encoder that runs once, and a velocity that runs in every denoise step."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

CONTEXT = 128
FEATURES = 32
WORDS = 24


class Eye(nn.Module):
    """Finds, in one image, the points that the instruction asks about."""

    def __init__(self) -> None:
        super().__init__()
        self.early = nn.Sequential(
            nn.Conv2d(3, 16, 5, 2, 2),
            nn.ReLU(),
            nn.Conv2d(16, FEATURES, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(FEATURES, FEATURES, 3, 1, 1),
        )
        self.modulation = nn.Linear(WORDS, 2 * FEATURES)
        self.late = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(FEATURES, FEATURES, 3, 1, 1),
            nn.ReLU(),
            nn.Conv2d(FEATURES, FEATURES, 3, 1, 2, dilation=2),
        )

    def forward(self, image: Tensor, words: Tensor) -> Tensor:
        """Return (B, 4 * FEATURES): per feature the expected column, row, spread and strength.

        Args:
            image: (B, 3, H, W) normalised.
            words: (B, WORDS) meaning of the instruction.
        """
        gain, bias = self.modulation(words)[:, :, None, None].chunk(2, dim=1)
        maps = self.late(self.early(image) * (1 + gain) + bias)
        height, width = maps.shape[2:]
        flat = maps.flatten(2)
        share = torch.softmax(flat, dim=2)
        column = torch.linspace(-1, 1, width).repeat(height)
        row = torch.linspace(-1, 1, height).repeat_interleave(width)
        x, y = share @ column, share @ row
        spread = share @ (column**2 + row**2) - x**2 - y**2
        return torch.cat([x, y, spread, flat.amax(2)], dim=1)


class Encoder(nn.Module):
    """Images, state and words to one context vector."""

    def __init__(self, vocabulary: int, joints: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, WORDS, padding_idx=0)
        self.front, self.wrist = Eye(), Eye()
        self.mix = nn.Sequential(
            nn.Linear(8 * FEATURES + joints + WORDS, 256),
            nn.SiLU(),
            nn.Linear(256, 192),
            nn.SiLU(),
            nn.Linear(192, CONTEXT),
        )

    def forward(self, front: Tensor, wrist: Tensor, state: Tensor, tokens: Tensor) -> Tensor:
        """Return the (B, CONTEXT) context of (B, 3, H, W) images, a (B, joints) state and (B, L) int64 tokens."""
        words = self.embedding(tokens).sum(dim=1)
        seen = [self.front(front, words), self.wrist(wrist, words)]
        mixed: Tensor = self.mix(torch.cat([*seen, state, words], dim=1))
        return mixed


class Velocity(nn.Module):
    """The direction in which noisy actions must flow to become actions.

    The layers predict the clean actions; the straight line that leads there in the time that is left is the velocity.
    """

    def __init__(self, horizon: int, joints: int, *, hidden: int = 256, blocks: int = 3) -> None:
        super().__init__()
        self.shape = (horizon, joints)
        self.entry = nn.Linear(horizon * joints, hidden)
        self.condition = nn.Linear(CONTEXT + 16, hidden)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(hidden),
                nn.Linear(hidden, hidden),
                nn.SiLU(),
                nn.Linear(hidden, hidden),
            )
            for _ in range(blocks)
        )
        self.exit = nn.Linear(hidden, horizon * joints)

    def clean(self, actions: Tensor, time: Tensor, context: Tensor) -> Tensor:
        """Return the predicted clean (B, K, D) actions."""
        angle = time[:, None] * (math.pi * 2.0 ** torch.arange(-1, 7, dtype=torch.float32))
        wave = torch.cat([torch.sin(angle), torch.cos(angle)], dim=1)
        hidden = self.entry(actions.flatten(1)) + self.condition(torch.cat([context, wave], 1))
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.exit(hidden).unflatten(1, self.shape)

    def forward(self, actions: Tensor, time: Tensor, context: Tensor) -> Tensor:
        """Return the (B, K, D) velocity of noisy (B, K, D) actions at (B,) times from 0 (noise) to 1 (actions)."""
        left = (1 - time).clamp(min=0.02)[:, None, None]
        return (self.clean(actions, time, context) - actions) / left
