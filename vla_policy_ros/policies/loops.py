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

from vla_policy_ros.bundle.graph import noise_draws
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


def loop_steps(loop: Loop) -> tuple[LoopStep, ...]:
    """Return the steps of a loop in the order of execution."""
    if isinstance(loop, FlowMatching):
        return tuple(_flow_steps(loop))
    return tuple(_diffusion_steps(loop))


def draw_noise(seed: int, stamp_ns: int, out: Array) -> None:
    """Fill `out` (float32, C-contiguous) with N(0, 1) noise that depends on the seed and the observation's stamp only.

    So a dropped or repeated observation does not change the noise of any other.
    """
    word = (1 << 64) - 1
    key = np.array([seed & word, stamp_ns & word], np.uint64)
    np.random.Generator(np.random.Philox(key=key)).standard_normal(dtype=np.float32, out=out)


class Denoiser:
    """Integrates the sample in place; all arrays are the caller's or made here once.

    Args:
        loop: Its settings.
        sample: (1, K, W) float32, the tensor that is integrated.
        prediction: (1, K, W) float32, written by the stages of the loop.
        timestep: (1,) time step, read by the stages of the loop.
    """

    def __init__(self, loop: Loop, sample: Array, *, prediction: Array, timestep: Array) -> None:
        self.noise = np.zeros((noise_draws(loop), *sample.shape[1:]), np.float32)
        self._steps = loop_steps(loop)
        self._clip = None if isinstance(loop, FlowMatching) else loop.clip_sample
        self._sample = sample
        self._prediction = prediction
        self._timestep = timestep
        self._clean = np.zeros_like(sample)
        self._term = np.zeros_like(sample)

    @property
    def num_steps(self) -> int:
        """Number of steps."""
        return len(self._steps)

    def begin(self) -> None:
        """Set the sample to the first noise tensor."""
        self._sample[0] = self.noise[0]

    def set_timestep(self, index: int) -> None:
        """Write the time of one step for the stages to read; integers are truncated."""
        self._timestep[0] = self._timestep.dtype.type(self._steps[index].timestep)

    def update(self, index: int) -> None:
        """Take one step with the prediction that the stages have written."""
        step = self._steps[index]
        x, clean = self._sample, self._clean
        if step.to_clean:
            np.multiply(x, step.clean_x, out=clean)
            self._add(clean, step.clean_p, self._prediction)
            if self._clip is not None:
                np.clip(clean, -self._clip, self._clip, out=clean)
        np.multiply(x, step.to_x, out=x)
        self._add(x, step.to_clean, clean)
        self._add(x, step.to_p, self._prediction)
        if step.to_noise:
            self._add(x, step.to_noise, self.noise[index + 1 : index + 2])

    def _add(self, total: Array, factor: float, value: Array) -> None:
        if factor:
            np.multiply(value, factor, out=self._term)
            np.add(total, self._term, out=total)


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
