# SPDX-License-Identifier: Apache-2.0
"""OpenVINO on the CPU, and on Intel's GPUs and NPUs, reading and writing the caller's arrays in place.

A run returns when its outputs are written, although the library could start it and go on: the stages of a policy wait
for each other's outputs. Other threads go on meanwhile, because the library lets go of the interpreter.

Properties: https://docs.openvino.ai, "Runtime inference", of each device.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import openvino
from openvino import frontend

from vla_policy_ros.core.engine import DeviceTensor, Tensor
from vla_policy_ros.core.errors import EngineError
from vla_policy_ros.core.specs import Array, TensorSpec
from vla_policy_ros.engines.binding import (
    NamedTensors,
    check_names,
    closed_error,
    failed_run,
    host_array,
)
from vla_policy_ros.engines.settings import DEFAULT_SETTINGS, EngineSettings

_ELEMENT_TYPES = {
    'f32': 'float32',
    'f64': 'float64',
    'f16': 'float16',
    'bf16': 'bfloat16',
    'u8': 'uint8',
    'i8': 'int8',
    'i32': 'int32',
    'i64': 'int64',
    'boolean': 'bool',
}
# The library has no common base for its errors.
_FAULTS: tuple[type[Exception], ...] = (
    frontend.GeneralFailure,
    frontend.InitializationFailure,
    frontend.NotImplementedFailure,
    frontend.OpConversionFailure,
    frontend.OpValidationFailure,
    RuntimeError,
)
_VERSION = openvino.__version__.partition('-')[0]  # the build follows
_SIXTEEN_BIT = ('fp16', 'int8', 'fp8')  # what is not quantised in an 8-bit network is in fp16

_Shapes = tuple[tuple[int, ...], ...]


@functools.cache
def open_core() -> Any:
    """Return the library's core, one for the process and for as long as it runs.

    The CPU plugin gives the thread that loads it a signal stack and frees that with the core, from whichever thread lets
    go of it. The next signal that the first thread gets then ends the process (seen with OpenVINO 2026.4.1).
    """
    return openvino.Core()


class OpenVinoExecution:
    """An inference request, and the arrays it reads and writes. Made by `OpenVinoEngine.bind`."""

    def __init__(self, request: Any, arrays: Mapping[str, Array], name: str) -> None:
        self._request = request
        self._arrays = dict(arrays)  # the library holds their addresses only
        self._name = name

    def enqueue(self, stream: int = 0) -> None:  # noqa: ARG002 - the host has no streams
        """Run once and return when the bound outputs are written.

        Raises:
            EngineError: The network failed, or the execution is closed (`closed`).
        """
        if self._request is None:
            raise closed_error(self._name)
        try:
            # Without this every output would be copied once more, into arrays of the library's.
            self._request.infer(share_outputs=True)
        except RuntimeError as fault:
            raise failed_run(self._name, RuntimeError(_cause(fault))) from fault

    def close(self) -> None:
        """Release the binding; may be called twice."""
        self._request = None
        self._arrays = {}


class OpenVinoEngine(NamedTensors):
    """One network in OpenVINO on the CPU.

    It is compiled for the shapes of the arrays that it is bound to, once for all bindings of the same shapes. The CPU
    computes in float32, where it would choose bfloat16 for itself if it has that; 64-bit numbers are computed in 32 bits.
    An index out of range reads 0 and is no fault.

    Args:
        onnx_path: The ONNX file.
        settings: `threads` counts on the CPU: 0 takes one per physical core; `device_index` counts on GPU and NPU;
            `precision` chooses the arithmetic: bf16 on a CPU that has it.

    Raises:
        EngineError: There is no such device (`no_device`), the file cannot be loaded (`not_loadable`), or has inputs or
            outputs of an element type that our arrays do not have (`unsupported_type`) or of no known rank
            (`unsupported_shape`).
    """

    _kind: ClassVar[str] = 'CPU'

    def __init__(self, onnx_path: Path, *, settings: EngineSettings = DEFAULT_SETTINGS) -> None:
        self._name = onnx_path.name
        self._core = open_core()
        self._device = self._find_device(settings.device_index)
        self._properties = {'PERFORMANCE_HINT': 'LATENCY', **self._choose(settings)}
        try:
            # The library's own choice of a reader tries all formats, and each complains on stderr.
            reader = frontend.FrontEndManager().load_by_framework('onnx')
            self._model: Any = reader.convert(reader.load(str(onnx_path)))
        except _FAULTS as fault:
            raise _not_loadable(str(onnx_path), _cause(fault)) from fault
        if not self._model.outputs:
            raise _not_loadable(str(onnx_path), 'a file without a network')
        super().__init__(
            [_spec(port, self._name) for port in self._model.inputs],
            [_spec(port, self._name) for port in self._model.outputs],
        )
        self._compiled: dict[_Shapes, Any] = {}

    def bind(
        self,
        tensors: Mapping[str, Tensor],
        *,
        workspace: DeviceTensor | None = None,  # noqa: ARG002 - the library takes its memory itself
    ) -> OpenVinoExecution:
        """Bind every input and output to a C-contiguous array, which is read and written where it lies.

        Compiles the network when it has not been bound to these shapes yet.

        Raises:
            SpecMismatchError: A tensor is missing, unknown, of another shape or element type, or its buffer is not
                C-contiguous.
            EngineError: The engine is closed (`closed`), the device cannot run the network (`not_loadable`), or the
                shapes do not go together or leave an output's shape open (`unsupported_shape`).
        """
        if self._model is None:
            raise closed_error(self._name)
        check_names(self._name, (*self._inputs, *self._outputs), tensors)
        arrays = {
            spec.name: host_array(spec, tensors[spec.name])
            for spec in (*self._inputs, *self._outputs)
        }
        request = self._compile(arrays).create_infer_request()
        for name, array in arrays.items():
            request.set_tensor(name, _view(array))
        return OpenVinoExecution(request, arrays, self._name)

    def close(self) -> None:
        """Free the network; may be called twice."""
        self._model = None
        self._compiled = {}

    def _choose(self, settings: EngineSettings) -> dict[str, Any]:
        """Return the properties of this kind of device."""
        chosen: dict[str, Any] = {
            'INFERENCE_PRECISION_HINT': 'bf16' if settings.precision == 'bf16' else 'f32',
            # Between two inferences, and for a second robot, the cores belong to others.
            'ENABLE_CPU_PINNING': False,
        }
        if settings.threads:
            chosen['INFERENCE_NUM_THREADS'] = settings.threads
        return chosen

    def _find_device(self, index: int) -> str:
        """Return the library's name of a device; the only one of its kind goes without a number."""
        present: list[str] = self._core.available_devices
        wanted = f'{self._kind}.{index}'
        for name in (wanted, *([self._kind] if index == 0 or self._kind == 'CPU' else [])):
            if name in present:
                return name
        raise EngineError(
            f'device {wanted} of OpenVINO {_VERSION}',
            got=', '.join(f'{name} ({self._full_name(name)})' for name in present) or 'none',
            expected=f'{wanted} among the devices of this machine',
            next_step='Install its driver and let this user open it, or choose engine openvino.',
            code='no_device',
        )

    def _full_name(self, device: str) -> str:
        return str(self._core.get_property(device, 'FULL_DEVICE_NAME')).strip()

    def _compile(self, arrays: Mapping[str, Array]) -> Any:
        """Return the network for the shapes of these arrays."""
        key = tuple(arrays[spec.name].shape for spec in self._inputs)
        if key not in self._compiled:
            self._set_shapes({spec.name: list(arrays[spec.name].shape) for spec in self._inputs})
            try:
                self._compiled[key] = self._core.compile_model(
                    self._model, self._device, self._properties
                )
            except RuntimeError as fault:
                raise _not_loadable(self._name, _cause(fault)) from fault
        for port in self._compiled[key].outputs:
            spec = _spec(port, self._name)
            spec.validate(arrays[spec.name])
        return self._compiled[key]

    def _set_shapes(self, shapes: Mapping[str, list[int]]) -> None:
        """Give all tensors of the network fixed shapes, which is what lets runs take no memory."""
        try:
            self._model.reshape(dict(shapes))
        except RuntimeError as fault:
            raise _unsupported_shape(self._name, _cause(fault)) from fault
        for port in self._model.outputs:
            if port.partial_shape.is_dynamic:
                got = f'output {port.get_any_name()!r} of shape {port.partial_shape}'
                raise _unsupported_shape(self._name, got)


