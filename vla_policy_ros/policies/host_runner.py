# SPDX-License-Identifier: Apache-2.0
"""Runs a bundle in host memory: images on the CPU, engines that read and write numpy arrays."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

import numpy as np

from vla_policy_ros.bundle.bundle import Bundle
from vla_policy_ros.bundle.chunk_prefix import ChunkPrefix, PrefixTensors
from vla_policy_ros.bundle.graph import observation_tensors
from vla_policy_ros.bundle.manifest import FlowMatching
from vla_policy_ros.bundle.noise import draw_noise
from vla_policy_ros.core.clock import Clock
from vla_policy_ros.core.frame import Frame, PreparedFrame
from vla_policy_ros.core.observation import Observation
from vla_policy_ros.core.specs import Array, TensorSpec
from vla_policy_ros.deployment.rtc import RtcSettings
from vla_policy_ros.engines.settings import EngineSettings
from vla_policy_ros.policies.guidance import Guidance, bind_gradient
from vla_policy_ros.policies.inputs import ObservationInput, host_cameras
from vla_policy_ros.policies.loops import Denoiser
from vla_policy_ros.policies.pool import make_pool
from vla_policy_ros.policies.prefix_input import PrefixInput, loop_prefix_specs
from vla_policy_ros.policies.runner import ExecutionFacts
from vla_policy_ros.policies.stages import (
    BoundStage,
    EngineLoader,
    bind_stages,
    load_engines,
)


class HostRunner:
    """A `Runner` on the host.

    Args:
        bundle: The bundle.
        engine: Name of an engine in host memory.
        slots: Images per camera that may be prepared and not yet let go.
        settings: How networks are loaded.
        clock: Measures the stages.
        load: Loads a network.
        rtc: How chunks begin with what is left of the one before; None: each is by itself.

    Raises:
        EngineError: A network cannot be loaded.
        SpecMismatchError: A network does not fit the pool.
    """

    execution = ExecutionFacts(memory='host', reason='the engine runs on the host')

    def __init__(
        self,
        bundle: Bundle,
        *,
        engine: str,
        slots: int,
        settings: EngineSettings,
        clock: Clock,
        load: EngineLoader,
        rtc: RtcSettings | None = None,
    ) -> None:
        self.latencies_ns = {stage.name: 0 for stage in bundle.manifest.stages}
        self._bundle = bundle
        self._clock = clock
        self._pool = make_pool(bundle)
        cameras = host_cameras(bundle, self._pool, slots=slots)
        self._input = ObservationInput(bundle, self._pool, cameras)
        with ExitStack() as undo:
            engines = load_engines(bundle, engine, settings=settings, load=load, undo=undo)
            self._stages = bind_stages(bundle, engines, self._pool, undo=undo)
            self._prefix: PrefixInput | None = None
            self._guidance: Guidance | None = None
            self._gradient: tuple[BoundStage, ...] = ()
            tensors = self._make_prefix(rtc, undo) if rtc else None
            self._undo = undo.pop_all()
        self._denoiser = _make_denoiser(bundle, self._pool, None if self._guidance else tensors)

    @property
    def raw_action(self) -> Array:
        """(1, K, W) float32 action tensor of the last run."""
        return self._pool[self._bundle.manifest.action.tensor]

    @property
    def sample(self) -> Array:
        """(1, K, W) float32 sample that the loop of the last run ended with."""
        loop = self._bundle.manifest.loop
        assert loop
        return self._pool[loop.sample]

    def prepare_formats(self) -> None:
        """Do nothing: the CPU decodes every encoding."""

    def prepares_at_once(self, frame: Frame) -> bool:  # noqa: ARG002 - the protocol
        """Tell that it does not: the CPU preprocesses the image."""
        return False

    def prepare(self, frame: Frame) -> PreparedFrame:
        """Preprocess one image into a free slot; any thread may call it."""
        return self._input.prepare(frame)

    def write(self, observation: Observation) -> None:
        """Fill the tensors that an observation fills."""
        self._input.write(observation)

    def draw_noise(self, stamp_ns: int) -> None:
        """Draw the noise for the observation of one stamp."""
        loop = self._bundle.manifest.loop
        if loop and self._denoiser:
            draw_noise(loop.seed, stamp_ns, self._denoiser.noise)

    def write_prefix(self, prefix: ChunkPrefix | None) -> None:
        """Set what the next run begins with."""
        assert self._prefix
        self._prefix.write(prefix)

    def run(self) -> None:
        """Run stages and loop; `latencies_ns` holds the time of each stage afterwards.

        Raises:
            EngineError: A network failed.
        """
        for name in self.latencies_ns:
            self.latencies_ns[name] = 0
        self._run(self._stages.before)
        denoiser = self._denoiser
        if denoiser:
            denoiser.begin()
            for index in range(denoiser.num_steps):
                denoiser.set_timestep(index)
                self._run(self._stages.body)
                if self._guidance:
                    self._guidance.measure(index)
                    self._run(self._gradient)
                    self._guidance.correct(index)
                denoiser.update(index)
        self._run(self._stages.after)

    def read_inputs(self) -> tuple[dict[str, Array], Array | None]:
        """Return copies of the tensors that an observation fills, and of the noise."""
        names = observation_tensors(self._bundle.manifest)
        noise = self._denoiser.noise.copy() if self._denoiser else None
        return {name: self._pool[name].copy() for name in names}, noise

    def write_inputs(self, inputs: Mapping[str, Array], noise: Array | None) -> None:
        """Set tensors that an observation fills, and the noise, for the next run."""
        for name, value in inputs.items():
            np.copyto(self._pool[name], value)
        if noise is not None and self._denoiser:
            np.copyto(self._denoiser.noise, noise)

    def close(self) -> None:
        """Free executions, then engines; may be called twice."""
        self._undo.close()

    def _make_prefix(self, rtc: RtcSettings, undo: ExitStack) -> PrefixTensors[Array]:
        bundle, pool = self._bundle, self._pool
        tensors = PrefixTensors(*(_zeros(spec) for spec in loop_prefix_specs(bundle)))
        self._prefix = PrefixInput(bundle, rtc, tensors=tensors, pool=pool)
        loop = bundle.manifest.loop
        if rtc.kind == 'guided' and isinstance(loop, FlowMatching):
            self._guidance = Guidance(
                loop,
                pool[loop.sample],
                prediction=pool[loop.prediction],
                prefix=tensors,
                max_weight=rtc.max_guidance_weight,
            )
            self._gradient = bind_gradient(
                bundle,
                self._stages.body,
                seed=self._guidance.error,
                gradient=self._guidance.gradient,
                make=_zeros,
                undo=undo,
            )
        return tensors

    def _run(self, stages: tuple[BoundStage, ...]) -> None:
        for stage in stages:
            started_ns = self._clock.now_ns()
            stage.execution.enqueue()
            self.latencies_ns[stage.name] += self._clock.now_ns() - started_ns


def _make_denoiser(
    bundle: Bundle, pool: Mapping[str, Array], prefix: PrefixTensors[Array] | None
) -> Denoiser | None:
    loop = bundle.manifest.loop
    if loop is None:
        return None
    return Denoiser(
        loop,
        pool[loop.sample],
        prediction=pool[loop.prediction],
        timestep=pool[loop.timestep],
        prefix=prefix,
    )


def _zeros(spec: TensorSpec) -> Array:
    return np.zeros([size or 1 for size in spec.shape], spec.dtype)
