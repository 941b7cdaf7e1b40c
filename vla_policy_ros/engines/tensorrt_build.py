# SPDX-License-Identifier: Apache-2.0
"""ONNX file to TensorRT plan: parse, configure, build, report, store."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vla_policy_ros.core.cache import write_atomically
from vla_policy_ros.core.errors import ConfigurationError, EngineError
from vla_policy_ros.engines.build_progress import BuildMonitor, BuildProgress
from vla_policy_ros.engines.plan_facts import (
    BuildOptions,
    BuildReport,
    BuiltPlan,
    Gpu,
    LibraryName,
    Machine,
    PlanKey,
    ShapeRange,
)
from vla_policy_ros.engines.plans import PlanStore, network_hash
from vla_policy_ros.engines.tensorrt_layers import network_layers, plan_layers
from vla_policy_ros.engines.tensorrt_library import Library, list_targets, load_library
from vla_policy_ros.gpu.driver import find_driver
from vla_policy_ros.gpu.interfaces import Device

__all__ = ['BuildOptions', 'BuildProgress', 'BuiltPlan', 'ShapeRange', 'build_plan']

_MIB = 1 << 20


def build_plan(
    onnx_path: Path,
    *,
    options: BuildOptions,
    store: PlanStore,
    library: LibraryName = 'tensorrt',
    network: str | None = None,
    device: Device | None = None,
    on_progress: Callable[[BuildProgress], None] | None = None,
) -> BuiltPlan:
    """Build a plan and put it into a store. Blocks for seconds to minutes; Ctrl-C cancels the build and is passed on.

    `tensorrt` measures on the GPU, which should have nothing else to do. `tensorrt_rtx` needs none.

    Args:
        onnx_path: The network in the precision that it is to run in.
        options: How to build it.
        store: Where the plan goes; its timing cache is used and brought up to date.
        library: What to build with.
        network: Hash of the bundle's network, when `onnx_path` was converted from it: engines look for that.
        device: GPU to build on; None takes the first one. `tensorrt_rtx` does not use it.
        on_progress: Is told of every step, on the caller's thread.

    Raises:
        GpuError: There is no driver or GPU for `tensorrt`; TensorRT is not touched then.
        MissingDependencyError: The library is not installed.
        ConfigurationError: The library lacks an option (`unsupported_option`).
        EngineError: The network cannot be parsed (`not_parsed`): node, operator and reason are named; an input has a
            free dimension and no range, or a range that it cannot take (`bad_profile`); the build failed
            (`build_failed`).
    """
    loaded = load_library(library)
    check_options(loaded, options)
    if loaded.compiles_at_run_time:
        build = _Build(onnx_path, options, store, loaded, loaded.machine(None))
        return build.run_watched(network, None, on_progress)
    with _opened(device) as used:
        machine = loaded.machine(Gpu(used.name, used.compute_capability))
        build = _Build(onnx_path, options, store, loaded, machine)
        return build.run_watched(network, used, on_progress)


def check_parsable(onnx_path: Path, *, library: LibraryName) -> None:
    """Ask a library's parser whether it knows all operators of a network; builds nothing.

    Raises:
        GpuError: There is no driver for `tensorrt`.
        MissingDependencyError: The library is not installed.
        EngineError: The network cannot be parsed (`not_parsed`): node, operator and reason are named.
    """
    loaded = load_library(library)
    loaded.messages.clear()
    with loaded.messages.collecting():
        builder = loaded.module.Builder(loaded.logger)
        _parse(loaded, builder.create_network(loaded.network_flags), onnx_path)


@contextmanager
def _opened(device: Device | None) -> Iterator[Device]:
    """Give the device, or the first one for a `with` block."""
    if device is not None:
        yield device
        return
    from vla_policy_ros.gpu.device import open_device

    with closing(open_device()) as first:
        yield first


@dataclass(frozen=True, slots=True)
class _Build:
    """One build, with all it needs."""

    onnx_path: Path
    options: BuildOptions
    store: PlanStore
    library: Library
    machine: Machine
    monitor: BuildMonitor = field(default_factory=BuildMonitor)

    def run_watched(
        self,
        network: str | None,
        device: Device | None,
        on_progress: Callable[[BuildProgress], None] | None,
    ) -> BuiltPlan:
        """Build on a thread of its own: a signal reaches the caller's thread, which waits for progress, at once."""
        key = PlanKey(
            network_hash=network or network_hash(self.onnx_path),
            options=self.options,
            machine=self.machine,
        )
        events = self.monitor.events
        with ThreadPoolExecutor(1, 'build_plan') as pool:
            future = pool.submit(self._run, key, device)
            future.add_done_callback(lambda _: events.put(None))
            try:
                while (event := events.get()) is not None:
                    if on_progress:
                        on_progress(event)
            finally:
                self.monitor.cancel()
        return future.result()

    def _run(self, key: PlanKey, device: Device | None) -> BuiltPlan:
        messages = self.library.messages
        messages.clear()
        with messages.collecting() as warnings, device.current() if device else nullcontext():
            start = time.perf_counter()
            builder = self.library.module.Builder(self.library.logger)
            network = builder.create_network(self.library.network_flags)
            _parse(self.library, network, self.onnx_path)
            config = self._configure(builder, network)
            plan = builder.build_serialized_network(network, config)
            if plan is None:
                raise self._failed()
            seconds = time.perf_counter() - start
            if not self.library.compiles_at_run_time:
                cache = config.get_timing_cache().serialize()
                write_atomically(self._timing_path, memoryview(cache))
            content = memoryview(plan)
            report = self._report(network, content, seconds)
            report = replace(report, warnings=tuple(dict.fromkeys(warnings)))
            return self.store.add(content, key, report=report)

    @property
    def _timing_path(self) -> Path:
        return self.store.timing_cache_path(self.machine)

    def _configure(self, builder: Any, network: Any) -> Any:
        module, options = self.library.module, self.options
        config = builder.create_builder_config()
        config.progress_monitor = self.monitor.as_interface(module)
        config.profiling_verbosity = module.ProfilingVerbosity.DETAILED  # for the report
        config.clear_flag(
            module.BuilderFlag.TF32
        )  # fp32 means fp32; for speed there are fp16 and bf16
        if options.workspace_mib:
            limit = options.workspace_mib * _MIB
            config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, limit)
        if options.optimization_level is not None:
            config.builder_optimization_level = options.optimization_level
        if options.hardware_compatible:
            level = module.HardwareCompatibilityLevel.AMPERE_PLUS
            config.hardware_compatibility_level = level
        if options.version_compatible:
            config.set_flag(module.BuilderFlag.VERSION_COMPATIBLE)
        if options.targets:
            config.num_compute_capabilities = len(options.targets)
            for index, target in enumerate(options.targets):
                config.set_compute_capability(_find_target(self.library, target), index)
        self._add_profile(builder, network, config)
        if not self.library.compiles_at_run_time:
            self._use_timing_cache(config)
        return config

    def _add_profile(self, builder: Any, network: Any, config: Any) -> None:
        inputs = [network.get_input(index) for index in range(network.num_inputs)]
        if not any(-1 in tuple(tensor.shape) for tensor in inputs):
            return
        profile = builder.create_optimization_profile()
        for tensor in inputs:
            shape = tuple(tensor.shape)
            sizes = self.options.profiles.get(tensor.name)
            if -1 not in shape:
                continue
            if sizes is None or not _can_take(shape, sizes):
                raise _bad_profile(self.onnx_path, tensor.name, shape, sizes)
            profile.set_shape(tensor.name, sizes.min, sizes.opt, sizes.max)
        config.add_optimization_profile(profile)

    def _use_timing_cache(self, config: Any) -> None:
        path = self._timing_path
        old = path.read_bytes() if path.is_file() else b''
        if not config.set_timing_cache(config.create_timing_cache(old), False):  # noqa: FBT003
            # Another build of TensorRT wrote it.
            config.set_timing_cache(config.create_timing_cache(b''), False)  # noqa: FBT003

    def _report(self, network: Any, plan: memoryview, seconds: float) -> BuildReport:
        engine = self._deserialize(plan)
        if engine is None:
            return BuildReport(
                seconds=seconds,
                workspace_bytes=None,
                layers=network_layers(network),
                layers_of='network',
            )
        return BuildReport(
            seconds=seconds,
            workspace_bytes=engine.device_memory_size_v2,
            layers=plan_layers(self.library, engine),
            layers_of='plan',
        )

    def _deserialize(self, plan: memoryview) -> Any:
        """Load the plan to ask it; None where a portable plan is built on a machine that cannot run it."""
        if self.library.compiles_at_run_time and find_driver() is None:
            return None
        runtime = self.library.module.Runtime(self.library.logger)
        runtime.engine_host_code_allowed = self.options.version_compatible
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None and not self.library.compiles_at_run_time:
            raise self._failed()
        return engine

    def _failed(self) -> EngineError:
        return EngineError(
            str(self.onnx_path),
            got=self.library.messages.last(),
            expected=f'a plan for {self.machine}',
            next_step='Try another precision or a larger workspace; the log says more.',
            code='build_failed',
        )


