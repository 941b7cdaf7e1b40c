# SPDX-License-Identifier: Apache-2.0
"""The denoise loop on the device: the update rule of `bundle.loop_steps`, one kernel per step."""

from __future__ import annotations

import math

from vla_policy_ros.bundle.chunk_prefix import PrefixTensors
from vla_policy_ros.bundle.graph import noise_draws
from vla_policy_ros.bundle.loop_steps import loop_steps
from vla_policy_ros.bundle.manifest import FlowMatching, Loop
from vla_policy_ros.core.engine import DeviceTensor
from vla_policy_ros.gpu.interfaces import Device, Stream
from vla_policy_ros.gpu.memory import check_tensor

_BLOCK = 256
_FLOAT_BYTES = 4
_TIMES = {'float32': ('float', 'f'), 'int64': ('long long', 'q')}  # C type and signature


class DeviceDenoiser:
    """Integrates the sample in place; all tensors are the caller's and stay where they are.

    The numbers equal those of `policies.loops.Denoiser` bit for bit.

    Args:
        device: The device, current on the calling thread.
        loop: Settings of the loop.
        sample: (1, K, W) float32, the tensor that is integrated.
        prediction: (1, K, W) float32, written by the stages of the loop.
        timestep: (1,) float32 or int64 time, read by the stages of the loop.
        noise: (n, K, W) float32; the first tensor is the first sample, DDPM takes one more per step but the last.
        prefix: Rows that begin the loop in place of noise, and the gain of each row's velocity; for flow matching.

    Raises:
        SpecMismatchError: A tensor is of another size or element type; sample and prediction must be float32, as networks
            of lower precision give them through a cast at their border.
        GpuError: The kernels cannot be compiled.
    """

    def __init__(
        self,
        device: Device,
        loop: Loop,
        *,
        sample: DeviceTensor,
        prediction: DeviceTensor,
        timestep: DeviceTensor,
        noise: DeviceTensor,
        prefix: PrefixTensors[DeviceTensor] | None = None,
    ) -> None:
        self._size = math.prod(sample.shape)
        self._width = sample.shape[-1]
        check_tensor('loop sample', sample, size=self._size, dtypes=('float32',))
        check_tensor('loop prediction', prediction, size=self._size, dtypes=('float32',))
        check_tensor('loop time', timestep, size=1, dtypes=tuple(_TIMES))
        check_tensor('noise', noise, size=noise_draws(loop) * self._size, dtypes=('float32',))
        if prefix:
            num_rows = self._size // self._width
            check_tensor('prefix', prefix.actions, size=self._size, dtypes=('float32',))
            check_tensor('prefix factors', prefix.factors, size=num_rows, dtypes=('float32',))
            check_tensor('prefix length', prefix.num_rows, size=1, dtypes=('int32',))
        self._prefix = prefix
        self._steps = loop_steps(loop)
        self._limit = 0.0 if isinstance(loop, FlowMatching) else loop.clip_sample or 0.0
        self._sample = sample
        self._prediction = prediction
        self._timestep = timestep
        self._noise = noise
        time_type, time_code = _TIMES[timestep.dtype]
        defines = {'TIME': time_type}
        self._begin = device.load_kernel('denoise', 'begin_loop', f'PPiP{time_code}PPi', defines)
        self._step = device.load_kernel(
            'denoise', 'take_step', f'PPPifffffffP{time_code}Pi', defines
        )
        self._grid = (-(-self._size // _BLOCK), 1, 1)

    @property
    def num_steps(self) -> int:
        """Number of steps."""
        return len(self._steps)

    def begin(self, stream: Stream) -> None:
        """Enqueue what comes before the first step: sample from prefix and noise, first time. Does not block."""
        prefix = self._prefix
        self._begin.launch(
            stream,
            self._grid,
            (_BLOCK, 1, 1),
            self._sample.address,
            self._noise.address,
            self._size,
            self._timestep.address,
            self._time(0),
            prefix.actions.address if prefix else 0,
            prefix.num_rows.address if prefix else 0,
            self._width,
        )

    def update(self, stream: Stream, index: int) -> None:
        """Enqueue one step with the prediction that the stages have written, and the time of the next one.

        Does not block. The last step leaves its own time.
        """
        step = self._steps[index]
        draw = index + 1 if step.to_noise else 0
        self._step.launch(
            stream,
            self._grid,
            (_BLOCK, 1, 1),
            self._sample.address,
            self._prediction.address,
            self._noise.address + draw * self._size * _FLOAT_BYTES,
            self._size,
            step.clean_x,
            step.clean_p,
            self._limit,
            step.to_clean,
            step.to_x,
            step.to_p,
            step.to_noise,
            self._timestep.address,
            self._time(min(index + 1, len(self._steps) - 1)),
            self._prefix.factors.address if self._prefix else 0,
            self._width,
        )

    def _time(self, index: int) -> float:
        """Return the time of one step; integers are truncated, as on the CPU."""
        time = self._steps[index].timestep
        return int(time) if self._timestep.dtype == 'int64' else time
