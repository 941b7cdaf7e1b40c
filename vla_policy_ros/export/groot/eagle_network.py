# SPDX-License-Identifier: Apache-2.0
"""Eagle 2.5 (Chen et al. 2025, arXiv 2504.15271), as far as GR00T N1.5 and N1.6 run it, in the form in which it is traced.

The weights and layers are the library's; the order of work is ours. Fixed tokens are kept before the words whatever the
place of the words among them is, so padding can stand at the end: what a token sees, and where it stands, says the causal
order of the library.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from vla_policy_ros.export.attention import attend, hide, make_rotation, rotate, split_heads
from vla_policy_ros.export.groot.eagle_library import PACKED_VISION
from vla_policy_ros.export.groot.images import Size
from vla_policy_ros.export.tracing import require_torch


@dataclass(frozen=True, slots=True, eq=False)
class EagleParts:
    """The modules of a library's backbone that the bundle needs.

    Attributes:
        eagle: The vision-language model.
        projection: What follows it, or None.
    """

    eagle: Any
    projection: Any

    @classmethod
    def of_policy(cls, policy: Any) -> EagleParts:
        """Find them in an N1.5 or an N1.6."""
        backbone = policy.backbone
        if hasattr(backbone, 'eagle_model'):
            return cls(backbone.eagle_model, backbone.eagle_linear)
        return cls(backbone.model, None)

    @property
    def vision(self) -> Any:
        """The vision network, which SigLIP wraps."""
        return self.eagle.vision_model.vision_model

    @property
    def text(self) -> Any:
        """The language model, without a head."""
        return self.eagle.language_model.model

    @property
    def has_packed_vision(self) -> bool:
        """Whether the vision network is SigLIP 2 for images of any size, as in N1.6."""
        return bool(self.eagle.config.vision_config.model_type == PACKED_VISION)

    def owner(self, *modules: Any) -> Any:
        """Return a module with the weights of these."""
        return require_torch().nn.ModuleList([part for part in modules if part is not None])


class EagleVision:
    """Images to tokens.

    Args:
        parts: The modules, in float32, on the CPU.
        cameras: Size of the images of each camera.
    """

    def __init__(self, parts: EagleParts, cameras: Sequence[Size]) -> None:
        self._parts = parts
        self._shrink = round(1 / parts.eagle.downsample_ratio)
        self._places = {size: _find_places(parts, size) for size in cameras}

    def encode(self, *cameras: Any) -> Any:
        """Return the tokens of all images, those of one moment together, in the order of the cameras.

        Args:
            cameras: (1, 3 T, H, W) each: the T images of a camera, oldest first.

        Returns:
            (1, 1, N, D).
        """
        torch = require_torch()
        moments = zip(*(camera.split(3, dim=1) for camera in cameras), strict=True)
        images = [image for moment in moments for image in moment]
        tokens: dict[int, Any] = {}
        for size, places in self._places.items():
            alike = [index for index, image in enumerate(images) if image_size(image) == size]
            found = self._encode_alike(torch.cat([images[index] for index in alike]), places)
            tokens.update(zip(alike, found.split(1), strict=True))
        return torch.cat([tokens[index] for index in sorted(tokens)], dim=1)[:, None]

    def _encode_alike(self, images: Any, places: Any) -> Any:
        """Return (B, n, D) for (B, 3, H, W)."""
        parts = self._parts
        hidden = self._embed_patches(images) + places
        for layer in parts.vision.encoder.layers:
            hidden = hidden + _look_around(layer.self_attn, layer.layer_norm1(hidden))
            hidden = hidden + layer.mlp(layer.layer_norm2(hidden))
        hidden = parts.vision.post_layernorm(hidden)
        edge = parts.vision.embeddings.patch_size
        grid = (images.shape[2] // edge, images.shape[3] // edge)
        return parts.eagle.mlp1(self._merge_patches(hidden.unflatten(1, grid)))

    def _embed_patches(self, images: Any) -> Any:
        """Return (B, n, V)."""
        embeddings = self._parts.vision.embeddings
        if not self._parts.has_packed_vision:
            return embeddings.patch_embedding(images).flatten(2).transpose(1, 2)
        edge = embeddings.patch_size
        patches = images.unflatten(3, (-1, edge)).unflatten(2, (-1, edge))
        return embeddings.patch_embedding(
            patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        )

    def _merge_patches(self, hidden: Any) -> Any:
        """Return (B, m, C V) for (B, h, w, V): the patches of a window side by side."""
        eagle, shrink = self._parts.eagle, self._shrink
        if self._parts.has_packed_vision:
            windows = hidden.unflatten(2, (-1, shrink)).unflatten(1, (-1, shrink))
            # The channel stands before the place in the window.
            return windows.permute(0, 1, 3, 5, 2, 4).flatten(3).flatten(1, 2)
        if eagle.use_pixel_shuffle:
            hidden = eagle.pixel_shuffle(hidden, scale_factor=eagle.downsample_ratio)
        return hidden.flatten(1, 2)


def image_size(images: Any) -> Size:
    """Return the size of (1, 3 T, H, W) images."""
    return int(images.shape[2]), int(images.shape[3])


def _find_places(parts: EagleParts, size: Size) -> Any:
    """Return the (1, n, V) or (n, V) position embeddings of an image's patches."""
    torch, embeddings = require_torch(), parts.vision.embeddings
    table = embeddings.position_embedding.weight.detach()
    if not parts.has_packed_vision:
        return table
    edge, patch = embeddings.position_embedding_size, embeddings.patch_size
    grid = torch.tensor([[size[0] // patch, size[1] // patch]])
    return embeddings.resize_positional_embeddings(table.unflatten(0, (edge, edge)), grid)


def _look_around(attention: Any, hidden: Any) -> Any:
    queries, keys, values = (
        split_heads(project(hidden), attention.head_dim)
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    return attention.out_proj(attend(queries, keys, values))


class EagleText:
    """Tokens of images and words to the context.

    Args:
        parts: The modules, in float32, on the CPU.
        before: Ids of the tokens before the words, those of the images included.
        after: Likewise after the words.
        num_words: L, room for words.
    """

    def __init__(
        self, parts: EagleParts, before: Sequence[int], after: Sequence[int], *, num_words: int
    ) -> None:
        torch = require_torch()
        self._parts = parts
        self._num_before, self._num_after, self._num_words = len(before), len(after), num_words
        self._runs = self._find_runs([*before, *after])
        length = len(before) + len(after) + num_words
        config = parts.text.config
        self._turns = make_rotation(
            torch.arange(length), config.head_dim, max_wavelength=config.rope_theta
        )
        # Places with no padding; padding is hidden, and moves what comes after the words to the front.
        places = self._find_places(torch.tensor([num_words]))
        self._sight = places[:, None] >= places
        self._fixed = torch.ones(1, len(before) + len(after), dtype=torch.bool)

    def compute_context(self, images: Any, tokens: Any, mask: Any) -> Any:
        """Return (1, P, D), what the language model makes of all tokens.

        Args:
            images: (1, 1, N, D), what `EagleVision.encode` returned.
            tokens: (1, L) int64.
            mask: (1, L) int64.
        """
        torch, text = require_torch(), self._parts.text
        hidden = self._embed(images[:, 0], tokens)
        places = self._find_places(mask.sum(dim=1))
        turn = tuple(torch.nn.functional.embedding(places, table) for table in self._turns)
        hiding = hide(self._sight & torch.cat([self._fixed, mask != 0], dim=1))
        for layer in text.layers:
            hidden = hidden + _look_back(
                layer.self_attn, layer.input_layernorm(hidden), turn, hiding
            )
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        hidden = text.norm(hidden)
        projection = self._parts.projection
        return hidden if projection is None else projection(hidden)

    def _find_runs(self, fixed: Sequence[int]) -> list[Any]:
        """Return what the fixed tokens are made of: numbers of tokens of images, and (1, n, D) embeddings of others."""
        torch, token = require_torch(), self._parts.eagle.image_token_index
        runs: list[Any] = []
        for pictured, group in groupby(fixed, token.__eq__):
            ids = list(group)
            with torch.no_grad():
                embedded = self._parts.text.embed_tokens(torch.tensor([ids]))
            runs.append(len(ids) if pictured else embedded)
        return runs

    def _embed(self, images: Any, tokens: Any) -> Any:
        """Return (1, P, D): fixed tokens, words."""
        torch = require_torch()
        lengths = [run for run in self._runs if isinstance(run, int)]
        pieces = iter(images.split(lengths, dim=1))
        fixed = [next(pieces) if isinstance(run, int) else run for run in self._runs]
        return torch.cat([*fixed, self._parts.text.embed_tokens(tokens)], dim=1)

    def _find_places(self, num_words: Any) -> Any:
        """Return the (P,) places of fixed tokens and words for the (1,) number of words."""
        torch = require_torch()
        first = torch.arange(self._num_before)
        last = torch.arange(self._num_after) + self._num_before + num_words
        words = torch.arange(self._num_words) + self._num_before
        return torch.cat([first, last, words])


def _look_back(attention: Any, hidden: Any, turn: Any, hiding: Any) -> Any:
    queries, keys, values = (
        split_heads(project(hidden), attention.head_dim)
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    queries = rotate(attention.q_norm(queries), turn)
    keys = rotate(attention.k_norm(keys), turn)
    return attention.o_proj(attend(queries, keys, values, hiding))
