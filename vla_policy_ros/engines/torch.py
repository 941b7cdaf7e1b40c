# SPDX-License-Identifier: Apache-2.0
"""The stages of a bundle run by PyTorch, for comparison: eager or compiled on a GPU, and eager on the host.

How a network becomes a module is told in `onnx_to_torch.py`. In float32, convolutions on a GPU may use TF32 and matrix
products may not: these are PyTorch's own settings.

CUDA graphs that are made outside PyTorch (`gpu.device`) record an execution safely under these rules. PyTorch's
allocator asks the driver for memory only when its pool has no free block, which a capture forbids. So each execution has
a pool of its own, and must have run once, on the same thread and stream, before it is captured: that run fills the pool,
and makes the handles and workspaces of cuBLAS and cuDNN, which belong to a thread and a stream. Asked to run in a
capture before that, it raises `not_capturable`. Blocks of the pool go to nobody else while the execution lives, so the
addresses in the graph stay its own; release the graph first. The pool is entered through the functions beneath
`torch.cuda.use_mem_pool`, because since PyTorch 2.15 that one looks for a graph of PyTorch's whenever the stream is
being captured.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from vla_policy_ros.core.engine import DeviceTensor, Tensor
from vla_policy_ros.core.errors import EngineError
from vla_policy_ros.core.specs import Array, TensorSpec
from vla_policy_ros.engines.binding import (
    NamedTensors,
    check_names,
    closed_error,
    device_tensor,
    failed_run,
    host_array,
)
from vla_policy_ros.engines.onnx_to_torch import OnnxNetwork
from vla_policy_ros.engines.settings import DEFAULT_SETTINGS, EngineSettings
from vla_policy_ros.engines.torch_gradient import VectorJacobian, bound_spec
from vla_policy_ros.gpu.driver import require_driver

_LOG = logging.getLogger(__name__)
_Module = Any  # called with input tensors, returns a tuple of output tensors
_BFLOAT16 = 'bfloat16'
_SEED = ' seed'  # no network's own name begins with a space
# Absent before PyTorch 2.5 and from builds without CUDA; the second name is the one before 2.8.
_ENTER_POOL = getattr(torch._C, '_cuda_beginAllocateCurrentThreadToPool', None) or getattr(  # noqa: SLF001
    torch._C,  # noqa: SLF001
    '_cuda_beginAllocateToPool',
    None,
)


class TorchExecution:
    """A module, and the tensors it reads and writes by their names. Made by `TorchCpuEngine.bind`."""

    def __init__(
        self,
        name: str,
        module: _Module,
        inputs: Mapping[str, torch.Tensor],
        outputs: Mapping[str, torch.Tensor],
    ) -> None:
        self._name = name
        self._module = module
        self._inputs = dict(inputs)
        self._outputs = dict(outputs)

    def enqueue(self, stream: int = 0) -> None:  # noqa: ARG002 - the host has no streams
        """Run once and return when the bound outputs are written; PyTorch allocates what lies in between.

        Raises:
            EngineError: The network failed, or the execution is closed (`closed`).
        """
        if self._module is None:
            raise closed_error(self._name)
        try:
            self._run()
        except (RuntimeError, IndexError) as fault:
            raise failed_run(self._name, fault) from fault

    def bind_gradient(
        self, *, output_name: str, seed: Tensor, input_name: str, gradient: Tensor
    ) -> TorchExecution:
        """Bind the product of a row vector with the Jacobian of one output by one input.

        Raises:
            EngineError: The execution is closed (`closed`).
            SpecMismatchError: A tensor is unknown, or of another shape or element type.
        """
        if self._module is None:
            raise closed_error(self._name)
        seed_view = self._view(bound_spec(output_name, self._outputs, self._name), seed)
        target = self._view(bound_spec(input_name, self._inputs, self._name), gradient)
        module = VectorJacobian(
            self._module,
            output_place=list(self._outputs).index(output_name),
            input_place=list(self._inputs).index(input_name),
        )
        return self._remake(module, {**self._inputs, _SEED: seed_view}, {input_name: target})

    def close(self) -> None:
        """Release the binding; may be called twice."""
        self._module = None
        self._inputs, self._outputs = {}, {}

    def _view(self, spec: TensorSpec, tensor: Tensor) -> torch.Tensor:
        return _view_host(host_array(spec, tensor))

    def _remake(
        self, module: _Module, inputs: dict[str, torch.Tensor], outputs: dict[str, torch.Tensor]
    ) -> TorchExecution:
        return TorchExecution(self._name, module, inputs, outputs)

    def _run(self) -> None:
        with torch.inference_mode():
            results = self._module(*self._inputs.values())
            for target, result in zip(self._outputs.values(), results, strict=True):
                target.copy_(result)


class TorchDeviceExecution(TorchExecution):
    """The same on a GPU. Made by `TorchEngine.bind`."""

    def __init__(
        self,
        name: str,
        module: _Module,
        inputs: Mapping[str, torch.Tensor],
        outputs: Mapping[str, torch.Tensor],
        *,
        device: torch.device,
        can_be_captured: bool = True,
    ) -> None:
        super().__init__(name, module, inputs, outputs)
        self._device = device
        self._pool = _make_pool()
        self._streams: dict[int, torch.cuda.Stream] = {}
        self._warm: set[tuple[int, int]] = set()  # threads and streams it has run on
        self._can_be_captured = can_be_captured

    def enqueue(self, stream: int = 0) -> None:
        """Order one run on the CUDA stream of this handle and return at once.

        The first run on a thread and stream allocates, and compiles for `torch_compile`; later ones take their memory
        from the execution's own pool.

        Raises:
            EngineError: The network failed, the execution is closed (`closed`), or the stream is being captured before
                a first run (`not_capturable`).
        """
        place = (threading.get_ident(), stream)
        with torch.cuda.stream(self._stream(stream)), _entered(self._pool, self._device):
            if place not in self._warm or self._pool is None or not self._can_be_captured:
                self._refuse_capture()
            super().enqueue(stream)
        self._warm.add(place)

    def close(self) -> None:
        """Release the binding and its memory; graphs that hold it must be gone; may be called twice."""
        super().close()
        self._pool = None
        self._warm.clear()

    def _view(self, spec: TensorSpec, tensor: Tensor) -> torch.Tensor:
        return _view_device(device_tensor(spec, tensor), self._device)

    def _remake(
        self, module: _Module, inputs: dict[str, torch.Tensor], outputs: dict[str, torch.Tensor]
    ) -> TorchExecution:
        # PyTorch goes back on a thread of its own, whose memory does not come from our pool.
        return TorchDeviceExecution(
            self._name, module, inputs, outputs, device=self._device, can_be_captured=False
        )

    def _stream(self, handle: int) -> torch.cuda.Stream:
        if handle not in self._streams:
            self._streams[handle] = (
                torch.cuda.ExternalStream(handle, device=self._device)
                if handle
                else torch.cuda.default_stream(self._device)
            )
        return self._streams[handle]

    def _refuse_capture(self) -> None:
        if torch.cuda.is_current_stream_capturing():
            raise EngineError(
                f'network {self._name!r}',
                got='a capture before the first run on this thread and stream'
                if self._can_be_captured
                else 'a capture of a gradient',
                expected='a network forward, a run before it, and PyTorch 2.5 or later',
                next_step='Enqueue it once on the same stream, then capture; never capture a gradient.',
                code='not_capturable',
            )


class _TorchBase(NamedTensors):
    """What the engines have in common: the network, and its modules for the shapes bound so far."""

    def __init__(self, onnx_path: Path, device: torch.device) -> None:
        network = OnnxNetwork(onnx_path, device)
        super().__init__(network.inputs, network.outputs)
        self._network: OnnxNetwork | None = network
        self._device = device
        self._name = network.name
        self._modules: dict[tuple[tuple[int, ...], ...], _Module] = {}

    def close(self) -> None:
        """Free the network; may be called twice."""
        self._network = None
        self._modules.clear()

    def _open(self, tensors: Mapping[str, Tensor]) -> OnnxNetwork:
        """Return the network when it is open and there is a buffer for each of its tensors."""
        if self._network is None:
            raise closed_error(self._name)
        check_names(self._name, (*self._inputs, *self._outputs), tensors)
        return self._network

    def _module(self, network: OnnxNetwork, inputs: Mapping[str, torch.Tensor]) -> _Module:
        """Return the module for the shapes of these inputs; executions of equal shapes share it."""
        key = tuple(tuple(tensor.shape) for tensor in inputs.values())
        if key not in self._modules:
            self._modules[key] = self._finish(network.build(dict(zip(inputs, key, strict=True))))
        return self._modules[key]

    def _finish(self, module: torch.fx.GraphModule) -> _Module:
        return module


class TorchCpuEngine(_TorchBase):
    """One network in PyTorch on the host, eager, reading and writing the caller's arrays in place.

    Args:
        onnx_path: The ONNX file.
        settings: `threads` counts: it becomes the number of threads of every PyTorch operator in this process; 0 leaves
            PyTorch's choice.

    Raises:
        EngineError: The file cannot be loaded (`not_loadable`), or has operators or element types that our PyTorch
            table lacks (`unsupported_operator`, `unsupported_type`).
    """

    def __init__(self, onnx_path: Path, *, settings: EngineSettings = DEFAULT_SETTINGS) -> None:
        super().__init__(onnx_path, torch.device('cpu'))
        if settings.threads:
            torch.set_num_threads(settings.threads)

    def bind(
        self,
        tensors: Mapping[str, Tensor],
        *,
        workspace: DeviceTensor | None = None,  # noqa: ARG002 - PyTorch takes its memory itself
    ) -> TorchExecution:
        """Bind every input and output to a C-contiguous host array, which is read and written where it lies.

        Raises:
            SpecMismatchError: A tensor is missing, unknown, of another shape or element type, or not C-contiguous.
            EngineError: The engine is closed (`closed`), or the network cannot run on these shapes
                (`unsupported_operator`).
        """
        network = self._open(tensors)
        inputs, outputs = (
            {spec.name: _view_host(host_array(spec, tensors[spec.name])) for spec in specs}
            for specs in (self._inputs, self._outputs)
        )
        return TorchExecution(self._name, self._module(network, inputs), inputs, outputs)


class TorchEngine(_TorchBase):
    """One network in PyTorch on the current GPU, eager, in the context that PyCUDA uses, too.

    Args:
        onnx_path: The ONNX file.
        settings: Nothing of it counts; the network runs in the precision of the file.

    Raises:
        GpuError: There is no NVIDIA driver (`no_driver`).
        EngineError: This PyTorch has no CUDA (`no_cuda`), the file cannot be loaded (`not_loadable`), or has operators
            or element types that our PyTorch table lacks (`unsupported_operator`, `unsupported_type`).
    """

    def __init__(
        self,
        onnx_path: Path,
        *,
        settings: EngineSettings = DEFAULT_SETTINGS,  # noqa: ARG002 - as every engine
    ) -> None:
        require_driver()
        if not torch.cuda.is_available():
            raise EngineError(
                'engine torch',
                got=f'PyTorch {torch.__version__}, which finds no GPU',
                expected='a PyTorch with CUDA that this driver can run',
                next_step='Install one that fits, see https://pytorch.org/get-started.',
                code='no_cuda',
            )
        super().__init__(onnx_path, torch.device('cuda', torch.cuda.current_device()))

    def bind(
        self,
        tensors: Mapping[str, Tensor],
        *,
        workspace: DeviceTensor | None = None,  # noqa: ARG002 - PyTorch takes its memory itself
    ) -> TorchDeviceExecution:
        """Bind every input and output to device memory, which is read and written where it lies.

        Blocks until what can be computed beforehand is computed.

        Raises:
            SpecMismatchError: A tensor is missing, unknown, of another shape or element type, or on the host.
            EngineError: The engine is closed (`closed`), or the network cannot run on these shapes
                (`unsupported_operator`).
        """
        network = self._open(tensors)
        inputs, outputs = (
            {
                spec.name: _view_device(device_tensor(spec, tensors[spec.name]), self._device)
                for spec in specs
            }
            for specs in (self._inputs, self._outputs)
        )
        module = self._module(network, inputs)
        torch.cuda.current_stream(self._device).synchronize()
        return TorchDeviceExecution(self._name, module, inputs, outputs, device=self._device)


class TorchCompileEngine(TorchEngine):
    """The same, compiled by `torch.compile` in the first run, which takes up to minutes.

    Attributes:
        COMPILER: What else `torch.compile` is told, as keywords.
    """

    COMPILER: Mapping[str, Any] = MappingProxyType({})

    def _finish(self, module: torch.fx.GraphModule) -> _Module:
        _LOG.warning(
            '%s: PyTorch compiles it in the first run, which may take minutes', self._name
        )
        return torch.compile(module, fullgraph=True, dynamic=False, **self.COMPILER)


class _ArrayInterface:
    """A device tensor as the CUDA array interface (version 3) describes it; PyTorch keeps it, and so the memory, alive."""

    def __init__(self, tensor: DeviceTensor) -> None:
        self._tensor = tensor
        # The interface has no bfloat16: integers of the same width stand in for it.
        kind = np.dtype('int16' if tensor.dtype == _BFLOAT16 else tensor.dtype)
        self.__cuda_array_interface__ = {
            'shape': tuple(tensor.shape),
            'typestr': kind.str,
            'data': (tensor.address, False),
            'strides': None,
            'version': 3,
        }


def _view_device(tensor: DeviceTensor, device: torch.device) -> torch.Tensor:
    view = torch.as_tensor(_ArrayInterface(tensor), device=device)
    return view.view(torch.bfloat16) if tensor.dtype == _BFLOAT16 else view


def _view_host(array: Array) -> torch.Tensor:
    if array.dtype.name == _BFLOAT16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _make_pool() -> Any:
    """Return a memory pool, or None where PyTorch has none."""
    has_pools = _ENTER_POOL is not None and hasattr(torch.cuda, 'MemPool')
    return torch.cuda.MemPool() if has_pools else None


@contextmanager
def _entered(pool: Any, device: torch.device) -> Iterator[None]:
    """Take this thread's device memory from a pool."""
    if pool is None or _ENTER_POOL is None:
        yield
        return
    _ENTER_POOL(device.index, pool.id)
    try:
        yield
    finally:
        torch._C._cuda_endAllocateToPool(device.index, pool.id)  # noqa: SLF001
        torch._C._cuda_releasePool(device.index, pool.id)  # noqa: SLF001
