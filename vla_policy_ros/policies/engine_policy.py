# SPDX-License-Identifier: Apache-2.0
"""The policy that runs a bundle: preprocess, stages and loop, denormalise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import numpy as np

from vla_policy_ros.bundle.bundle import Bundle
from vla_policy_ros.bundle.normalization import ActionDenormalizer
from vla_policy_ros.core.chunk import ActionChunk
from vla_policy_ros.core.clock import Clock, MonotonicClock
from vla_policy_ros.core.errors import ConfigurationError, EngineError
from vla_policy_ros.core.frame import Frame, PreparedFrame
from vla_policy_ros.core.observation import Observation
from vla_policy_ros.core.specs import Array, PolicySpec
from vla_policy_ros.deployment.rtc import RtcSettings
from vla_policy_ros.engines.registry import ENGINES, engine_memory, load_engine
from vla_policy_ros.engines.settings import DEFAULT_SETTINGS, EngineSettings
from vla_policy_ros.gpu.interfaces import Device
from vla_policy_ros.policies.chunk_memory import ChunkMemory
from vla_policy_ros.policies.device_runner import DeviceRunner
from vla_policy_ros.policies.host_runner import HostRunner
from vla_policy_ros.policies.inputs import example_observation
from vla_policy_ros.policies.rtc_check import check_rtc
from vla_policy_ros.policies.runner import ExecutionFacts, Runner
from vla_policy_ros.policies.stages import EngineLoader

PREPROCESSORS = ('cpu', 'gpu')
"""Names that `preprocess` takes."""
JPEG_DECODERS = ('cpu', 'nvjpeg')
"""Names that `jpeg` takes."""

_NO_STATE = np.zeros(0, np.float32)


class EnginePolicy:
    """Runs a bundle. All buffers are made here; one observation after another goes through them.

    Args:
        bundle: The bundle.
        engine: Name of the engine, one of `engines.registry.ENGINES`.
        preprocess: Where images are preprocessed, one of `PREPROCESSORS`; `gpu` needs an engine in device memory.
        slots: Images per camera that may be prepared and not yet let go.
        settings: How networks are loaded.
        cuda_graph: Whether a device engine's stages and loop are captured in one CUDA graph.
        jpeg: What decodes JPEG, one of `JPEG_DECODERS`; `nvjpeg` needs `preprocess` on the GPU.
        device: The GPU of a device engine: one that stays the caller's to close, or the index of one to open; also the
            index of a GPU or NPU that an engine opens itself.
        rtc: How a chunk begins with what is left of the one before; None: each is by itself.
        clock: Measures the stages; the machine's monotonic clock when none is given.
        load: Loads a network; for tests.

    Raises:
        ConfigurationError: A name is unknown (`unknown_engine`, `unknown_preprocess`, `unknown_jpeg`), or a choice
            needs another one (`needs_device_engine`, `needs_gpu_preprocess`), or the chunks cannot begin as `rtc` says
            (the codes of `rtc_check.check_rtc`).
        MissingDependencyError: The engine's library is not installed.
        EngineError: A network cannot be loaded.
        GpuError: There is no GPU or driver, or not enough memory.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        engine: str = 'onnxruntime',
        preprocess: str = 'cpu',
        slots: int = 8,
        settings: EngineSettings = DEFAULT_SETTINGS,
        cuda_graph: bool = True,
        jpeg: str = 'cpu',
        device: Device | int = 0,
        rtc: RtcSettings | None = None,
        clock: Clock | None = None,
        load: EngineLoader = load_engine,
    ) -> None:
        _check_choices(engine, preprocess=preprocess, jpeg=jpeg)
        self.bundle = bundle
        self._clock = clock or MonotonicClock()
        action, state = bundle.manifest.action, bundle.manifest.state
        self._denormalizer = ActionDenormalizer(action, state, bundle.statistics)
        self._memory = self._make_memory(rtc, engine) if rtc else None
        self._is_open = True
        with ExitStack() as undo:
            make: Callable[..., Runner] = HostRunner
            if isinstance(device, int):
                settings = replace(settings, device_index=device)
            if engine_memory(engine) == 'device':
                make = partial(
                    DeviceRunner,
                    device=_take_device(device, undo),
                    preprocess=preprocess,
                    cuda_graph=cuda_graph,
                    jpeg=jpeg,
                )
            self._runner = make(
                bundle,
                engine=engine,
                slots=slots,
                settings=settings,
                clock=self._clock,
                load=load,
                rtc=rtc,
            )
            undo.callback(self._runner.close)
            self._undo = undo.pop_all()

    @property
    def spec(self) -> PolicySpec:
        """What it takes and what it gives."""
        return self.bundle.spec

    @property
    def execution(self) -> ExecutionFacts:
        """How it really runs."""
        return self._runner.execution

    def prepares_at_once(self, frame: Frame) -> bool:
        """Tell whether the device preprocesses this image and the host only copies it once."""
        return self._runner.prepares_at_once(frame)

    def prepare(self, frame: Frame) -> PreparedFrame:
        """Preprocess one image ahead of its inference into a slot; any thread may call it.

        Raises:
            ImageError: The camera is unknown, no slot is free (`no_free_slot`), or the image cannot be decoded.
            EngineError: The policy is closed (`closed`).
        """
        self._check_open()
        return self._runner.prepare(frame)

    def warmup(self) -> None:
        """Make ready for every pixel format, and run once on black images and a zero state."""
        self._check_open()
        self._runner.prepare_formats()
        self.infer(example_observation(self.bundle))
        self.reset()

    def infer(self, observation: Observation) -> ActionChunk:
        """Compute the chunk of one observation; blocks; one thread at a time.

        Raises:
            ImageError: A camera is unknown or missing, or an image cannot be used.
            StateError: The state has another shape or is not finite.
            InstructionError: The instruction cannot be used.
            EngineError: A network failed, or the policy is closed (`closed`).
            GpuError: The GPU failed.
            ChunkRejectedError: The actions are not finite, or the chunk would come too late (`delay_above_max`).
        """
        self._check_open()
        runner = self._runner
        started_ns = self._clock.now_ns()
        runner.write(observation)
        if self._memory:
            runner.write_prefix(self._memory.recall(observation))
        runner.draw_noise(observation.stamp_ns)
        written_ns = self._clock.now_ns()
        runner.run()
        latencies_ns = {'preprocess': 0, **runner.latencies_ns}
        latencies_ns['preprocess'] += written_ns - started_ns
        started_ns = self._clock.now_ns()
        action = self.spec.action
        actions = np.empty((action.horizon, len(action.columns)), np.float32)
        state_row = observation.state[-1] if self.spec.observation.state else _NO_STATE
        self._denormalizer.write(runner.raw_action[0], state_row, actions)
        latencies_ns['postprocess'] = self._clock.now_ns() - started_ns
        chunk = ActionChunk.answer(
            observation, actions, spec=self.spec, stage_latencies_ns=latencies_ns
        )
        if self._memory:
            self._memory.keep(observation, runner.sample)
        return chunk

    def pool_inputs(self, observation: Observation) -> tuple[dict[str, Array], Array | None]:
        """Return copies of the tensors and of the noise that an observation fills.

        Raises:
            VlaPolicyError: As infer().
        """
        self._check_open()
        self._runner.write(observation)
        self._runner.draw_noise(observation.stamp_ns)
        return self._runner.read_inputs()

    def run_pool(self, inputs: Mapping[str, Array], noise: Array | None) -> Array:
        """Run stages and loop on given tensors and noise; return a copy of the action tensor, (1, K, W).

        Raises:
            EngineError: A network failed, or the policy is closed (`closed`).
        """
        self._check_open()
        self._runner.write_inputs(inputs, noise)
        if self._memory:
            self._runner.write_prefix(None)
        self._runner.run()
        output: Array = self._runner.raw_action.copy()
        return output

    def reset(self) -> None:
        """Forget the last chunk, so that the next one begins by itself."""
        if self._memory:
            self._memory.forget()

    def note_published(self, delay_ns: int) -> tuple[str, ...]:
        """Take the time from capture to publication of the newest chunk; return what was wrong with how it began."""
        return self._memory.note_published(delay_ns) if self._memory else ()

    def close(self) -> None:
        """Free engines and buffers, and the GPU where the policy opened it; may be called twice."""
        self._is_open = False
        self._undo.close()

    def _make_memory(self, rtc: RtcSettings, engine: str) -> ChunkMemory:
        check_rtc(self.bundle, rtc, engine=engine, denormalizer=self._denormalizer)
        return ChunkMemory(self.bundle, rtc, denormalizer=self._denormalizer)

    def _check_open(self) -> None:
        if not self._is_open:
            raise EngineError(
                f'policy {self.spec.policy_id!r}',
                got='a call after close()',
                expected='an open policy',
                next_step='Load the policy again.',
                code='closed',
            )