def _parse(library: Library, network: Any, onnx_path: Path) -> None:
    parser = library.module.OnnxParser(network, library.logger)
    # By path, so that weights beside the file are found.
    if parser.parse_from_file(str(onnx_path)) and network.num_outputs:
        return
    faults = [_describe_fault(parser.get_error(i)) for i in range(parser.num_errors)]
    raise EngineError(
        str(onnx_path),
        got='; '.join(faults) or 'a network without outputs',
        expected=f'an ONNX file that {library.name} {library.version} can parse',
        next_step='Export the network without that operator, or with another opset.',
        code='not_parsed',
    )


def check_options(library: Library, options: BuildOptions) -> None:
    """Refuse what a library does not have.

    Raises:
        ConfigurationError: It lacks an option (`unsupported_option`).
    """
    portable = library.compiles_at_run_time
    if options.targets and not portable:
        raise _unsupported('targets', library, 'a plan for the GPU of this machine')
    if options.hardware_compatible and portable:
        raise _unsupported('hardware_compatible', library, 'targets, or none for all GPUs')
    if options.version_compatible and portable:
        raise _unsupported('version_compatible', library, 'a plan for this version')
    for target in options.targets:
        _find_target(library, target)


def _find_target(library: Library, target: str) -> Any:
    known = list_targets(library.module)
    if target not in known:
        raise _unsupported(f'target {target!r}', library, f'one of {", ".join(known)}')
    return known[target]


