# SPDX-License-Identifier: Apache-2.0
"""`policy.rtc` of a deployment file: how a chunk begins with the rows that are left of the one before it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from vla_policy_ros.bundle.chunk_prefix import GuidanceSchedule
from vla_policy_ros.bundle.strict import StrictModel


class RtcSettings(StrictModel):
    """Real-time chunking: each chunk agrees with the one before it on the rows that are executed in the meantime."""

    kind: Literal['blend', 'inputs', 'guided'] = 'blend'
    """`blend`: the rows begin the denoise loop and are held back per row, as GR00T N1.7 does it, on every engine;
    `inputs`: the network was trained with them as an input (`loop.prefix` of the bundle); `guided`: the loop is drawn
    towards them with the gradient of the network, on PyTorch engines."""
    overlap_steps: int | None = Field(default=None, ge=1)
    """Rows of the earlier chunk that count; empty: all that are left."""
    frozen_steps: Literal['auto'] | Annotated[int, Field(ge=0)] = 'auto'
    """Rows that do not change: a number, or `auto` for the worst of the last 100 delays from capture to published chunk."""
    margin_steps: int = Field(default=1, ge=0)
    """Added to `auto`; with 1 the row after the delay is frozen too, which a controller needs to interpolate."""
    max_delay_steps: int | None = Field(default=None, ge=1)
    """Most rows that are frozen; empty: half of the chunk, or as many as the network was trained for (`inputs`)."""
    late: Literal['clamp', 'discard'] = 'clamp'
    """What is done when more rows would have to be frozen: freeze as many as allowed, or give no chunk; both are counted
    as `delay_above_max`."""
    ramp_rate: float = Field(default=6.0, gt=0, le=100, allow_inf_nan=False)
    """`blend`: how soon the rows after the frozen ones follow the new chunk."""
    step_tolerance: float = Field(default=0.25, ge=0, le=0.5)
    """Rows are moved by whole steps: two observations whose distance is further from a whole number, in steps, are not
    joined, which is counted as `between_steps`; 0.5 always takes the nearest."""
    schedule: GuidanceSchedule = 'exp'
    """`guided`: how the weight falls over the rows after the frozen ones."""
    max_guidance_weight: float = Field(default=5.0, gt=0, allow_inf_nan=False)
    """`guided`: largest factor on the gradient."""

    @model_validator(mode='after')
    def _check(self) -> Self:
        frozen, overlap = self.frozen_steps, self.overlap_steps
        if frozen != 'auto' and overlap is not None and frozen > overlap:
            raise ValueError(f'overlap_steps of at least frozen_steps, {frozen}')
        return self
