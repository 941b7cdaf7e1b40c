# SPDX-License-Identifier: Apache-2.0
"""A policy on one engine, opened to be measured: time per component, and memory of the GPU."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from vla_policy_ros.bundle.bundle import Bundle
from vla_policy_ros.core.chunk import ActionChunk
from vla_policy_ros.core.clock import MonotonicClock
from vla_policy_ros.core.frame import PreparedFrame
from vla_policy_ros.core.observation import Observation
from vla_policy_ros.engines.registry import engine_memory
from vla_policy_ros.engines.settings import EngineSettings
from vla_policy_ros.evaluation.component_times import measure_inference
from vla_policy_ros.gpu.interfaces import Device
from vla_policy_ros.policies.engine_policy import EnginePolicy
from vla_policy_ros.policies.stages import EngineLoader


class MeasuredPolicy:
    """An `EnginePolicy` with the GPU that it runs on.

    Args:
        bundle: The bundle.
        engine: Name of the engine.
        settings: How networks are loaded.
        load: Loads them.
        slots: Images per camera that may be prepared and not yet let go.
        preprocess: Where images are preprocessed.
        cuda_graph: Whether a device engine runs as one CUDA graph.

    Raises:
        VlaPolicyError: It cannot run here.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        engine: str,
        settings: EngineSettings,
        load: EngineLoader,
        slots: int,
        preprocess: str = 'cpu',
        cuda_graph: bool = True,
    ) -> None:
        self._clock = MonotonicClock()
        self._device: Device | None = None
        self._is_prepared_on_device = preprocess == 'gpu'
        self.free_at_start_bytes: int | None = None
        """Free memory of the GPU before the policy was loaded; None for an engine on the host."""
        with ExitStack() as undo:
            words: dict[str, Any] = {}
            if engine_memory(engine) == 'device':
                from vla_policy_ros.gpu.device import open_device

                words['device'] = self._device = open_device()
                undo.callback(self._device.close)
                self.free_at_start_bytes = self.free_device_bytes()
            self.policy = EnginePolicy(
                bundle,
                engine=engine,
                preprocess=preprocess,
                slots=slots,
                settings=settings,
                cuda_graph=cuda_graph,
                load=load,
                **words,
            )
            undo.callback(self.policy.close)
            self._undo = undo.pop_all()

    def infer(self, observation: Observation) -> tuple[dict[str, int], ActionChunk]:
        """Prepare the images and infer; returns nanoseconds per component, and the chunk.

        Raises:
            VlaPolicyError: As the policy.
        """
        wait = self._wait if self._is_prepared_on_device else None
        return measure_inference(self.policy, observation, clock=self._clock, wait=wait)

    def free_device_bytes(self) -> int | None:
        """Return the free memory of the GPU; None for an engine on the host."""
        if self._device is None:
            return None
        with self._device.current():
            return self._device.free_bytes()

    def close(self) -> None:
        """Free the policy, then the GPU; may be called twice."""
        self._undo.close()

    def _wait(self, image: PreparedFrame) -> None:
        """Block until an image is prepared."""
        event = getattr(image, 'event', None)
        if event is not None and self._device is not None:
            with self._device.current():
                event.synchronize()
