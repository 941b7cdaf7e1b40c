# SPDX-License-Identifier: Apache-2.0
"""The denoise loop on the host: the update rule of `bundle.loop_steps`, in place."""

from __future__ import annotations

import numpy as np

from vla_policy_ros.bundle.chunk_prefix import PrefixTensors
from vla_policy_ros.bundle.graph import noise_draws
from vla_policy_ros.bundle.loop_steps import loop_steps
from vla_policy_ros.bundle.manifest import FlowMatching, Loop
from vla_policy_ros.core.specs import Array


class Denoiser:
    """Integrates the sample in place; all arrays are the caller's or made here once.

    Args:
        loop: Its settings.
        sample: (1, K, W) float32, the tensor that is integrated.
        prediction: (1, K, W) float32, written by the stages of the loop.
        timestep: (1,) time step, read by the stages of the loop.
        prefix: Rows that begin the loop in place of noise, and the gain of each row's velocity; for flow matching.
    """

    def __init__(
        self,
        loop: Loop,
        sample: Array,
        *,
        prediction: Array,
        timestep: Array,
        prefix: PrefixTensors[Array] | None = None,
    ) -> None:
        self.noise = np.zeros((noise_draws(loop), *sample.shape[1:]), np.float32)
        self._steps = loop_steps(loop)
        self._clip = None if isinstance(loop, FlowMatching) else loop.clip_sample
        self._sample = sample
        self._prediction = prediction
        self._timestep = timestep
        self._clean = np.zeros_like(sample)
        self._term = np.zeros_like(sample)
        self._prefix = prefix
        self._gains = None if prefix is None else prefix.factors[:, None]

    @property
    def num_steps(self) -> int:
        """Number of steps."""
        return len(self._steps)

    def begin(self) -> None:
        """Set the sample to the rows of the prefix, and to the first noise tensor after them."""
        self._sample[0] = self.noise[0]
        if self._prefix:
            count = self._prefix.num_rows[0]
            self._sample[0, :count] = self._prefix.actions[:count]

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
        self._add(x, step.to_p, self._prediction, gains=self._gains)
        if step.to_noise:
            self._add(x, step.to_noise, self.noise[index + 1 : index + 2])

    def _add(
        self, total: Array, factor: float, value: Array, *, gains: Array | None = None
    ) -> None:
        if factor:
            np.multiply(value, factor, out=self._term)
            if gains is not None:
                np.multiply(self._term, gains, out=self._term)
            np.add(total, self._term, out=total)
