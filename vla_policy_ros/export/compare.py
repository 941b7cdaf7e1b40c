# SPDX-License-Identifier: Apache-2.0
"""Engines and precisions against each other on the same inputs and the same noise: each stage, the policy, each column.

Every stage alone gets the inputs that it has in ONNX Runtime on the CPU, on both sides, so that errors do not add up;
then the whole policy gets the same inputs and noise.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace

import numpy as np

from vla_policy_ros.bundle.bundle import Bundle
from vla_policy_ros.bundle.limits import ACCURACY_LIMITS, AccuracyLimit, limit_for
from vla_policy_ros.bundle.manifest import Precision, Stage
from vla_policy_ros.bundle.normalization import ActionDenormalizer
from vla_policy_ros.core.clock import MonotonicClock
from vla_policy_ros.core.observation import Observation
from vla_policy_ros.core.specs import Array, Representation
from vla_policy_ros.engines.registry import engine_memory, load_engine
from vla_policy_ros.engines.settings import DEFAULT_SETTINGS, EngineSettings
from vla_policy_ros.evaluation.alignment import wrap
from vla_policy_ros.evaluation.parity import (
    Parity,
    join_parities,
    measure_columns,
    measure_parity,
)
from vla_policy_ros.export.comparison import ColumnVerdict, Comparison, PartVerdict
from vla_policy_ros.gpu.interfaces import Device
from vla_policy_ros.policies.engine_policy import EnginePolicy
from vla_policy_ros.policies.host_runner import HostRunner
from vla_policy_ros.policies.stage_probe import StageCall, StageProbe, StageRecorder
from vla_policy_ros.policies.stages import EngineLoader

_RECORDED = 'onnxruntime'  # the engine whose stages' inputs all others get


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """What goes into a policy: the tensors that an observation fills, and noise.

    Attributes:
        inputs: Pool tensor to its values.
        noise: Noise of the loop; None without one.
        state_row: (S,) newest row of the observed state, physical units; None when it is not known.
    """

    inputs: Mapping[str, Array]
    noise: Array | None
    state_row: Array | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One way to run a bundle.

    Attributes:
        engine: Name of the engine.
        settings: How its networks are loaded; their precision chooses the limits.
        device: GPU of a device engine, which stays the caller's; None opens the first one.
        load: Loads its networks.
    """

    engine: str
    settings: EngineSettings = DEFAULT_SETTINGS
    device: Device | None = None
    load: EngineLoader = load_engine

    @property
    def title(self) -> str:
        """Engine, and the precision that was asked for: `openvino:bf16`."""
        return ':'.join(filter(None, (self.engine, self.settings.precision)))

    def precisions(self, bundle: Bundle) -> list[Precision]:
        """Return the precision of each stage."""
        return [self.settings.precision or stage.precision for stage in bundle.manifest.stages]


REFERENCE = Contender(engine=_RECORDED, settings=EngineSettings(precision='fp32'))
"""What `vla-policy verify` holds an engine against; fp32, the strictest limit, stands for networks as they are."""


def observed_cases(bundle: Bundle, observations: Iterable[Observation]) -> Iterator[Case]:
    """Turn observations into cases, preprocessed on the CPU and with the noise of their stamps.

    Raises:
        VlaPolicyError: An observation cannot be used.
    """
    with closing(_open_recorded(bundle, load_engine)) as runner:
        for observation in observations:
            runner.write(observation)
            runner.draw_noise(observation.stamp_ns)
            state_row = observation.state[-1] if bundle.spec.observation.state else None
            yield Case(*runner.read_inputs(), state_row)


