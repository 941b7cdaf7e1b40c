# SPDX-License-Identifier: Apache-2.0
"""`bundle.yaml`: everything a policy needs to run, with no code in it.

The pool. Stages and the loop exchange named tensors through one pool. The runtime fills the pool's inputs (one tensor
per camera, the state, the instruction's tokens, constants, noise and the time step); every stage reads tensors that are
already there and adds its outputs. All of them carry a batch dimension first.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from vla_policy_ros.bundle.geometry import CenterCrop, Crop, GeometryStep, Pad, Resize, Size
from vla_policy_ros.bundle.strict import StrictModel
from vla_policy_ros.core.specs import ColumnKind, Representation

MANIFEST_NAME = 'bundle.yaml'
SCHEMA_VERSION = 1

Identifier = Annotated[str, Field(pattern=r'^[A-Za-z0-9_][A-Za-z0-9_.\-/]*$', max_length=128)]
ColumnName = Annotated[str, Field(pattern=r'^[^\p{C}\s](\P{C}*[^\p{C}\s])?$', max_length=256)]
FileName = Annotated[str, Field(pattern=r'^[A-Za-z0-9_][A-Za-z0-9_.\-/]*$', max_length=256)]
ElementType = Literal['float32', 'float16', 'bfloat16', 'uint8', 'int32', 'int64', 'bool']
Precision = Literal['fp32', 'fp16', 'bf16', 'fp8', 'int8']


class Source(StrictModel):
    """Where the weights come from."""

    checkpoint: str = ''
    """Name or path of the checkpoint the bundle was exported from."""
    sha256: str = ''
    """Content hash of that checkpoint."""
    license: str = ''
    """Licence of the weights (SPDX)."""
    note: str = ''
    """Anything a user should know: training data, limits."""


class Camera(StrictModel):
    """One camera: its way from pixels to a tensor."""

    name: Identifier
    """Name of the camera; deployment files map it to a topic."""
    tensor: Identifier
    """Pool tensor: (1, T*3, H, W) for `chw`, (1, T, H, W, 3) for `hwc`, (1, T*N, 3*temporal*P*P) for `patches`; T is the
    length of the history, P the patch size, N = H*W / P*P the patches of one image."""
    geometry: tuple[GeometryStep, ...]
    """Steps in order; the last one fixes height and width."""
    color: Literal['rgb', 'bgr'] = 'rgb'
    """Order of the channels in the tensor."""
    scale: float = 1 / 255
    """Factor on the uint8 value, before mean and standard deviation."""
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Subtracted after scaling, in the order of `color`."""
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Divided by after the mean, in the order of `color`; not 0."""
    layout: Literal['chw', 'hwc', 'patches'] = 'chw'
    """Order of the tensor's dimensions. `patches`: one row per patch as Qwen2-VL's image processor and its successors make
    them, with the values of a row in the order channel, repetition, pixel row, pixel column."""
    patch_size: Size | None = None
    """`patches` only, and needed there: edge of a square patch in pixels."""
    merge_size: Size = 1
    """`patches` only: edge, in patches, of the windows that the network merges. Windows come row by row, and the patches of
    a window follow each other, row by row; with 1 all patches come row by row."""
    temporal: Size = 1
    """`patches` only: how often the image stands in a row, as for a network that takes images for still videos."""
    dtype: Literal['float32', 'float16', 'bfloat16', 'uint8'] = 'float32'
    """Element type; `uint8` skips scale, mean and std. bfloat16 is the float32 value rounded to the nearest, ties to even."""
    history_ns: tuple[int, ...] = (0,)
    """Offsets to the observation's stamp, oldest first, ending with 0."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the tensor in pixels."""
        last = self.geometry[-1]
        assert not isinstance(last, CenterCrop)  # refused by _check
        return last.height, last.width

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one image in the tensor: (3, H, W), (H, W, 3) or (N, 3*temporal*P*P)."""
        height, width = self.size
        if self.patch_size:
            area = self.patch_size**2
            return height * width // area, 3 * self.temporal * area
        return (3, height, width) if self.layout == 'chw' else (height, width, 3)

    @property
    def tensor_shape(self) -> tuple[int, ...]:
        """Shape of the pool tensor; the images of the history lie one after another in it."""
        frames, shape = len(self.history_ns), self.image_shape
        return (1, frames, *shape) if self.layout == 'hwc' else (1, frames * shape[0], *shape[1:])

    @model_validator(mode='after')
    def _check(self) -> Self:
        last = self.geometry[-1] if self.geometry else None
        if not (isinstance(last, Crop | Pad) or (isinstance(last, Resize) and last.to == 'exact')):
            raise ValueError(
                'a last geometry step that fixes the size: resize to exact, crop or pad'
            )
        if any(value == 0 for value in self.std):
            raise ValueError('std without zeros')
        _check_history(self.history_ns)
        self._check_patches()
        return self

    def _check_patches(self) -> None:
        if self.layout != 'patches':
            if (self.patch_size, self.merge_size, self.temporal) != (None, 1, 1):
                raise ValueError('patch_size, merge_size and temporal only with layout patches')
            return
        if self.patch_size is None:
            raise ValueError('a patch_size for layout patches')
        window_px = self.patch_size * self.merge_size
        if any(edge % window_px for edge in self.size):
            raise ValueError(f'height and width that are multiples of {window_px} px')


class Group(StrictModel):
    """Columns that are normalised together."""

    name: Identifier
    """Name of the group, and its key in the statistics file; unique among state and action."""
    names: tuple[ColumnName, ...] = Field(min_length=1)
    """Joint or channel names in order."""
    units: tuple[str, ...] = Field(min_length=1)
    """One unit for all columns, or one each."""
    kinds: tuple[ColumnKind, ...] = (ColumnKind.LINEAR,)
    """One kind for all columns, or one each."""
    normalization: Literal['identity', 'min_max', 'quantile', 'mean_std', 'sin_cos'] = 'identity'
    """`min_max` and `quantile` (q01, q99) map to [-1, 1], `mean_std` to z-scores, `sin_cos` (state only) to [sin, cos]."""
    clip: bool = False
    """Clip normalised values of `min_max` and `quantile` to [-1, 1]."""

    @model_validator(mode='after')
    def _check_lengths(self) -> Self:
        for key, values in (('units', self.units), ('kinds', self.kinds)):
            if len(values) not in (1, len(self.names)):
                raise ValueError(f'1 or {len(self.names)} {key}, as many as names')
        return self


class ActionGroup(Group):
    """Action columns that are normalised together and mean the same."""

    representation: Representation = Representation.ABSOLUTE
    """What the network's numbers mean; `relative_to_observation` is turned into absolute targets by the runtime."""
    pose_format: Literal['none', 'xyz_rot6d', 'xyz_rotvec'] = 'none'
    """Relative actions only: `none` adds column by column, the others compose with the observed pose."""

    @model_validator(mode='after')
    def _check_action(self) -> Self:
        if self.normalization == 'sin_cos':
            raise ValueError('a normalization other than sin_cos, which only a state can have')
        width = {'none': len(self.names), 'xyz_rot6d': 9, 'xyz_rotvec': 6}[self.pose_format]
        if width != len(self.names):
            raise ValueError(f'{width} names for pose_format {self.pose_format}')
        return self


