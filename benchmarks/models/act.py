# SPDX-License-Identifier: Apache-2.0
"""An ACT-sized policy with random weights (Zhao et al. 2023, without the variational part, which is off at run time).

A ResNet-18 for all cameras, a transformer encoder over all patches and the state, a decoder with one query per action row.
"""

from __future__ import annotations

import math

import torch
from models.action_head import Product, attend, split
from torch import Tensor, nn
from torch.nn import functional

WIDTH, HEADS, FORWARD = 512, 8, 3200


class Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut; batch norms are folded into their biases."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels_in, channels, 3, stride, 1)
        self.second = nn.Conv2d(channels, channels, 3, 1, 1)
        has_shortcut = stride != 1 or channels_in != channels
        self.shortcut = nn.Conv2d(channels_in, channels, 1, stride) if has_shortcut else None

    def forward(self, x: Tensor) -> Tensor:
        """Add both ways."""
        direct = self.shortcut(x) if self.shortcut else x
        return functional.relu(direct + self.second(functional.relu(self.first(x))))


class ResNet18(nn.Module):
    """(N, 3, H, W) to (N, 512, H / 32, W / 32)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 7, 2, 3)
        widths = (64, 64, 128, 256, 512)
        blocks = []
        for index in range(4):
            stride = 1 if index == 0 else 2
            blocks.append(Residual(widths[index], widths[index + 1], stride))
            blocks.append(Residual(widths[index + 1], widths[index + 1], 1))
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Return the last feature map."""
        x = functional.max_pool2d(functional.relu(self.stem(x)), 3, 2, 1)
        for block in self.blocks:
            x = block(x)
        return x


class Layer(nn.Module):
    """One post-norm transformer layer; with `has_cross` the one of a decoder."""

    def __init__(self, *, has_cross: bool) -> None:
        super().__init__()
        self.qk, self.v = Product(WIDTH, 2 * WIDTH), Product(WIDTH, WIDTH)
        self.out = Product(WIDTH, WIDTH)
        self.cross = nn.ModuleList(Product(WIDTH, WIDTH) for _ in range(4)) if has_cross else None
        self.up, self.down = Product(WIDTH, FORWARD), Product(FORWARD, WIDTH)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3 if has_cross else 2))

    def forward(
        self, x: Tensor, place: Tensor, memory: Tensor | None = None, where: Tensor | None = None
    ) -> Tensor:
        """Mix rows; positions are added to queries and keys only."""
        query, key = self.qk(x + place).chunk(2, dim=-1)
        x = self.norms[0](x + self.out(self._attend(query, key, self.v(x))))
        if self.cross is not None and memory is not None and where is not None:
            q, k, v, out = self.cross
            mixed = self._attend(q(x + place), k(memory + where), v(memory))
            x = self.norms[1](x + out(mixed))
        forward = self.down(functional.relu(self.up(x)))
        return self.norms[-1](x + forward)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        parts = (split(part, HEADS) for part in (query, key, value))
        return attend(*parts, WIDTH // HEADS)


class Act(nn.Module):
    """Cameras and joints to a chunk.

    Args:
        num_cameras: Number of image inputs, each (1, 3, H, W) float32.
        size: H and W in pixels.
        num_joints: Width of state and action.
        horizon: Rows of a chunk.
    """

    def __init__(
        self, *, num_cameras: int, size: tuple[int, int], num_joints: int = 14, horizon: int = 100
    ) -> None:
        super().__init__()
        self.backbone, self.squeeze = ResNet18(), nn.Conv2d(512, WIDTH, 1)
        self.state, self.latent = (
            Product(num_joints, WIDTH),
            nn.Parameter(torch.zeros(1, 1, WIDTH)),
        )
        patches = num_cameras * math.prod(-(-edge // 32) for edge in size)
        self.place = nn.Parameter(torch.randn(1, patches + 2, WIDTH) * 0.02)
        self.queries = nn.Parameter(torch.randn(1, horizon, WIDTH) * 0.02)
        self.encoder = nn.ModuleList(Layer(has_cross=False) for _ in range(4))
        self.decoder = nn.ModuleList([Layer(has_cross=True)])
        self.head = Product(WIDTH, num_joints)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the (1, horizon, joints) float32 actions of images and state."""
        *images, state = inputs
        dtype = self.latent.dtype
        features = self.squeeze(self.backbone(torch.cat(images).to(dtype)))
        rows = features.flatten(2).transpose(1, 2).reshape(1, -1, WIDTH)
        memory = torch.cat((self.latent, self.state(state.to(dtype))[:, None], rows), dim=1)
        for layer in self.encoder:
            memory = layer(memory, self.place)
        x = torch.zeros_like(self.queries)
        for layer in self.decoder:
            x = layer(x, self.queries, memory, self.place)
        action: Tensor = self.head(x)
        return action.float()
