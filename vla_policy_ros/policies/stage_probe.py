# SPDX-License-Identifier: Apache-2.0
"""One stage of a bundle by itself: what goes into it and out of it, and the same again on another engine."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vla_policy_ros.bundle.bundle import Bundle
from vla_policy_ros.bundle.manifest import Stage
from vla_policy_ros.core.engine import DeviceTensor, Engine, Execution, Memory, Tensor
from vla_policy_ros.core.specs import Array, TensorSpec
from vla_policy_ros.engines.registry import engine_memory, load_engine
from vla_policy_ros.engines.settings import DEFAULT_SETTINGS, EngineSettings
from vla_policy_ros.gpu.interfaces import Device
from vla_policy_ros.policies.device_pool import fixed_shape
from vla_policy_ros.policies.stages import EngineLoader


@dataclass(frozen=True, slots=True, eq=False)
class StageCall:
    """One run of one stage: its name, and copies of its inputs and outputs under the network's own names."""

    stage: str
    inputs: dict[str, Array]
    outputs: dict[str, Array]


class StageRecorder:
    """Loads engines that note every run; give it to a runner on the host as `load`.

    Args:
        bundle: The bundle whose stages are bound, in their order.
        load: Loads the networks.
    """

    def __init__(self, bundle: Bundle, load: EngineLoader = load_engine) -> None:
        self._calls: list[StageCall] = []
        self._stages = iter(bundle.manifest.stages)
        self._load = load

    def __call__(self, name: str, onnx_path: Path, *, settings: EngineSettings) -> Engine:
        """Load one network."""
        return _RecordedEngine(self._load(name, onnx_path, settings=settings), self)

    def take(self) -> list[StageCall]:
        """Return the runs since the last call of this."""
        calls, self._calls = self._calls, []
        return calls

    def next_stage(self) -> Stage:
        """Return the stage that is bound next."""
        return next(self._stages)

    def note(self, call: StageCall) -> None:
        """Add one run."""
        self._calls.append(call)


class _RecordedEngine:
    """An engine whose executions note their runs."""

    def __init__(self, engine: Engine, recorder: StageRecorder) -> None:
        self._engine = engine
        self._recorder = recorder

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Inputs of the network."""
        return self._engine.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Outputs of the network."""
        return self._engine.outputs

    @property
    def workspace_bytes(self) -> int:
        """Workspace of the network."""
        return self._engine.workspace_bytes

    def bind(
        self, tensors: Mapping[str, Tensor], *, workspace: DeviceTensor | None = None
    ) -> Execution:
        """Bind the next stage of the bundle to host arrays."""
        arrays = {name: value for name, value in tensors.items() if isinstance(value, np.ndarray)}
        bound = self._engine.bind(tensors, workspace=workspace)
        return _RecordedExecution(bound, self._recorder.next_stage(), arrays, self._recorder)

    def close(self) -> None:
        """Free the network."""
        self._engine.close()


class _RecordedExecution:
    """An execution that notes its runs."""

    def __init__(
        self, execution: Execution, stage: Stage, arrays: dict[str, Array], recorder: StageRecorder
    ) -> None:
        self._execution = execution
        self._stage = stage
        self._arrays = arrays
        self._recorder = recorder

    def enqueue(self, stream: int = 0) -> None:
        """Run once and note it."""
        # Before the run: an output may lie where an input does.
        inputs = {name: self._arrays[name].copy() for name in self._stage.inputs}
        self._execution.enqueue(stream)
        outputs = {name: self._arrays[name].copy() for name in self._stage.outputs}
        self._recorder.note(StageCall(self._stage.name, inputs, outputs))

    def close(self) -> None:
        """Release the binding."""
        self._execution.close()


