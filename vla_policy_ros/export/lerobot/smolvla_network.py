# SPDX-License-Identifier: Apache-2.0
"""SmolVLA (Shukor et al. 2025, arXiv 2506.01844) in the form in which it is traced.

The weights and layers are LeRobot's; the order of work is ours. What does not change from denoise step to denoise step is
computed once: LeRobot's cross-attention projects the keys and values of the prefix again in every step, and its rotary
embedding writes into slices, which makes scatter nodes. Tensors of attention are (1, heads, tokens, channels).

Prefix: tokens of all cameras, words, one token of the state. Images and words see each other, the state sees all. Words
that are padding, and images of empty cameras, are seen by nobody and take no place, so they may be more, fewer or none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vla_policy_ros.export.attention import (
    attend,
    hide,
    join_heads,
    make_rotation,
    rotate,
    split_heads,
)
from vla_policy_ros.export.lerobot.time_embedding import embed_time
from vla_policy_ros.export.tracing import require_torch

_MAX_WAVELENGTH = 10_000  # LeRobot's own rotary embedding, whatever rope_theta the language model was trained with


@dataclass(frozen=True, slots=True, eq=False)
class ExpertLayer:
    """One layer of the action expert.

    Attributes:
        layer: Its module.
        vlm_index: Layer of the language model whose keys and values it looks at.
        sees_actions: Whether it attends to the actions too, each to itself and those before it.
    """

    layer: Any
    vlm_index: int
    sees_actions: bool


class SmolVla:
    """LeRobot's `VLAFlowMatching` in three parts.

    Args:
        model: The module, in float32, on the CPU.
        image_tokens: N, tokens of one image.
        cameras: C, number of cameras.
        empty_cameras: Number of those that LeRobot adds and hides; the special tokens around their images are seen.
    """

    def __init__(self, model: Any, *, image_tokens: int, cameras: int, empty_cameras: int) -> None:
        self._model = model
        self._joint = model.vlm_with_expert
        self._text = self._joint.get_vlm_model().text_model
        self._image_tokens = image_tokens
        self._empty_cameras = empty_cameras
        self._experts = _find_experts(self._joint)
        special = 3 * (cameras + empty_cameras) if model.add_image_special_tokens else 0
        self._num_seen = cameras * image_tokens + special

    def compute_memory(self, images: Any, tokens: Any, mask: Any, state: Any) -> Any:
        """Return what the expert looks at.

        Args:
            images: (1, C N, D), scaled.
            tokens: (1, L) int64.
            mask: (1, L) int64.
            state: (1, S), normalised.

        Returns:
            (1, 2 E, G, P, H): keys and values in turn of E layers of the expert, each of G groups of heads of H channels
            over the P tokens of the prefix.
        """
        torch = require_torch()
        hidden = self._embed_prefix(images, tokens, state)
        turn = self._rotation(self._prefix_places(mask))
        hiding = hide(self._prefix_sight(mask))
        experts = {expert.vlm_index: expert for expert in self._experts}
        memory = []
        for index in range(max(experts) + 1):
            layer = self._text.layers[index]
            normed = layer.input_layernorm(hidden)
            queries, keys, values = (
                split_heads(project(normed), layer.self_attn.head_dim)
                for project in (
                    layer.self_attn.q_proj,
                    layer.self_attn.k_proj,
                    layer.self_attn.v_proj,
                )
            )
            keys = rotate(keys, turn)
            if index in experts:
                memory += _as_expert_sees(experts[index], keys, values)
            if index < max(experts):
                seen = attend(rotate(queries, turn), keys, values, hiding)
                hidden = _finish_layer(layer, hidden, seen)
        return torch.stack(memory, dim=1)

    def predict_velocity(self, sample: Any, timestep: Any, memory: Any, mask: Any) -> Any:
        """Return the velocity of a sample.

        Args:
            sample: (1, K, W).
            timestep: (1,), 1 for pure noise.
            memory: What `compute_memory` returned.
            mask: (1, L) int64.

        Returns:
            (1, K, W).
        """
        torch = require_torch()
        hidden = self._embed_sample(sample, timestep)
        steps = torch.arange(sample.shape[1])
        known = self._known(mask)
        own, behind = self._rotation(steps), self._rotation(steps + known.sum())
        prefix = known.expand(len(steps), -1)
        earlier = torch.ones(len(steps), len(steps), dtype=torch.bool).tril()
        hiding, hiding_all = hide(prefix), hide(torch.cat([prefix, earlier], dim=1))
        for place, expert in enumerate(self._experts):
            layer, attention = expert.layer, expert.layer.self_attn
            keys, values = memory[:, 2 * place], memory[:, 2 * place + 1]
            normed = layer.input_layernorm(hidden)
            queries = split_heads(attention.q_proj(normed), attention.head_dim)
            if expert.sees_actions:
                new_keys, new_values = (
                    split_heads(project(normed), attention.head_dim)
                    for project in (attention.k_proj, attention.v_proj)
                )
                keys = torch.cat([keys, rotate(new_keys, behind)], dim=2)
                values = torch.cat([values, new_values], dim=2)
                seen = attend(rotate(queries, behind), keys, values, hiding_all)
            else:
                seen = attend(rotate(queries, own), keys, values, hiding)
            hidden = _finish_layer(layer, hidden, seen)
        return self._model.action_out_proj(self._joint.lm_expert.norm(hidden))

    def _embed_prefix(self, images: Any, tokens: Any, state: Any) -> Any:
        """Return (1, P, D)."""
        torch, model = require_torch(), self._model
        embed = self._joint.embed_language_tokens
        parts = [images]
        if model.add_image_special_tokens:
            start, end = (
                embed(ids)[None] for ids in (model.global_image_start_token, model.image_end_token)
            )
            parts = []
            for image in images.split(self._image_tokens, dim=1):
                parts += [start, image, end]
            parts += [start, end] * self._empty_cameras
        words = embed(tokens)
        weight = model.state_proj.weight[:, : state.shape[1]]  # the rest meets zeros only
        state = torch.nn.functional.linear(state, weight, model.state_proj.bias)
        return torch.cat([*parts, words * math.sqrt(words.shape[-1]), state[:, None]], dim=1)

    def _known(self, mask: Any) -> Any:
        """Return (1, P) bool: tokens that may be seen."""
        torch = require_torch()
        seen = torch.ones(1, self._num_seen, dtype=torch.bool)
        return torch.cat([seen, mask != 0, torch.ones(1, 1, dtype=torch.bool)], dim=1)

    def _prefix_places(self, mask: Any) -> Any:
        """Return (P,) places; words stand before their padding, so the state comes after the last word."""
        torch = require_torch()
        before = torch.arange(self._num_seen + mask.shape[1])
        return torch.cat([before, self._num_seen + mask.sum(dim=1)])

    def _prefix_sight(self, mask: Any) -> Any:
        """Return (P, P) bool: which token (row) sees which."""
        torch = require_torch()
        known = self._known(mask)
        sight = torch.ones(known.shape[1], known.shape[1], dtype=torch.bool)
        sight[:-1, -1] = False
        return sight & known

    def _rotation(self, places: Any) -> tuple[Any, Any]:
        return make_rotation(places, self._text.config.head_dim, max_wavelength=_MAX_WAVELENGTH)

    def _embed_sample(self, sample: Any, timestep: Any) -> Any:
        torch, model = require_torch(), self._model
        actions = model.action_in_proj(sample)
        time = embed_time(timestep, actions.shape[-1], model.config)
        joined = torch.cat([actions, time.expand_as(actions)], dim=2)
        hidden = torch.nn.functional.silu(model.action_time_mlp_in(joined))
        return model.action_time_mlp_out(hidden)


def _find_experts(joint: Any) -> tuple[ExpertLayer, ...]:
    vlm = joint.get_vlm_model().text_model
    _, layers = joint.get_model_layers([vlm, joint.lm_expert])
    crosses, every = 'cross' in joint.attention_mode, joint.self_attn_every_n_layers
    return tuple(
        ExpertLayer(layer, index, not crosses or (every > 0 and index % every == 0))
        for index, layer in enumerate(layers)
        if layer is not None
    )


def _as_expert_sees(expert: ExpertLayer, keys: Any, values: Any) -> list[Any]:
    """Return keys and values of the language model, projected where the expert does so before it attends to them."""
    if expert.sees_actions:
        return [keys, values]
    attention = expert.layer.self_attn
    return [
        split_heads(project(join_heads(part)), attention.head_dim)
        for project, part in ((attention.k_proj, keys), (attention.v_proj, values))
    ]


def _finish_layer(layer: Any, hidden: Any, seen: Any) -> Any:
    hidden = hidden + layer.self_attn.o_proj(seen)
    return hidden + layer.mlp(layer.post_attention_layernorm(hidden))


def encode_images(joint: Any, images: Sequence[Any], resizes: Sequence[Any], places: Any) -> Any:
    """Return the (1, C N, D) tokens of all cameras, scaled as LeRobot scales them.

    Args:
        joint: LeRobot's `SmolVLMWithExpertModel`.
        images: (1, 3, h, w) each.
        resizes: One per image: makes it (1, 3, H, W).
        places: (1, n, V) position embeddings of the vision network's patches.
    """
    torch = require_torch()
    vlm = joint.get_vlm_model()
    vision = vlm.vision_model
    resized = [resize(image) for resize, image in zip(resizes, images, strict=True)]
    patches = vision.embeddings.patch_embedding(torch.cat(resized) * 2.0 - 1.0)
    hidden = patches.flatten(2).transpose(1, 2) + places
    for layer in vision.encoder.layers:
        hidden = layer(hidden, None)
    tokens = vlm.connector(vision.post_layernorm(hidden))
    return tokens.flatten(0, 1)[None] * math.sqrt(tokens.shape[-1])


def find_patch_places(joint: Any, size: tuple[int, int]) -> Any:
    """Return the (1, n, V) position embeddings of an image of height and width: they are looked up by its mask alone."""
    torch = require_torch()
    embeddings = joint.get_vlm_model().vision_model.embeddings
    blank = torch.zeros(1, 3, *size)
    edge = embeddings.patch_size
    whole = torch.ones(1, size[0] // edge, size[1] // edge, dtype=torch.bool)
    with torch.no_grad():
        patches = embeddings.patch_embedding(blank).flatten(2).transpose(1, 2)
        return embeddings(pixel_values=blank, patch_attention_mask=whole) - patches
