# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime on the CPU and on an NVIDIA GPU, reading and writing the caller's buffers in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as faults

from vla_policy_ros.core.engine import DeviceTensor, Tensor
from vla_policy_ros.core.errors import EngineError
from vla_policy_ros.core.specs import TensorSpec
from vla_policy_ros.engines.binding import (
    NamedTensors,
    check_names,
    closed_error,
    device_tensor,
    failed_run,
    first_line,
    host_array,
)
from vla_policy_ros.engines.settings import DEFAULT_SETTINGS, EngineSettings
from vla_policy_ros.gpu.driver import require_driver
from vla_policy_ros.gpu.listing import current_index

_ELEMENT_TYPES = {
    'tensor(float)': 'float32',
    'tensor(double)': 'float64',
    'tensor(float16)': 'float16',
    'tensor(uint8)': 'uint8',
    'tensor(int8)': 'int8',
    'tensor(int32)': 'int32',
    'tensor(int64)': 'int64',
    'tensor(bool)': 'bool',
}
# numpy has no bfloat16: the library takes it by ONNX's number, from version 1.20 on.
_DEVICE_TYPES = {**_ELEMENT_TYPES, 'tensor(bfloat16)': 'bfloat16'}
_ONNX_BFLOAT16 = 16
# The library has no common base for its errors.
_FAULTS: tuple[type[Exception], ...] = (
    faults.EPFail,
    faults.Fail,
    faults.InvalidArgument,
    faults.InvalidGraph,
    faults.InvalidProtobuf,
    faults.NoModel,
    faults.NoSuchFile,
    faults.NotImplemented,
    faults.RuntimeException,
    RuntimeError,  # what a run with bound buffers raises
)
_FATAL_ONLY = 4  # every fault is raised as an exception: its log line would say it twice

_Place = tuple[str, int, Any, list[int], int]


class OnnxRuntimeExecution:
    """A session, and the buffers it is bound to. Made by `OnnxRuntimeEngine.bind`."""

    def __init__(
        self, session: Any, binding: Any, tensors: Mapping[str, Tensor], name: str
    ) -> None:
        self._session = session
        self._binding = binding
        self._tensors = dict(tensors)  # the library holds their addresses only
        self._name = name
        self._options = onnxruntime.RunOptions()
        self._options.log_severity_level = _FATAL_ONLY

    def enqueue(self, stream: int = 0) -> None:  # noqa: ARG002 - the host has no streams
        """Run once and return when the bound outputs are written.

        Raises:
            EngineError: The network failed, or the execution is closed (`closed`).
        """
        if self._session is None:
            raise closed_error(self._name)
        try:
            self._session.run_with_iobinding(self._binding, self._options)
        except _FAULTS as fault:
            raise failed_run(self._name, fault) from fault

    def close(self) -> None:
        """Release the binding; may be called twice."""
        self._session = None
        self._binding = None
        self._tensors = {}


class OnnxRuntimeCudaExecution(OnnxRuntimeExecution):
    """The same on the stream that the engine was loaded for. Made by `OnnxRuntimeCudaEngine.bind`."""

    def __init__(
        self,
        session: Any,
        binding: Any,
        tensors: Mapping[str, Tensor],
        name: str,
        *,
        stream: int,
    ) -> None:
        super().__init__(session, binding, tensors, name)
        self._stream = stream
        # Without this the library waits for the stream at the end of every run.
        self._options.add_run_config_entry('disable_synchronize_execution_providers', '1')

    def enqueue(self, stream: int = 0) -> None:
        """Order one run on the CUDA stream of this handle and return at once.

        The first run takes memory from the library's arena, so it must not be captured by a CUDA graph.

        Raises:
            EngineError: It is not the stream that the engine was loaded for (`wrong_stream`), the network failed, or
                the execution is closed (`closed`).
        """
        if stream != self._stream:
            raise _wrong_stream(self._name, stream)
        super().enqueue(stream)


