# SPDX-License-Identifier: Apache-2.0
"""ACT (Zhao et al. 2023, arXiv 2304.13705): one stage from images and state to the chunk, with the latent at 0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vla_policy_ros.bundle.probe import Probe
from vla_policy_ros.core.specs import Array
from vla_policy_ros.export.lerobot.checkpoint import STATE, Checkpoint
from vla_policy_ros.export.lerobot.plan import Plan, library_inputs, observation_examples
from vla_policy_ros.export.traced_policy import STATE_TENSOR
from vla_policy_ros.export.tracing import TracedStage, require_torch

_ACTION = 'action'


def plan_act(checkpoint: Checkpoint, policy: Any) -> Plan:
    """Return how an ACT becomes a bundle.

    Args:
        checkpoint: The checkpoint.
        policy: Its `ACTPolicy`, on the CPU.
    """
    config, network = policy.config, policy.model
    inputs = observation_examples(checkpoint, steps=1, crop=None, squeeze_state=True)
    places = _find_places(network, inputs)

    def run(*tensors: Any) -> Any:
        return _forward(network, images=tensors[:-1], state=tensors[-1], places=places)

    return Plan(
        observation_steps=1,
        crop=None,
        squeeze_state=True,
        action_tensor=_ACTION,
        horizon=config.chunk_size,
        first_row=0,
        executed_rows=config.n_action_steps,
        stages=(
            TracedStage(name='act', owner=network, function=run, inputs=inputs, output=_ACTION),
        ),
        loop=None,
        reference=lambda tensors: _run_library(checkpoint, policy, tensors),
    )


def _run_library(checkpoint: Checkpoint, policy: Any, tensors: Mapping[str, Array]) -> Probe:
    torch = require_torch()
    images, state = library_inputs(checkpoint, tensors)
    with torch.inference_mode():
        actions = policy.model({STATE: state, 'observation.images': images})[0]
    return Probe(tensors, None, actions.numpy())


def _find_places(network: Any, inputs: Mapping[str, Array]) -> Any:
    """Return the (N, 1, C) position embeddings of all N tokens, which are the same for all images of a size."""
    torch = require_torch()
    places = [network.encoder_1d_feature_pos_embed.weight[:, None]]
    with torch.no_grad():
        for name, image in inputs.items():
            if name != STATE_TENSOR:
                features = network.backbone(torch.from_numpy(image))['feature_map']
                places.append(_as_tokens(network.encoder_cam_feat_pos_embed(features)))
        return torch.cat(places)


def _as_tokens(features: Any) -> Any:
    """Turn (1, C, h, w) into (h w, 1, C)."""
    return features.flatten(2).permute(2, 0, 1)


def _forward(network: Any, *, images: tuple[Any, ...], state: Any, places: Any) -> Any:
    """Compute what `ACT.forward` does for one observation.

    LeRobot puts the tokens into a list one by one, which makes hundreds of nodes that cut an image's features into pixels
    and join them again; here they stay together. The whole is compared with LeRobot's own after the export.

    Args:
        network: The `ACT`.
        images: (1, 3, H, W) each, normalised.
        state: (1, S), normalised.
        places: (N, 1, C) position embeddings of latent, state and images.

    Returns:
        (1, K, D) actions, normalised.
    """
    torch = require_torch()
    latent = state.new_zeros(1, network.config.latent_dim)
    tokens = [
        network.encoder_latent_input_proj(latent)[None],
        network.encoder_robot_state_input_proj(state)[None],
    ]
    for image in images:
        features = network.backbone(image)['feature_map']
        tokens.append(_as_tokens(network.encoder_img_feat_input_proj(features)))
    memory = network.encoder(torch.cat(tokens), pos_embed=places)
    query = network.decoder_pos_embed.weight[:, None]
    decoded = network.decoder(
        torch.zeros_like(query), memory, encoder_pos_embed=places, decoder_pos_embed=query
    )
    return network.action_head(decoded.transpose(0, 1))
