# SPDX-License-Identifier: Apache-2.0
"""How an engine loads a network: one set of words for every engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vla_policy_ros.bundle.manifest import Precision


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """Settings of one network; an engine reads those that mean something to it.

    Attributes:
        threads: Threads of one run on the host, the caller's included; 0 leaves the choice to the engine.
        precision: Precision to run in, for engines that choose it at load; None takes the network as it is.
        plan_folder: Where built plans lie; None takes the engine's own place.
        stream: Handle of the CUDA stream that all runs are enqueued on; 0 is the default stream.
        optimize: Whether ONNX Runtime may rewrite the network; without, it computes node by node what the file says.
        device_index: Which GPU or NPU, for engines that open it themselves; CUDA engines take the current GPU.
    """

    threads: int = 0
    precision: Precision | None = None
    plan_folder: Path | None = None
    stream: int = 0
    optimize: bool = True
    device_index: int = 0


DEFAULT_SETTINGS = EngineSettings()
"""What an engine does when nothing is asked of it."""
