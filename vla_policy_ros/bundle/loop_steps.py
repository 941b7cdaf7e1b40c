# SPDX-License-Identifier: Apache-2.0
"""Denoise loops. Every kind is a table of coefficients, so that one update rule runs them all in place.

One step, with sample x, prediction p and noise z:

    clean = clip(clean_x * x + clean_p * p)
    x    <- to_clean * clean + to_x * x + to_p * p + to_noise * z

Formulas: flow matching by Lipman et al. 2023 with explicit Euler; DDIM by Song et al. 2021, equations 12 and 16 with
eta 0; DDPM by Ho et al. 2020, equations 6 and 7 with the small fixed variance. Time steps are spaced as the diffusers
library does by default (`leading`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from vla_policy_ros.bundle.manifest import Diffusion, FlowMatching, Loop
from vla_policy_ros.core.specs import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopStep:
    """Time step and coefficients of one step."""

    timestep: float
    clean_x: float = 0.0
    clean_p: float = 0.0
    to_clean: float = 0.0
    to_x: float = 0.0
    to_p: float = 0.0
    to_noise: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GuidanceStep:
    """Coefficients of the guidance in one step of flow matching.

    With sample x, prediction p, wanted rows y, weights w per row and the Jacobian J = dp/dx:

        e = (y - (x + to_end * p)) * w
        p <- p + strength * (e + to_end * J^T e)
    """

    to_end: float
    strength: float


def loop_steps(loop: Loop) -> tuple[LoopStep, ...]:
    """Return the steps of a loop in the order of execution."""
    if isinstance(loop, FlowMatching):
        return tuple(_flow_steps(loop))
    return tuple(_diffusion_steps(loop))


def guidance_steps(loop: FlowMatching, *, max_weight: float) -> tuple[GuidanceStep, ...]:
    """Return the guidance of each step: algorithm 1 of arXiv 2506.07339, for time that runs up or down.

    Args:
        loop: Settings of the loop.
        max_weight: Largest factor on the gradient.
    """
    direction = 1.0 if loop.noise_at == 0 else -1.0
    steps = []
    for index in range(loop.steps):
        done = index / loop.steps
        left = 1.0 - done
        weight = (done**2 + left**2) / (done * left) if index else math.inf
        strength = direction * min(weight, max_weight)
        steps.append(GuidanceStep(to_end=direction * left, strength=strength))
    return tuple(steps)


def _flow_steps(loop: FlowMatching) -> list[LoopStep]:
    direction = 1.0 if loop.noise_at == 0 else -1.0
    times = (loop.noise_at + direction * index / loop.steps for index in range(loop.steps))
    return [
        LoopStep(timestep=time * loop.timestep_scale, to_x=1.0, to_p=direction / loop.steps)
        for time in times
    ]


def _diffusion_steps(loop: Diffusion) -> list[LoopStep]:
    signal = np.cumprod(1.0 - _betas(loop))  # alpha bar: share of the clean sample in the variance
    ratio = loop.train_timesteps // loop.steps
    step = _ddim_step if loop.kind == 'ddim' else _ddpm_step
    steps = []
    for time in range((loop.steps - 1) * ratio, -1, -ratio):
        before = float(signal[time - ratio]) if time >= ratio else 1.0
        steps.append(step(loop, time, float(signal[time]), before))
    return steps


def _ddim_step(loop: Diffusion, time: int, now: float, before: float) -> LoopStep:
    (clean_x, clean_p), (noise_x, noise_p) = _reading(loop, now)
    spread = math.sqrt(1.0 - before)
    return LoopStep(
        timestep=time,
        clean_x=clean_x,
        clean_p=clean_p,
        to_clean=math.sqrt(before),
        to_x=spread * noise_x,
        to_p=spread * noise_p,
    )


def _ddpm_step(loop: Diffusion, time: int, now: float, before: float) -> LoopStep:
    (clean_x, clean_p), _ = _reading(loop, now)
    alpha = now / before
    variance = max((1.0 - before) / (1.0 - now) * (1.0 - alpha), 1e-20)
    return LoopStep(
        timestep=time,
        clean_x=clean_x,
        clean_p=clean_p,
        to_clean=math.sqrt(before) * (1.0 - alpha) / (1.0 - now),
        to_x=math.sqrt(alpha) * (1.0 - before) / (1.0 - now),
        to_noise=math.sqrt(variance) if time > 0 else 0.0,
    )


def _reading(loop: Diffusion, now: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return how the clean sample and the noise follow from (x, p), as two pairs of factors."""
    signal, noise = math.sqrt(now), math.sqrt(1.0 - now)
    if loop.prediction_type == 'epsilon':
        return (1 / signal, -noise / signal), (0.0, 1.0)
    if loop.prediction_type == 'sample':
        return (0.0, 1.0), (1 / noise, -signal / noise)
    return (signal, -noise), (noise, signal)


def _betas(loop: Diffusion) -> Array:
    count = loop.train_timesteps
    if loop.beta_schedule == 'linear':
        return np.linspace(loop.beta_start, loop.beta_end, count)
    if loop.beta_schedule == 'scaled_linear':
        roots = np.linspace(math.sqrt(loop.beta_start), math.sqrt(loop.beta_end), count)
        squares: Array = roots**2
        return squares
    times = np.arange(count + 1) / count
    kept = np.cos((times + 0.008) / 1.008 * math.pi / 2) ** 2
    betas: Array = np.minimum(1.0 - kept[1:] / kept[:-1], 0.999)
    return betas