def _check_choices(engine: str, *, preprocess: str, jpeg: str) -> None:
    """Refuse names that are not known, and choices that do not go together; imports no library."""
    memory = engine_memory(engine)
    for key, name, known in (
        ('preprocess', preprocess, PREPROCESSORS),
        ('jpeg', jpeg, JPEG_DECODERS),
    ):
        if name not in known:
            raise ConfigurationError(
                f'policy.{key}',
                got=repr(name),
                expected=f'one of {", ".join(known)}',
                next_step='Choose one of these.',
                code=f'unknown_{key}',
            )
    if preprocess == 'gpu' and memory == 'host':
        raise ConfigurationError(
            'policy.preprocess',
            got=f"'gpu' with engine {engine!r}, which reads host memory",
            expected=f'an engine on the GPU: {", ".join(_device_engines())}',
            next_step='Choose one of these engines, or preprocess: cpu.',
            code='needs_device_engine',
        )
    if jpeg == 'nvjpeg' and preprocess == 'cpu':
        raise ConfigurationError(
            'policy.jpeg',
            got="'nvjpeg' with preprocess 'cpu'",
            expected='images that are preprocessed on the GPU',
            next_step='Choose preprocess: gpu, or jpeg: cpu.',
            code='needs_gpu_preprocess',
        )


def _device_engines() -> list[str]:
    return [name for name in ENGINES if engine_memory(name) == 'device']


def _take_device(device: Device | int, undo: ExitStack) -> Device:
    """Return the device; one that is opened here is closed by `undo`."""
    if not isinstance(device, int):
        return device
    from vla_policy_ros.gpu.device import open_device

    opened = open_device(device)
    undo.callback(opened.close)
    return opened