class _OnnxRuntimeBase(NamedTensors):
    """One session, its tensors, and how it ends."""

    def __init__(
        self,
        onnx_path: Path,
        options: Any,
        providers: Sequence[Any],
        *,
        element_types: Mapping[str, str],
        expected: str,
        next_step: str,
    ) -> None:
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        # Idle threads sleep instead of spinning: between two inferences the processor belongs to the cameras.
        options.add_session_config_entry('session.intra_op.allow_spinning', '0')
        options.log_severity_level = _FATAL_ONLY
        self._name = onnx_path.name
        try:
            session = onnxruntime.InferenceSession(
                str(onnx_path), options, providers=list(providers)
            )
        except _FAULTS as fault:
            raise EngineError(
                str(onnx_path),
                got=first_line(fault),
                expected=expected,
                next_step=next_step,
                code='not_loadable',
            ) from fault
        self._session: Any = session
        super().__init__(
            (_spec(value, self._name, element_types) for value in session.get_inputs()),
            (_spec(value, self._name, element_types) for value in session.get_outputs()),
        )

    def close(self) -> None:
        """Free the network; may be called twice."""
        self._session = None

    def _bind(self, tensors: Mapping[str, Tensor]) -> Any:
        """Return the library's binding of every input and output to its buffer."""
        if self._session is None:
            raise closed_error(self._name)
        check_names(self._name, (*self._inputs, *self._outputs), tensors)
        binding = self._session.io_binding()
        for spec in self._inputs:
            binding.bind_input(spec.name, *self._place(spec, tensors[spec.name]))
        for spec in self._outputs:
            binding.bind_output(spec.name, *self._place(spec, tensors[spec.name]))
        return binding

    def _place(self, spec: TensorSpec, tensor: Tensor) -> _Place:
        """Return a buffer as the library's binding takes it."""
        raise NotImplementedError


class OnnxRuntimeEngine(_OnnxRuntimeBase):
    """One network in ONNX Runtime's CPU provider.

    Args:
        onnx_path: The ONNX file.
        settings: `threads` counts: threads of one run, the caller's included; 0 takes one per physical core; and `optimize`.

    Raises:
        EngineError: The file cannot be loaded (`not_loadable`), or has inputs or outputs of an element type that
            numpy does not have (`unsupported_type`).
    """

    def __init__(self, onnx_path: Path, *, settings: EngineSettings = DEFAULT_SETTINGS) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = settings.threads
        options.use_deterministic_compute = True
        if not settings.optimize:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        super().__init__(
            onnx_path,
            options,
            ['CPUExecutionProvider'],
            element_types=_ELEMENT_TYPES,
            expected=f'a network that ONNX Runtime {onnxruntime.__version__} can load',
            next_step='Check the file with `vla-policy check`, or export it with an older opset.',
        )

    def bind(
        self,
        tensors: Mapping[str, Tensor],
        *,
        workspace: DeviceTensor | None = None,  # noqa: ARG002 - for engines on a device
    ) -> OnnxRuntimeExecution:
        """Bind every input and output to a C-contiguous buffer, which is read and written where it lies.

        Raises:
            SpecMismatchError: A tensor is missing, unknown, of another shape or element type, or its buffer is not
                C-contiguous.
            EngineError: The engine is closed (`closed`).
        """
        return OnnxRuntimeExecution(self._session, self._bind(tensors), tensors, self._name)

    def _place(self, spec: TensorSpec, tensor: Tensor) -> _Place:
        buffer = host_array(spec, tensor)
        return 'cpu', 0, buffer.dtype.type, list(buffer.shape), buffer.ctypes.data


