# SPDX-License-Identifier: Apache-2.0
"""A bundle's stages, loaded and bound once to a pool, on the host or on a device."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from vla_policy_ros.bundle.bundle import Bundle
from vla_policy_ros.bundle.manifest import Precision
from vla_policy_ros.core.engine import DeviceTensor, Engine, Execution, Tensor
from vla_policy_ros.engines.settings import EngineSettings


class EngineLoader(Protocol):
    """How networks are loaded: `engines.registry.load_engine`, or what a test puts in its place."""

    def __call__(self, name: str, onnx_path: Path, *, settings: EngineSettings) -> Engine:
        """Load one network."""


@dataclass(frozen=True, slots=True)
class BoundStage:
    """One stage, ready to run."""

    name: str
    execution: Execution


@dataclass(frozen=True, slots=True)
class StageOrder:
    """All stages: before the loop, in it, and after it; without a loop all come before."""

    before: tuple[BoundStage, ...]
    body: tuple[BoundStage, ...]
    after: tuple[BoundStage, ...]


StageEngines = Mapping[str, Engine]
"""Stage name to its engine; stages that share a file and a precision share the engine."""


def load_engines(
    bundle: Bundle, engine: str, *, settings: EngineSettings, load: EngineLoader, undo: ExitStack
) -> StageEngines:
    """Load each file once per precision; `undo` takes what frees them.

    The settings' precision goes before that of the stages.

    Raises:
        EngineError: A network cannot be loaded.
    """
    loaded: dict[tuple[str, Precision], Engine] = {}
    engines: dict[str, Engine] = {}
    for stage in bundle.manifest.stages:
        precision = settings.precision or stage.precision
        key = (stage.onnx, precision)
        if key not in loaded:
            own = replace(settings, precision=precision)
            loaded[key] = load(engine, bundle.folder / stage.onnx, settings=own)
            undo.callback(loaded[key].close)
        engines[stage.name] = loaded[key]
    return engines


def bind_stages(
    bundle: Bundle,
    engines: StageEngines,
    pool: Mapping[str, Tensor],
    *,
    undo: ExitStack,
    workspace: DeviceTensor | None = None,
) -> StageOrder:
    """Bind every stage to its pool tensors; `undo` takes what releases them.

    Raises:
        SpecMismatchError: A network does not fit the pool.
    """
    bound = []
    for stage in bundle.manifest.stages:
        names = {**stage.inputs, **stage.outputs}
        tensors = {key: pool[name] for key, name in names.items()}
        execution = engines[stage.name].bind(tensors, workspace=workspace)
        undo.callback(execution.close)
        bound.append(BoundStage(stage.name, execution))
    inside = [index for index, stage in enumerate(bundle.manifest.stages) if stage.in_loop]
    first, last = (inside[0], inside[-1] + 1) if inside else (len(bound), len(bound))
    return StageOrder(tuple(bound[:first]), tuple(bound[first:last]), tuple(bound[last:]))
