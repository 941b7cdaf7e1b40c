# SPDX-License-Identifier: Apache-2.0
"""What `vla-policy export network` is told of a network, in a short YAML file.

Names, shapes and element types of inputs and outputs come from the network's own file and are not repeated here. All
words mean what they mean in [bundle.yaml](bundle.md); only `tensor` and `tensors` name inputs and outputs of the network
instead of tensors of the pool. The outputs of a PyTorch file are called `output`, or `output_0`, `output_1` and so on, or
as in the dictionary that it returns.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from vla_policy_ros.bundle.geometry import CenterCrop, Crop, Pad, Resize
from vla_policy_ros.bundle.manifest import (
    ActionGroup,
    Constant,
    FileName,
    Group,
    Identifier,
    Precision,
    Source,
)
from vla_policy_ros.bundle.strict import StrictModel

_NetworkSize = Annotated[int, Field(ge=0, le=16384)]


class NetworkResize(Resize):
    """Resize with the rule of the library the policy was trained with; without a size to that of the network's input."""

    height: _NetworkSize = 0
    """Rows in pixels; 0 takes the network's."""
    width: _NetworkSize = 0
    """Columns in pixels; 0 takes the network's."""


class NetworkCrop(Crop):
    """Cut a fixed rectangle out."""

    height: _NetworkSize = 0
    """Rows in pixels; 0 takes the network's."""
    width: _NetworkSize = 0
    """Columns in pixels; 0 takes the network's."""


class NetworkPad(Pad):
    """Pad to a size with a constant; after a resize `to: fit_inside` this is a letterbox."""

    height: _NetworkSize = 0
    """Rows in pixels; 0 takes the network's."""
    width: _NetworkSize = 0
    """Columns in pixels; 0 takes the network's."""


NetworkStep = Annotated[
    NetworkResize | CenterCrop | NetworkCrop | NetworkPad, Field(discriminator='kind')
]


class NetworkCamera(StrictModel):
    """One camera."""

    name: Identifier
    """Name of the camera; deployment files map it to a topic."""
    tensor: str
    """Input of the network. Cameras that name the same one go into it together, in the order of this list."""
    geometry: tuple[NetworkStep, ...] = ()
    """Steps in order; without any the image is stretched to the network's size, bilinear, as PIL does it."""
    color: Literal['rgb', 'bgr'] = 'rgb'
    """Order of the channels in the tensor."""
    range: tuple[float, float] | None = None
    """What black and white become, such as [-1, 1]; in place of `scale`, `mean` and `std`."""
    scale: float = 1 / 255
    """Factor on the uint8 value, before mean and standard deviation."""
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Subtracted after scaling, in the order of `color`."""
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Divided by after the mean, in the order of `color`; not 0."""
    layout: Literal['chw', 'hwc'] = 'chw'
    """Order of the dimensions of one image."""
    history_ns: tuple[int, ...] = (0,)
    """Offsets to the observation's stamp, oldest first, ending with 0."""

    @model_validator(mode='after')
    def _check_range(self) -> Self:
        if self.range and self.model_fields_set & {'scale', 'mean', 'std'}:
            raise ValueError('range, or scale, mean and std, not both')
        if self.range and self.range[0] >= self.range[1]:
            raise ValueError('a range that grows')
        return self


class NetworkState(StrictModel):
    """The state vector."""

    tensors: tuple[str, ...] = Field(min_length=1)
    """Inputs of the network that take the columns, side by side in this order."""
    groups: tuple[Group, ...] = Field(min_length=1)
    """Groups in the order of the vector."""
    pad_to: int | None = Field(default=None, ge=1)
    """Width after padding with zeros."""
    history_ns: tuple[int, ...] = (0,)
    """Offsets to the observation's stamp, oldest first, ending with 0."""


class NetworkAction(StrictModel):
    """What comes out."""

    tensors: tuple[str, ...] = ()
    """Outputs of the network that hold the columns, side by side in this order; all of them when left out."""
    groups: tuple[ActionGroup, ...] = Field(min_length=1)
    """Groups in the order of the columns."""
    horizon: int | None = Field(default=None, ge=1, le=4096)
    """Rows of a chunk; read from an output of three dimensions and more, else 1."""
    step_ms: float = Field(gt=0)
    """Time between two rows; for a single row, between two results."""


class NetworkDescription(StrictModel):
    """The whole of the description."""

    name: Annotated[str, Field(pattern=r'^[A-Za-z0-9_.\-]*$', max_length=64)] = ''
    """Name of the policy; that of the bundle's folder when left out."""
    family: str = ''
    """Model family, for people."""
    source: Source = Source()
    """Where the weights come from; `checkpoint` and `sha256` are filled in."""
    cameras: tuple[NetworkCamera, ...] = ()
    """Cameras in the order of the policy."""
    state: NetworkState | None = None
    """State vector; absent for a network that takes none."""
    action: NetworkAction
    """What comes out."""
    constants: tuple[Constant, ...] = ()
    """Inputs that never change."""
    statistics: FileName | None = None
    """Statistics file, as in a bundle, beside this one; without it those that are needed are computed from `--dataset`, whose
    columns have the names of the groups' columns."""
    precision: Precision = 'fp32'
    """Precision that the file was exported in."""
    opset: int | None = Field(default=None, ge=13, le=24)
    """Least version of the standard operators; an ONNX file keeps a higher one, PyTorch files begin with 18."""
