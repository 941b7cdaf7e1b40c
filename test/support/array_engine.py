# SPDX-License-Identifier: Apache-2.0
"""Runs an engine on a device with host arrays, so that one contract serves engines of both memories."""

from __future__ import annotations

import numpy as np


class ArrayEngine:
    """The face of an engine on the host over one on a device.

    Args:
        engine: The engine on the device.
        device: Its device, which is current.
    """

    def __init__(self, engine, device):
        self._engine = engine
        self._device = device
        self._stream = device.new_stream()
        self.inputs = engine.inputs
        self.outputs = engine.outputs
        self._executions = []

    @property
    def workspace_bytes(self):
        return self._engine.workspace_bytes

    def bind(self, arrays, *, workspace=None):
        execution = ArrayExecution(
            self._engine, self._device, self._stream, arrays, workspace=workspace
        )
        self._executions.append(execution)
        return execution

    def close(self):
        for execution in self._executions:
            execution.close()
        self._engine.close()


class ArrayExecution:
    """Uploads the inputs, runs, and downloads the outputs; returns when they are there."""

    def __init__(self, engine, device, stream, arrays, *, workspace=None):
        self._device = device
        self._stream = stream
        self._arrays = dict(arrays)
        self._is_closed = False
        self._outputs = [spec.name for spec in engine.outputs if spec.name in arrays]
        self.buffers = {k: device.allocate(v.shape, v.dtype.name) for k, v in arrays.items()}
        self._pinned = {
            k: device.allocate_pinned(v.shape, v.dtype.name) for k, v in arrays.items()
        }
        try:
            self.execution = engine.bind(self.buffers, workspace=workspace)
        except Exception:
            self._free()
            raise

    def enqueue(self):
        if not self._is_closed:
            self.upload()
        self.execution.enqueue(self._stream.handle)
        self.download()

    def upload(self):
        for name, array in self._arrays.items():
            np.copyto(self._pinned[name].array, array)
            self._device.upload(self.buffers[name], self._pinned[name], self._stream)

    def download(self):
        for name in self._outputs:
            self._device.download(self._pinned[name], self.buffers[name], self._stream)
        self._stream.synchronize()
        for name in self._outputs:
            np.copyto(self._arrays[name], self._pinned[name].array)

    def close(self):
        self.execution.close()
        self._is_closed = True
        self._free()

    def _free(self):
        for buffer in (*self.buffers.values(), *self._pinned.values()):
            buffer.free()
