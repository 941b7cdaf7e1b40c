# SPDX-License-Identifier: Apache-2.0
"""Qwen3-VL (Bai et al. 2025, arXiv 2511.21631), as far as GR00T N1.7 runs it, in the form in which it is traced.

The weights and layers are the library's; the order of work is ours. Where everything stands is known at export, so places,
rotary embeddings, masks and the embeddings of fixed tokens are constants, and tokens are put in their order by one Gather
where the library scatters. Words come last and see what is before them only, so padding behind them needs no mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from vla_policy_ros.export.attention import attend, hide, rotate, split_heads
from vla_policy_ros.export.tracing import require_torch

Grid = tuple[int, int]
"""Rows and columns of the patches of an image."""


@dataclass(frozen=True, slots=True, eq=False)
class QwenParts:
    """The modules of a library's backbone that the bundle needs.

    Attributes:
        vision: Images to tokens.
        text: The language model, without a head.
        image_token: Id of the token that stands for a part of an image.
    """

    vision: Any
    text: Any
    image_token: int

    @classmethod
    def of_policy(cls, policy: Any) -> QwenParts:
        """Find them in an N1.7 of Isaac-GR00T or of LeRobot."""
        whole = policy.backbone.model
        inner = getattr(whole, 'model', whole)
        return cls(inner.visual, inner.language_model, whole.config.image_token_id)

    @property
    def merge_size(self) -> int:
        """Edge, in patches, of the windows that become one token."""
        return int(self.vision.spatial_merge_size)

    @property
    def deep_mergers(self) -> dict[int, Any]:
        """Block of the vision network to what turns its output into features for the language model, in their order."""
        indexes = self.vision.deepstack_visual_indexes
        used = list(zip(indexes, self.vision.deepstack_merger_list, strict=True))
        return dict(used[: len(self.text.layers)])


class QwenVision:
    """Images to tokens.

    Args:
        parts: The modules, in float32, on the CPU.
        images: Patches of each image in the order of their tokens: of each moment all cameras, oldest first.
        moments: T, images of each camera.
    """

    def __init__(self, parts: QwenParts, images: Sequence[Grid], *, moments: int) -> None:
        self._parts = parts
        self._moments = moments
        self._runs = [(grid, len(list(alike))) for grid, alike in groupby(images)]
        self._places = {grid: _find_patch_places(parts.vision, grid) for grid, _ in self._runs}
        self._turns = {grid: _find_patch_turn(parts.vision, grid) for grid, _ in self._runs}
        projection = parts.vision.patch_embed.proj
        self._weight = projection.weight.detach().flatten(1)
        self._bias = projection.bias

    def encode(self, *cameras: Any) -> Any:
        """Return the tokens of all images.

        Args:
            cameras: (1, T n, 3 * temporal * P * P) each: the patches of a camera's images.

        Returns:
            (1, F, N, D): for the N tokens what the language model starts with, then what is added after its first layers.
        """
        torch, vision = require_torch(), self._parts.vision
        moments = zip(*(camera.chunk(self._moments, dim=1) for camera in cameras), strict=True)
        patches = torch.cat([image for moment in moments for image in moment], dim=1)
        hidden = torch.nn.functional.linear(patches, self._weight, self._bias)
        hidden = self._per_size(hidden, lambda images, grid: images + self._places[grid])
        mergers, features = self._parts.deep_mergers, []
        for index, block in enumerate(vision.blocks):
            hidden = hidden + self._look_around(block.attn, block.norm1(hidden))
            hidden = hidden + block.mlp(block.norm2(hidden))
            if index in mergers:
                features.append(mergers[index](hidden))
        return torch.stack([vision.merger(hidden), *features])[None]

    def _look_around(self, attention: Any, hidden: Any) -> Any:
        """Let the patches of each image see each other."""

        def see(projected: Any, grid: Grid) -> Any:
            queries, keys, values = (
                split_heads(part, attention.head_dim) for part in projected.chunk(3, dim=2)
            )
            turn = self._turns[grid]
            return attend(rotate(queries, turn), rotate(keys, turn), values)

        return attention.proj(self._per_size(attention.qkv(hidden), see))

    def _per_size(self, hidden: Any, function: Callable[[Any, Grid], Any]) -> Any:
        """Apply a function of (B, n, C) images of one size to (1, B n + ..., C), all images in a row."""
        lengths = [count * rows * columns for (rows, columns), count in self._runs]
        parts = hidden.split(lengths, dim=1) if len(lengths) > 1 else (hidden,)
        done = [
            function(part.reshape(count, -1, part.shape[2]), grid).flatten(0, 1)
            for part, (grid, count) in zip(parts, self._runs, strict=True)
        ]
        return require_torch().cat(done)[None] if len(done) > 1 else done[0][None]


def _find_patch_places(vision: Any, grid: Grid) -> Any:
    """Return the (n, V) position embeddings of an image's patches."""
    torch = require_torch()
    with torch.no_grad():
        return vision.fast_pos_embed_interpolate(torch.tensor([[1, *grid]]))