class OpenVinoGpuEngine(OpenVinoEngine):
    """The same on an Intel GPU, which copies inputs and outputs; it computes 16-bit networks in 16 bits, others in 32."""

    _kind = 'GPU'

    def _choose(self, settings: EngineSettings) -> dict[str, Any]:
        is_narrow = settings.precision in _SIXTEEN_BIT
        return {'INFERENCE_PRECISION_HINT': 'f16' if is_narrow else 'f32'}


class OpenVinoNpuEngine(OpenVinoEngine):
    """The same on an Intel NPU, which copies inputs and outputs, and computes all networks in 16 bits."""

    _kind = 'NPU'

    def _choose(self, settings: EngineSettings) -> dict[str, Any]:  # noqa: ARG002 - nothing to choose
        return {}


def _spec(port: Any, network: str) -> TensorSpec:
    name, element = port.get_any_name(), port.get_element_type().get_type_name()
    dtype = _ELEMENT_TYPES.get(element)
    if dtype is None:
        raise EngineError(
            f'network {network!r}, tensor {name!r}',
            got=element,
            expected=f'one of {", ".join(_ELEMENT_TYPES)}',
            next_step='Export the network with float32 inputs and outputs; casts inside are free.',
            code='unsupported_type',
        )
    if port.partial_shape.rank.is_dynamic:
        raise _unsupported_shape(network, f'tensor {name!r} of any number of dimensions')
    shape = (None if size.is_dynamic else size.get_length() for size in port.partial_shape)
    return TensorSpec(name, tuple(shape), dtype)


def _view(array: Array) -> Any:
    """Return the library's tensor over the memory of an array; integers stand in for bfloat16, which it does not know."""
    if array.dtype.name != 'bfloat16':
        return openvino.Tensor(array, shared_memory=True)
    return openvino.Tensor(array.view(np.uint16), list(array.shape), openvino.Type.bf16)


def _cause(fault: Exception) -> str:
    """Return the last line of a library's message: the lines before say where in its sources it was thrown."""
    return str(fault).strip().rpartition('\n')[2]


def _not_loadable(where: str, got: str) -> EngineError:
    return EngineError(
        where,
        got=got,
        expected=f'a network that OpenVINO {_VERSION} can load',
        next_step='Check the file with `vla-policy check`, or run it with engine onnxruntime.',
        code='not_loadable',
    )


def _unsupported_shape(network: str, got: str) -> EngineError:
    return EngineError(
        f'network {network!r}',
        got=got,
        expected='shapes that go together, and outputs whose shapes follow from those of the inputs',
        next_step='Export the network with fixed shapes, or run it with engine onnxruntime.',
        code='unsupported_shape',
    )