def compare(
    bundle: Bundle,
    cases: Sequence[Case],
    *,
    reference: Contender = REFERENCE,
    candidates: Iterable[Contender],
) -> Iterator[Comparison]:
    """Compare contenders with one of them.

    Only one contender is loaded at a time, and its stages one by one: a large policy may not fit into memory twice.

    Args:
        bundle: The bundle.
        cases: At least one.
        reference: What the others are held against.
        candidates: The others.

    Raises:
        VlaPolicyError: A network cannot be loaded or failed, or there is no GPU.
    """
    calls, recorded = _record(bundle, cases)
    is_recorded = reference.engine == _RECORDED and reference.load is load_engine
    wanted = recorded if is_recorded else _run(bundle, reference, calls, cases)
    for candidate in candidates:
        yield _judge(
            bundle, cases, wanted, _run(bundle, candidate, calls, cases), of=(reference, candidate)
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Outputs:
    """What one contender computed: the outputs of every run of each stage by itself, and the action tensor of each case."""

    stages: list[list[Mapping[str, Array]]]
    actions: list[Array]


def _record(bundle: Bundle, cases: Sequence[Case]) -> tuple[list[list[StageCall]], _Outputs]:
    """Return every run of each stage in ONNX Runtime, and what came of it."""
    recorder = StageRecorder(bundle)
    actions: list[Array] = []
    with closing(_open_recorded(bundle, recorder)) as runner:
        for case in cases:
            runner.write_inputs(case.inputs, case.noise)
            runner.run()
            actions.append(runner.raw_action.copy())
    taken = recorder.take()
    calls = [[call for call in taken if call.stage == s.name] for s in bundle.manifest.stages]
    return calls, _Outputs([[call.outputs for call in own] for own in calls], actions)


def _run(
    bundle: Bundle,
    contender: Contender,
    calls: Sequence[Sequence[StageCall]],
    cases: Sequence[Case],
) -> _Outputs:
    """Run each stage on the recorded inputs, then the policy."""
    with ExitStack() as undo:
        if contender.device is None and engine_memory(contender.engine) == 'device':
            from vla_policy_ros.gpu.device import open_device

            device = open_device()
            undo.callback(device.close)
            contender = replace(contender, device=device)
        stages = [
            _run_stage(bundle, contender, stage, own)
            for stage, own in zip(bundle.manifest.stages, calls, strict=True)
        ]
        policy = EnginePolicy(
            bundle,
            engine=contender.engine,
            slots=1,
            settings=contender.settings,
            device=contender.device or 0,
            load=contender.load,
        )
        with closing(policy):
            actions = [policy.run_pool(case.inputs, case.noise) for case in cases]
        return _Outputs(stages, actions)


def _run_stage(
    bundle: Bundle, contender: Contender, stage: Stage, calls: Sequence[StageCall]
) -> list[Mapping[str, Array]]:
    probe = StageProbe(
        bundle,
        stage,
        engine=contender.engine,
        settings=contender.settings,
        device=contender.device,
        load=contender.load,
    )
    with closing(probe):
        return [probe.run(call.inputs) for call in calls]


def _judge(
    bundle: Bundle,
    cases: Sequence[Case],
    wanted: _Outputs,
    found: _Outputs,
    *,
    of: tuple[Contender, Contender],
) -> Comparison:
    reference, candidate = of
    own, other = candidate.precisions(bundle), reference.precisions(bundle)
    stages = tuple(
        PartVerdict(
            stage.name,
            own[index],
            len(found.stages[index]),
            _compare_runs(found.stages[index], wanted.stages[index]),
            limit_for((own[index], other[index])),
        )
        for index, stage in enumerate(bundle.manifest.stages)
    )
    pairs = list(zip(found.actions, wanted.actions, strict=True))
    policy = PartVerdict(
        'policy',
        max(own, key=lambda precision: ACCURACY_LIMITS[precision].max_error),
        len(cases),
        join_parities(measure_parity(*pair) for pair in pairs),
        limit_for((*own, *other)),
    )
    columns = _judge_columns(bundle, cases, pairs, policy.limit)
    return Comparison(
        candidate.title, reference.title, stages, policy, columns, _relative_error(pairs)
    )


def _compare_runs(
    found: Sequence[Mapping[str, Array]], wanted: Sequence[Mapping[str, Array]]
) -> Parity:
    return join_parities(
        measure_parity(value, expected[name])
        for outputs, expected in zip(found, wanted, strict=True)
        for name, value in outputs.items()
    )


def _relative_error(pairs: Sequence[tuple[Array, Array]]) -> float:
    found, wanted = (np.stack(side).astype(np.float64) for side in zip(*pairs, strict=True))
    # Of zeros nothing is a part.
    tiny = float(np.finfo(np.float32).tiny)
    return float(np.linalg.norm(found - wanted) / max(np.linalg.norm(wanted), tiny))


def _judge_columns(
    bundle: Bundle,
    cases: Sequence[Case],
    pairs: Sequence[tuple[Array, Array]],
    limit: AccuracyLimit,
) -> tuple[ColumnVerdict, ...]:
    columns = bundle.spec.action.columns
    parities = zip(*(measure_columns(*pair) for pair in pairs), strict=True)
    errors = _errors_in_units(bundle, cases, pairs)
    return tuple(
        ColumnVerdict(
            column.name,
            column.unit,
            join_parities(parity),
            None if errors is None else float(errors[:, index].mean()),
            None if errors is None else float(errors[:, index].max()),
            limit,
        )
        # The tensor may be wider than the action: padding is no column.
        for index, (column, parity) in enumerate(zip(columns, parities, strict=False))
    )


def _errors_in_units(
    bundle: Bundle, cases: Sequence[Case], pairs: Sequence[tuple[Array, Array]]
) -> Array | None:
    """Return (rows of all cases, D) absolute errors in physical units; None when they depend on unknown states."""
    manifest, columns = bundle.manifest, bundle.spec.action.columns
    relative = Representation.RELATIVE_TO_OBSERVATION
    needs_state = any(group.representation is relative for group in manifest.action.groups)
    if needs_state and any(case.state_row is None for case in cases):
        return None
    denormalizer = ActionDenormalizer(manifest.action, manifest.state, bundle.statistics)
    errors = []
    for case, pair in zip(cases, pairs, strict=True):
        row = np.zeros(0) if case.state_row is None else case.state_row
        in_units = [np.empty((bundle.spec.action.horizon, len(columns))) for _ in pair]
        for raw, out in zip(pair, in_units, strict=True):
            denormalizer.write(raw[0], row, out)
        errors.append(np.abs(wrap(in_units[0] - in_units[1], columns)))
    return np.concatenate(errors)


def _open_recorded(bundle: Bundle, load: EngineLoader) -> HostRunner:
    return HostRunner(
        bundle,
        engine=_RECORDED,
        slots=1,
        settings=DEFAULT_SETTINGS,
        clock=MonotonicClock(),
        load=load,
    )
