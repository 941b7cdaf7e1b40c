# SPDX-License-Identifier: Apache-2.0
"""Guidance of a flow-matching loop towards the rows of a prefix, on the host; and the way of its gradient."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import numpy as np

from vla_policy_ros.bundle.bundle import Bundle
from vla_policy_ros.bundle.chunk_prefix import PrefixTensors
from vla_policy_ros.bundle.loop_steps import guidance_steps
from vla_policy_ros.bundle.manifest import FlowMatching, Stage
from vla_policy_ros.core.engine import DifferentiableExecution, Tensor
from vla_policy_ros.core.errors import ConfigurationError
from vla_policy_ros.core.specs import Array, TensorSpec
from vla_policy_ros.policies.stages import BoundStage


class Guidance:
    """Turns the prediction towards the prefix, see `bundle.loop_steps.GuidanceStep`; nothing is allocated per run.

    Args:
        loop: Settings of the loop.
        sample: (1, K, W) float32, read.
        prediction: (1, K, W) float32, changed in place.
        prefix: Wanted rows, and their weights.
        max_weight: Largest factor on the gradient.
    """

    def __init__(
        self,
        loop: FlowMatching,
        sample: Array,
        *,
        prediction: Array,
        prefix: PrefixTensors[Array],
        max_weight: float,
    ) -> None:
        self.error = np.zeros_like(sample)
        """(1, K, W) weighted distance of the expected end to the prefix: the seed of the gradient."""
        self.gradient = np.zeros_like(sample)
        """(1, K, W) the error times the Jacobian of the prediction; written by the stages of the gradient."""
        self._steps = guidance_steps(loop, max_weight=max_weight)
        self._sample = sample
        self._prediction = prediction
        self._wanted = prefix.actions
        self._weights = prefix.factors[:, None]
        self._term = np.zeros_like(sample)

    def measure(self, index: int) -> None:
        """Write the error of one step, whose prediction is there."""
        np.multiply(self._prediction, self._steps[index].to_end, out=self._term)
        np.add(self._sample, self._term, out=self._term)
        np.subtract(self._wanted, self._term, out=self._term)
        np.multiply(self._term, self._weights, out=self.error)

    def correct(self, index: int) -> None:
        """Change the prediction of one step, whose gradient is there."""
        step = self._steps[index]
        np.multiply(self.gradient, step.to_end, out=self._term)
        np.add(self.error, self._term, out=self._term)
        np.multiply(self._term, step.strength, out=self._term)
        np.add(self._prediction, self._term, out=self._prediction)


def bind_gradient(
    bundle: Bundle,
    body: tuple[BoundStage, ...],
    *,
    seed: Tensor,
    gradient: Tensor,
    make: Callable[[TensorSpec], Tensor],
    undo: ExitStack,
) -> tuple[BoundStage, ...]:
    """Bind the way back from the prediction to the sample, through the stages of the loop.

    Args:
        bundle: The bundle.
        body: Its stages in the loop.
        seed: What comes in at the prediction.
        gradient: What comes out at the sample.
        make: Makes a tensor for what comes in between.
        undo: Takes what releases the bindings.

    Raises:
        ConfigurationError: The engine gives no gradient (`needs_gradient`), or the stages are no chain (`no_chain`).
    """
    loop = bundle.manifest.loop
    assert loop
    stages = {stage.name: stage for stage in bundle.manifest.stages}
    moving = _moving_tensors([stages[bound.name] for bound in body], loop.sample)
    wanted, way = loop.prediction, []
    for bound in reversed(body):
        stage = stages[bound.name]
        outputs = [key for key, name in stage.outputs.items() if name == wanted]
        if not outputs:
            continue
        inputs = [key for key, name in stage.inputs.items() if name in moving]
        if len(inputs) != 1 or not isinstance(bound.execution, DifferentiableExecution):
            raise _no_way(stage, inputs)
        wanted = stage.inputs[inputs[0]]
        target = gradient if wanted == loop.sample else make(bundle.tensors[wanted])
        execution = bound.execution.bind_gradient(
            output_name=outputs[0], seed=seed, input_name=inputs[0], gradient=target
        )
        undo.callback(execution.close)
        way.append(BoundStage(bound.name, execution))
        seed = target
    return tuple(way)


def _moving_tensors(stages: list[Stage], sample: str) -> set[str]:
    """Return the pool tensors that depend on the sample."""
    moving = {sample}
    for stage in stages:
        if moving & set(stage.inputs.values()):
            moving |= set(stage.outputs.values())
    return moving


def _no_way(stage: Stage, inputs: list[str]) -> ConfigurationError:
    if len(inputs) == 1:
        got, code = f'stage {stage.name!r} on an engine without gradients', 'needs_gradient'
    else:
        got = f'stage {stage.name!r}, which takes {len(inputs)} tensors that depend on the sample'
        code = 'no_chain'
    return ConfigurationError(
        'policy.rtc.kind',
        got=f"'guided' with {got}",
        expected='stages in the loop that follow one another, on an engine with gradients',
        next_step='Choose kind: blend, which needs no gradient, or export the loop as one stage.',
        code=code,
    )
