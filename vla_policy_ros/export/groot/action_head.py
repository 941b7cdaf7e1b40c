# SPDX-License-Identifier: Apache-2.0
"""GR00T's action head: a flow-matching transformer that looks at the context, as stages; the same for N1.5, N1.6 and N1.7.

What does not change from denoise step to denoise step stands outside of the loop: the keys and values of the cross-attention
and the token of the state. What depends on the time alone is a table with one row per step, since the number of steps is
fixed: the scales and shifts of all layers (a seventh of the head's weights) and the time's part of the action encoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vla_policy_ros.core.specs import Array
from vla_policy_ros.export.attention import attend, hide, split_heads
from vla_policy_ros.export.groot.backbone import CONTEXT, TOKEN_MASK, TokenLayout
from vla_policy_ros.export.traced_policy import STATE_TENSOR, random_values
from vla_policy_ros.export.tracing import TracedStage, require_torch

SAMPLE, ACTIONS = 'sample', 'actions'
"""Pool tensors: what the loop integrates, (1, K, W); its first rows, when the embodiment uses fewer."""
_MEMORY, _STATE_TOKEN, _VELOCITY, _TIMESTEP = 'memory', 'state_token', 'velocity', 'timestep'


def plan_action_head(
    head: Any,
    layout: TokenLayout,
    context: Array,
    *,
    token_mask: Array,
    state: Array,
    embodiment_id: int,
    rows: int,
) -> tuple[TracedStage, ...]:
    """Return the stages of an action head; the action tensor is `action_tensor(head, rows)`.

    Args:
        head: The library's module, float32, on the CPU, for inference.
        layout: The tokens of the context.
        context: (1, P, D) example of what the backbone gives.
        token_mask: (1, L) int64 example.
        state: (1, T, S) example, padded to the head's width.
        embodiment_id: Which of the head's weights are taken.
        rows: Rows that the embodiment uses, K at most.
    """
    network = ActionHead(head, layout, embodiment_id)
    memory = TracedStage(
        name='memory',
        owner=network.memory_modules(),
        function=network.compute_memory,
        inputs={CONTEXT: context, TOKEN_MASK: token_mask},
        output=_MEMORY,
    )
    token = TracedStage(
        name='state',
        owner=network.state_encoder,
        function=network.encode_state,
        inputs={STATE_TENSOR: state},
        output=_STATE_TOKEN,
    )
    sample = random_values((1, head.action_horizon, head.action_dim))
    last_step = np.full(1, head.num_inference_timesteps - 1, np.float32)
    velocity = TracedStage(
        name='velocity',
        owner=network.velocity_modules(),
        function=network.predict_velocity,
        inputs={
            SAMPLE: sample,
            _TIMESTEP: last_step,
            _MEMORY: memory.run(),
            TOKEN_MASK: token_mask,
            _STATE_TOKEN: token.run(),
        },
        output=_VELOCITY,
        in_loop=True,
    )
    stages = (memory, token, velocity)
    return stages if rows == head.action_horizon else (*stages, _plan_chunk(sample, rows))


def _plan_chunk(sample: Array, rows: int) -> TracedStage:
    """Return the stage that takes the first rows of a sample."""
    return TracedStage(
        name='chunk',
        owner=None,
        function=lambda values: values[:, :rows],
        inputs={SAMPLE: sample},
        output=ACTIONS,
    )


def action_tensor(head: Any, rows: int) -> str:
    """Return the pool tensor that holds the chunk."""
    return SAMPLE if rows == head.action_horizon else ACTIONS


def loop_settings(head: Any) -> Mapping[str, Any]:
    """Return the entry `loop` of the manifest; the time is the number of the step, for the tables."""
    steps = head.num_inference_timesteps
    return {
        'kind': 'flow_matching_euler',
        'steps': steps,
        'sample': SAMPLE,
        'prediction': _VELOCITY,
        'timestep': _TIMESTEP,
        'timestep_scale': float(steps),
        'noise_at': 0,
    }


@dataclass(frozen=True, slots=True, eq=False)
class _CrossLayer:
    """A layer that looks at the context.

    Attributes:
        layer: Its module.
        tokens: (n,) places in the context that it looks at.
        place: Where its keys and values lie in the memory.
        sees_words: Whether some of them may be padding.
    """

    layer: Any
    tokens: Any
    place: slice
    sees_words: bool


class ActionHead:
    """The library's action head in parts.

    Args:
        head: The module.
        layout: The tokens of the context.
        embodiment_id: Which of its weights are taken.
    """

    def __init__(self, head: Any, layout: TokenLayout, embodiment_id: int) -> None:
        torch = require_torch()
        self._head = head
        self._layout = layout
        self._cross = _find_cross_layers(head.model, layout)
        self.state_encoder = _pick_mlp(head.state_encoder, embodiment_id)
        self._decoder = _pick_mlp(head.action_decoder, embodiment_id)
        encoder, width = head.action_encoder, head.action_encoder.W1.W.shape[2]
        self._first = _pick_linear(encoder.W1, embodiment_id)
        joint = _pick_linear(encoder.W2, embodiment_id)
        self._second = torch.nn.Linear(width, width, bias=False)
        self._second.weight = torch.nn.Parameter(joint.weight[:, :width].clone())
        self._third = _pick_linear(encoder.W3, embodiment_id)
        with torch.no_grad():
            times = _bucket_times(head)
            turns = encoder.pos_encoding(times[:, None])[:, 0]
            self._time_bias = turns @ joint.weight[:, width:].T + joint.bias
            self._scales, self._shifts = _modulations(head.model, times)
            self._between, self._places = _fixed_tokens(head), _place_embedding(head)

    def encode_state(self, state: Any) -> Any:
        """Return the tokens of a (1, T, S) state: one for all of its history in N1.7, one per row in the versions before."""
        if hasattr(self._head.config, 'state_history_length'):
            state = state.flatten(1)[:, None]
        return self.state_encoder(state)

    def memory_modules(self) -> Any:
        """Return what `compute_memory` takes weights of."""
        torch = require_torch()
        head = self._head
        projections = [
            torch.nn.ModuleList([cross.layer.attn1.to_k, cross.layer.attn1.to_v])
            for cross in self._cross.values()
        ]
        own = [
            module
            for name in ('vlln', 'vl_self_attention')
            if (module := getattr(head, name, None))
        ]
        return torch.nn.ModuleList([*own, *projections])

    def velocity_modules(self) -> Any:
        """Return what `predict_velocity` takes weights of."""
        torch = require_torch()
        model = self._head.model
        used = [self._first, self._second, self._third, self._decoder, model.proj_out_2]
        for index, layer in enumerate(model.transformer_blocks):
            attention = layer.attn1
            used += [layer.norm3, layer.ff, attention.to_q, attention.to_out[0]]
            if index not in self._cross:
                used += [attention.to_k, attention.to_v]
        return torch.nn.ModuleList(used)

    def compute_memory(self, context: Any, mask: Any) -> Any:
        """Return what the layers look at.

        The library gives its own layers over the context no mask, since it never pads; here padding is hidden.

        Args:
            context: (1, P, D).
            mask: (1, L) int64.

        Returns:
            (1, 2, heads, S, H): keys and values; every cross-attention has its own part of S, as long as its tokens.
        """
        torch, head = require_torch(), self._head
        hidden = head.vlln(context)
        hiding = hide(self._layout.known(mask))
        for layer in getattr(getattr(head, 'vl_self_attention', None), 'transformer_blocks', ()):
            normed = _place(layer, layer.norm1(hidden))
            hidden = _finish_layer(layer, hidden, _attend_self(layer.attn1, normed, hiding))
        keys, values = [], []
        for cross in self._cross.values():
            seen, attention = hidden[:, cross.tokens], cross.layer.attn1
            keys.append(_split(attention, attention.to_k(seen)))
            values.append(_split(attention, attention.to_v(seen)))
        return torch.stack([torch.cat(keys, dim=2), torch.cat(values, dim=2)], dim=1)

    def predict_velocity(
        self, sample: Any, timestep: Any, memory: Any, mask: Any, state_token: Any
    ) -> Any:
        """Return the velocity of a sample.

        Args:
            sample: (1, K, W).
            timestep: (1,), number of the step.
            memory: What `compute_memory` returned.
            mask: (1, L) int64.
            state_token: What `encode_state` returned.

        Returns:
            (1, K, W).
        """
        torch, model = require_torch(), self._head.model
        step = torch.round(timestep).to(torch.int64)
        scales, shifts = self._scales[step], self._shifts[step]
        hidden = torch.cat([state_token, *self._between, self._embed(sample, step)], dim=1)
        hiding = hide(self._layout.known(mask))
        for index, layer in enumerate(model.transformer_blocks):
            normed = layer.norm1.norm(hidden) * (1 + scales[:, index]) + shifts[:, index]
            normed = _place(layer, normed)
            if cross := self._cross.get(index):
                keys, values = memory[:, 0, :, cross.place], memory[:, 1, :, cross.place]
                queries = _split(layer.attn1, layer.attn1.to_q(normed))
                padding = hiding[..., cross.tokens] if cross.sees_words else None
                seen = attend(queries, keys, values, padding, scale=layer.attn1.scale)
            else:
                seen = _attend_self(layer.attn1, normed, None)
            hidden = _finish_layer(layer, hidden, seen)
        rows = hidden[:, -sample.shape[1] :]  # the other tokens are of no more use
        rows = model.norm_out(rows) * (1 + scales[:, -1]) + shifts[:, -1]
        return self._decoder(model.proj_out_2(rows))

    def _embed(self, sample: Any, step: Any) -> Any:
        functional = require_torch().nn.functional
        joined = self._second(self._first(sample)) + self._time_bias[step]
        tokens = self._third(functional.silu(joined))
        return tokens + self._places


def _find_cross_layers(model: Any, layout: TokenLayout) -> dict[int, _CrossLayer]:
    """Find which layers look at the context, by their number, and at which of its tokens.

    `AlternateVLDiT` looks at the words and at the images in turn, `DiT` at all of them.
    """
    torch = require_torch()
    pictured = layout.pictured()[0]
    every = getattr(model, 'attend_text_every_n_blocks', None)
    found: dict[int, _CrossLayer] = {}
    start = 0
    for index, layer in enumerate(model.transformer_blocks):
        if index % 2 == 1 and model.config.interleave_self_attention:
            continue
        wanted = torch.ones_like(pictured)
        if every:
            wanted = ~pictured if index % (2 * every) == 0 else pictured
        tokens = wanted.nonzero()[:, 0]
        place = slice(start, start + len(tokens))
        sees_words = bool((tokens >= len(layout.images)).any())
        found[index] = _CrossLayer(layer, tokens, place, sees_words)
        start = place.stop
    return found


def _bucket_times(head: Any) -> Any:
    """Return the (N,) numbers of the buckets of time, as the library cuts them off."""
    steps = head.num_inference_timesteps
    buckets = [int(step / steps * head.num_timestep_buckets) for step in range(steps)]
    return require_torch().tensor(buckets)


def _modulations(model: Any, times: Any) -> tuple[Any, Any]:
    """Return scales and shifts of all layers and of the output, (N, layers + 1, 1, D) each."""
    torch = require_torch()
    embedded = model.timestep_encoder(times)
    pairs = [
        layer.norm1.linear(layer.norm1.silu(embedded)).chunk(2, dim=1)
        for layer in model.transformer_blocks
    ]
    # The library's output layer has them the other way round.
    shift, scale = model.proj_out_1(torch.nn.functional.silu(embedded)).chunk(2, dim=1)
    pairs.append((scale, shift))
    scales, shifts = (torch.stack(part, dim=1)[:, :, None] for part in zip(*pairs, strict=True))
    return scales, shifts


def _fixed_tokens(head: Any) -> list[Any]:
    """Return the tokens between state and actions: N1.5 has some that mean nothing by themselves."""
    future = getattr(head, 'future_tokens', None)
    return [] if future is None else [future.weight[None].clone()]


def _place_embedding(head: Any) -> Any:
    """Return what tells the rows of a sample apart, (1, K, D) or 0.0."""
    if not head.config.add_pos_embed:
        return 0.0
    return head.position_embedding.weight[None, : head.action_horizon].clone()


def _pick_linear(linear: Any, embodiment_id: int) -> Any:
    """Return the layer of one embodiment."""
    torch = require_torch()
    weight, bias = linear.W[embodiment_id], linear.b[embodiment_id]
    picked = torch.nn.Linear(*weight.shape)
    picked.weight = torch.nn.Parameter(weight.detach().T.contiguous())
    picked.bias = torch.nn.Parameter(bias.detach().clone())
    return picked.eval()


def _pick_mlp(mlp: Any, embodiment_id: int) -> Any:
    nn = require_torch().nn
    layers = [_pick_linear(layer, embodiment_id) for layer in (mlp.layer1, mlp.layer2)]
    return nn.Sequential(layers[0], nn.ReLU(), layers[1]).eval()


def _split(attention: Any, values: Any) -> Any:
    return split_heads(values, values.shape[2] // attention.heads)


def _attend_self(attention: Any, normed: Any, hiding: Any) -> Any:
    queries, keys, values = (
        _split(attention, project(normed))
        for project in (attention.to_q, attention.to_k, attention.to_v)
    )
    return attend(queries, keys, values, hiding, scale=attention.scale)


def _place(layer: Any, normed: Any) -> Any:
    return normed if layer.pos_embed is None else layer.pos_embed(normed)


def _finish_layer(layer: Any, hidden: Any, seen: Any) -> Any:
    hidden = hidden + layer.attn1.to_out[0](seen)
    return hidden + layer.ff(layer.norm3(hidden))