class State(StrictModel):
    """The state vector."""

    tensor: Identifier
    """Pool tensor: (1, T, width), or (1, width) when `squeeze`."""
    groups: tuple[Group, ...] = Field(min_length=1)
    """Groups in the order of the vector."""
    pad_to: int | None = Field(default=None, ge=1)
    """Width after padding with zeros."""
    history_ns: tuple[int, ...] = (0,)
    """Offsets to the observation's stamp, oldest first, ending with 0."""
    squeeze: bool = False
    """Drop the history dimension (only with a history of one)."""

    @model_validator(mode='after')
    def _check(self) -> Self:
        _check_history(self.history_ns)
        if self.squeeze and len(self.history_ns) != 1:
            raise ValueError('squeeze with a history of one')
        return self


class InstructionInput(StrictModel):
    """How words become tokens."""

    tokenizer: FileName
    """File in the format of the Hugging Face tokenizers library."""
    tokens: Identifier
    """Pool tensor of token ids, (1, max_tokens) int64."""
    mask: Identifier | None = None
    """Pool tensor, 1 where there is a token, (1, max_tokens) int64."""
    max_tokens: int = Field(ge=1, le=4096)
    """Length after padding; a longer instruction is refused."""
    padding_side: Literal['left', 'right'] = 'right'
    """Where padding goes."""
    pad_token: str = '[PAD]'
    """Token used for padding."""
    template: str = '{instruction}'
    """Text around the instruction, and around `{state}` for a policy that reads its state as words."""
    state_bins: int = Field(default=256, ge=2, le=65536)
    """How `{state}` tells the state's tensor: each number as the index of its bin, so many in [-1, 1]; -1 below, the last above."""
    cleaning: Literal['none', 'lower_no_punctuation', 'one_line'] = 'none'
    """Of the training texts: GR00T lower-cases, drops punctuation; `one_line` (pi0.5) strips, makes blanks of `_` and line ends."""
    allow_empty: bool = False
    """Whether the policy runs without words."""

    @model_validator(mode='after')
    def _check(self) -> Self:
        if '{instruction}' not in self.template:
            raise ValueError('a template that holds {instruction}')
        return self