def _unsupported(what: str, library: Library, expected: str) -> ConfigurationError:
    return ConfigurationError(
        'build options',
        got=f'{what}, which {library.name} {library.version} does not have',
        expected=expected,
        next_step='Leave the option out, or build with the other library.',
        code='unsupported_option',
    )


def _describe_fault(fault: Any) -> str:
    name, operator = fault.node_name(), fault.node_operator()
    place = f'node {name!r}, operator {operator}: ' if operator else ''
    return f'{place}{fault.code().name}: {fault.desc()}'


def _can_take(shape: tuple[int, ...], sizes: ShapeRange) -> bool:
    """Whether a range agrees with the fixed sizes of an input (free ones are -1) and is in order."""
    return all(
        len(one) == len(shape)
        and all(want in (-1, got) for want, got in zip(shape, one, strict=True))
        for one in (sizes.min, sizes.opt, sizes.max)
    ) and sizes.contains(sizes.opt)


def _bad_profile(
    onnx_path: Path, name: str, shape: tuple[int, ...], sizes: ShapeRange | None
) -> EngineError:
    free = ', '.join('*' if size == -1 else str(size) for size in shape)
    return EngineError(
        f'{onnx_path}, input {name!r}',
        got=f'range {sizes}' if sizes else 'no range of shapes',
        expected=f'a range for [{free}] with min <= opt <= max',
        next_step='Give least, best and greatest shape of this input in `profiles`.',
        code='bad_profile',
    )
