# SPDX-License-Identifier: Apache-2.0
"""A network shaped like a regressor of the gripper's 6D pose: one image to position and 6D rotation, random weights."""

from __future__ import annotations

import torch
from models.act import ResNet18
from torch import Tensor, nn

COLUMNS = ('x', 'y', 'z', *(f'rotation_{index}' for index in range(6)))
"""Position in m, and the first two rows of the rotation matrix."""


class PoseRegressor(nn.Module):
    """(1, 3, H, W) float32 to (1, 9): a ResNet-18, the mean over all places, two layers.

    Args:
        seed: Seed of the weights.
    """

    def __init__(self, *, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.backbone = ResNet18()
        self.hidden, self.head = nn.Linear(512, 256), nn.Linear(256, len(COLUMNS))
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                # Without training the default would shrink the signal to nothing from layer to layer.
                nn.init.kaiming_normal_(layer.weight, nonlinearity='relu')
                layer.weight.data.mul_(0.7)

    def forward(self, image: Tensor) -> Tensor:
        """Return the pose."""
        features = self.backbone(image).mean((2, 3))
        pose: Tensor = self.head(torch.relu(self.hidden(features)))
        return pose