class StageProbe:
    """One stage on one engine, bound to buffers of its own in the engine's memory. For tests, not for the robot.

    Args:
        bundle: The bundle.
        stage: One of its stages.
        engine: Name of the engine.
        settings: How the network is loaded; without a precision in that of the stage; the stream is the probe's own.
        device: The GPU of a device engine, which stays the caller's; not used by an engine on the host.
        load: Loads the network.

    Raises:
        EngineError: The network cannot be loaded.
        SpecMismatchError: It does not fit the bundle.
        GpuError: The device failed.
    """

    def __init__(
        self,
        bundle: Bundle,
        stage: Stage,
        *,
        engine: str,
        settings: EngineSettings = DEFAULT_SETTINGS,
        device: Device | None = None,
        load: EngineLoader = load_engine,
    ) -> None:
        memory: Memory = engine_memory(engine)
        if memory == 'device':
            assert device, 'a device engine needs a device'
        self._stage = stage
        specs = {
            name: bundle.tensors[pool_name]
            for name, pool_name in {**stage.inputs, **stage.outputs}.items()
        }
        used = device if memory == 'device' else None
        with ExitStack() as undo, used.current() if used else nullcontext():
            self._buffers = _DeviceBuffers(used, specs, undo) if used else _HostBuffers(specs)
            settings = replace(
                settings,
                precision=settings.precision or stage.precision,
                stream=self._buffers.stream_handle,
            )
            network = load(engine, bundle.folder / stage.onnx, settings=settings)
            undo.callback(network.close)
            self._execution = network.bind(self._buffers.tensors)
            undo.callback(self._execution.close)
            self._undo = undo.pop_all()
        self._device = used

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run once; takes and returns host arrays under the network's own names; blocks.

        Raises:
            EngineError: The network failed.
        """
        with self._device.current() if self._device else nullcontext():
            for name in self._stage.inputs:
                self._buffers.write(name, inputs[name])
            self._execution.enqueue(self._buffers.stream_handle)
            return {name: self._buffers.read(name) for name in self._stage.outputs}

    def close(self) -> None:
        """Free network and buffers; may be called twice."""
        with self._device.current() if self._device else nullcontext():
            self._undo.close()


class _HostBuffers:
    """Tensors in host memory."""

    stream_handle = 0

    def __init__(self, specs: Mapping[str, TensorSpec]) -> None:
        self._arrays = {name: np.zeros(fixed_shape(s), s.dtype) for name, s in specs.items()}
        self.tensors: dict[str, Tensor] = dict(self._arrays)

    def write(self, name: str, values: Array) -> None:
        """Set an input."""
        np.copyto(self._arrays[name], values)

    def read(self, name: str) -> Array:
        """Return a copy of an output."""
        values: Array = self._arrays[name].copy()
        return values


class _DeviceBuffers:
    """Tensors in device memory with a pinned copy of each, on a stream of their own."""

    def __init__(self, device: Device, specs: Mapping[str, TensorSpec], undo: ExitStack) -> None:
        self._device = device
        self._stream = device.new_stream()
        self.stream_handle = self._stream.handle
        self._buffers = {n: device.allocate(fixed_shape(s), s.dtype) for n, s in specs.items()}
        self._pinned = {
            n: device.allocate_pinned(fixed_shape(s), s.dtype) for n, s in specs.items()
        }
        self.tensors: dict[str, Tensor] = dict(self._buffers)
        for buffer in self._buffers.values():
            undo.callback(buffer.free)
        for pinned in self._pinned.values():
            undo.callback(pinned.free)
        undo.callback(self._stream.synchronize)

    def write(self, name: str, values: Array) -> None:
        """Set an input; ordered on the stream."""
        np.copyto(self._pinned[name].array, values)
        self._device.upload(self._buffers[name], self._pinned[name], self._stream)

    def read(self, name: str) -> Array:
        """Return a copy of an output; waits for the stream."""
        self._device.download(self._pinned[name], self._buffers[name], self._stream)
        self._stream.synchronize()
        values: Array = self._pinned[name].array.copy()
        return values
