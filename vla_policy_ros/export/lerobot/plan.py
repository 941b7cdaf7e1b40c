# SPDX-License-Identifier: Apache-2.0
"""What a model family makes of a checkpoint: the part of the bundle that differs between families."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vla_policy_ros.bundle.probe import Probe
from vla_policy_ros.core.specs import Array
from vla_policy_ros.export.lerobot.checkpoint import Checkpoint
from vla_policy_ros.export.traced_policy import (
    STATE_TENSOR,
    Words,
    image_tensor,
    random_values,
)
from vla_policy_ros.export.tracing import TracedStage, require_torch


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """How a policy becomes a bundle.

    Attributes:
        observation_steps: T, images and state rows that it looks at, one step apart.
        crop: Height and width in pixels of the middle of an image that it looks at; None for all of it.
        squeeze_state: Whether the state has no dimension of time.
        action_tensor: Pool tensor of the result.
        horizon: K, rows of it.
        first_row: Steps from the observation to row 0; below 0 when it begins before it.
        executed_rows: Rows that the policy was made to execute, from the observation on.
        stages: The networks.
        loop: The entry `loop` of the manifest; None for none.
        reference: Runs LeRobot's own way from the tensors of an observation on.
        words: The instruction; None for a policy that takes none.
    """

    observation_steps: int
    crop: tuple[int, int] | None
    squeeze_state: bool
    action_tensor: str
    horizon: int
    first_row: int
    executed_rows: int
    stages: tuple[TracedStage, ...]
    loop: Mapping[str, Any] | None
    reference: Callable[[Mapping[str, Array]], Probe]
    words: Words | None = None


def observation_examples(
    checkpoint: Checkpoint, *, steps: int, crop: tuple[int, int] | None, squeeze_state: bool
) -> dict[str, Array]:
    """Return random values for what an observation fills: images (1, 3 T, H, W) in their order, then the state."""
    shapes: dict[str, tuple[int, ...]] = {
        image_tensor(index): (1, 3 * steps, *(crop or (image.height, image.width)))
        for index, image in enumerate(checkpoint.images)
    }
    width = checkpoint.state.width
    shapes[STATE_TENSOR] = (1, width) if squeeze_state else (1, steps, width)
    return {name: random_values(shape) for name, shape in shapes.items()}


def library_inputs(checkpoint: Checkpoint, tensors: Mapping[str, Array]) -> tuple[list[Any], Any]:
    """Return what an observation fills as PyTorch tensors: the images in the network's order, and the state."""
    torch = require_torch()
    images = [
        torch.from_numpy(tensors[image_tensor(index)]) for index in range(len(checkpoint.images))
    ]
    return images, torch.from_numpy(tensors[STATE_TENSOR])