class Action(StrictModel):
    """The action layout and its place in time."""

    tensor: Identifier
    """Pool tensor the actions are read from after the last stage: (1, K, width), width >= number of columns."""
    groups: tuple[ActionGroup, ...] = Field(min_length=1)
    """Groups in the order of the vector."""
    horizon: int = Field(ge=1, le=4096)
    """K, the rows of a chunk."""
    step_ns: int = Field(gt=0)
    """Time between two rows."""
    offset_ns: int = 0
    """Time of row 0 after the observation's stamp."""


class Constant(StrictModel):
    """A pool tensor that never changes, such as an embodiment id."""

    tensor: Identifier
    """Pool tensor."""
    dtype: ElementType = 'int64'
    """Element type."""
    shape: tuple[int, ...] = (1,)
    """Shape; every element gets the value."""
    value: float
    """The value."""


class Stage(StrictModel):
    """One network."""

    name: Identifier
    """Name in reports and latencies."""
    onnx: FileName
    """ONNX file, relative to the bundle."""
    inputs: dict[str, Identifier]
    """Input of the network to pool tensor."""
    outputs: dict[str, Identifier]
    """Output of the network to pool tensor."""
    precision: Precision = 'fp32'
    """Precision the network is meant to run in."""
    in_loop: bool = False
    """True for the stages that run once per denoise step; they must stand together."""


class PrefixInputs(StrictModel):
    """Inputs of a network that was trained with the first rows of its chunk given (training-time RTC, arXiv 2512.05964)."""

    actions: Identifier
    """Pool tensor of the given rows, float32 in the sample's shape; all other rows are 0."""
    mask: Identifier | None = None
    """Pool tensor, 1 for given rows, (1, K)."""
    mask_dtype: Literal['bool', 'float32', 'int64'] = 'bool'
    """Element type of the mask."""
    length: Identifier | None = None
    """Pool tensor with the number of given rows, (1,) int64."""
    max_delay_steps: int = Field(ge=1)
    """Most rows that were given in training."""

    @model_validator(mode='after')
    def _check(self) -> Self:
        if not (self.mask or self.length):
            raise ValueError('a mask or a length: the network must be told which rows are given')
        return self


class FlowMatching(StrictModel):
    """Flow matching, integrated with explicit Euler: x <- x + dt * velocity over `steps` steps."""

    kind: Literal['flow_matching_euler'] = 'flow_matching_euler'
    steps: int = Field(ge=1, le=1000)
    """Number of steps."""
    sample: Identifier
    """Pool tensor that is integrated, (1, K, width) float32; starts as N(0, 1) noise."""
    prediction: Identifier
    """Pool tensor with the velocity, same shape."""
    timestep: Identifier
    """Pool tensor with the time, (1,)."""
    timestep_dtype: Literal['int64', 'float32'] = 'float32'
    """Element type of the time; int64 is truncated."""
    timestep_scale: float = 1.0
    """Factor on the time in [0, 1]; 1000 for GR00T's buckets."""
    noise_at: Literal[0, 1] = 0
    """Time at which the sample is pure noise: 0 for GR00T (time runs up), 1 for pi0 and SmolVLA (time runs down)."""
    prefix: PrefixInputs | None = None
    """Inputs for real-time chunking; absent for a network without them."""
    seed: int = 0
    """Seed of the noise; together with the observation's stamp it fixes the noise of every chunk."""


