# SPDX-License-Identifier: Apache-2.0
"""What is enqueued between filled inputs and the action on the host: a list of steps, or one graph of all of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from vla_policy_ros.core.errors import EngineError, GpuError
from vla_policy_ros.gpu.interfaces import Device, Stream
from vla_policy_ros.policies.runner import ExecutionFacts

_LOG = logging.getLogger(__name__)
_NETWORK = 'network'
_NANOSECONDS_PER_MS = 1e6


@dataclass(frozen=True, slots=True)
class Step:
    """One enqueue; its time counts for `name`, for nothing when that is empty."""

    name: str
    enqueue: Callable[[], None]


class DeviceProgram:
    """Steps on one stream with a timing event between each two.

    Args:
        device: The device, current in every call.
        stream: The stream that the steps enqueue on.
        steps: The steps in order.
    """

    def __init__(self, device: Device, stream: Stream, steps: Sequence[Step]) -> None:
        self.latencies_ns = {step.name: 0 for step in steps if step.name}
        """Name to device time in the last run; set by `wait`."""
        self.total_ns = 0
        """Device time of the whole last run; set by `wait`."""
        self._stream = stream
        self._steps = tuple(steps)
        self._marks = tuple(device.new_event(timing=True) for _ in range(len(steps) + 1))

    def enqueue(self) -> None:
        """Enqueue all steps; returns at once.

        Raises:
            EngineError: A network failed.
            GpuError: The device refused.
        """
        self._marks[0].record(self._stream)
        for step, mark in zip(self._steps, self._marks[1:], strict=True):
            step.enqueue()
            mark.record(self._stream)

    def wait(self) -> None:
        """Block this thread until the last step is done, and read the times."""
        first, last = self._marks[0], self._marks[-1]
        last.synchronize()
        self.total_ns = _to_ns(last.elapsed_ms(first))
        for name in self.latencies_ns:
            self.latencies_ns[name] = 0
        for step, begin, end in zip(self._steps, self._marks, self._marks[1:], strict=False):
            if step.name:
                self.latencies_ns[step.name] += _to_ns(end.elapsed_ms(begin))


def make_program(
    device: Device, stream: Stream, steps: Sequence[Step], *, cuda_graph: bool, undo: ExitStack
) -> tuple[DeviceProgram, ExecutionFacts]:
    """Run the steps once and capture them in a CUDA graph; where that fails, warn and go on without.

    Args:
        device: The device, current.
        stream: The stream that the steps enqueue on.
        steps: The steps in order.
        cuda_graph: Whether a graph is wanted.
        undo: Takes what closes the graph.

    Raises:
        EngineError: A network fails when it is run.
        GpuError: The device refused.
    """
    program = DeviceProgram(device, stream, steps)
    if not cuda_graph:
        return program, _without_graph(device, 'switched off')
    # Libraries set themselves up in their first run, which cannot be captured.
    program.enqueue()
    program.wait()

    def enqueue() -> None:
        for step in steps:
            step.enqueue()

    try:
        graph = device.capture(stream, enqueue)
    except (EngineError, GpuError) as error:
        _LOG.warning('no CUDA graph, every step is enqueued by itself: %s', error)
        return program, _without_graph(device, str(error))
    undo.callback(graph.close)
    whole = DeviceProgram(device, stream, [Step(_NETWORK, partial(graph.launch, stream))])
    return whole, ExecutionFacts(
        memory='device',
        device_name=device.name,
        cuda_graph=True,
        num_kernels=graph.num_kernels,
        num_nodes=graph.num_nodes,
    )


def _without_graph(device: Device, reason: str) -> ExecutionFacts:
    return ExecutionFacts(memory='device', device_name=device.name, reason=reason)


def _to_ns(duration_ms: float) -> int:
    return round(duration_ms * _NANOSECONDS_PER_MS)
