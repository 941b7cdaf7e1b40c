# SPDX-License-Identifier: Apache-2.0
"""TensorRT and TensorRT-RTX: built plans, run on the caller's stream in the caller's device memory."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from vla_policy_ros.core.cache import write_atomically
from vla_policy_ros.core.engine import DeviceTensor, Tensor
from vla_policy_ros.core.errors import EngineError, SpecMismatchError
from vla_policy_ros.core.specs import TensorSpec
from vla_policy_ros.engines.binding import (
    NamedTensors,
    check_names,
    closed_error,
    device_tensor,
)
from vla_policy_ros.engines.plan_facts import (
    LibraryName,
    ShapeRange,
)
from vla_policy_ros.engines.plans import (
    PlanStore,
    map_file,
    network_hash,
    open_plan,
)
from vla_policy_ros.engines.settings import DEFAULT_SETTINGS, EngineSettings
from vla_policy_ros.engines.tensorrt_library import Library, load_library, read_gpu
from vla_policy_ros.gpu.driver import require_driver

_LOG = logging.getLogger(__name__)
_ALIGNMENT_BYTES = 256  # of a context's memory, as `IExecutionContext.set_device_memory` asks


class PlanEngine(NamedTensors):
    """One plan in device memory. Loaded, bound and run with its device current on the calling thread.

    Args:
        library: The library that built the plan.
        content: The plan's bytes; not needed afterwards.
        name: File name, for messages.
        host_code_allowed: Whether the plan may bring code for the host, as version-compatible ones do. Only for plans
            of our own making.
        kernel_cache: TensorRT-RTX: file of kernels that were compiled before; written when the engine is closed.

    Raises:
        EngineError: The plan cannot be loaded: it is damaged, or made for another GPU or version (`not_loadable`); it
            has tensors that it wants in host memory (`host_tensor`) or of a type we do not have (`unsupported_type`).
    """

    def __init__(
        self,
        library: Library,
        content: memoryview,
        *,
        name: str,
        host_code_allowed: bool = False,
        kernel_cache: Path | None = None,
    ) -> None:
        self._library = library
        self._name = name
        library.messages.clear()
        runtime = library.module.Runtime(library.logger)
        runtime.engine_host_code_allowed = host_code_allowed
        self._engine: Any = runtime.deserialize_cuda_engine(content)
        if self._engine is None:
            raise EngineError(
                f'network {name!r}',
                got=library.messages.last(),
                expected=f'a whole plan for {library.name} {library.version} and this GPU',
                next_step='Run `vla-policy doctor`: TensorRT-RTX does not know every GPU.'
                if library.compiles_at_run_time
                else 'Build the plan on this machine with `vla-policy build`.',
                code='not_loadable',
            )
        inputs = library.module.TensorIOMode.INPUT
        names = [
            self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)
        ]
        is_input = {name: self._engine.get_tensor_mode(name) == inputs for name in names}
        super().__init__(
            (self._spec(name) for name in names if is_input[name]),
            (self._spec(name) for name in names if not is_input[name]),
        )
        self._kernels = _KernelCache(library, self._engine, kernel_cache)

    @property
    def workspace_bytes(self) -> int:
        """Device memory that one run needs beside its tensors; runs one after another may share it."""
        return int(self._open().device_memory_size_v2)

    def shape_range(self, name: str) -> ShapeRange:
        """Return the shapes that an input with free dimensions may take: those of the plan's first profile.

        Raises:
            EngineError: The engine is closed (`closed`).
        """
        ranges = self._open().get_tensor_profile_shape(name, 0)
        least, best, greatest = (tuple(int(size) for size in shape) for shape in ranges)
        return ShapeRange(min=least, opt=best, max=greatest)

    def bind(
        self, tensors: Mapping[str, Tensor], *, workspace: DeviceTensor | None = None
    ) -> TensorRTExecution:
        """Make an execution context for buffers of the caller's, whose addresses and shapes it keeps.

        Contexts of one engine may run at the same time on streams of their own, each with its own workspace. The first
        run after this prepares what depends on shapes: run once before capturing a CUDA graph.

        Args:
            tensors: Device tensor per input and output; kept alive by the execution.
            workspace: uint8 device memory of at least `workspace_bytes`, aligned to 256 bytes; without it the context
                allocates its own now.

        Raises:
            SpecMismatchError: A tensor is missing, unknown (`wrong_names`), of another shape or element type, or of a
                shape outside of the plan's range (`outside_profile`); the workspace is too small.
            EngineError: The engine is closed (`closed`), or TensorRT refused (`not_bound`).
        """
        engine = self._open()
        specs = (*self._inputs, *self._outputs)
        check_names(self._name, specs, tensors)
        buffers = {spec.name: device_tensor(spec, tensors[spec.name]) for spec in specs}
        for spec in self._inputs:
            if None in spec.shape:
                self._check_range(spec.name, buffers[spec.name].shape)
        if workspace is not None:
            _check_workspace(workspace, self.workspace_bytes)
        self._library.messages.clear()
        context = self._kernels.new_context(engine, has_workspace=workspace is not None)
        if context is None:
            raise self._not_bound(self._library.messages.last())
        if workspace is not None:
            context.set_device_memory(workspace.address, math.prod(workspace.shape))
        self._place(context, buffers)
        return TensorRTExecution(
            context, (*buffers.values(), workspace), name=self._name, library=self._library
        )

    def close(self) -> None:
        """Free the network; its executions must be closed first; may be called twice."""
        if self._engine is not None:
            self._kernels.close()
            self._engine = None

    def _place(self, context: Any, buffers: Mapping[str, DeviceTensor]) -> None:
        for name, buffer in buffers.items():
            if not context.set_tensor_address(name, buffer.address):
                raise self._not_bound(self._library.messages.last())
        for spec in self._inputs:
            if not context.set_input_shape(spec.name, tuple(buffers[spec.name].shape)):
                raise self._not_bound(self._library.messages.last())
        missing = context.infer_shapes()
        if missing:
            raise self._not_bound(f'no shape for {", ".join(missing)}')
        for spec in self._outputs:
            device_tensor(
                TensorSpec(spec.name, tuple(context.get_tensor_shape(spec.name)), spec.dtype),
                buffers[spec.name],
            )

    def _spec(self, name: str) -> TensorSpec:
        engine, module = self._engine, self._library.module
        if engine.get_tensor_location(name) != module.TensorLocation.DEVICE:
            raise EngineError(
                f'network {self._name!r}, tensor {name!r}',
                got='a tensor whose values TensorRT needs on the host',
                expected='tensors on the device only',
                next_step='Export the network so that no shape inside depends on the values of an input.',
                code='host_tensor',
            )
        shape = (None if size < 0 else int(size) for size in engine.get_tensor_shape(name))
        return TensorSpec(
            name, tuple(shape), self._library.dtype(engine.get_tensor_dtype(name), name)
        )

    def _check_range(self, name: str, shape: tuple[int, ...]) -> None:
        allowed = self.shape_range(name)
        if not allowed.contains(shape):
            raise SpecMismatchError(
                f'network {self._name!r}, tensor {name!r}',
                got=f'the shape {list(shape)}',
                expected=f'a shape within {allowed}',
                next_step='Build the plan again with a range that holds this shape.',
                code='outside_profile',
            )

    def _open(self) -> Any:
        if self._engine is None:
            raise closed_error(self._name)
        return self._engine

    def _not_bound(self, got: str) -> EngineError:
        return EngineError(
            f'network {self._name!r}',
            got=got,
            expected='an execution context for the given buffers',
            next_step='Check the free device memory, and the shapes of the buffers.',
            code='not_bound',
        )


class TensorRTEngine(PlanEngine):
    """The plan that was built for a network, this GPU and this TensorRT.

    Args:
        onnx_path: The bundle's network. Its plan is looked up by its hash and is not built here.
        settings: `precision` of the plan, None for `fp32` (the network as it is); `plan_folder`, None for the user's
            cache.

    Raises:
        GpuError: There is no driver (`no_driver`); TensorRT is not touched then.
        MissingDependencyError: The library is not installed.
        EngineError: There is no plan that fits (`no_plan`, `plan_mismatch`), or it is damaged (`damaged_plan`) or cannot
            be loaded (`not_loadable`).
    """

    library_name: ClassVar[LibraryName] = 'tensorrt'

    def __init__(self, onnx_path: Path, *, settings: EngineSettings = DEFAULT_SETTINGS) -> None:
        require_driver()
        library = load_library(self.library_name)
        store = PlanStore(settings.plan_folder)
        machine = library.machine(read_gpu())
        found = store.find(
            network_hash(onnx_path), precision=settings.precision or 'fp32', machine=machine
        )
        with open_plan(found) as content:
            super().__init__(
                library,
                content,
                name=onnx_path.name,
                host_code_allowed=found.origin == 'built' and found.key.options.version_compatible,
                kernel_cache=found.kernel_cache_path,
            )

    @classmethod
    def from_plan(cls, plan_path: Path) -> PlanEngine:
        """Load a plan file that is in no store.

        Raises:
            GpuError: There is no driver (`no_driver`).
            MissingDependencyError: The library is not installed.
            EngineError: It cannot be loaded (`not_loadable`).
        """
        require_driver()
        library = load_library(cls.library_name)
        with map_file(plan_path) as content:
            return PlanEngine(library, content, name=plan_path.name)


class TensorRTRtxEngine(TensorRTEngine):
    """The same with TensorRT-RTX, whose plans run on many GPUs and whose kernels are compiled when a plan is loaded.

    Compiled kernels are kept beside the plans, so that only the first load takes long.
    """

    library_name: ClassVar[LibraryName] = 'tensorrt_rtx'


class TensorRTExecution:
    """One execution context, bound to buffers. Made by `PlanEngine.bind`."""

    def __init__(
        self, context: Any, kept_alive: tuple[object, ...], *, name: str, library: Library
    ) -> None:
        self._context = context
        self._run: Callable[[int], bool] | None = context.execute_async_v3
        self._kept_alive = kept_alive  # TensorRT holds addresses only
        self._name = name
        self._library = library

    def enqueue(self, stream: int = 0) -> None:
        """Order one run on a CUDA stream and return; nothing is allocated and nothing is waited for.

        Raises:
            EngineError: TensorRT refused (`engine_failed`), or the execution is closed (`closed`).
        """
        if self._run is None:
            raise closed_error(self._name)
        if not self._run(stream):
            raise EngineError(
                f'network {self._name!r}',
                got=self._library.messages.last(),
                expected='a run that is enqueued',
                next_step='Run `vla-policy verify` on the bundle; look at the free device memory.',
            )

    def close(self) -> None:
        """Free the context; the work it enqueued must be done; may be called twice."""
        self._run = None
        self._context = None
        self._kept_alive = ()


class _KernelCache:
    """Makes contexts; where the library compiles at run time, with the kernels of earlier runs."""

    def __init__(self, library: Library, engine: Any, path: Path | None) -> None:
        self._strategies = library.module.ExecutionContextAllocationStrategy
        self._path = path
        self._cache: Any = None
        self._config: Any = None
        if not library.compiles_at_run_time:
            return
        self._config = engine.create_runtime_config()
        # Shapes are fixed when buffers are bound: one compilation in the first run, none in the background.
        specialization = library.module.DynamicShapesKernelSpecializationStrategy
        self._config.dynamic_shapes_kernel_specialization_strategy = specialization.EAGER
        self._cache = self._config.create_runtime_cache()
        if path is not None and path.is_file():
            self._cache.deserialize(path.read_bytes())  # refused when another version wrote it
        self._config.set_runtime_cache(self._cache)

    def new_context(self, engine: Any, *, has_workspace: bool) -> Any:
        """Return a context, or None when the library cannot make one."""
        kind = self._strategies.USER_MANAGED if has_workspace else self._strategies.STATIC
        if self._cache is None:
            return engine.create_execution_context(kind)
        self._config.set_execution_context_allocation_strategy(kind)
        return engine.create_execution_context(self._config)

    def close(self) -> None:
        """Write what was compiled, and let the engine go; without a place to write it the next load compiles again."""
        cache, self._cache, self._config = self._cache, None, None
        if cache is None or self._path is None:
            return
        try:
            write_atomically(self._path, memoryview(cache.serialize()))
        except OSError as fault:
            _LOG.warning('compiled kernels are not kept, the next load takes long: %s', fault)


def _check_workspace(workspace: DeviceTensor, needed_bytes: int) -> None:
    num_bytes = math.prod(workspace.shape)
    aligned = workspace.address % _ALIGNMENT_BYTES == 0
    if workspace.dtype != 'uint8' or num_bytes < needed_bytes or not aligned:
        raise SpecMismatchError(
            'workspace',
            got=f'{workspace.dtype}{list(workspace.shape)} at address {workspace.address:#x}',
            expected=f'uint8 memory of {needed_bytes} bytes or more, aligned to {_ALIGNMENT_BYTES}',
            next_step='Allocate `workspace_bytes` of the engine that needs most.',
        )
