# SPDX-License-Identifier: Apache-2.0
"""A bundle's stages and loop, bound once to a pool and run again and again."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from vla_policy_ros.bundle.bundle import Bundle
from vla_policy_ros.core.clock import Clock
from vla_policy_ros.core.engine import Engine, Execution
from vla_policy_ros.core.specs import Array
from vla_policy_ros.engines.registry import load_engine
from vla_policy_ros.policies.loops import Denoiser, draw_noise


@dataclass(frozen=True, slots=True)
class _Bound:
    """One stage, ready to run."""

    name: str
    execution: Execution


class StageChain:
    """Everything between a filled pool and the action tensor.

    Args:
        bundle: The bundle.
        pool: Its tensors; read and written where they lie.
        engine: Name of the engine.
        threads: Threads of one run; 0 leaves the choice to the engine.
        clock: Measures the stages.

    Raises:
        EngineError: A network cannot be loaded.
        SpecMismatchError: A network does not fit the pool.
    """

    def __init__(
        self,
        bundle: Bundle,
        pool: Mapping[str, Array],
        *,
        engine: str,
        threads: int,
        clock: Clock,
    ) -> None:
        self.latencies_ns = {stage.name: 0 for stage in bundle.manifest.stages}
        self._clock = clock
        self._undo = ExitStack()
        with ExitStack() as undo:
            bound = _bind_stages(bundle, pool, engine, threads, undo)
            self._undo = undo.pop_all()
        stages = bundle.manifest.stages
        inside = [index for index, stage in enumerate(stages) if stage.in_loop]
        first, last = (inside[0], inside[-1] + 1) if inside else (len(stages), len(stages))
        self._before, self._body, self._after = bound[:first], bound[first:last], bound[last:]
        loop = bundle.manifest.loop
        self._seed = loop.seed if loop else 0
        self._denoiser: Denoiser | None = None
        if loop:
            self._denoiser = Denoiser(
                loop,
                pool[loop.sample],
                prediction=pool[loop.prediction],
                timestep=pool[loop.timestep],
            )

    @property
    def noise(self) -> Array | None:
        """(n, K, W) float32 noise of the next run; None without a loop. Write it to inject noise."""
        return self._denoiser.noise if self._denoiser else None

    def draw_noise(self, stamp_ns: int) -> None:
        """Fill the noise for the observation of one stamp."""
        if self._denoiser:
            draw_noise(self._seed, stamp_ns, self._denoiser.noise)

    def run(self) -> None:
        """Run all stages and the loop; `latencies_ns` holds the time of each afterwards.

        Raises:
            EngineError: A network failed.
        """
        for name in self.latencies_ns:
            self.latencies_ns[name] = 0
        self._run(self._before)
        denoiser = self._denoiser
        if denoiser:
            denoiser.begin()
            for index in range(denoiser.num_steps):
                denoiser.set_timestep(index)
                self._run(self._body)
                denoiser.update(index)
        self._run(self._after)

    def close(self) -> None:
        """Free executions, then engines; may be called twice."""
        self._undo.close()

    def _run(self, stages: list[_Bound]) -> None:
        for stage in stages:
            started_ns = self._clock.now_ns()
            stage.execution.enqueue()
            self.latencies_ns[stage.name] += self._clock.now_ns() - started_ns


def _bind_stages(
    bundle: Bundle, pool: Mapping[str, Array], engine: str, threads: int, undo: ExitStack
) -> list[_Bound]:
    """Load each file once, also when several stages share it, and bind every stage."""
    engines: dict[str, Engine] = {}
    for stage in bundle.manifest.stages:
        if stage.onnx not in engines:
            engines[stage.onnx] = load_engine(engine, bundle.folder / stage.onnx, threads=threads)
            undo.callback(engines[stage.onnx].close)
    bound = []
    for stage in bundle.manifest.stages:
        names = {**stage.inputs, **stage.outputs}
        execution = engines[stage.onnx].bind({key: pool[name] for key, name in names.items()})
        undo.callback(execution.close)
        bound.append(_Bound(stage.name, execution))
    return bound
