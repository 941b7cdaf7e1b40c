# SPDX-License-Identifier: Apache-2.0
"""A bundle on some engine against the same bundle in ONNX Runtime on the CPU: stage by stage, and as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass

from vla_policy_ros.bundle.bundle import Bundle
from vla_policy_ros.bundle.limits import ACCURACY_LIMITS, AccuracyLimit, limit_for
from vla_policy_ros.bundle.manifest import Precision
from vla_policy_ros.core.clock import MonotonicClock
from vla_policy_ros.core.observation import Observation
from vla_policy_ros.core.specs import Array
from vla_policy_ros.engines.registry import engine_memory, load_engine
from vla_policy_ros.engines.settings import DEFAULT_SETTINGS, EngineSettings
from vla_policy_ros.evaluation.parity import Parity, measure_parity
from vla_policy_ros.gpu.interfaces import Device
from vla_policy_ros.policies.engine_policy import EnginePolicy
from vla_policy_ros.policies.host_runner import HostRunner
from vla_policy_ros.policies.stage_probe import StageCall, StageProbe, StageRecorder
from vla_policy_ros.policies.stages import EngineLoader

REFERENCE = 'onnxruntime'
"""The engine that everything is held against."""


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """What goes into a policy: the tensors that an observation fills, and noise."""

    inputs: Mapping[str, Array]
    noise: Array | None


@dataclass(frozen=True, slots=True)
class PartVerdict:
    """One stage, or the whole policy.

    Attributes:
        name: Name of the stage; `policy` for the whole.
        precision: Precision it runs in.
        runs: Number of runs that were compared.
        parity: How near it came, over all runs.
        limit: What was allowed.
    """

    name: str
    precision: Precision
    runs: int
    parity: Parity
    limit: AccuracyLimit

    @property
    def passed(self) -> bool:
        """Whether it is near enough."""
        return self.parity.is_within(self.limit)


@dataclass(frozen=True, slots=True)
class Verification:
    """The verdicts of all stages, in their order, and of the whole policy."""

    stages: tuple[PartVerdict, ...]
    policy: PartVerdict

    @property
    def passed(self) -> bool:
        """Whether every part is near enough."""
        return self.policy.passed and not self.first_outside

    @property
    def first_outside(self) -> str:
        """Name of the first stage that is not near enough; empty when all are."""
        return next((part.name for part in self.stages if not part.passed), '')


def observed_cases(bundle: Bundle, observations: Iterable[Observation]) -> Iterator[Case]:
    """Turn observations into cases, preprocessed on the CPU and with the noise of their stamps.

    Raises:
        VlaPolicyError: An observation cannot be used.
    """
    with closing(_reference(bundle, load_engine)) as runner:
        for observation in observations:
            runner.write(observation)
            runner.draw_noise(observation.stamp_ns)
            yield Case(*runner.read_inputs())


def verify(
    bundle: Bundle,
    cases: Sequence[Case],
    *,
    engine: str,
    settings: EngineSettings = DEFAULT_SETTINGS,
    device: Device | None = None,
    load: EngineLoader = load_engine,
) -> Verification:
    """Compare an engine with the reference.

    Every stage alone gets the reference's inputs, so that errors do not add up; then the whole policy gets the same
    inputs and noise on both sides.

    Args:
        bundle: The bundle.
        cases: At least one.
        engine: Name of the engine.
        settings: How its networks are loaded; their precision chooses the limits.
        device: GPU of a device engine; None opens the first one.
        load: Loads the engine's networks.

    Raises:
        VlaPolicyError: A network cannot be loaded or failed, or there is no GPU.
    """
    with ExitStack() as undo:
        if device is None and engine_memory(engine) == 'device':
            from vla_policy_ros.gpu.device import open_device

            device = open_device()
            undo.callback(device.close)
        calls, outputs = _run_reference(bundle, cases)
        candidate = _Candidate(bundle, engine, settings, device, load)
        # Stages first, and each freed again: a large policy may not fit into memory twice.
        stages = tuple(
            candidate.verify_stage(index, calls) for index in range(len(candidate.precisions))
        )
        return Verification(stages, candidate.verify_policy(cases, outputs))


@dataclass(frozen=True, slots=True)
class _Candidate:
    """What is compared with the reference."""

    bundle: Bundle
    engine: str
    settings: EngineSettings
    device: Device | None
    load: EngineLoader

    @property
    def precisions(self) -> list[Precision]:
        """Precision of each stage."""
        stages = self.bundle.manifest.stages
        return [self.settings.precision or stage.precision for stage in stages]

    def verify_stage(self, index: int, calls: Sequence[StageCall]) -> PartVerdict:
        """Compare all runs of one stage."""
        stage, precision = self.bundle.manifest.stages[index], self.precisions[index]
        own = [call for call in calls if call.stage == stage.name]
        probe = StageProbe(
            self.bundle,
            stage,
            engine=self.engine,
            settings=self.settings,
            device=self.device,
            load=self.load,
        )
        with closing(probe):
            parities = [
                measure_parity(value, call.outputs[name])
                for call in own
                for name, value in probe.run(call.inputs).items()
            ]
        limit = ACCURACY_LIMITS[precision]
        return PartVerdict(stage.name, precision, len(own), _join(parities), limit)

    def verify_policy(self, cases: Sequence[Case], references: Sequence[Array]) -> PartVerdict:
        """Compare the action tensor of the whole policy."""
        policy = EnginePolicy(
            self.bundle,
            engine=self.engine,
            slots=1,
            settings=self.settings,
            device=self.device or 0,
            load=self.load,
        )
        with closing(policy):
            parities = [
                measure_parity(policy.run_pool(case.inputs, case.noise), reference)
                for case, reference in zip(cases, references, strict=True)
            ]
        limit = limit_for(self.precisions)
        least_exact = next(p for p in self.precisions if ACCURACY_LIMITS[p] == limit)
        return PartVerdict('policy', least_exact, len(cases), _join(parities), limit)


def _run_reference(bundle: Bundle, cases: Sequence[Case]) -> tuple[list[StageCall], list[Array]]:
    """Return every run of every stage, and the action tensor of each case."""
    recorder = StageRecorder(bundle)
    outputs: list[Array] = []
    with closing(_reference(bundle, recorder)) as runner:
        for case in cases:
            runner.write_inputs(case.inputs, case.noise)
            runner.run()
            outputs.append(runner.raw_action.copy())
    return recorder.take(), outputs


def _reference(bundle: Bundle, load: EngineLoader) -> HostRunner:
    return HostRunner(
        bundle,
        engine=REFERENCE,
        slots=1,
        settings=DEFAULT_SETTINGS,
        clock=MonotonicClock(),
        load=load,
    )


def _join(parities: Sequence[Parity]) -> Parity:
    total = parities[0]
    for parity in parities[1:]:
        total = total.joined(parity)
    return total
