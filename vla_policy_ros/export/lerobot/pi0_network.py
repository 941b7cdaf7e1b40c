# SPDX-License-Identifier: Apache-2.0
"""π0 (Black et al. 2024, arXiv 2410.24164) and π0.5 (2025, arXiv 2504.16054) in the form in which they are traced.

The weights and layers are LeRobot's; the order of work is ours. Tensors of attention are (1, heads, tokens, channels).

Three blocks of tokens, each of which sees itself and those before: images and words, in the language model; the state, which
only π0 has, and the actions, in the expert. So keys and values of all but the actions are the same in every denoise step, and
are computed once, those of the state included, which LeRobot computes again in every step. Words that are padding are seen by
nobody and take no place, so they may be more, fewer or none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from vla_policy_ros.export.attention import attend, hide, rotate, split_heads
from vla_policy_ros.export.lerobot.time_embedding import embed_time
from vla_policy_ros.export.tracing import require_torch

KeysValues = tuple[Any, Any]
"""(1, groups, n, H) keys, rotated, and values of one layer."""


class Pi0:
    """LeRobot's `PI0Pytorch` in two parts; `encode_images` is what comes before.

    Args:
        model: The module, in float32, on the CPU.
        image_tokens: N, tokens of all images.
    """

    has_state = True
    """Whether a token of the state stands before the actions."""

    def __init__(self, model: Any, *, image_tokens: int) -> None:
        self._model = model
        joint = model.paligemma_with_expert
        self._text = joint.paligemma.model.language_model
        self._expert = joint.gemma_expert.model
        self._image_tokens = image_tokens

    def compute_memory(self, images: Any, tokens: Any, mask: Any, *state: Any) -> Any:
        """Return what the actions look at.

        Args:
            images: (1, N, D).
            tokens: (1, L) int64.
            mask: (1, L) int64.
            state: (1, S), normalised; only for a network that has a token of it.

        Returns:
            (1, 2 E, G, P, H): keys and values in turn of E layers of the expert, each of G groups of heads of H channels
            over the P tokens of images, words and state.
        """
        torch = require_torch()
        hidden = torch.cat([images, self._text.get_input_embeddings()(tokens)], dim=1)
        known = self._known(mask)
        layers = self._text.layers[: len(self._expert.layers)]
        # Words stand before their padding, so that places count on.
        turn = _make_rotation(self._text, torch.arange(hidden.shape[1]))
        _, memory = _run_layers(layers, hidden, turn, hide(known))
        for values in state:
            _, memory = self._run_expert(self._embed_state(values), known, memory=memory)
        return torch.stack([part for pair in memory for part in pair], dim=1)

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
        hidden, condition = self._embed_sample(sample, timestep)
        state = torch.ones(1, int(self.has_state), dtype=torch.bool)
        hidden, _ = self._run_expert(
            hidden,
            torch.cat([self._known(mask), state], dim=1),
            memory=[(memory[:, i], memory[:, i + 1]) for i in range(0, memory.shape[1], 2)],
            condition=condition,
        )
        normed, _ = self._expert.norm(hidden, condition)
        return self._model.action_out_proj(normed)

    def _known(self, mask: Any) -> Any:
        """Return (1, N + L) bool: images and words that may be seen."""
        torch = require_torch()
        return torch.cat([torch.ones(1, self._image_tokens, dtype=torch.bool), mask != 0], dim=1)

    def _run_expert(
        self, hidden: Any, known: Any, *, memory: Sequence[KeysValues], condition: Any = None
    ) -> tuple[Any, list[KeysValues]]:
        """Run tokens that see each other and what is known before them; return as `_run_layers` does."""
        torch = require_torch()
        num_tokens = hidden.shape[1]
        turn = _make_rotation(self._expert, torch.arange(num_tokens) + known.sum())
        own = torch.ones(1, num_tokens, dtype=torch.bool)
        hiding = hide(torch.cat([known, own], dim=1))
        return _run_layers(
            self._expert.layers, hidden, turn, hiding, memory=memory, condition=condition
        )

    def _embed_state(self, state: Any) -> Any:
        """Return (1, 1, D)."""
        project = self._model.state_proj
        weight = project.weight[:, : state.shape[1]]  # the rest meets zeros only
        return require_torch().nn.functional.linear(state, weight, project.bias)[:, None]

    def _embed_sample(self, sample: Any, timestep: Any) -> tuple[Any, Any]:
        """Return (1, K, D), and what the norms are told of the time, None for nothing."""
        torch, model = require_torch(), self._model
        actions = model.action_in_proj(sample)
        time = embed_time(timestep, actions.shape[2], model.config)[:, None].expand_as(actions)
        hidden = model.action_time_mlp_in(torch.cat([actions, time], dim=2))
        return model.action_time_mlp_out(torch.nn.functional.silu(hidden)), None


class Pi05(Pi0):
    """LeRobot's `PI05Pytorch`: the state is among the words, and the norms of the expert are told the time."""

    has_state = False

    def _embed_sample(self, sample: Any, timestep: Any) -> tuple[Any, Any]:
        silu, model = require_torch().nn.functional.silu, self._model
        actions = model.action_in_proj(sample)
        time = embed_time(timestep, actions.shape[2], model.config)
        return actions, silu(model.time_mlp_out(silu(model.time_mlp_in(time))))


