# SPDX-License-Identifier: Apache-2.0
"""A library's policy on its way into a bundle: what is shared by the exports of model families."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vla_policy_ros.core.specs import Array

STATE_TENSOR = 'state'
"""Pool tensor of the state."""


@dataclass(frozen=True, slots=True)
class Reference:
    """What the library's own code makes of an observation's tensors.

    Attributes:
        noise: (n, K, W) float32, the noise it drew; None for none.
        output: (1, K, W) float32 action tensor, still normalised.
    """

    noise: Array | None
    output: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """How words become tokens; see `instruction` in bundle.yaml.

    Attributes:
        tokens: Pool tensor of the ids.
        mask: Pool tensor of the mask.
        max_tokens: Most tokens.
        pad_token: Token used for padding.
        template: Text around the instruction.
        tokenizer: The tokenizer's file.
    """

    tokens: str
    mask: str
    max_tokens: int
    pad_token: str
    template: str
    tokenizer: str


def image_tensor(index: int) -> str:
    """Return the pool tensor of a camera by its place in the checkpoint."""
    return f'image_{index}'


def random_values(shape: tuple[int, ...]) -> Array:
    """Return the same N(0, 1) float32 values for every call of a shape."""
    return np.random.default_rng(0).standard_normal(shape, np.float32)
