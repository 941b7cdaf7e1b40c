# SPDX-License-Identifier: Apache-2.0
"""Runs a bundle on a GPU: images, stages and loop on the device, the action alone comes back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from vla_policy_ros.bundle.bundle import Bundle
from vla_policy_ros.bundle.chunk_prefix import ChunkPrefix
from vla_policy_ros.bundle.graph import noise_draws, observation_tensors
from vla_policy_ros.bundle.manifest import FlowMatching
from vla_policy_ros.core.clock import Clock
from vla_policy_ros.core.frame import COMPRESSED_ENCODINGS, Frame, PreparedFrame
from vla_policy_ros.core.observation import Observation
from vla_policy_ros.core.specs import Array, TensorSpec
from vla_policy_ros.deployment.rtc import RtcSettings
from vla_policy_ros.engines.settings import EngineSettings
from vla_policy_ros.gpu.camera import DeviceCamera
from vla_policy_ros.gpu.denoise import DeviceDenoiser
from vla_policy_ros.gpu.guidance import DeviceGuidance
from vla_policy_ros.gpu.interfaces import Device, DeviceBuffer
from vla_policy_ros.policies.device_images import device_cameras, open_cameras
from vla_policy_ros.policies.device_noise import DeviceNoise
from vla_policy_ros.policies.device_pool import DevicePool, fixed_shape
from vla_policy_ros.policies.device_prefix import DevicePrefix
from vla_policy_ros.policies.device_program import Step, make_program
from vla_policy_ros.policies.guidance import bind_gradient
from vla_policy_ros.policies.inputs import ImageInput, ObservationInput, host_cameras
from vla_policy_ros.policies.prefix_input import prefix_pool_names
from vla_policy_ros.policies.preprocess_check import check_preprocessing
from vla_policy_ros.policies.stages import (
    BoundStage,
    EngineLoader,
    StageOrder,
    bind_stages,
    load_engines,
)


class DeviceRunner:
    """A `Runner` on a GPU.

    One run: the policy's stream waits for each image and copies it to the pool; the noise is made; then uploads of
    what the host has filled, stages, loop and the download of the action, captured in one CUDA graph; then the host
    waits for the end. Nothing is allocated after construction but for a frame larger than all before.

    Args:
        bundle: The bundle.
        device: The device; it stays the caller's to close.
        engine: Name of an engine in device memory.
        preprocess: `gpu`, or `cpu` for images that are preprocessed on the host and uploaded with the rest.
        slots: Images per camera that may be prepared and not yet let go.
        settings: How networks are loaded; the stream is the runner's own.
        cuda_graph: Whether the run is captured; where that fails, a warning says so and every step is enqueued.
        jpeg: What decodes JPEG for `gpu`.
        clock: Measures what the host waits for.
        load: Loads a network.
        rtc: How chunks begin with what is left of the one before; None: each is by itself.

    Raises:
        EngineError: A network cannot be loaded, or fails.
        SpecMismatchError: A network does not fit the pool.
        GpuError: The device failed or has not enough memory.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: Device,
        engine: str,
        preprocess: str,
        slots: int,
        settings: EngineSettings,
        cuda_graph: bool,
        jpeg: str,
        clock: Clock,
        load: EngineLoader,
        rtc: RtcSettings | None = None,
    ) -> None:
        self._bundle = bundle
        self._device = device
        self._clock = clock
        with ExitStack() as undo, device.current():
            self._stream = device.new_stream()
            on_host = _host_tensors(bundle, preprocess) + prefix_pool_names(bundle, rtc)
            self._pool = DevicePool(device, bundle, staged=on_host, stream=self._stream)
            undo.callback(self._pool.close)
            self._cameras: Mapping[str, DeviceCamera] = {}
            if preprocess == 'gpu':
                self._cameras = open_cameras(
                    bundle, device=device, slots=slots, jpeg=jpeg, undo=undo
                )
            self._input = self._make_input(slots)
            self._noise = self._make_noise(undo)
            self._prefix = self._make_prefix(rtc, undo) if rtc else None
            stages = self._bind(engine, settings, load, undo)
            self._guide = _make_guide(device, bundle, rtc, self._prefix, self._pool, stages, undo)
            self._program, self.execution = make_program(
                device,
                self._stream,
                list(self._steps(stages)),
                cuda_graph=cuda_graph,
                undo=undo,
            )
            undo.callback(self._stream.synchronize)
            self._undo = undo.pop_all()
        self.latencies_ns = {'preprocess': 0, **self._program.latencies_ns}

    @property
    def raw_action(self) -> Array:
        """(1, K, W) float32 action tensor of the last run, pinned host memory."""
        return self._pool.raw_action

    @property
    def sample(self) -> Array:
        """(1, K, W) float32 sample that the loop of the last run ended with, pinned host memory."""
        assert self._prefix
        return self._prefix.sample

    def prepare_formats(self) -> None:
        """Compile the preprocessing kernels of every encoding, or take them from the cache, and check what they do.

        Raises:
            GpuError: A kernel is not to be had, or an image differs from the CPU reference (`preprocess_differs`).
        """
        for camera in self._cameras.values():
            camera.prepare_formats()
        if self._cameras:
            with self._device.current():
                for settings in self._bundle.manifest.cameras:
                    check_preprocessing(self._device, settings)

    def prepares_at_once(self, frame: Frame) -> bool:
        """Tell whether the image is copied once and the rest is left to the device; JPEG is looked into on the host."""
        return bool(self._cameras) and frame.encoding not in COMPRESSED_ENCODINGS

    def prepare(self, frame: Frame) -> PreparedFrame:
        """Begin to preprocess one image into a free slot; any thread may call it."""
        return self._input.prepare(frame)

    def write(self, observation: Observation) -> None:
        """Fill what the host fills, and enqueue the copies of the images."""
        with self._device.current():
            self._input.write(observation)

    def draw_noise(self, stamp_ns: int) -> None:
        """Enqueue the noise for the observation of one stamp."""
        if self._noise:
            with self._device.current():
                self._noise.draw(stamp_ns)

    def write_prefix(self, prefix: ChunkPrefix | None) -> None:
        """Set what the next run begins with; it goes up with the run."""
        assert self._prefix
        self._prefix.write(prefix)

    def run(self) -> None:
        """Enqueue the run and wait for its end.

        Raises:
            EngineError: A network failed.
            GpuError: The device failed.
        """
        started_ns = self._clock.now_ns()
        with self._device.current():
            self._program.enqueue()
            self._program.wait()
        waited_ns = self._clock.now_ns() - started_ns - self._program.total_ns
        self.latencies_ns.update(self._program.latencies_ns)
        self.latencies_ns['preprocess'] = max(waited_ns, 0)

    def read_inputs(self) -> tuple[dict[str, Array], Array | None]:
        """Return copies of the tensors that an observation fills, and of the noise; blocks and allocates."""
        inputs = {}
        with self._device.current():
            for name in observation_tensors(self._bundle.manifest):
                staged = self._pool.host.get(name)
                inputs[name] = (
                    self._pool.fetch(self._pool.tensors[name]) if staged is None else staged.copy()
                )
            return inputs, self._pool.fetch(self._noise.tensor) if self._noise else None

    def write_inputs(self, inputs: Mapping[str, Array], noise: Array | None) -> None:
        """Set tensors that an observation fills, and the noise, for the next run; blocks and allocates."""
        with self._device.current():
            for name, values in inputs.items():
                if name in self._pool.host:
                    np.copyto(self._pool.host[name], values)
                else:
                    self._pool.put(name, values)
            if noise is not None and self._noise:
                self._noise.inject(noise)

    def close(self) -> None:
        """Wait for the stream, then free graph, executions, engines and buffers, in that order; may be called twice."""
        with self._device.current():
            self._undo.close()

    def _make_input(self, slots: int) -> ObservationInput:
        bundle, pool = self._bundle, self._pool
        inputs: Mapping[str, ImageInput]
        if self._cameras:
            inputs = device_cameras(
                bundle, self._cameras, pool, device=self._device, stream=self._stream
            )
        else:
            inputs = host_cameras(bundle, pool.host, slots=slots)
        return ObservationInput(bundle, pool.host, inputs)

    def _make_noise(self, undo: ExitStack) -> DeviceNoise | None:
        loop = self._bundle.manifest.loop
        if loop is None:
            return None
        shape = (noise_draws(loop), *self._pool.tensors[loop.sample].shape[1:])
        return DeviceNoise(self._device, shape, seed=loop.seed, stream=self._stream, undo=undo)

    def _make_prefix(self, rtc: RtcSettings, undo: ExitStack) -> DevicePrefix:
        return DevicePrefix(
            self._device, self._bundle, rtc, pool=self._pool, stream=self._stream, undo=undo
        )

    def _bind(
        self, engine: str, settings: EngineSettings, load: EngineLoader, undo: ExitStack
    ) -> StageOrder:
        """Load and bind all networks; they run one after another, so they share one workspace."""
        settings = replace(settings, stream=self._stream.handle)
        engines = load_engines(self._bundle, engine, settings=settings, load=load, undo=undo)
        workspace = None
        num_bytes = max(engine.workspace_bytes for engine in engines.values())
        if num_bytes:
            workspace = self._device.allocate((num_bytes,), 'uint8')
            undo.callback(workspace.free)
        return bind_stages(
            self._bundle, engines, self._pool.tensors, undo=undo, workspace=workspace
        )

    def _steps(self, stages: StageOrder) -> Iterator[Step]:
        """Yield everything between filled inputs and the action on the host."""
        stream, handle = self._stream, self._stream.handle
        yield Step('', self._pool.upload)
        if self._prefix:
            yield Step('', self._prefix.upload)
        yield from _stage_steps(stages.before, handle)
        loop, tensors, guide = self._bundle.manifest.loop, self._pool.tensors, self._guide
        if loop and self._noise:
            denoiser = DeviceDenoiser(
                self._device,
                loop,
                sample=tensors[loop.sample],
                prediction=tensors[loop.prediction],
                timestep=tensors[loop.timestep],
                noise=self._noise.tensor,
                prefix=self._prefix.tensors if self._prefix and not guide else None,
            )
            yield Step('', partial(denoiser.begin, stream))
            for index in range(denoiser.num_steps):
                yield from _stage_steps(stages.body, handle)
                if guide:
                    yield Step('', partial(guide.guidance.measure, stream, index))
                    yield from _stage_steps(guide.gradient, handle)
                    yield Step('', partial(guide.guidance.correct, stream, index))
                yield Step('', partial(denoiser.update, stream, index))
        yield from _stage_steps(stages.after, handle)
        yield Step('', self._pool.download)
        if self._prefix:
            yield Step('', self._prefix.download)


