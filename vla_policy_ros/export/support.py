# SPDX-License-Identifier: Apache-2.0
"""What the engines that are installed here say to the operators of a new bundle."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from vla_policy_ros.bundle.bundle import Bundle
from vla_policy_ros.core.errors import (
    EngineError,
    GpuError,
    MissingDependencyError,
    VlaPolicyError,
)
from vla_policy_ros.engines.plan_facts import LibraryName
from vla_policy_ros.engines.tensorrt_build import check_parsable
from vla_policy_ros.export.compare import Contender
from vla_policy_ros.export.operators import find_support

Answer = Literal['supported', 'not supported', 'not asked']

_LOADING = ('onnxruntime', 'openvino')
_PARSING: tuple[LibraryName, ...] = ('tensorrt_rtx', 'tensorrt')


@dataclass(frozen=True, slots=True)
class Verdict:
    """One engine on one stage.

    Attributes:
        engine: Name of the engine.
        stage: Name of the stage.
        answer: What it says.
        reason: The operators that it does not take and its own words, or why it could not be asked.
    """

    engine: str
    stage: str
    answer: Answer
    reason: str = ''


def ask_engines(bundle: Bundle) -> Iterator[Verdict]:
    """Let ONNX Runtime and OpenVINO load every stage on the CPU, and the parsers of TensorRT-RTX and TensorRT read it."""
    for engine in _LOADING:
        yield from _ask_by_loading(bundle, engine)
    for library in _PARSING:
        yield from _ask_by_parsing(bundle, library)


def _ask_by_loading(bundle: Bundle, engine: str) -> Iterator[Verdict]:
    for support in find_support(bundle, Contender(engine=engine)):
        yield _verdict(engine, support.stage, support.fault, support.named)


def _ask_by_parsing(bundle: Bundle, library: LibraryName) -> Iterator[Verdict]:
    for stage in bundle.manifest.stages:
        fault: VlaPolicyError | None = None
        try:
            check_parsable(bundle.folder / stage.onnx, library=library)
        except (MissingDependencyError, GpuError, EngineError) as raised:
            fault = raised
        yield _verdict(library, stage.name, fault)


def _verdict(
    engine: str, stage: str, fault: VlaPolicyError | None, operators: tuple[str, ...] = ()
) -> Verdict:
    if fault is None:
        return Verdict(engine, stage, 'supported')
    if isinstance(fault, MissingDependencyError | GpuError):
        return Verdict(engine, stage, 'not asked', fault.got)
    named = f'{", ".join(operators)}: ' if operators else ''
    return Verdict(engine, stage, 'not supported', f'{named}{fault.got}')
