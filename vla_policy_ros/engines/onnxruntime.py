# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime on the CPU, reading and writing the caller's buffers in place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as faults

from vla_policy_ros.core.errors import EngineError, SpecMismatchError
from vla_policy_ros.core.specs import Array, TensorSpec

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


class OnnxRuntimeEngine:
    """One network in ONNX Runtime's CPU provider.

    Args:
        onnx_path: The ONNX file.
        threads: Threads of one run, the caller's included; 0 takes one per physical core.

    Raises:
        EngineError: The file cannot be loaded (`not_loadable`), or has inputs or outputs of an element type that
            numpy does not have (`unsupported_type`).
    """

    def __init__(self, onnx_path: Path, *, threads: int = 0) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.use_deterministic_compute = True
        # Idle threads sleep instead of spinning: between two inferences the processor belongs to the cameras.
        options.add_session_config_entry('session.intra_op.allow_spinning', '0')
        options.log_severity_level = _FATAL_ONLY
        self._name = onnx_path.name
        try:
            session = onnxruntime.InferenceSession(
                str(onnx_path), options, providers=['CPUExecutionProvider']
            )
        except _FAULTS as fault:
            raise EngineError(
                str(onnx_path),
                got=_first_line(fault),
                expected=f'a network that ONNX Runtime {onnxruntime.__version__} can load',
                next_step='Check the file with `vla-policy check`, or export it with an older opset.',
                code='not_loadable',
            ) from fault
        self._session: Any = session
        self._inputs = tuple(_spec(value, self._name) for value in session.get_inputs())
        self._outputs = tuple(_spec(value, self._name) for value in session.get_outputs())

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Input tensors; a free dimension is None."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Output tensors; a free dimension is None."""
        return self._outputs

    def bind(self, tensors: Mapping[str, Array]) -> OnnxRuntimeExecution:
        """Bind every input and output to a C-contiguous buffer, which is read and written where it lies.

        Raises:
            SpecMismatchError: A tensor is missing, unknown, of another shape or element type, or its buffer is not
                C-contiguous.
            EngineError: The engine is closed (`closed`).
        """
        if self._session is None:
            raise _closed(self._name)
        known = {spec.name for spec in (*self._inputs, *self._outputs)}
        if known != set(tensors):
            raise SpecMismatchError(
                f'network {self._name!r}',
                got=f'buffers for {", ".join(sorted(tensors)) or "nothing"}',
                expected=f'one for each of {", ".join(sorted(known))}',
                next_step='Map every input and output in bundle.yaml.',
                code='wrong_names',
            )
        binding = self._session.io_binding()
        for spec in self._inputs:
            binding.bind_input(spec.name, *_place(spec, tensors[spec.name]))
        for spec in self._outputs:
            binding.bind_output(spec.name, *_place(spec, tensors[spec.name]))
        return OnnxRuntimeExecution(self._session, binding, dict(tensors), self._name)

    def close(self) -> None:
        """Free the network; may be called twice."""
        self._session = None


class OnnxRuntimeExecution:
    """A session, and the buffers it is bound to. Made by `OnnxRuntimeEngine.bind`."""

    def __init__(self, session: Any, binding: Any, tensors: dict[str, Array], name: str) -> None:
        self._session = session
        self._binding = binding
        self._tensors = tensors  # the library holds their addresses only
        self._name = name
        self._options = onnxruntime.RunOptions()
        self._options.log_severity_level = _FATAL_ONLY

    def enqueue(self, stream: Any = None) -> None:  # noqa: ARG002 - the host has no streams
        """Run once and return when the bound outputs are written.

        Raises:
            EngineError: The network failed, or the execution is closed (`closed`).
        """
        if self._session is None:
            raise _closed(self._name)
        try:
            self._session.run_with_iobinding(self._binding, self._options)
        except _FAULTS as fault:
            raise EngineError(
                f'network {self._name!r}',
                got=_first_line(fault),
                expected='outputs of the bound shapes',
                next_step='Run `vla-policy check` on the bundle.',
            ) from fault

    def close(self) -> None:
        """Release the binding; may be called twice."""
        self._session = None
        self._binding = None
        self._tensors = {}


def _spec(value: Any, network: str) -> TensorSpec:
    dtype = _ELEMENT_TYPES.get(value.type)
    if dtype is None:
        raise EngineError(
            f'network {network!r}, tensor {value.name!r}',
            got=value.type,
            expected=f'one of {", ".join(_ELEMENT_TYPES)}',
            next_step='Export the network with float32 inputs and outputs; casts inside are free.',
            code='unsupported_type',
        )
    shape = tuple(size if isinstance(size, int) else None for size in value.shape)
    return TensorSpec(value.name, shape, dtype)


def _place(spec: TensorSpec, buffer: Array) -> tuple[str, int, Any, list[int], int]:
    spec.validate(buffer)
    if not buffer.flags.c_contiguous:
        raise SpecMismatchError(
            f'tensor {spec.name!r}',
            got='a buffer with gaps',
            expected='a C-contiguous one',
            next_step='Bind a whole array, not a slice of one.',
            code='not_contiguous',
        )
    return 'cpu', 0, buffer.dtype.type, list(buffer.shape), buffer.ctypes.data


def _closed(name: str) -> EngineError:
    return EngineError(
        f'network {name!r}',
        got='a call after close()',
        expected='an open engine',
        next_step='Load the engine again.',
        code='closed',
    )


def _first_line(fault: Exception) -> str:
    return str(fault).partition('\n')[0]