@dataclass(frozen=True, slots=True)
class _Guide:
    """Guidance, and the stages that compute its gradient."""

    guidance: DeviceGuidance
    gradient: tuple[BoundStage, ...]


def _make_guide(
    device: Device,
    bundle: Bundle,
    rtc: RtcSettings | None,
    prefix: DevicePrefix | None,
    pool: DevicePool,
    stages: StageOrder,
    undo: ExitStack,
) -> _Guide | None:
    loop = bundle.manifest.loop
    if not (rtc and prefix and rtc.kind == 'guided' and isinstance(loop, FlowMatching)):
        return None
    guidance = DeviceGuidance(
        device,
        loop,
        sample=pool.tensors[loop.sample],
        prediction=pool.tensors[loop.prediction],
        prefix=prefix.tensors,
        max_weight=rtc.max_guidance_weight,
        undo=undo,
    )

    def make(spec: TensorSpec) -> DeviceBuffer:
        buffer = device.allocate(fixed_shape(spec), spec.dtype)
        undo.callback(buffer.free)
        return buffer

    gradient = bind_gradient(
        bundle,
        stages.body,
        seed=guidance.error,
        gradient=guidance.gradient,
        make=make,
        undo=undo,
    )
    return _Guide(guidance, gradient)


def _host_tensors(bundle: Bundle, preprocess: str) -> list[str]:
    """Return the names of the pool tensors that the host fills."""
    on_device = {camera.tensor for camera in bundle.manifest.cameras if preprocess == 'gpu'}
    return [name for name in observation_tensors(bundle.manifest) if name not in on_device]


def _stage_steps(stages: tuple[BoundStage, ...], handle: int) -> Iterator[Step]:
    for stage in stages:
        yield Step(stage.name, partial(stage.execution.enqueue, handle))