def _find_patch_turn(vision: Any, grid: Grid) -> tuple[Any, Any]:
    """Return cosine and sine of the rotary embedding of an image's patches, (n, H / 2) each."""
    angles = vision.rot_pos_emb(require_torch().tensor([[1, *grid]]))
    return angles.cos(), angles.sin()


class QwenText:
    """Tokens of images and words to the context.

    Args:
        parts: The modules, in float32, on the CPU.
        fixed: Ids of the tokens before the words, those of the images included.
        images: Patches of each image, in their order there.
        num_words: L, room for words.
    """

    def __init__(
        self, parts: QwenParts, fixed: Sequence[int], *, images: Sequence[Grid], num_words: int
    ) -> None:
        torch = require_torch()
        self._parts = parts
        tokens = torch.tensor(fixed)
        pictured = tokens == parts.image_token
        length = len(fixed) + num_words
        merged = [
            (rows // parts.merge_size, columns // parts.merge_size) for rows, columns in images
        ]
        places = list(find_places(pictured.tolist() + [False] * num_words, merged))
        with torch.no_grad():
            self._fixed = parts.text.embed_tokens(tokens[~pictured])[None]
            turns = parts.text.rotary_emb(self._fixed, torch.tensor(places).T[:, None])
        half = turns[0].shape[2] // 2  # the other half is the same again
        self._turn = tuple(turn[0, :, :half].contiguous() for turn in turns)
        self._hiding = hide(torch.ones(length, length, dtype=torch.bool).tril())
        # Of images, fixed tokens and words in a row; of images and one row of zeros.
        num_images = int(pictured.sum())
        words = torch.arange(len(fixed), length)
        self._order = torch.cat([_find_order(pictured), words])
        self._pictured_order = self._order.clamp(max=num_images)

    def compute_context(self, images: Any, tokens: Any) -> Any:
        """Return (1, P, D), what the last layer makes of all tokens, not normalised.

        Args:
            images: (1, F, N, D), what `QwenVision.encode` returned.
            tokens: (1, L) int64.
        """
        torch, text = require_torch(), self._parts.text
        parts = [images[:, 0], self._fixed, text.embed_tokens(tokens)]
        hidden = torch.cat(parts, dim=1).index_select(1, self._order)
        deep = torch.nn.functional.pad(images[:, 1:], (0, 0, 0, 1))
        deep = deep.index_select(2, self._pictured_order).unbind(dim=1)
        for index, layer in enumerate(text.layers):
            hidden = hidden + self._look_back(layer.self_attn, layer.input_layernorm(hidden))
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
            if index < len(deep):
                hidden = hidden + deep[index]
        return hidden

    def _look_back(self, attention: Any, hidden: Any) -> Any:
        queries, keys, values = (
            split_heads(project(hidden), attention.head_dim)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        queries = rotate(attention.q_norm(queries), self._turn)
        keys = rotate(attention.k_norm(keys), self._turn)
        return attention.o_proj(attend(queries, keys, values, self._hiding))


def _find_order(pictured: Any) -> Any:
    """Return for each of the fixed tokens its index where those of the images come first."""
    torch = require_torch()
    images, others = pictured.cumsum(0) - 1, (~pictured).cumsum(0) - 1
    return torch.where(pictured, images, others + pictured.sum())


def find_places(
    pictured: Sequence[bool], images: Sequence[Grid]
) -> Iterator[tuple[int, int, int]]:
    """Yield time, row and column of each token; for words all three are the same and go on after the larger edge.

    Args:
        pictured: For each token whether it is part of an image.
        images: Rows and columns of the tokens of each image.
    """
    start, index, sizes = 0, 0, iter(images)
    while index < len(pictured):
        if not pictured[index]:
            yield start, start, start
            start, index = start + 1, index + 1
            continue
        rows, columns = next(sizes)
        for row in range(rows):
            for column in range(columns):
                yield start, start + row, start + column
        start, index = start + max(rows, columns), index + rows * columns
