# SPDX-License-Identifier: Apache-2.0
"""A device engine for `support.host_device.HostDevice`: ONNX Runtime on the "device" memory, in stream order."""

from __future__ import annotations

import ctypes
from collections import Counter

import numpy as np
from onnx.reference import ReferenceEvaluator

from vla_policy_ros.engines.onnxruntime import OnnxRuntimeEngine
from vla_policy_ros.gpu.memory import count_bytes


class DeviceEngines:
    """Loads the engines of one device; `load` takes the place of `engines.registry.load_engine`.

    Args:
        device: The HostDevice.
        workspace_bytes: What every engine says it needs.
        fault: Error that every run raises while the stream is captured.
        network: What runs a file: ONNX Runtime, or `ReferenceNetwork` for element types that it has not.
    """

    def __init__(self, device, *, workspace_bytes=0, fault=None, network=OnnxRuntimeEngine):
        self._network = network
        self.device = device
        self.workspace_bytes = workspace_bytes
        self.fault = fault
        self.loaded = Counter()
        self.workspaces = []
        self.settings = []
        self.num_open = 0  # engines and executions

    def load(self, name, onnx_path, *, settings):
        self.device.check_current()
        self.loaded[onnx_path.name] += 1
        self.settings.append(settings)
        return _Engine(self, self._network(onnx_path))


class _Closable:
    def __init__(self, engines, inner):
        self._engines = engines
        self._inner = inner
        self._is_open = True
        engines.num_open += 1

    def close(self):
        assert not self._engines.device.num_open_graphs, 'close graphs before what they run'
        if self._is_open:
            self._is_open = False
            self._engines.num_open -= 1
            self._inner.close()


class _Engine(_Closable):
    def __init__(self, engines, inner):
        super().__init__(engines, inner)
        self.inputs, self.outputs = inner.inputs, inner.outputs
        self.workspace_bytes = engines.workspace_bytes

    def bind(self, tensors, *, workspace=None):
        self._engines.device.check_current()
        self._engines.workspaces.append(workspace)
        views = {name: view(tensor) for name, tensor in tensors.items()}
        return _Execution(self._engines, self._inner.bind(views))


class _Execution(_Closable):
    def enqueue(self, stream=0):
        device = self._engines.device
        is_captured = device._streams[stream].capture is not None
        if self._engines.fault and is_captured:
            raise self._engines.fault
        device.submit('networks', stream, self._inner.enqueue)


def view(tensor):
    """Return a "device" tensor as an array that shares its memory."""
    data = (ctypes.c_uint8 * count_bytes(tensor.shape, tensor.dtype)).from_address(tensor.address)
    return np.frombuffer(data, np.dtype(tensor.dtype)).reshape(tensor.shape)


class ReferenceNetwork:
    """One network in ONNX's own evaluator, with the face of an engine in host memory."""

    def __init__(self, onnx_path):
        self._evaluator = ReferenceEvaluator(str(onnx_path))
        self.inputs, self.outputs = self._evaluator.input_names, self._evaluator.output_names
        self._tensors = {}

    def bind(self, tensors):
        bound = ReferenceNetwork.__new__(ReferenceNetwork)
        bound.__dict__.update(self.__dict__, _tensors=tensors)
        return bound

    def enqueue(self):
        results = self._evaluator.run(None, {name: self._tensors[name] for name in self.inputs})
        for name, values in zip(self.outputs, results, strict=True):
            if values.dtype.names:  # how onnx has bfloat16 before it took ml_dtypes
                values = values.view('bfloat16')  # noqa: PLW2901
            np.copyto(self._tensors[name], values, casting='no')

    def close(self):
        self._tensors = {}
