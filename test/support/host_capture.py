# SPDX-License-Identifier: Apache-2.0
"""What `host_device.HostDevice` keeps of a stream that is being captured, and how it refuses."""

from __future__ import annotations

from vla_policy_ros.core.errors import GpuError


class Capture:
    """Work recorded instead of run."""

    def __init__(self, origin):
        self.origin = origin
        self.kinds = []
        self.work = []
        self.streams = {origin}
        self.unjoined = {}  # stream that was drawn in: number of nodes up to its last one
        self.fault = ''
        self.is_over = False

    def add(self, stream, kind, work):
        self.kinds.append(kind)
        self.work.append(work)
        if stream is not self.origin:
            self.unjoined[stream] = len(self.kinds)

    def draw_in(self, stream, event):
        """Let a stream follow an event of the capture; the stream of the event is joined by that."""
        if event.num_nodes >= self.unjoined.get(event.stream, 0):
            self.unjoined.pop(event.stream, None)
        if stream not in self.streams:
            self.streams.add(stream)
            self.unjoined[stream] = len(self.kinds)

    def invalidate(self, fault):
        self.fault = self.fault or fault
        raise capture_failed(fault)


def capture_failed(fault):
    """Return the error of a capture."""
    return refused(fault, code='capture_failed')


def refused(fault, *, code='gpu_failed'):
    """Return the error of something that CUDA refuses."""
    return GpuError(
        'device of the tests',
        got=fault,
        expected='what CUDA allows',
        next_step='Read test/support/host_device.py.',
        code=code,
    )
