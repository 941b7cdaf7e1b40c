# SPDX-License-Identifier: Apache-2.0
"""Preprocesses images when they arrive, one thread per camera, while the policy is busy with earlier ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Generic, TypeVar

from vla_policy_ros.core.errors import VlaPolicyError
from vla_policy_ros.core.frame import Frame, PreparedFrame
from vla_policy_ros.core.policy import Policy
from vla_policy_ros.runtime.lane import DETAILS, Answer, Lane, check_goes_on

TicketT = TypeVar('TicketT')


class FramePreparer(Generic[TicketT]):
    """Calls `policy.prepare` for every frame, in order per camera.

    Every ticket comes back exactly once, to `on_ready` or to `on_refused`: on its camera's thread, or on the caller's
    where the policy prepares at once.

    Args:
        policy: Whose `prepare` is called; it must bear several threads at once.
        cameras: One thread is made for each.
        queue: Frames per camera that may wait; the oldest one is refused as `superseded` when there are more.
        on_ready: Called with the ticket and the prepared frame.
        on_refused: Called with the ticket, a cause and a detail.
    """

    def __init__(
        self,
        policy: Policy,
        cameras: Sequence[str],
        *,
        queue: int,
        on_ready: Callable[[TicketT, Frame | PreparedFrame], None],
        on_refused: Callable[[TicketT, str, str], None],
    ) -> None:
        self._policy = policy
        self._lanes = {name: Lane(f'vla-prepare-{name}', capacity=queue) for name in cameras}
        self._on_ready = on_ready
        self._on_refused = on_refused

    @property
    def failures(self) -> dict[str, Exception]:
        """Camera to the unexpected error that ended its work; its frames are refused as `worker_failed`."""
        return {name: lane.failure for name, lane in self._lanes.items() if lane.failure}

    def start(self) -> None:
        """Start the threads."""
        for lane in self._lanes.values():
            lane.start()

    def offer(self, frame: Frame, ticket: TicketT) -> Callable[[], None]:
        """Queue one frame; the ticket is handed back with the result.

        Returns:
            To be called at once, on this thread, without locks: it prepares the frame there when the policy prepares at
            once and no frame of the camera waits.
        """
        lane, refuse = self._lanes[frame.camera], partial(self._refuse, ticket)
        work = partial(self._prepare, frame, ticket)
        if self._policy.prepares_at_once(frame):
            return partial(lane.do_now, work, refuse)
        lane.submit(work, refuse)
        return _nothing

    def refuse(self, camera: str, ticket: TicketT, error: VlaPolicyError) -> None:
        """Hand a ticket to `on_refused` after the frames before it."""
        self._lanes[camera].call(partial(self._on_refused, ticket, error.code, str(error)))

    def shed(self, cause: str) -> None:
        """Refuse all frames that wait."""
        for lane in self._lanes.values():
            lane.shed(cause)

    def drain(self, timeout_s: float) -> bool:
        """Wait until no frame waits or is in work; return whether that came true."""
        return _all_by(timeout_s, [lane.drain for lane in self._lanes.values()])

    def stop(self, timeout_s: float) -> bool:
        """Refuse all frames that wait and join the threads; return False when one did not end in time."""
        return _all_by(timeout_s, [lane.stop for lane in self._lanes.values()])

    def _prepare(self, frame: Frame, ticket: TicketT) -> Answer:
        try:
            prepared = self._policy.prepare(frame)
        except VlaPolicyError as error:
            check_goes_on(error)
            return partial(self._on_refused, ticket, error.code, str(error))
        return partial(self._on_ready, ticket, prepared)

    def _refuse(self, ticket: TicketT, cause: str) -> None:
        self._on_refused(ticket, cause, DETAILS[cause])


def _nothing() -> None:
    pass


def _all_by(timeout_s: float, waits: Sequence[Callable[[float], bool]]) -> bool:
    deadline_s = time.monotonic() + timeout_s
    ended = [wait(max(deadline_s - time.monotonic(), 0.0)) for wait in waits]  # every one is asked
    return all(ended)
