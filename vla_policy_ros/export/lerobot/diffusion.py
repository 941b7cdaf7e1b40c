# SPDX-License-Identifier: Apache-2.0
"""Diffusion Policy (Chi et al. 2023, arXiv 2303.04137): an encoder before the loop, the U-Net inside it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from vla_policy_ros.bundle.probe import Probe
from vla_policy_ros.core.specs import Array
from vla_policy_ros.export.lerobot.checkpoint import STATE, Checkpoint
from vla_policy_ros.export.lerobot.plan import Plan, library_inputs, observation_examples
from vla_policy_ros.export.traced_policy import random_values
from vla_policy_ros.export.tracing import TracedStage, as_module, require_torch

_CONTEXT, _SAMPLE, _NOISE, _TIMESTEP = 'context', 'sample', 'prediction', 'timestep'


def plan_diffusion(checkpoint: Checkpoint, policy: Any) -> Plan:
    """Return how a Diffusion Policy becomes a bundle.

    Row 0 of the sample stands for the oldest observation, so it lies before the newest one, which is the chunk's.

    Args:
        checkpoint: The checkpoint.
        policy: Its `DiffusionPolicy`, on the CPU.
    """
    config = policy.config
    # Resized images are cropped after that, inside the network.
    is_cropped = config.crop_shape and not _resize_shape(config)
    crop = (int(config.crop_shape[0]), int(config.crop_shape[1])) if is_cropped else None
    return Plan(
        observation_steps=config.n_obs_steps,
        crop=crop,
        squeeze_state=False,
        action_tensor=_SAMPLE,
        horizon=config.horizon,
        first_row=1 - config.n_obs_steps,
        executed_rows=config.n_action_steps,
        stages=_stages(checkpoint, policy.diffusion, crop),
        loop=_loop(config, policy.diffusion.num_inference_steps),
        reference=lambda tensors: _run_library(checkpoint, policy.diffusion, tensors),
    )


def _stages(
    checkpoint: Checkpoint, model: Any, crop: tuple[int, int] | None
) -> tuple[TracedStage, ...]:
    config = model.config
    traced = _with_exact_resize(model, checkpoint)
    observation = observation_examples(
        checkpoint, steps=config.n_obs_steps, crop=crop, squeeze_state=False
    )
    encoder = TracedStage(
        name='encoder',
        owner=traced,
        function=lambda *tensors: _encode(traced, images=tensors[:-1], state=tensors[-1]),
        inputs=observation,
        output=_CONTEXT,
    )
    unet = TracedStage(
        name='unet',
        owner=model.unet,
        function=lambda sample, timestep, context: model.unet(
            sample, timestep, global_cond=context
        ),
        inputs={
            _SAMPLE: random_values((1, config.horizon, checkpoint.action.width)),
            _TIMESTEP: random_values((1,)).astype('int64') + config.num_train_timesteps // 2,
            _CONTEXT: encoder.run(),
        },
        output=_NOISE,
        in_loop=True,
    )
    return encoder, unet


def _encode(model: Any, *, images: Sequence[Any], state: Any) -> Any:
    """Return the context.

    Args:
        model: The `DiffusionModel`.
        images: (1, 3 T, H, W) each, normalised.
        state: (1, T, S), normalised.
    """
    torch = require_torch()
    batch = {STATE: state}
    if images:
        steps = state.shape[1]
        parts = [image.reshape(1, steps, 3, *image.shape[2:]) for image in images]
        batch['observation.images'] = torch.stack(parts, dim=2)
    # Nothing public does this part alone.
    return model._prepare_global_conditioning(batch)  # noqa: SLF001


def _run_library(checkpoint: Checkpoint, model: Any, tensors: Mapping[str, Array]) -> Probe:
    """Run LeRobot's own loop, and draw the noise again that it has drawn."""
    torch = require_torch()
    images, state = library_inputs(checkpoint, tensors)
    with torch.inference_mode():
        context = _encode(model, images=images, state=state)
        generator = torch.Generator().manual_seed(0)
        sample = model.conditional_sample(1, global_cond=context, generator=generator)
    noise = draw_library_noise(model, torch.Generator().manual_seed(0))
    return Probe(tensors, noise, sample.numpy())


def draw_library_noise(model: Any, generator: Any) -> Array:
    """Return (n, K, W) float32: what `conditional_sample` draws from a generator in this state, in its order.

    Args:
        model: The `DiffusionModel`.
        generator: A `torch.Generator`; None draws from PyTorch's own.
    """
    torch, config = require_torch(), model.config
    shape = (1, config.horizon, config.action_feature.shape[0])
    draws = model.num_inference_steps if config.noise_scheduler_type == 'DDPM' else 1
    parts = [torch.randn(shape, generator=generator) for _ in range(draws)]
    noise: Array = torch.cat(parts).numpy()
    return noise


def _loop(config: Any, steps: int) -> dict[str, Any]:
    return {
        'kind': config.noise_scheduler_type.lower(),
        'steps': steps,
        'train_timesteps': config.num_train_timesteps,
        'beta_schedule': config.beta_schedule,
        'beta_start': config.beta_start,
        'beta_end': config.beta_end,
        'prediction_type': config.prediction_type,
        'clip_sample': config.clip_sample_range if config.clip_sample else None,
        'sample': _SAMPLE,
        'prediction': _NOISE,
        'timestep': _TIMESTEP,
    }


def _resize_shape(config: Any) -> Any:
    """Return what the images are resized to inside the network; lerobot before 0.4.4 has no such setting."""
    return getattr(config, 'resize_shape', None)


def _with_exact_resize(model: Any, checkpoint: Checkpoint) -> Any:
    """Return the model with its antialiased resize as two products with matrices, which every engine has.

    Doing it on the camera's 8-bit image instead would round what LeRobot does not round. The U-Net is shared.
    """
    if not _resize_shape(model.config) or not checkpoint.images:
        return model
    traced = copy.deepcopy(model, {id(model.unet): model.unet})
    # The configuration demands one size of all images.
    size = checkpoint.images[0].height, checkpoint.images[0].width
    several = model.config.use_separate_rgb_encoder_per_camera
    for encoder in traced.rgb_encoder if several else [traced.rgb_encoder]:
        encoder.resize = _as_products(encoder.resize, size)
    return traced


def _as_products(resize: Any, size: tuple[int, int]) -> Any:
    """Return a module that multiplies rows and columns of (N, 3, H, W) with what the resize makes of unit vectors."""
    torch = require_torch()
    height, width = resize.size
    make = type(resize)  # torchvision's Resize
    rows = make((height, size[0]))(torch.eye(size[0])[None])[0]
    columns = make((size[1], width))(torch.eye(size[1])[None])[0]
    return as_module(lambda image: rows @ image @ columns)
