# SPDX-License-Identifier: Apache-2.0
"""Guidance of a flow-matching loop towards the rows of a prefix, on the device; `policies.guidance` bit for bit."""

from __future__ import annotations

import math
from contextlib import ExitStack

from vla_policy_ros.bundle.chunk_prefix import PrefixTensors
from vla_policy_ros.bundle.loop_steps import guidance_steps
from vla_policy_ros.bundle.manifest import FlowMatching
from vla_policy_ros.core.engine import DeviceTensor
from vla_policy_ros.gpu.interfaces import Device, DeviceBuffer, Stream
from vla_policy_ros.gpu.memory import check_tensor

_BLOCK = 256


class DeviceGuidance:
    """Turns the prediction towards the prefix, see `bundle.loop_steps.GuidanceStep`.

    Args:
        device: The device, current in every call.
        loop: Settings of the loop.
        sample: (1, K, W) float32, read.
        prediction: (1, K, W) float32, changed in place.
        prefix: Wanted rows, and their weights.
        max_weight: Largest factor on the gradient.
        undo: Takes what frees the memory.

    Raises:
        SpecMismatchError: A tensor is of another size or element type.
        GpuError: The kernels cannot be compiled, or there is not enough memory.
    """

    def __init__(
        self,
        device: Device,
        loop: FlowMatching,
        *,
        sample: DeviceTensor,
        prediction: DeviceTensor,
        prefix: PrefixTensors[DeviceTensor],
        max_weight: float,
        undo: ExitStack,
    ) -> None:
        self._size, self._width = math.prod(sample.shape), sample.shape[-1]
        for where, tensor in (('sample', sample), ('prediction', prediction)):
            check_tensor(f'loop {where}', tensor, size=self._size, dtypes=('float32',))
        self.error: DeviceBuffer = device.allocate(sample.shape, 'float32')
        """(1, K, W) weighted distance of the expected end to the prefix: the seed of the gradient."""
        undo.callback(self.error.free)
        self.gradient: DeviceBuffer = device.allocate(sample.shape, 'float32')
        """(1, K, W) the error times the Jacobian of the prediction; written by the stages of the gradient."""
        undo.callback(self.gradient.free)
        self._steps = guidance_steps(loop, max_weight=max_weight)
        self._sample, self._prediction, self._prefix = sample, prediction, prefix
        self._measure = device.load_kernel('guidance', 'measure_error', 'PPPPPiif', {})
        self._correct = device.load_kernel('guidance', 'correct_prediction', 'PPPiff', {})
        self._grid = (-(-self._size // _BLOCK), 1, 1)

    def measure(self, stream: Stream, index: int) -> None:
        """Enqueue the error of one step, whose prediction is there. Does not block."""
        self._measure.launch(
            stream,
            self._grid,
            (_BLOCK, 1, 1),
            self.error.address,
            self._sample.address,
            self._prediction.address,
            self._prefix.actions.address,
            self._prefix.factors.address,
            self._size,
            self._width,
            self._steps[index].to_end,
        )

    def correct(self, stream: Stream, index: int) -> None:
        """Enqueue the change of the prediction of one step, whose gradient is there. Does not block."""
        step = self._steps[index]
        self._correct.launch(
            stream,
            self._grid,
            (_BLOCK, 1, 1),
            self._prediction.address,
            self.error.address,
            self.gradient.address,
            self._size,
            step.to_end,
            step.strength,
        )
