# SPDX-License-Identifier: Apache-2.0
"""A `HostDevice` whose streams work as late as they may: only when the host, or another stream, waits for them.

Where the order of two streams is left to luck, or pinned memory is written before it was read, it goes wrong here every time.
"""

from __future__ import annotations

import threading

from support.host_device import HostDevice, HostEvent, HostStream


class LazyDevice(HostDevice):
    def __init__(self, **settings):
        super().__init__(**settings)
        self.running = threading.RLock()

    def new_stream(self):
        self.check_current()
        stream = LazyStream(self, next(self._handles))
        self._streams[stream.handle] = stream
        return stream

    def new_event(self, *, timing=False):
        self.check_current()
        return LazyEvent(self, timing)

    def submit(self, kind, handle, work):
        stream = self._streams[handle]
        if stream.capture is not None:
            super().submit(kind, handle, work)
        else:
            self.check_current()
            self._count(kind)
            stream.items.append(work)


class LazyStream(HostStream):
    def __init__(self, device, handle):
        super().__init__(device, handle)
        self.items = []
        self.num_done = 0

    def wait(self, event):
        super().wait(event)
        if self.capture is None and event.place is not None:
            stream, position = event.place
            self.items.append(lambda: stream.run_to(position))

    def synchronize(self):
        super().synchronize()
        self.run_to(len(self.items))

    def run_to(self, position):
        with self._device.running:
            while self.num_done < position:
                self.num_done += 1
                self.items[self.num_done - 1]()
                self.items[self.num_done - 1] = None


class LazyEvent(HostEvent):
    place = None

    def record(self, stream):
        super().record(stream)
        if stream.capture is None:
            self.place = stream, len(stream.items)

    def synchronize(self):
        super().is_done()
        if self.place is not None:
            stream, position = self.place
            stream.run_to(position)

    def is_done(self):
        super().is_done()
        return self.place is None or self.place[0].num_done >= self.place[1]
