# SPDX-License-Identifier: Apache-2.0
"""Proof that a bundle's stages join: every input is there when its stage runs, with the right shape and element type.

The proof walks through the stages in their order and keeps the pool as it would be at that point. Its result is the
shape of every pool tensor, so that the runtime can make all buffers before the first observation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vla_policy_ros.bundle.manifest import (
    MANIFEST_NAME,
    FlowMatching,
    Loop,
    Manifest,
    PrefixInputs,
    Stage,
    State,
)
from vla_policy_ros.bundle.onnx_model import ModelFacts, ModelTensor
from vla_policy_ros.core.errors import BundleError
from vla_policy_ros.core.specs import TensorSpec, describe_tensor

HOST_TYPES = (
    'float32',
    'float64',
    'float16',
    'bfloat16',
    'uint8',
    'int8',
    'int32',
    'int64',
    'bool',
)
_SHAPE_HINT = 'Export the stage again, or mend the manifest so that both agree.'


def join_stages(
    manifest: Manifest, models: Sequence[ModelFacts]
) -> tuple[dict[str, TensorSpec], list[BundleError]]:
    """Walk through the stages; return every pool tensor with its fixed shape, and every fault.

    Args:
        manifest: The bundle's manifest.
        models: Facts of the ONNX file of each stage, in the order of the stages.
    """
    walk = _Walk(manifest, models)
    walk.declare_observation()
    for index, (stage, model) in enumerate(zip(manifest.stages, models, strict=True)):
        if stage.in_loop and not walk.in_loop:
            walk.enter_loop()
        elif walk.in_loop and not stage.in_loop:
            walk.leave_loop()
        walk.visit(index, stage, model)
    if walk.in_loop:
        walk.leave_loop()
    walk.check_action()
    return walk.tensors, walk.faults


def state_width(state: State) -> int:
    """Return the width of the state tensor: `sin_cos` doubles its columns, padding comes last."""
    factors = ((len(g.names), 2 if g.normalization == 'sin_cos' else 1) for g in state.groups)
    width = sum(count * factor for count, factor in factors)
    return max(width, state.pad_to or 0)


def observation_tensors(manifest: Manifest) -> tuple[str, ...]:
    """Return the names of the pool tensors that an observation fills."""
    names = [camera.tensor for camera in manifest.cameras]
    if manifest.state:
        names.append(manifest.state.tensor)
    words = manifest.instruction
    if words:
        names += [name for name in (words.tokens, words.mask) if name]
    return tuple(names)


def prefix_inputs(manifest: Manifest) -> PrefixInputs | None:
    """Return the inputs for the first rows of a chunk, None where the network has none."""
    loop = manifest.loop
    return loop.prefix if isinstance(loop, FlowMatching) else None


def noise_draws(loop: Loop) -> int:
    """Return how many noise tensors one run takes: the first sample, and for DDPM one more per step but the last."""
    return loop.steps if loop.kind == 'ddpm' else 1


class _Walk:
    """The pool at one point of the walk, and the faults found so far."""

    def __init__(self, manifest: Manifest, models: Sequence[ModelFacts]) -> None:
        self.tensors: dict[str, TensorSpec] = {}
        self.faults: list[BundleError] = []
        self.in_loop = False
        self._manifest = manifest
        self._models = models
        self._gone: set[str] = set()  # pool tensors that no later stage may read
        self._broken: set[str] = set()  # faulty ones, so that one fault does not raise others
        self._made_in_loop: set[str] = set()

    def declare_observation(self) -> None:
        """Add what the runtime fills before the first stage."""
        for index, camera in enumerate(self._manifest.cameras):
            spec = TensorSpec(camera.tensor, camera.tensor_shape, camera.dtype)
            self._declare(f'cameras[{index}].tensor', spec)
        state = self._manifest.state
        if state:
            history = () if state.squeeze else (len(state.history_ns),)
            spec = TensorSpec(state.tensor, (1, *history, state_width(state)), 'float32')
            self._declare('state.tensor', spec)
        words = self._manifest.instruction
        if words:
            for key, name in (('tokens', words.tokens), ('mask', words.mask)):
                if name:
                    spec = TensorSpec(name, (1, words.max_tokens), 'int64')
                    self._declare(f'instruction.{key}', spec)
        for index, constant in enumerate(self._manifest.constants):
            spec = TensorSpec(constant.tensor, constant.shape, constant.dtype)
            self._declare(f'constants[{index}].tensor', spec)
        self._declare_prefix()

    def _declare_prefix(self) -> None:
        prefix = prefix_inputs(self._manifest)
        if prefix is None:
            return
        shape = self._sample_shape()
        specs = {'actions': TensorSpec(prefix.actions, shape, 'float32')}
        if prefix.mask:
            specs['mask'] = TensorSpec(prefix.mask, shape[:2], prefix.mask_dtype)
        if prefix.length:
            specs['length'] = TensorSpec(prefix.length, (1,), 'int64')
        read = {name for stage in self._manifest.stages for name in stage.inputs.values()}
        for key, spec in specs.items():
            if None in spec.shape:
                self._broken.add(spec.name)  # told of the sample, whose shape it has
            else:
                self._declare(f'loop.prefix.{key}', spec)
            if spec.name not in read:
                self._fault(
                    f'loop.prefix.{key}',
                    got=f'{spec.name!r}, which no stage reads',
                    expected='an input of a network that was trained with it',
                    next_step='Name the input in the stage, or leave loop.prefix away.',
                    code='not_read',
                )

    def enter_loop(self) -> None:
        """Add the sample and the time step."""
        loop = self._manifest.loop
        assert loop  # the manifest refuses in_loop stages without a loop
        self.in_loop = True
        shape = self._sample_shape()
        if None in shape:
            self._broken.add(loop.sample)
            self._fault(
                'loop.sample',
                got=f'the shape {list(shape)}',
                expected='a width that an input or output of a stage in the loop fixes',
                next_step='Export a stage of the loop with a fixed width.',
                code='free_dimension',
            )
        else:
            self._declare('loop.sample', TensorSpec(loop.sample, shape, 'float32'))
        self._declare('loop.timestep', TensorSpec(loop.timestep, (1,), loop.timestep_dtype))

    def leave_loop(self) -> None:
        """Check the prediction and take the time step away."""
        loop = self._manifest.loop
        assert loop
        self.in_loop = False
        self._gone.add(loop.timestep)
        if {loop.prediction, loop.sample} & self._broken:
            return
        if loop.prediction not in self._made_in_loop:
            self._fault(
                'loop.prediction',
                got=f'{loop.prediction!r}, which no stage of the loop puts out',
                expected=f'one of {_names(self._made_in_loop)}',
                next_step='Name an output of a stage with in_loop.',
                code='not_produced',
            )
            return
        wanted, found = self.tensors[loop.sample], self.tensors[loop.prediction]
        if (wanted.shape, wanted.dtype) != (found.shape, found.dtype):
            self._fault(
                'loop.prediction',
                got=_describe(found),
                expected=f'{_describe(wanted)} like the sample',
                next_step=_SHAPE_HINT,
                code='shape_mismatch',
            )

    def visit(self, index: int, stage: Stage, model: ModelFacts) -> None:
        """Join one stage to the pool and add its outputs."""
        self._check_names(f'stages[{index}].inputs', stage.inputs, model.inputs)
        self._check_names(f'stages[{index}].outputs', stage.outputs, model.outputs)
        sizes: dict[str, int] = {}
        before = len(self.faults) + len(self._broken)
        for tensor in model.inputs:
            if tensor.name in stage.inputs:
                place = f'stages[{index}].inputs.{tensor.name}'
                self._join_input(place, tensor, stage.inputs[tensor.name], sizes)
        joined = before == len(self.faults) + len(self._broken)
        for tensor in model.outputs:
            if tensor.name in stage.outputs:
                shape = self._settle(_known(tensor, sizes), stage.outputs[tensor.name])
                if None in shape and not joined:
                    self._broken.add(stage.outputs[tensor.name])
                    continue
                place = f'stages[{index}].outputs.{tensor.name}'
                self._add_output(place, tensor, stage.outputs[tensor.name], sizes)

    def check_action(self) -> None:
        """Check the tensor that the actions are read from."""
        action = self._manifest.action
        if action.tensor in self._broken:
            return
        found = self.tensors.get(action.tensor)
        width = sum(len(group.names) for group in action.groups)
        expected = f'float32[1, {action.horizon}, >= {width}]'
        if found is None:
            self._fault(
                'action.tensor',
                got=f'{action.tensor!r}, which nothing puts out',
                expected=f'one of {_names(self.tensors)}',
                next_step='Name a pool tensor.',
                code='not_produced',
            )
        elif not (
            len(found.shape) == 3
            and found.shape[:2] == (1, action.horizon)
            and (found.shape[2] or 0) >= width
            and found.dtype == 'float32'
        ):
            self._fault(
                'action.tensor',
                got=_describe(found),
                expected=expected,
                next_step='Check action.horizon and action.groups against the network.',
                code='shape_mismatch',
            )

    def _check_names(
        self, place: str, mapping: Mapping[str, str], tensors: Sequence[ModelTensor]
    ) -> None:
        known = {tensor.name for tensor in tensors}
        for name in sorted(set(mapping) - known):
            self._fault(
                f'{place}.{name}',
                got='a name that the ONNX file does not have',
                expected=f'one of {_names(known)}',
                next_step='Correct the name.',
                code='unknown_name',
            )
        for name in sorted(known - set(mapping)):
            self._fault(
                place,
                got=f'no entry for {name!r}',
                expected=f'a pool tensor for each of {_names(known)}',
                next_step='Add the entry.',
                code='unmapped_name',
            )

    def _join_input(
        self, place: str, tensor: ModelTensor, pool_name: str, sizes: dict[str, int]
    ) -> None:
        if pool_name in self._broken:
            return
        found = self.tensors.get(pool_name)
        if found is None or pool_name in self._gone:
            self._fault(
                place,
                got=f'{pool_name!r}, which is not there when this stage runs',
                expected=f'one of {_names(set(self.tensors) - self._gone)}',
                next_step='Put the stage that makes it first, or correct the name.',
                code='not_produced',
            )
        elif not _fits(tensor, found, sizes):
            wanted = TensorSpec(tensor.name, _known(tensor, sizes), tensor.dtype)
            self._fault(
                place,
                got=f'{pool_name!r} as {_describe(found)}',
                expected=_describe(wanted),
                next_step=_SHAPE_HINT,
                code='shape_mismatch',
            )

    def _add_output(
        self, place: str, tensor: ModelTensor, pool_name: str, sizes: Mapping[str, int]
    ) -> None:
        shape = self._settle(_known(tensor, sizes), pool_name)
        if None in shape:
            self._broken.add(pool_name)
            self._fault(
                place,
                got=f'the shape {list(tensor.shape)}',
                expected='a shape that the shapes of the inputs fix',
                next_step='Export the stage with fixed shapes.',
                code='free_dimension',
            )
            return
        self._declare(place, TensorSpec(pool_name, shape, tensor.dtype))
        if self.in_loop:
            self._made_in_loop.add(pool_name)

    def _settle(self, shape: tuple[int | None, ...], pool_name: str) -> tuple[int | None, ...]:
        """Fill free dimensions with what the manifest fixes: one batch, the horizon, the sample's shape."""
        action, loop = self._manifest.action, self._manifest.loop
        hint: tuple[int | None, ...] = (1,)
        if pool_name == action.tensor:
            hint = (1, action.horizon)
        elif loop and pool_name == loop.prediction and loop.sample in self.tensors:
            hint = self.tensors[loop.sample].shape
        padded = (*hint, *[None] * len(shape))
        return tuple(
            other if size is None else size for size, other in zip(shape, padded, strict=False)
        )

    def _sample_shape(self) -> tuple[int | None, ...]:
        loop = self._manifest.loop
        assert loop
        shape: list[int | None] = [1, None, None]
        for stage, model in zip(self._manifest.stages, self._models, strict=True):
            if not stage.in_loop:
                continue
            named = [(t, stage.inputs.get(t.name) == loop.sample) for t in model.inputs]
            named += [(t, stage.outputs.get(t.name) == loop.prediction) for t in model.outputs]
            for tensor, is_sample in named:
                if is_sample and len(tensor.shape) == 3:
                    sizes = (s if isinstance(s, int) else None for s in tensor.shape)
                    shape = [old or new for old, new in zip(shape, sizes, strict=True)]
        return 1, shape[1] or self._manifest.action.horizon, shape[2]

    def _declare(self, place: str, spec: TensorSpec) -> None:
        if spec.name in self.tensors:
            self._fault(
                place,
                got=f'{spec.name!r}, which is in the pool already',
                expected='a name of its own',
                next_step='Rename the tensor.',
                code='tensor_twice',
            )
            return
        if spec.dtype not in HOST_TYPES:
            self._broken.add(spec.name)
            self._fault(
                place,
                got=spec.dtype,
                expected=f'one of {_names(HOST_TYPES)}',
                next_step='Export the stage with float32 inputs and outputs; casts inside are free.',
                code='unsupported_type',
            )
            return
        self.tensors[spec.name] = spec

    def _fault(self, place: str, *, got: str, expected: str, next_step: str, code: str) -> None:
        self.faults.append(
            BundleError(
                f'{MANIFEST_NAME}: {place}',
                got=got,
                expected=expected,
                next_step=next_step,
                code=code,
            )
        )


def _fits(tensor: ModelTensor, found: TensorSpec, sizes: dict[str, int]) -> bool:
    """Compare, and note the size that each symbol takes."""
    if tensor.dtype != found.dtype or len(tensor.shape) != len(found.shape):
        return False
    for wanted, size in zip(tensor.shape, found.shape, strict=True):
        assert size is not None  # the pool has no free dimensions
        if isinstance(wanted, str):
            wanted = sizes.setdefault(wanted, size)  # noqa: PLW2901 - the symbol's size
        if wanted not in (None, size):
            return False
    return True


def _known(tensor: ModelTensor, sizes: Mapping[str, int]) -> tuple[int | None, ...]:
    return tuple(sizes.get(s) if isinstance(s, str) else s for s in tensor.shape)


def _describe(spec: TensorSpec) -> str:
    return describe_tensor(spec.dtype, spec.shape)


def _names(names: Mapping[str, object] | set[str] | Sequence[str]) -> str:
    return ', '.join(sorted(names)) or '(nothing)'