def encode_images(joint: Any, images: Iterable[Any], resizes: Iterable[Any]) -> Any:
    """Return the (1, N, D) tokens of all cameras, one after another.

    Args:
        joint: LeRobot's `PaliGemmaWithExpertModel`.
        images: (1, 3, h, w) each, from 0 to 1.
        resizes: One per image: makes it (1, 3, H, W).
    """
    vlm = joint.paligemma.model
    vision = vlm.vision_tower.vision_model
    resized = [resize(image) for resize, image in zip(resizes, images, strict=True)]
    hidden = vision.embeddings(require_torch().cat(resized) * 2.0 - 1.0)
    for layer in vision.encoder.layers:
        hidden = layer(hidden, None)
    tokens = vlm.multi_modal_projector(vision.post_layernorm(hidden))
    return tokens.flatten(0, 1)[None]


def _run_layers(
    layers: Sequence[Any],
    hidden: Any,
    turn: tuple[Any, Any],
    hiding: Any,
    *,
    memory: Sequence[KeysValues] = (),
    condition: Any = None,
) -> tuple[Any, list[KeysValues]]:
    """Run layers of Gemma.

    Args:
        layers: The layers.
        hidden: (1, n, D).
        turn: Rotation of the n tokens.
        hiding: Is added to the scores, (1, 1, 1, m + n).
        memory: Keys and values of each layer over m tokens before; none where nothing is before.
        condition: (1, D) what the norms are told; None for nothing.

    Returns:
        (1, n, D), and keys and values of each layer over all m + n tokens.
    """
    torch, seen = require_torch(), []
    for index, layer in enumerate(layers):
        attention = layer.self_attn
        normed, gate = layer.input_layernorm(hidden, condition)
        queries, keys, values = (
            split_heads(project(normed), attention.head_dim)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        keys = rotate(keys, turn)
        if memory:
            earlier_keys, earlier_values = memory[index]
            keys = torch.cat([earlier_keys, keys], dim=2)
            values = torch.cat([earlier_values, values], dim=2)
        seen.append((keys, values))
        looked_up = attend(rotate(queries, turn), keys, values, hiding, scale=attention.scaling)
        hidden = _add(hidden, attention.o_proj(looked_up), gate)
        normed, gate = layer.post_attention_layernorm(hidden, condition)
        hidden = _add(hidden, layer.mlp(normed), gate)
    return hidden, seen


def _add(hidden: Any, change: Any, gate: Any) -> Any:
    return hidden + (change if gate is None else change * gate)


def _make_rotation(gemma: Any, places: Any) -> tuple[Any, Any]:
    """Return cosine and sine as `attention.make_rotation` does, of LeRobot's own frequencies: a bfloat16 model rounds them."""
    torch = require_torch()
    angles = places[:, None].to(torch.float32) * gemma.rotary_emb.inv_freq
    return torch.cos(angles), torch.sin(angles)
