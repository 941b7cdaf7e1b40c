# SPDX-License-Identifier: Apache-2.0
"""From a bundle to TensorRT plans: every distinct network once per precision, converted and then built."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from vla_policy_ros.bundle.bundle import Bundle
from vla_policy_ros.bundle.manifest import Precision, Stage
from vla_policy_ros.bundle.onnx_model import read_model
from vla_policy_ros.core.errors import ConfigurationError
from vla_policy_ros.engines.build_progress import BuildProgress
from vla_policy_ros.engines.plan_facts import (
    BuildOptions,
    BuiltPlan,
    LibraryName,
    PlanKey,
    ShapeRange,
)
from vla_policy_ros.engines.plans import PlanStore, is_whole, network_hash
from vla_policy_ros.engines.tensorrt import TensorRTEngine, TensorRTRtxEngine
from vla_policy_ros.engines.tensorrt_build import build_plan, check_options
from vla_policy_ros.engines.tensorrt_library import load_library, read_gpu
from vla_policy_ros.export.calibration import Calibration
from vla_policy_ros.export.prepare import PreparationReport, prepare_network

_ENGINES = {'tensorrt': TensorRTEngine, 'tensorrt_rtx': TensorRTRtxEngine}


@dataclass(frozen=True, slots=True, eq=False)
class PlanJob:
    """One plan that is wanted.

    Attributes:
        onnx_path: The bundle's network.
        stages: Names of the stages that run it.
        precision: Precision of the plan.
        profiles: Range of shapes of every input with free dimensions, over all those stages.
    """

    onnx_path: Path
    stages: tuple[str, ...]
    precision: Precision
    profiles: Mapping[str, ShapeRange]


@dataclass(frozen=True, slots=True)
class FinishedPlan:
    """A plan that is there; `preparation` is None when it was there before, or built elsewhere."""

    job: PlanJob
    plan: BuiltPlan
    is_cached: bool
    preparation: PreparationReport | None = None


def plan_jobs(
    bundle: Bundle, *, precision: Precision | None = None, stages: Sequence[str] = ()
) -> list[PlanJob]:
    """Return the plans of a bundle.

    Args:
        bundle: The bundle.
        precision: One precision for all stages; None takes the bundle's own.
        stages: Names of stages; none for all.

    Raises:
        ConfigurationError: A stage is unknown (`unknown_stage`).
    """
    known = [stage.name for stage in bundle.manifest.stages]
    unknown = sorted(set(stages) - set(known))
    if unknown:
        raise ConfigurationError(
            '--stage',
            got=', '.join(unknown),
            expected=f'some of {", ".join(known)}',
            next_step='Name stages as bundle.yaml does.',
            code='unknown_stage',
        )
    grouped: dict[tuple[str, Precision], list[Stage]] = {}
    for stage in bundle.manifest.stages:
        if not stages or stage.name in stages:
            grouped.setdefault((stage.onnx, precision or stage.precision), []).append(stage)
    return [
        PlanJob(
            bundle.folder / onnx,
            tuple(stage.name for stage in users),
            wanted,
            _profiles(bundle, users),
        )
        for (onnx, wanted), users in grouped.items()
    ]


class PlanBuilder:
    """Builds plans into a store, unless they are there.

    Args:
        library: What to build with.
        store: Where plans go.
        options: How to build; precision and profiles come from each job.

    Raises:
        GpuError: There is no driver or GPU for `tensorrt`.
        MissingDependencyError: The library is not installed.
        ConfigurationError: It lacks an option (`unsupported_option`).
    """

    def __init__(self, library: LibraryName, *, store: PlanStore, options: BuildOptions) -> None:
        loaded = load_library(library)
        check_options(loaded, options)
        self._machine = loaded.machine(None if loaded.compiles_at_run_time else read_gpu())
        self._library: LibraryName = library
        self._store = store
        self._options = options
        self._hashes: dict[Path, str] = {}  # of networks, which may have gigabytes

    def find(self, job: PlanJob) -> FinishedPlan | None:
        """Return the plan of a job when it is there, whole, and built with the very same options."""
        key = self._key(job)
        plans = self._store.plans(key.network_hash)
        found = (plan for plan in plans if plan.key == key and is_whole(plan))
        return next((FinishedPlan(job, plan, is_cached=True) for plan in found), None)

    def build(
        self,
        job: PlanJob,
        *,
        calibration: Calibration | None = None,
        on_progress: Callable[[BuildProgress], None] | None = None,
    ) -> FinishedPlan:
        """Convert and build; blocks for seconds to minutes; Ctrl-C ends it and leaves nothing behind.

        Args:
            job: What to build.
            calibration: Ranges for `int8` and `fp8`.
            on_progress: Is told of every step.

        Raises:
            VlaPolicyError: As `prepare_network` and `build_plan`.
        """
        key = self._key(job)
        # Beside the plans, where there is room for large networks.
        self._store.folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix='.converted-', dir=self._store.folder) as folder:
            prepared, report = job.onnx_path, None
            if job.precision != 'fp32':
                prepared = Path(folder) / job.onnx_path.name
                report = prepare_network(job.onnx_path, prepared, job.precision, calibration)
            plan = build_plan(
                prepared,
                options=key.options,
                store=self._store,
                library=self._library,
                network=key.network_hash,
                on_progress=on_progress,
            )
        return FinishedPlan(job, plan, is_cached=False, preparation=report)

    def take_in(self, job: PlanJob, plan_path: Path) -> FinishedPlan:
        """Take in a plan that was built elsewhere from the job's network, such as by trtexec; needs a GPU.

        Raises:
            GpuError: There is no driver.
            EngineError: It cannot be loaded here, or has other tensors than the network (`foreign_plan`).
        """
        engine = _ENGINES[self._library].from_plan(plan_path)
        try:
            tensors = (*engine.inputs, *engine.outputs)
        finally:
            engine.close()
        plan = self._store.add_foreign(
            plan_path, job.onnx_path, key=self._key(job), tensors=tensors
        )
        return FinishedPlan(job, plan, is_cached=False)

    def _key(self, job: PlanJob) -> PlanKey:
        if job.onnx_path not in self._hashes:
            self._hashes[job.onnx_path] = network_hash(job.onnx_path)
        return PlanKey(
            network_hash=self._hashes[job.onnx_path],
            options=replace(self._options, precision=job.precision, profiles=job.profiles),
            machine=self._machine,
        )


def _profiles(bundle: Bundle, stages: Sequence[Stage]) -> dict[str, ShapeRange]:
    """Return the range of shapes of each input that has free dimensions; optimised for the last stage's."""
    onnx = stages[0].onnx
    free = [
        tensor.name
        for tensor in read_model(bundle.folder / onnx, onnx).inputs
        if not all(isinstance(size, int) for size in tensor.shape)
    ]
    ranges = {}
    for name in free:
        shapes = [
            tuple(size or 1 for size in bundle.tensors[stage.inputs[name]].shape)
            for stage in stages
        ]
        sizes = list(zip(*shapes, strict=True))
        ranges[name] = ShapeRange(
            min=tuple(map(min, sizes)), opt=shapes[-1], max=tuple(map(max, sizes))
        )
    return ranges
