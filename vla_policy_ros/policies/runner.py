# SPDX-License-Identifier: Apache-2.0
"""What a policy runs on: everything between an observation and the raw action tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from vla_policy_ros.bundle.chunk_prefix import ChunkPrefix
from vla_policy_ros.core.engine import Memory
from vla_policy_ros.core.frame import Frame, PreparedFrame
from vla_policy_ros.core.observation import Observation
from vla_policy_ros.core.specs import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionFacts:
    """How a policy really runs, for logs, diagnostics and reports.

    Attributes:
        memory: Where the networks read and write.
        device_name: Name of the GPU; empty on the host.
        cuda_graph: Whether stages and loop run as one captured CUDA graph.
        reason: Why there is no graph; empty when there is one.
        num_kernels: Kernels of the graph.
        num_nodes: All nodes of the graph.
    """

    memory: Memory
    device_name: str = ''
    cuda_graph: bool = False
    reason: str = ''
    num_kernels: int = 0
    num_nodes: int = 0

    def __str__(self) -> str:
        """Return one phrase for a log line."""
        if self.memory == 'host':
            return 'on the host'
        if self.cuda_graph:
            size = f'{self.num_kernels} kernels, {self.num_nodes} nodes'
            return f'on {self.device_name}, one CUDA graph of {size}'
        return f'on {self.device_name}, without a CUDA graph: {self.reason}'


class Runner(Protocol):
    """Everything between an observation and the raw action tensor; all buffers are made once.

    One thread at a time calls it, but for `prepare`, which several threads may call at once.
    """

    @property
    def execution(self) -> ExecutionFacts:
        """How it runs."""

    @property
    def latencies_ns(self) -> Mapping[str, int]:
        """Where the time of the last run went: each stage, or `network` for all in one.

        `preprocess`, where it is there, is what the run waited for images and for the device.
        """

    @property
    def raw_action(self) -> Array:
        """(1, K, W) float32 action tensor of the last run, host memory; the next run overwrites it."""

    @property
    def sample(self) -> Array:
        """(1, K, W) float32 sample that the loop of the last run ended with, host memory; made for real-time chunking."""

    def prepare_formats(self) -> None:
        """Make ready for every encoding that a camera may send, so that the first frame costs what every frame costs."""

    def prepares_at_once(self, frame: Frame) -> bool:
        """Tell whether `prepare` only hands this image on to the device."""

    def prepare(self, frame: Frame) -> PreparedFrame:
        """Preprocess one image into a free slot; any thread may call it.

        Raises:
            ImageError: The camera is unknown, no slot is free, or the image is broken.
        """

    def write(self, observation: Observation) -> None:
        """Fill the tensors that an observation fills.

        Raises:
            ImageError: A camera is unknown or missing, or an image cannot be used.
            StateError: The state cannot be used.
            InstructionError: The words cannot be used.
        """

    def draw_noise(self, stamp_ns: int) -> None:
        """Draw the noise for the observation of one stamp; does nothing without a loop."""

    def write_prefix(self, prefix: ChunkPrefix | None) -> None:
        """Set what the next run begins with, None for noise alone; only for a runner made for real-time chunking."""

    def run(self) -> None:
        """Run stages and loop; returns when `raw_action` is written.

        Raises:
            EngineError: A network failed.
        """

    def read_inputs(self) -> tuple[dict[str, Array], Array | None]:
        """Return copies of the tensors that an observation fills, and of the noise (n, K, W); blocks."""

    def write_inputs(self, inputs: Mapping[str, Array], noise: Array | None) -> None:
        """Set tensors that an observation fills, and the noise, for the next run."""

    def close(self) -> None:
        """Free engines and buffers; may be called twice."""
