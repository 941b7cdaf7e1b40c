# SPDX-License-Identifier: Apache-2.0
"""What a process may do to be on time, asked for and reported: nothing here fails, it says what was not permitted."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import resource
import sys
from dataclasses import dataclass, field

# Flags of mlockall, see its manual page.
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4
# Option of prctl, see its manual page.
_PR_SET_TIMERSLACK = 29
# How long a thread that waits for the interpreter lets the one that has it go on. Python's 5 ms is a whole period at
# 200 Hz: so late would a tick begin that meets a callback. With 0.5 ms one tick in a hundred began 0.65 ms late.
_SWITCH_INTERVAL_S = 0.0001
# Number of the call sched_setattr, which the C library gives no name to.
_SCHED_SETATTR = {'x86_64': 314, 'aarch64': 274}
_SLICE_NS = 100_000


class _SchedAttr(ctypes.Structure):
    """`struct sched_attr` of the kernel, in its first version."""

    _fields_ = (
        ('size', ctypes.c_uint32),
        ('sched_policy', ctypes.c_uint32),
        ('sched_flags', ctypes.c_uint64),
        ('sched_nice', ctypes.c_int32),
        ('sched_priority', ctypes.c_uint32),
        ('sched_runtime', ctypes.c_uint64),
        ('sched_deadline', ctypes.c_uint64),
        ('sched_period', ctypes.c_uint64),
    )


@dataclass(slots=True)
class RealTimeScheduling:
    """Asks the system for what makes ticks punctual, and keeps what it said.

    Attributes:
        priority: SCHED_FIFO priority of the thread that ticks, 1..99; 0: it is not asked for.
        lock_memory: Whether the memory of the process may not be paged out.
        core: The core that the thread runs on; -1: any.
    """

    priority: int = 0
    lock_memory: bool = False
    core: int = -1
    _told: dict[str, str] = field(default_factory=dict)

    def prepare_thread(self) -> None:
        """Set up the calling thread, which is the one that ticks: timers, scheduling class and core."""
        _set_timer_slack()
        self._told['class'] = self._set_class(self.priority)
        if self.core >= 0:
            self._told['core'] = self._set_core()

    def prepare_process(self) -> None:
        """Set up the process, once everything that lives long has been made: interpreter, garbage collector, memory.

        The calling thread, which serves everything else, gets the class of the one that ticks, a step below: while it
        holds the interpreter, the ticks wait for it.
        """
        self._set_class(max(self.priority - 1, 0))
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        gc.collect()
        gc.freeze()
        if self.lock_memory:
            self._told['memory'] = _lock_memory()

    def release_process(self) -> None:
        """Give the class back, and let the garbage collector see everything again."""
        self._set_class(0)
        gc.unfreeze()

    @property
    def text(self) -> str:
        """What is in force, such as `SCHED_FIFO 60, locked memory, core 3`, and why something is not."""
        return ', '.join(
            self._told[key] for key in ('class', 'memory', 'core') if key in self._told
        )

    def _set_class(self, priority: int) -> str:
        """Give the calling thread a SCHED_FIFO priority; 0, or what is not permitted, is the usual class."""
        if not priority:
            return _set_slice()
        try:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
        except OSError as fault:
            return f'{_set_slice()} (SCHED_FIFO {priority}: {_why(fault)})'
        return f'SCHED_FIFO {priority}'

    def _set_core(self) -> str:
        try:
            os.sched_setaffinity(0, {self.core})
        except OSError as fault:
            return f'any core (core {self.core}: {_why(fault)})'
        return f'core {self.core}'


def _set_timer_slack() -> None:
    """Let sleeps of this thread end when they should, not up to 50 us later; needs no privilege."""
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)


def _set_slice() -> str:
    """Ask for short slices, with which a thread that wakes up goes before those with long ones (Linux 6.12 on).

    Needs no privilege; older kernels take the call and do nothing.
    """
    attributes = _SchedAttr(size=ctypes.sizeof(_SchedAttr), sched_runtime=_SLICE_NS)
    number = _SCHED_SETATTR.get(platform.machine())
    if number is not None:
        ctypes.CDLL(None).syscall(number, 0, ctypes.byref(attributes), 0)
    return 'SCHED_OTHER'


def _lock_memory() -> str:
    # Pages are locked when they are first used: the stacks of all threads alone would be 8 MB each. With a limit, locking
    # what will be mapped later would let an allocation fail some day.
    has_limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] != resource.RLIM_INFINITY
    flags = _MCL_CURRENT | _MCL_ONFAULT | (0 if has_limit else _MCL_FUTURE)
    library = ctypes.CDLL(None, use_errno=True)
    if library.mlockall(flags):
        return f'memory not locked ({_why(OSError(ctypes.get_errno(), ""))})'
    return 'locked memory'


def _why(fault: OSError) -> str:
    return os.strerror(fault.errno or 0).lower()
