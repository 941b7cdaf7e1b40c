# SPDX-License-Identifier: Apache-2.0
"""One thread that does tasks in order, and answers instead of working when too many wait."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from vla_policy_ros.core.errors import EngineError, GpuError, VlaPolicyError
from vla_policy_ros.scheduling.matcher import SUPERSEDED

STALE_EPOCH = 'stale_epoch'
STOPPED = 'stopped'
WORKER_FAILED = 'worker_failed'
DETAILS = {
    SUPERSEDED: 'Newer ones arrived before its turn came.',
    STALE_EPOCH: 'A reset ended its epoch.',
    STOPPED: 'The pipeline was stopped.',
    WORKER_FAILED: 'The worker met an unexpected error; the log says which.',
}

_logger = logging.getLogger(__name__)

_T = TypeVar('_T')
Answer = Callable[[], None]
"""Delivers a result or a refusal; called on the lane's thread."""


@dataclass(slots=True)
class _Task:
    work: Callable[[], Answer]
    refuse: Callable[[str], None] | None = None

    def shed(self, cause: str) -> None:
        """Answer with a cause instead of working; what the work holds (images) is let go at once."""
        if self.refuse is not None:
            refusal = partial(self.refuse, cause)
            self.work, self.refuse = lambda: refusal, None


class Lane:
    """A thread with an ordered queue.

    Every task is answered exactly once, in the order of submission, on the lane's thread (`do_now`: on the caller's where
    that keeps the order): by its work, or by a
    refusal when it was superseded (too many wait: the oldest one goes), shed, stopped, or when the lane has failed.

    Args:
        name: Name of the thread.
        capacity: Tasks that may wait, not counting the one in work, calls and refusals.
    """

    def __init__(self, name: str, *, capacity: int) -> None:
        self._capacity = capacity
        self._tasks: deque[_Task] = deque()
        self._changed = threading.Condition()
        self._is_busy = False
        self._is_stopping = False
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def failure(self) -> Exception | None:
        """The unexpected error that ended the work; refusals are still delivered."""
        return self._failure

    @property
    def is_stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._is_stopping

    def start(self) -> None:
        """Start the thread; what was submitted before is done then."""
        self._thread.start()

    def submit(self, work: Callable[[], Answer], refuse: Callable[[str], None]) -> None:
        """Queue work that returns its answer; `refuse(cause)` is called in its place when it is not done."""
        with self._changed:
            waiting = [task for task in self._tasks if task.refuse is not None]
            if len(waiting) >= self._capacity:
                waiting[0].shed(SUPERSEDED)
            self._push(_Task(work, refuse))

    def do_now(self, work: Callable[[], Answer], refuse: Callable[[str], None]) -> None:
        """Do work on the caller's thread, or queue it when something is before it, so that the order holds."""
        task = _Task(work, refuse)
        with self._changed:
            if self._tasks or self._is_busy:
                self._push(task)
                return
            self._is_busy = True
            self._shed_if_ended(task)
        self._do(task)
        self._end_task()

    def call(self, answer: Answer) -> None:
        """Queue something that is always done, in its turn."""
        with self._changed:
            self._push(_Task(lambda: answer))

    def shed(self, cause: str) -> None:
        """Refuse all that waits; the task in work goes on."""
        with self._changed:
            for task in self._tasks:
                task.shed(cause)

    def drain(self, timeout_s: float) -> bool:
        """Wait until nothing waits and nothing is in work; return whether that came true."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._tasks and not self._is_busy, timeout_s)

    def stop(self, timeout_s: float) -> bool:
        """Refuse all that waits and join the thread; return False when the task in work did not end in time."""
        with self._changed:
            self._is_stopping = True
            for task in self._tasks:
                task.shed(STOPPED)
            self._changed.notify_all()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _push(self, task: _Task) -> None:
        self._tasks.append(task)
        self._changed.notify_all()

    def _run(self) -> None:
        while (task := self._take()) is not None:
            self._do(task)
            del task  # so that nothing holds its images while the lane waits
            self._end_task()

    def _take(self) -> _Task | None:
        with self._changed:
            self._changed.wait_for(
                lambda: not self._is_busy and (self._tasks or self._is_stopping)
            )
            if not self._tasks:
                return None
            self._is_busy = True
            task = self._tasks.popleft()
            self._shed_if_ended(task)
            return task

    def _shed_if_ended(self, task: _Task) -> None:
        if self._failure is not None:
            task.shed(WORKER_FAILED)
        elif self._is_stopping:
            task.shed(STOPPED)

    def _end_task(self) -> None:
        with self._changed:
            self._is_busy = False
            self._changed.notify_all()

    def _do(self, task: _Task) -> None:
        answer = self._guard(task.work)
        if answer is None:
            assert (
                task.refuse is not None
            )  # a call's work cannot fail: it only hands over the answer
            answer = partial(task.refuse, WORKER_FAILED)
        self._guard(answer)

    def _guard(self, step: Callable[[], _T]) -> _T | None:
        try:
            return step()
        except Exception as error:  # the worker's border: a failure is data, not a dead thread
            _logger.exception('%s failed', self._thread.name)
            self._failure = error.with_traceback(None)  # a traceback would hold images
            return None


def check_goes_on(error: VlaPolicyError) -> None:
    """Raise an error after which the policy cannot do any work any more; others concern one task only."""
    if isinstance(error, GpuError) and error.is_lasting:
        raise error


def busy_error(policy_id: str) -> EngineError:
    """Return the error of a start while a thread is still at work that could not be waited for at the last stop."""
    return EngineError(
        f'policy {policy_id!r}',
        got='a call from before the last stop that has not come back',
        expected='an idle policy',
        next_step='Wait and try again, or restart the process.',
        code='still_busy',
    )
