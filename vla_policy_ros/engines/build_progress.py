# SPDX-License-Identifier: Apache-2.0
"""How far a build is: from TensorRT's threads to the one that waits."""

from __future__ import annotations

from dataclasses import dataclass
from queue import SimpleQueue
from threading import Event
from typing import Any


@dataclass(frozen=True, slots=True)
class BuildProgress:
    """One step of a build is done.

    Attributes:
        phase: Name of the phase, as TensorRT has it.
        parent: The phase it is a part of; empty for an outermost one.
        step: Number of steps that are done.
        steps: Number of steps of the phase.
    """

    phase: str
    parent: str
    step: int
    steps: int


class BuildMonitor:
    """Carries progress from TensorRT's threads to the caller's, and the wish to stop the other way."""

    def __init__(self) -> None:
        self.events: SimpleQueue[BuildProgress | None] = SimpleQueue()
        self._cancelled = Event()
        self._phases: dict[str, tuple[str, int]] = {}

    def cancel(self) -> None:
        """Let TensorRT stop at the next step."""
        self._cancelled.set()

    def as_interface(self, module: Any) -> Any:
        """Return an `IProgressMonitor`; its methods are called from any thread."""
        base: Any = module.IProgressMonitor
        monitor = self

        class ProgressMonitor(base):  # type: ignore[misc]
            """Passes TensorRT's calls on."""

            def __init__(self) -> None:
                base.__init__(self)  # the bindings want it by name

            def phase_start(
                self, phase_name: str, parent_phase: str | None, num_steps: int
            ) -> None:
                monitor.start(phase_name, parent_phase or '', num_steps)

            def step_complete(self, phase_name: str, step: int) -> bool:
                return monitor.complete(phase_name, step + 1)

            def phase_finish(self, phase_name: str) -> None:
                monitor.finish(phase_name)

        return ProgressMonitor()

    def start(self, phase: str, parent: str, steps: int) -> None:
        """A phase begins; names are unique among those that are open."""
        self._phases[phase] = parent, steps
        self._tell(phase, 0)

    def complete(self, phase: str, step: int) -> bool:
        """A step is done; return whether to go on."""
        self._tell(phase, step)
        return not self._cancelled.is_set()

    def finish(self, phase: str) -> None:
        """A phase ends; steps that were left out count as done."""
        self._tell(phase, self._phases.get(phase, ('', 0))[1])
        self._phases.pop(phase, None)

    def _tell(self, phase: str, step: int) -> None:
        parent, steps = self._phases.get(phase, ('', step))
        self.events.put(BuildProgress(phase, parent, min(step, steps), steps))