class Diffusion(StrictModel):
    """DDIM (deterministic) or DDPM denoising with the schedules of the diffusers library."""

    kind: Literal['ddim', 'ddpm']
    steps: int = Field(ge=1, le=1000)
    """Number of inference steps."""
    train_timesteps: int = Field(default=100, ge=1)
    """Number of steps in training."""
    beta_schedule: Literal['linear', 'scaled_linear', 'squaredcos_cap_v2'] = 'squaredcos_cap_v2'
    """Noise schedule."""
    beta_start: float = 0.0001
    """First beta of the linear schedules."""
    beta_end: float = 0.02
    """Last beta of the linear schedules."""
    prediction_type: Literal['epsilon', 'sample', 'v_prediction'] = 'epsilon'
    """What the network predicts."""
    clip_sample: float | None = Field(default=1.0, gt=0)
    """Clip the predicted clean sample to +- this; null for no clipping."""
    sample: Identifier
    """Pool tensor that is denoised, (1, K, width) float32; starts as N(0, 1) noise."""
    prediction: Identifier
    """Pool tensor with the prediction, same shape."""
    timestep: Identifier
    """Pool tensor with the training time step, (1,)."""
    timestep_dtype: Literal['int64', 'float32'] = 'int64'
    """Element type of the time step."""
    seed: int = 0
    """Seed of the noise; together with the observation's stamp it fixes the noise of every chunk."""


Loop = Annotated[FlowMatching | Diffusion, Field(discriminator='kind')]


class Manifest(StrictModel):
    """The whole of `bundle.yaml`."""

    schema_version: Literal[1]
    """Version of this schema."""
    name: Annotated[str, Field(pattern=r'^[A-Za-z0-9_.\-]+$', max_length=64)]
    """Name of the policy."""
    family: str = ''
    """Model family, for people; the runtime does not look at it."""
    source: Source = Source()
    """Where the weights come from."""
    cameras: tuple[Camera, ...]
    """Cameras in the order of the policy."""
    state: State | None = None
    """State vector; absent for a policy that takes none."""
    instruction: InstructionInput | None = None
    """Language input; absent for a policy that takes none."""
    action: Action
    """What comes out."""
    constants: tuple[Constant, ...] = ()
    """Tensors that never change."""
    stages: tuple[Stage, ...] = Field(min_length=1)
    """Networks in order."""
    loop: Loop | None = None
    """Denoise loop around the stages marked `in_loop`; absent for none."""
    statistics: FileName | None = None
    """JSON file: group name to min, max, mean, std, q01, q99."""
    probe: FileName | None = None
    """NPZ file with inputs, noise and reference outputs."""
    files: dict[FileName, Annotated[str, Field(pattern='^[0-9a-f]{64}$')]]
    """SHA-256 of every other file in the bundle."""

    @model_validator(mode='after')
    def _check(self) -> Self:
        _check_unique('camera', [camera.name for camera in self.cameras])
        _check_unique('stage', [stage.name for stage in self.stages])
        _check_unique('action column', [n for g in self.action.groups for n in g.names])
        if self.state:
            _check_unique('state column', [n for g in self.state.groups for n in g.names])
            groups = (*self.state.groups, *self.action.groups)  # keys of one statistics file
            _check_unique('state and action group', [group.name for group in groups])
        elif self.instruction and '{state}' in self.instruction.template:
            raise ValueError('a state, which the template of the instruction holds')
        inside = [index for index, stage in enumerate(self.stages) if stage.in_loop]
        if bool(inside) != bool(self.loop):
            raise ValueError('stages with in_loop exactly when there is a loop')
        if inside and inside != list(range(inside[0], inside[-1] + 1)):
            raise ValueError('stages with in_loop that stand together')
        return self


def _check_history(history_ns: tuple[int, ...]) -> None:
    if not history_ns or history_ns[-1] != 0 or list(history_ns) != sorted(set(history_ns)):
        raise ValueError('history_ns that grows and ends with 0')


def _check_unique(what: str, names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f'{what} names that are unique (twice: {", ".join(twice)})')
