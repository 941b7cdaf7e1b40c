# SPDX-License-Identifier: Apache-2.0
"""A description held against its network: every input is filled once, every output has the width of its columns."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vla_policy_ros.bundle.geometry import CenterCrop
from vla_policy_ros.bundle.graph import state_width
from vla_policy_ros.bundle.manifest import Camera, State
from vla_policy_ros.bundle.onnx_model import ModelTensor
from vla_policy_ros.bundle.strict import parse
from vla_policy_ros.core.errors import ConfigurationError
from vla_policy_ros.core.specs import TensorSpec
from vla_policy_ros.export.network.description import (
    NetworkAction,
    NetworkCamera,
    NetworkDescription,
    NetworkResize,
    NetworkState,
    NetworkStep,
)
from vla_policy_ros.export.network.faults import describe, misfit
from vla_policy_ros.export.network.joints import Feed, Reading
from vla_policy_ros.export.network.shapes import (
    Size,
    Symbols,
    fill,
    image_layout,
    image_shape,
)

ACTION = 'action'
"""Pool tensor of the actions."""

_STATE = 'state'
# Not bfloat16, which ONNX Runtime, that every export is proven with, does not take on the CPU.
_IMAGE_TYPES = ('float32', 'float16', 'uint8')
_FLOAT_TYPES = ('float32', 'float16', 'float64')


@dataclass(slots=True, eq=False)
class FittedInputs:
    """What fills a network.

    Attributes:
        cameras: Cameras of the bundle.
        state: State of the bundle; None for none.
        feeds: One per input of the network.
    """

    cameras: list[Camera] = field(default_factory=list)
    state: State | None = None
    feeds: list[Feed] = field(default_factory=list)

    @property
    def joined(self) -> list[Feed]:
        """Inputs that no tensor of the pool is as it is."""
        return [feed for feed in self.feeds if not feed.is_direct]


def fit_inputs(
    description: NetworkDescription, tensors: Mapping[str, ModelTensor | None], where: str
) -> FittedInputs:
    """Find out how each input is filled.

    Args:
        description: The description.
        tensors: Inputs of the network in their order; None for one of which the file only says the name.
        where: Path of the description.

    Raises:
        ConfigurationError: An input is unknown (`unknown_input`), filled twice (`input_twice`) or not at all
            (`unfilled_input`), or does not fit what fills it.
    """
    _check_names(description, tensors, where)
    fit = _Fit(tensors, where)
    for name in dict.fromkeys(camera.tensor for camera in description.cameras):
        fit.add_images(name, description.cameras)
    order = [camera.name for camera in description.cameras]
    fit.result.cameras.sort(key=lambda camera: order.index(camera.name))
    if description.state:
        fit.add_state(description.state)
    for index, constant in enumerate(description.constants):
        shape = TensorSpec(f'constant_{index}', constant.shape, constant.dtype)
        fit.add_constant(constant.tensor, shape, f'{where}: constants[{index}]')
    return fit.result


def fit_outputs(action: NetworkAction, tensors: Sequence[TensorSpec], where: str) -> Reading:
    """Find out where the actions are.

    Args:
        action: The description of the action.
        tensors: Outputs of the network, their shapes fixed.
        where: Path of the description.

    Raises:
        ConfigurationError: An output is unknown (`unknown_output`), or its size is not that of the columns
            (`wrong_width`).
    """
    known = {tensor.name: tensor for tensor in tensors}
    for index, name in enumerate(action.tensors):
        if name not in known:
            place = f'{where}: action.tensors[{index}]'
            raise _unknown(place, name, known, code='unknown_output')
    outputs = [known[name] for name in action.tensors or known]
    horizon = action.horizon or _rows(outputs[0])
    width = sum(len(group.names) for group in action.groups)
    sizes = [math.prod(size or 1 for size in output.shape) for output in outputs]
    if sum(sizes) != horizon * width or any(size % horizon for size in sizes):
        told = '; '.join(describe(o.name, o.dtype, o.shape) for o in outputs)
        raise misfit(
            f'{where}: action',
            got=f'{told}: {sum(sizes) / horizon:g} numbers in each of {horizon} row(s)',
            expected=f'{width}, one for each column of the groups',
            next_step='Name all columns of the output, the outputs that hold them under `tensors`, and the `horizon`.',
            code='wrong_width',
        )
    is_direct = [(o.shape, o.dtype) for o in outputs] == [((1, horizon, width), 'float32')]
    pools = [ACTION] if is_direct else [f'output_{index}' for index in range(len(outputs))]
    widths = tuple(size // horizon for size in sizes)
    return Reading(tuple(outputs), tuple(pools), widths, horizon, ACTION)


class _Fit:
    """The inputs that are filled so far."""

    def __init__(self, tensors: Mapping[str, ModelTensor | None], where: str) -> None:
        self.result = FittedInputs()
        self._tensors = tensors
        self._where = where
        self._symbols = Symbols()

    def add_images(self, name: str, cameras: Sequence[NetworkCamera]) -> None:
        """Fill one input with all cameras that name it."""
        used = [(index, camera) for index, camera in enumerate(cameras) if camera.tensor == name]
        first, camera = used[0]
        where = f'{self._where}: cameras[{first}]'
        # TorchScript says no shapes: images are (cameras, channels, height, width) there.
        tensor = self._tensors[name] or ModelTensor(name, 'float32', _free_image(camera))
        self._check_type(tensor, _IMAGE_TYPES, where)
        settled = [
            self._settle_camera(camera, tensor, index, f'{self._where}: cameras[{index}]')
            for index, camera in used
        ]
        _check_alike(settled, where)
        shape = image_shape(
            tensor,
            layout=settled[0].layout,
            images=(len(settled), len(settled[0].history_ns)),
            size=settled[0].size,
            where=where,
        )
        self._symbols.settle(tensor, shape)
        self.result.cameras += settled
        parts = tuple(TensorSpec(c.tensor, c.tensor_shape, c.dtype) for c in settled)
        self._add_feed(TensorSpec(name, shape, tensor.dtype), parts)

    def add_state(self, state: NetworkState) -> None:
        """Fill the inputs that take parts of the state."""
        where = f'{self._where}: state'
        keys = state.model_fields_set - {'tensors'}
        entry = {'tensor': _STATE, **state.model_dump(include=keys, exclude_unset=True)}
        settled = parse(State, entry, where, ConfigurationError)
        rows, width = len(state.history_ns), state_width(settled)
        specs = []
        for name in state.tensors:
            tensor = self._tensors[name] or ModelTensor(name, 'float32', (None, None))
            self._check_type(tensor, _FLOAT_TYPES, where)
            specs.append(self._state_part(tensor, rows, width, is_only=len(state.tensors) == 1))
        found = sum(_width(spec) for spec in specs)
        if found != width:
            raise misfit(
                where,
                got=f'{"; ".join(describe(s.name, s.dtype, s.shape) for s in specs)}: {found} columns',
                expected=f'{width}, those of the groups',
                next_step='Name all columns that the network takes, or set `pad_to`.',
                code='wrong_width',
            )
        is_flat = rows == 1 and not (len(specs) == 1 and len(specs[0].shape) == 3)
        settled = settled.model_copy(update={'squeeze': is_flat})
        part = TensorSpec(_STATE, (1, width) if is_flat else (1, rows, width), 'float32')
        start = 0
        for spec in specs:
            columns = (start, start + _width(spec)) if len(specs) > 1 else None
            self._add_feed(spec, (part,), columns)
            start += _width(spec)
        self.result.state = settled

    def add_constant(self, name: str, value: TensorSpec, where: str) -> None:
        """Fill an input with a constant."""
        tensor = self._tensors[name] or ModelTensor(name, value.dtype, value.shape)
        fits = tensor.dtype == value.dtype and len(tensor.shape) == len(value.shape)
        sizes = zip(tensor.shape, value.shape, strict=False)
        if not fits or any(isinstance(want, int) and want != size for want, size in sizes):
            raise misfit(
                where,
                got=describe(name, value.dtype, value.shape),
                expected=describe(name, tensor.dtype, tensor.shape),
                next_step='Set `dtype` and `shape` as the network has them.',
                code='shape_mismatch',
            )
        self._symbols.settle(tensor, [size or 1 for size in value.shape])
        self._add_feed(TensorSpec(name, value.shape, value.dtype), (value,))

    def _state_part(
        self, tensor: ModelTensor, rows: int, width: int, *, is_only: bool
    ) -> TensorSpec:
        where = f'{self._where}: state'
        *head, last = tensor.shape or (0,)
        if not isinstance(last, int) and is_only:
            last = width
        fixed = fill(head, rows)
        if not tensor.shape or not isinstance(last, int) or fixed is None:
            raise misfit(
                where,
                got=describe(tensor.name, tensor.dtype, tensor.shape),
                expected=f'a vector, with {rows} row(s) before it and a known width',
                next_step='Name the input that takes the state, or export it with a fixed width.',
                code='wrong_rank' if fixed is None or not tensor.shape else 'free_dimension',
            )
        shape = (*fixed, last)
        self._symbols.settle(tensor, shape)
        return TensorSpec(tensor.name, shape, tensor.dtype)

    def _add_feed(
        self,
        spec: TensorSpec,
        parts: tuple[TensorSpec, ...],
        columns: tuple[int, int] | None = None,
    ) -> None:
        alike = columns is None and [(p.shape, p.dtype) for p in parts] == [
            (spec.shape, spec.dtype)
        ]
        pool = parts[0].name if alike else f'input_{len(self.result.feeds)}'
        self.result.feeds.append(Feed(spec, pool, parts, columns))

    def _settle_camera(
        self, camera: NetworkCamera, tensor: ModelTensor, index: int, where: str
    ) -> Camera:
        """Return the bundle's camera, the network's size filled in where the description leaves it out."""
        _, size = image_layout(tensor, camera.layout, where)
        keys = camera.model_fields_set - {'tensor', 'geometry', 'range'}
        steps = camera.geometry or (NetworkResize(),)
        entry = {
            **camera.model_dump(include=keys),
            'tensor': f'image_{index}',
            'geometry': [_complete(step, size, tensor, where) for step in steps],
            'dtype': tensor.dtype,
        }
        if camera.range:
            low, high = camera.range
            entry |= {'mean': [-low / (high - low)] * 3, 'std': [1 / (high - low)] * 3}
        settled = parse(Camera, entry, where, ConfigurationError)
        if any(
            isinstance(s, int) and s != have for s, have in zip(size, settled.size, strict=True)
        ):
            raise misfit(
                where,
                got=f'images of {settled.size[0]} x {settled.size[1]} px (height x width)',
                expected=f'{size[0]} x {size[1]}, as in {describe(tensor.name, tensor.dtype, tensor.shape)}',
                next_step="Leave height and width of the last geometry step out: they are the network's.",
                code='wrong_size',
            )
        return settled

    def _check_type(self, tensor: ModelTensor, allowed: Sequence[str], where: str) -> None:
        if tensor.dtype not in allowed:
            raise misfit(
                where,
                got=describe(tensor.name, tensor.dtype, tensor.shape),
                expected=f'one of {", ".join(allowed)}',
                next_step='Name another input, or export the network with a float32 input; casts inside are free.',
                code='unsupported_type',
            )


def _check_names(
    description: NetworkDescription, tensors: Mapping[str, ModelTensor | None], where: str
) -> None:
    state = description.state.tensors if description.state else ()
    used = [
        *((f'cameras[{i}].tensor', c.tensor) for i, c in enumerate(description.cameras)),
        *((f'state.tensors[{i}]', name) for i, name in enumerate(state)),
        *((f'constants[{i}].tensor', c.tensor) for i, c in enumerate(description.constants)),
    ]
    fillers: dict[str, str] = {}
    for place, name in used:
        if name not in tensors:
            raise _unknown(f'{where}: {place}', name, tensors, code='unknown_input')
        kind = 'cameras' if place.startswith('cameras') else place
        if fillers.setdefault(name, kind) != kind:
            raise misfit(
                f'{where}: {place}',
                got=f'{name!r}, which {fillers[name]} fills already',
                expected='every input to be filled once',
                next_step='Name another input.',
                code='input_twice',
            )
    missing = [name for name in tensors if name not in fillers]
    if missing:
        told = (tensors[name] or ModelTensor(name, 'a tensor', ()) for name in missing)
        raise misfit(
            where,
            got=f'nothing for {"; ".join(describe(t.name, t.dtype, t.shape) for t in told)}',
            expected='every input of the network to be filled',
            next_step='Name it as the `tensor` of a camera or of a constant, or among the `tensors` of the state.',
            code='unfilled_input',
        )


def _unknown(where: str, name: str, known: Iterable[str], *, code: str) -> ConfigurationError:
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    return misfit(
        where,
        got=repr(name),
        expected=f'one of {", ".join(names)}',
        next_step=f'Did you mean {close[0]!r}?' if close else 'Correct the name.',
        code=code,
    )


def _free_image(camera: NetworkCamera) -> tuple[int | None, ...]:
    return (None, 3, None, None) if camera.layout == 'chw' else (None, None, None, 3)


def _complete(
    step: NetworkStep, size: tuple[Size, Size], tensor: ModelTensor, where: str
) -> dict[str, Any]:
    """Return a step of the bundle, the network's size filled in where the description leaves it out."""
    entry = {'kind': step.kind, **step.model_dump(exclude_unset=True)}
    for key, value in zip(('height', 'width'), size, strict=True):
        if isinstance(step, CenterCrop) or getattr(step, key):
            continue
        if not isinstance(value, int):
            raise misfit(
                f'{where}.geometry',
                got=f'no {key}, and {describe(tensor.name, tensor.dtype, tensor.shape)}',
                expected=f'a {key} in pixels, which the network leaves open',
                next_step='Give both, for example `geometry: [{kind: resize, height: 224, width: 224}]`.',
                code='free_dimension',
            )
        entry[key] = value
    return entry


def _check_alike(cameras: Sequence[Camera], where: str) -> None:
    facts = {(c.size, c.layout, len(c.history_ns)) for c in cameras}
    if len(facts) > 1:
        raise misfit(
            where,
            got=f'{len(facts)} kinds of images in one input',
            expected='one size, layout and length of history',
            next_step='Give the cameras of one input the same geometry, layout and history_ns.',
            code='unlike_cameras',
        )


def _width(spec: TensorSpec) -> int:
    return spec.shape[-1] or 0


def _rows(output: TensorSpec) -> int:
    return (output.shape[-2] or 1) if len(output.shape) > 2 else 1
