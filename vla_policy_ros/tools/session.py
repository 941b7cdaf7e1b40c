# SPDX-License-Identifier: Apache-2.0
"""Runs several processes together; whatever happens, none of them is left when it is over."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NoReturn

from typing_extensions import Self

from vla_policy_ros.core.errors import VlaPolicyError

_POLL_PERIOD_S = 0.05
_TAIL_LINES = 15
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# Asks the kernel (prctl PR_SET_PDEATHSIG) to kill the process with its parent, then becomes the child's program.
_LAUNCHER = """\
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() == int(sys.argv[1]):
    os.execvp(sys.argv[2], sys.argv[2:])
"""


@dataclass(frozen=True, slots=True)
class Child:
    """One process of a session.

    Attributes:
        name: Name in messages and of its log file.
        command: Program and arguments.
        may_end: Whether it may end before the others are done.
    """

    name: str
    command: tuple[str, ...]
    may_end: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long to wait, in seconds.

    Attributes:
        finish_s: For the last child, after all that may end have ended with status 0.
        failure_s: For the last child, after one has ended with another status.
        stop_s: For a child that was told to stop, before it is killed.
    """

    finish_s: float = 60.0
    failure_s: float = 10.0
    stop_s: float = 5.0


class Session:
    """Starts children on entry, stops every one of them on exit; SIGTERM and SIGHUP leave the block like SIGINT does.

    Each child leads a process group of its own, so that a Ctrl-C at the terminal reaches it through `stop` only and
    its own children end with it. When this very process is killed, the kernel kills the children (Linux).

    Args:
        children: What to start, in order.
        log_folder: Where `<name>.log` takes the output of each.
        environment: Environment of all.
        patience: How long to wait.
    """

    def __init__(
        self,
        children: Sequence[Child],
        *,
        log_folder: Path,
        environment: Mapping[str, str],
        patience: Patience | None = None,
    ) -> None:
        self._children = tuple(children)
        self._log_folder = log_folder
        self._environment = dict(environment)
        self._patience = patience or Patience()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._old_handlers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in _SIGNALS[1:]:
            self._old_handlers[number] = signal.signal(number, _leave)
        try:
            self._log_folder.mkdir(parents=True, exist_ok=True)
            for child in self._children:
                self._processes[child.name] = self._start(child)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def wait(self, last: str, *, on_tick: Callable[[], None] = lambda: None) -> int:
        """Wait until the child `last` has ended; return its exit status.

        Args:
            last: Name of the child.
            on_tick: Called about twenty times a second.

        Raises:
            VlaPolicyError: Another child ended that may not, or the last one did not end in time after those that may.
        """
        deadline_s = math.inf
        ended: dict[str, int] = {}
        while (result := self._status(last)) is None:
            for child in self._children:
                status = None if child.name in ended else self._status(child.name)
                if child.name == last or status is None:
                    continue
                if not child.may_end:
                    raise self._ended(child.name, status)
                ended[child.name] = status
                wait_s = self._patience.failure_s if status else self._patience.finish_s
                deadline_s = min(deadline_s, time.monotonic() + wait_s)
            if time.monotonic() > deadline_s:
                raise self._hangs(last, ended)
            on_tick()
            time.sleep(_POLL_PERIOD_S)
        return result

    def tail(self, name: str) -> str:
        """Return the last lines that a child wrote."""
        text = self._log_path(name).read_text(encoding='utf-8', errors='replace')
        return '\n'.join(text.splitlines()[-_TAIL_LINES:])

    def failed(self, name: str, got: str) -> VlaPolicyError:
        """Return the fault of a child that did not do its work, with the last lines that it wrote."""
        lines = self.tail(name).replace('\n', '\n      ') or '(nothing)'
        return VlaPolicyError(
            name,
            got=f'{got}; it last wrote:\n      {lines}',
            expected='a node that does its work',
            next_step=f'Its whole output is in {self._log_path(name)}.',
            code='node_failed',
        )

    def _ended(self, name: str, status: int) -> VlaPolicyError:
        return self.failed(name, f'its end with status {status}, before the run was over')

    def _hangs(self, last: str, ended: Mapping[str, int]) -> VlaPolicyError:
        for name, status in ended.items():
            if status:
                return self._ended(name, status)
        return self.failed(last, 'no end after everything else was done')

    def _start(self, child: Child) -> subprocess.Popen[bytes]:
        with self._log_path(child.name).open('wb') as log:
            return subprocess.Popen(
                _bind_to_this_process(child.command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )

    def _log_path(self, name: str) -> Path:
        return self._log_folder / f'{name}.log'

    def _status(self, name: str) -> int | None:
        """Return a child's exit status (negative: the signal), None while it runs; it stays a zombie until `_close`."""
        process = self._processes[name]
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        result = os.waitid(os.P_PID, process.pid, flags)
        if result is None:
            return None
        return result.si_status if result.si_code == os.CLD_EXITED else -result.si_status

    def _close(self) -> None:
        """Tell every group to stop, then kill what is left, and wait for it; signals have to wait meanwhile."""
        for number in _SIGNALS:
            self._old_handlers.setdefault(number, signal.signal(number, signal.SIG_IGN))
        try:
            for process in self._processes.values():
                _signal_group(process.pid, signal.SIGTERM)
            deadline_s = time.monotonic() + self._patience.stop_s
            while time.monotonic() < deadline_s and self._some_run():
                time.sleep(_POLL_PERIOD_S)
            for process in self._processes.values():
                # Not yet waited for, so the group is still ours even where its leader has ended.
                _signal_group(process.pid, signal.SIGKILL)
                process.wait()
            self._processes.clear()
        finally:
            for old, handler in self._old_handlers.items():
                signal.signal(old, handler)

    def _some_run(self) -> bool:
        return any(self._status(name) is None for name in self._processes)


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _bind_to_this_process(command: Sequence[str]) -> list[str]:
    """Return a command whose process cannot outlive this one."""
    if sys.platform != 'linux':
        return list(command)
    return [sys.executable, '-I', '-S', '-c', _LAUNCHER, str(os.getpid()), *command]


def _signal_group(group: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
