# SPDX-License-Identifier: Apache-2.0
"""The steps from a camera's image to the size that a policy takes: the part of `bundle.yaml` under `geometry`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from vla_policy_ros.bundle.strict import StrictModel

Size = Annotated[int, Field(ge=1, le=16384)]


class Resize(StrictModel):
    """Resize with the rule of the library the policy was trained with."""

    kind: Literal['resize'] = 'resize'
    height: Size
    """Rows in pixels; the shorter edge when `to` is `shortest_edge`."""
    width: Size
    """Columns in pixels; not used when `to` is `shortest_edge`."""
    to: Literal['exact', 'fit_inside', 'shortest_edge'] = 'exact'
    """`exact` stretches, `fit_inside` keeps the aspect within height x width, `shortest_edge` scales that edge to `height`."""
    library: Literal['pil', 'opencv', 'torchvision'] = 'pil'
    """Whose arithmetic: PIL (always antialiased, uint8), OpenCV (uint8), torchvision (`antialias` counts, uint8)."""
    filter: Literal['nearest', 'bilinear', 'bicubic', 'area'] = 'bilinear'
    """Interpolation; `area` exists in OpenCV only."""
    antialias: bool = True
    """torchvision only: low-pass before shrinking."""

    @model_validator(mode='after')
    def _check(self) -> Self:
        if self.filter == 'area' and self.library != 'opencv':
            raise ValueError('filter area with library opencv (no other library has it)')
        return self


class CenterCrop(StrictModel):
    """Cut the middle out: floor(fraction * size) pixels of each edge."""

    kind: Literal['center_crop'] = 'center_crop'
    fraction: float = Field(gt=0, le=1)
    """Share of each edge that is kept."""


class Crop(StrictModel):
    """Cut a fixed rectangle out."""

    kind: Literal['crop'] = 'crop'
    top: int = Field(ge=0)
    """First row in pixels."""
    left: int = Field(ge=0)
    """First column in pixels."""
    height: Size
    """Rows in pixels."""
    width: Size
    """Columns in pixels."""


class Pad(StrictModel):
    """Pad to a size with a constant; after `fit_inside` this is a letterbox."""

    kind: Literal['pad'] = 'pad'
    height: Size
    """Rows in pixels."""
    width: Size
    """Columns in pixels."""
    align: Literal['center', 'top_left', 'bottom_right'] = 'center'
    """Where the image lies; the odd pixel of `center` goes to the bottom right."""
    value: int = Field(default=0, ge=0, le=255)
    """Value of the border."""


GeometryStep = Annotated[Resize | CenterCrop | Crop | Pad, Field(discriminator='kind')]
