# SPDX-License-Identifier: Apache-2.0
"""What the next run of a loop begins with, on the device, and what the last one ended with."""

from __future__ import annotations

from contextlib import ExitStack

from vla_policy_ros.bundle.bundle import Bundle
from vla_policy_ros.bundle.chunk_prefix import ChunkPrefix, PrefixTensors
from vla_policy_ros.core.engine import DeviceTensor
from vla_policy_ros.core.specs import Array
from vla_policy_ros.deployment.rtc import RtcSettings
from vla_policy_ros.gpu.interfaces import Device, PinnedBuffer, Stream
from vla_policy_ros.policies.device_pool import DevicePool, Staging
from vla_policy_ros.policies.prefix_input import PrefixInput, loop_prefix_specs


class DevicePrefix:
    """Tensors at fixed addresses, so that a captured graph serves every prefix and none.

    Args:
        device: The device, current in every call.
        bundle: The bundle, which has a loop.
        settings: How the prefix counts.
        pool: The policy's tensors; those that a prefix fills are staged.
        stream: The policy's stream.
        undo: Takes what frees the memory.
    """

    def __init__(
        self,
        device: Device,
        bundle: Bundle,
        settings: RtcSettings,
        *,
        pool: DevicePool,
        stream: Stream,
        undo: ExitStack,
    ) -> None:
        specs = loop_prefix_specs(bundle)
        self._staging = Staging(device, specs, undo)
        self.tensors: PrefixTensors[DeviceTensor] = PrefixTensors(
            *(self._staging.device_views[spec.name] for spec in specs)
        )
        """What the loop reads."""
        on_host = PrefixTensors(*(self._staging.host[spec.name] for spec in specs))
        self._input = PrefixInput(bundle, settings, tensors=on_host, pool=pool.host)
        self._device = device
        self._pool = pool
        self._stream = stream
        loop = bundle.manifest.loop
        assert loop
        self._final = pool.tensors[loop.sample]
        self._sample: PinnedBuffer | None = None
        if loop.sample != bundle.manifest.action.tensor:
            self._sample = device.allocate_pinned(self._final.shape, self._final.dtype)
            undo.callback(self._sample.free)

    @property
    def sample(self) -> Array:
        """(1, K, W) final sample of the loop in pinned host memory, as `download` left it."""
        return self._sample.array if self._sample else self._pool.raw_action

    def write(self, prefix: ChunkPrefix | None) -> None:
        """Set the prefix of the next run in pinned memory; `upload` brings it to the device."""
        self._input.write(prefix)

    def upload(self) -> None:
        """Enqueue the copy of the prefix to the device."""
        self._staging.upload(self._stream)

    def download(self) -> None:
        """Enqueue the copy of the final sample to the host, unless it comes back as the action."""
        if self._sample:
            self._device.download(self._sample, self._final, self._stream)
