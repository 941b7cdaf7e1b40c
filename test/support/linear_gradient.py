# SPDX-License-Identifier: Apache-2.0
"""Engines that give the gradient of a network whose Jacobian is a known multiple of the identity; they need no PyTorch."""

from __future__ import annotations

import numpy as np
from support.device_engines import DeviceEngines, view

from vla_policy_ros.engines.onnxruntime import OnnxRuntimeEngine


class LinearGradients:
    """Loads ONNX Runtime on the host, or on the "device" of a `HostDevice`.

    Args:
        jacobian: The number that the identity is multiplied with.
        device: The HostDevice; None for host memory.
    """

    def __init__(self, jacobian, device=None):
        self.jacobian, self.device = jacobian, device
        self.engines = DeviceEngines(device) if device else None
        self.num_gradients = 0

    def load(self, name, onnx_path, *, settings):
        if self.engines:
            return _Engine(self, self.engines.load(name, onnx_path, settings=settings))
        return _Engine(self, OnnxRuntimeEngine(onnx_path))


class _Engine:
    def __init__(self, owner, inner):
        self._owner, self._inner = owner, inner
        self.inputs, self.outputs = inner.inputs, inner.outputs
        self.workspace_bytes = inner.workspace_bytes
        self.close = inner.close

    def bind(self, tensors, *, workspace=None):
        return _Execution(self._owner, self._inner.bind(tensors, workspace=workspace))


class _Execution:
    def __init__(self, owner, inner):
        self._owner = owner
        self.enqueue, self.close = inner.enqueue, inner.close

    def bind_gradient(self, *, output_name, seed, input_name, gradient):
        return _Gradient(self._owner, seed, gradient)


class _Gradient:
    def __init__(self, owner, seed, gradient):
        self._owner, self.is_open = owner, True
        on_host = owner.device is None
        self._seed, self._gradient = (x if on_host else view(x) for x in (seed, gradient))

    def enqueue(self, stream=0):
        def work():
            self._owner.num_gradients += 1
            np.multiply(self._seed, np.float32(self._owner.jacobian), out=self._gradient)

        if self._owner.device:
            self._owner.device.submit('networks', stream, work)
        else:
            work()

    def close(self):
        self.is_open = False
