# SPDX-License-Identifier: Apache-2.0
"""The policy that runs a bundle: preprocess, stages and loop, denormalise."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vla_policy_ros.bundle.bundle import Bundle
from vla_policy_ros.bundle.graph import observation_tensors
from vla_policy_ros.bundle.normalization import ActionDenormalizer
from vla_policy_ros.core.chunk import ActionChunk
from vla_policy_ros.core.clock import Clock, MonotonicClock
from vla_policy_ros.core.errors import ConfigurationError, EngineError
from vla_policy_ros.core.frame import Frame, PreparedFrame
from vla_policy_ros.core.observation import Observation
from vla_policy_ros.core.specs import Array, PolicySpec
from vla_policy_ros.policies.inputs import ObservationInput, example_observation
from vla_policy_ros.policies.pool import make_pool
from vla_policy_ros.policies.stages import StageChain

PREPROCESSORS = ('cpu',)
"""Names that `preprocess` takes."""

_NO_STATE = np.zeros(0, np.float32)


class EnginePolicy:
    """Runs a bundle. All buffers are made here; one observation after another goes through them.

    Args:
        bundle: The bundle.
        engine: Name of the engine, one of `engines.registry.ENGINES`.
        preprocess: Where images are preprocessed, one of `PREPROCESSORS`.
        slots: Images per camera that may be prepared and not yet let go.
        threads: Threads of one network run; 0 leaves the choice to the engine.
        clock: Measures the stages; the machine's monotonic clock when none is given.

    Raises:
        ConfigurationError: The engine or the preprocessor is unknown.
        MissingDependencyError: The engine's library is not installed.
        EngineError: A network cannot be loaded.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        engine: str = 'onnxruntime',
        preprocess: str = 'cpu',
        slots: int = 8,
        threads: int = 0,
        clock: Clock | None = None,
    ) -> None:
        if preprocess not in PREPROCESSORS:
            raise ConfigurationError(
                'preprocess',
                got=repr(preprocess),
                expected=f'one of {", ".join(PREPROCESSORS)}',
                next_step='Choose one of these.',
                code='unknown_preprocess',
            )
        self.bundle = bundle
        self._clock = clock or MonotonicClock()
        self._pool = make_pool(bundle)
        self._input = ObservationInput(bundle, self._pool, slots=slots)
        action, state = bundle.manifest.action, bundle.manifest.state
        self._denormalizer = ActionDenormalizer(action, state, bundle.statistics)
        self._raw_action = self._pool[action.tensor]
        self._chain = StageChain(
            bundle, self._pool, engine=engine, threads=threads, clock=self._clock
        )
        self._is_open = True

    @property
    def spec(self) -> PolicySpec:
        """What it takes and what it gives."""
        return self.bundle.spec

    def prepare(self, frame: Frame) -> PreparedFrame:
        """Preprocess one image ahead of its inference into a slot; any thread may call it.

        Raises:
            ImageError: The camera is unknown, no slot is free (`no_free_slot`), or the image cannot be decoded.
            EngineError: The policy is closed (`closed`).
        """
        self._check_open()
        return self._input.prepare(frame)

    def warmup(self) -> None:
        """Run once on black images and a zero state."""
        self.infer(example_observation(self.bundle))

    def infer(self, observation: Observation) -> ActionChunk:
        """Compute the chunk of one observation; blocks; one thread at a time.

        Raises:
            ImageError: A camera is unknown or missing, or an image cannot be used.
            StateError: The state has another shape or is not finite.
            InstructionError: The instruction cannot be used.
            EngineError: A network failed, or the policy is closed (`closed`).
            ChunkRejectedError: The actions are not finite.
        """
        self._check_open()
        started_ns = self._clock.now_ns()
        self._input.write(observation)
        self._chain.draw_noise(observation.stamp_ns)
        latencies_ns = {'preprocess': self._clock.now_ns() - started_ns}
        self._chain.run()
        latencies_ns.update(self._chain.latencies_ns)
        started_ns = self._clock.now_ns()
        action = self.spec.action
        actions = np.empty((action.horizon, len(action.columns)), np.float32)
        state_row = observation.state[-1] if self.spec.observation.state else _NO_STATE
        self._denormalizer.write(self._raw_action[0], state_row, actions)
        latencies_ns['postprocess'] = self._clock.now_ns() - started_ns
        return ActionChunk.answer(
            observation, actions, spec=self.spec, stage_latencies_ns=latencies_ns
        )

    def pool_inputs(self, observation: Observation) -> tuple[dict[str, Array], Array | None]:
        """Return copies of the tensors and of the noise that an observation fills.

        Raises:
            VlaPolicyError: As infer().
        """
        self._check_open()
        self._input.write(observation)
        self._chain.draw_noise(observation.stamp_ns)
        names = observation_tensors(self.bundle.manifest)
        noise = self._chain.noise
        return {name: self._pool[name].copy() for name in names}, (
            None if noise is None else noise.copy()
        )

    def run_pool(self, inputs: Mapping[str, Array], noise: Array | None) -> Array:
        """Run stages and loop on given tensors and noise; return a copy of the action tensor, (1, K, W).

        Raises:
            EngineError: A network failed, or the policy is closed (`closed`).
        """
        self._check_open()
        for name, value in inputs.items():
            np.copyto(self._pool[name], value)
        if noise is not None and self._chain.noise is not None:
            np.copyto(self._chain.noise, noise)
        self._chain.run()
        output: Array = self._raw_action.copy()
        return output

    def reset(self) -> None:
        """Do nothing: nothing of an observation outlives its chunk."""

    def close(self) -> None:
        """Free the engines; may be called twice."""
        self._is_open = False
        self._chain.close()

    def _check_open(self) -> None:
        if not self._is_open:
            raise EngineError(
                f'policy {self.spec.policy_id!r}',
                got='a call after close()',
                expected='an open policy',
                next_step='Load the policy again.',
                code='closed',
            )
