# SPDX-License-Identifier: Apache-2.0
"""The vision-language half of a GR00T policy, as the rest of an export sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vla_policy_ros.core.specs import Array
from vla_policy_ros.export.traced_policy import Words
from vla_policy_ros.export.tracing import TracedStage, require_torch

CONTEXT, TOKENS, TOKEN_MASK = 'context', 'tokens', 'token_mask'
"""Pool tensors: what the action head looks at, (1, P, D); ids and mask of the words, (1, L) int64."""


@dataclass(frozen=True, slots=True)
class TokenLayout:
    """What stands where among the P tokens of the context: fixed ones, then the words with their padding at the end.

    Attributes:
        images: For each of the fixed tokens whether it is part of an image.
        num_words: L, room for words.
    """

    images: tuple[bool, ...]
    num_words: int

    def known(self, mask: Any) -> Any:
        """Return (1, P) bool, False for padding, for a (1, L) mask."""
        torch = require_torch()
        fixed = torch.ones(1, len(self.images), dtype=torch.bool)
        return torch.cat([fixed, mask != 0], dim=1)

    def pictured(self) -> Any:
        """Return (1, P) bool, True for tokens of images."""
        return require_torch().tensor([[*self.images, *(False,) * self.num_words]])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Backbone:
    """How the vision-language model of a policy becomes stages.

    Attributes:
        stages: Images to tokens, then tokens and words to `CONTEXT`.
        layout: The tokens of the context.
        words: The instruction.
        library_inputs: Turns pool tensors, images and words, into the inputs of the library's backbone; padding is left out.
    """

    stages: tuple[TracedStage, ...]
    layout: TokenLayout
    words: Words
    library_inputs: Callable[[Mapping[str, Array]], dict[str, Any]]