class OnnxRuntimeCudaEngine(_OnnxRuntimeBase):
    """One network in ONNX Runtime's CUDA provider, on the current GPU and on one stream.

    A node that would run on the CPU is refused at load, because every run would wait for copies.

    Attributes:
        NAME: Name of the engine.
        PROVIDER: The library's provider that must start.
        NEEDS: What that provider needs beside the library.

    Args:
        onnx_path: The ONNX file.
        settings: `stream` counts and must be given: the library orders all runs on the stream it is loaded for.

    Raises:
        GpuError: There is no NVIDIA driver (`no_driver`).
        EngineError: This ONNX Runtime has no CUDA provider or cannot start it (`no_provider`), no stream is given
            (`wrong_stream`), the file cannot be loaded or has nodes that the provider cannot run (`not_loadable`), or
            inputs or outputs of another element type than numpy's and bfloat16 (`unsupported_type`).
    """

    NAME = 'onnxruntime_cuda'
    PROVIDER = 'CUDAExecutionProvider'
    NEEDS = 'the CUDA and cuDNN libraries it is made for'

    def __init__(self, onnx_path: Path, *, settings: EngineSettings = DEFAULT_SETTINGS) -> None:
        require_driver()
        if self.PROVIDER not in onnxruntime.get_available_providers():
            raise self._no_provider(', '.join(onnxruntime.get_available_providers()))
        if not settings.stream:
            raise _wrong_stream(onnx_path.name, settings.stream)
        self._stream = settings.stream
        self._device = current_index()
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry('session.disable_cpu_ep_fallback', '1')
        super().__init__(
            onnx_path,
            options,
            self._providers(onnx_path, settings),
            element_types=_DEVICE_TYPES,
            expected='a network whose every node runs on the GPU',
            next_step='Export the stage with fixed shapes, or run it with engine tensorrt or torch.',
        )
        # The library goes on with another provider when it cannot load what this one needs.
        if self._session.get_providers()[0] != self.PROVIDER:
            raise self._no_provider('a provider that does not start')

    def bind(
        self,
        tensors: Mapping[str, Tensor],
        *,
        workspace: DeviceTensor | None = None,  # noqa: ARG002 - the library has an arena of its own
    ) -> OnnxRuntimeCudaExecution:
        """Bind every input and output to device memory, which is read and written where it lies.

        Raises:
            SpecMismatchError: A tensor is missing, unknown, of another shape or element type, or on the host.
            EngineError: The engine is closed (`closed`).
        """
        return OnnxRuntimeCudaExecution(
            self._session, self._bind(tensors), tensors, self._name, stream=self._stream
        )

    def _providers(
        self,
        onnx_path: Path,  # noqa: ARG002 - for providers that keep what they make of it
        settings: EngineSettings,
    ) -> list[tuple[str, dict[str, str]]]:
        """Return the providers that may run nodes, the first ones first, with their options."""
        facts = {'device_id': str(self._device), 'user_compute_stream': str(settings.stream)}
        return [(OnnxRuntimeCudaEngine.PROVIDER, facts)]

    def _no_provider(self, got: str) -> EngineError:
        return EngineError(
            f'engine {self.NAME}',
            got=f'{got} in ONNX Runtime {onnxruntime.__version__}',
            expected=f'{self.PROVIDER}, and {self.NEEDS}',
            next_step='Uninstall onnxruntime and run `pip install onnxruntime-gpu`.',
            code='no_provider',
        )

    def _place(self, spec: TensorSpec, tensor: Tensor) -> _Place:
        buffer = device_tensor(spec, tensor)
        element = _ONNX_BFLOAT16 if spec.dtype == 'bfloat16' else np.dtype(spec.dtype).type
        return 'cuda', self._device, element, list(buffer.shape), buffer.address


def _spec(value: Any, network: str, element_types: Mapping[str, str]) -> TensorSpec:
    dtype = element_types.get(value.type)
    if dtype is None:
        raise EngineError(
            f'network {network!r}, tensor {value.name!r}',
            got=value.type,
            expected=f'one of {", ".join(element_types)}',
            next_step='Export the network with float32 inputs and outputs; casts inside are free.',
            code='unsupported_type',
        )
    shape = tuple(size if isinstance(size, int) else None for size in value.shape)
    return TensorSpec(value.name, shape, dtype)


def _wrong_stream(network: str, stream: int) -> EngineError:
    return EngineError(
        f'network {network!r}',
        got=f'stream {stream:#x}',
        expected='one stream, the same at load and in every run, and not the default one',
        next_step='Give its handle in EngineSettings.stream.',
        code='wrong_stream',
    )
