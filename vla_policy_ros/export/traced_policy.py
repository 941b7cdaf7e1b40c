# SPDX-License-Identifier: Apache-2.0
"""A library's policy on its way into a bundle: what is shared by the exports of model families."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from vla_policy_ros.core.specs import Array

STATE_TENSOR = 'state'
"""Pool tensor of the state."""
STATISTICS, TOKENIZER = 'statistics.json', 'tokenizer.json'
"""Files of a bundle."""


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
        state_bins: Number of bins, for a template that holds the state.
        cleaning: What was done to the training texts.
    """

    tokens: str
    mask: str
    max_tokens: int
    pad_token: str
    template: str
    tokenizer: str
    state_bins: int | None = None
    cleaning: Literal['none', 'lower_no_punctuation', 'one_line'] = 'none'

    def as_dict(self) -> dict[str, Any]:
        """Return the entry of `bundle.yaml`."""
        rules = {**asdict(self), 'tokenizer': TOKENIZER}
        return {name: value for name, value in rules.items() if value is not None}


def image_tensor(index: int) -> str:
    """Return the pool tensor of a camera by its place in the checkpoint."""
    return f'image_{index}'


def random_values(shape: tuple[int, ...]) -> Array:
    """Return the same N(0, 1) float32 values for every call of a shape."""
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def example_mask(num_tokens: int) -> Array:
    """Return the (1, num_tokens) int64 mask of an instruction that fills two thirds of its room."""
    places = np.arange(num_tokens)[None]
    return (places < max(2 * num_tokens // 3, 1)).astype(np.int64)
