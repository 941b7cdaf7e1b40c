# SPDX-License-Identifier: Apache-2.0
"""Real processes of real nodes, in a ROS domain that no other test run uses, none of which outlives its test."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from typing_extensions import Self

from vla_policy_ros.tools.ros_environment import claim_free_domain

PATIENCE_S = 90.0
"""How long a test waits for another process before it fails; long, because no test waits that long when all is well."""

_ROOT = Path(__file__).parents[2]
_END_S = 5.0


class RosProcess:
    """A started process; a thread reads what it writes."""

    def __init__(self, command: Sequence[str], *, env: dict[str, str], folder: Path) -> None:
        self.command = ' '.join(command)
        self._lines: list[str] = []
        self._is_ended = False
        self._changed = threading.Condition()
        self._process = subprocess.Popen(
            command,
            env=env,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors='replace',
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Process and group id."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    @property
    def log(self) -> str:
        """What it wrote so far, standard output and error together."""
        with self._changed:
            return ''.join(self._lines)

    def wait_for(self, pattern: str, timeout_s: float = PATIENCE_S) -> re.Match[str]:
        """Wait until the log holds a regular expression; fail with the log when it does not come."""

        def found() -> re.Match[str] | None:
            return re.search(pattern, ''.join(self._lines))

        with self._changed:
            self._changed.wait_for(lambda: found() or self._is_ended, timeout_s)
            match = found()
        assert match, f'{self.command} did not say {pattern!r}:\n{self.log}'
        return match

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process alone, as `kill` does."""
        self._process.send_signal(number)

    def interrupt_group(self) -> None:
        """Send SIGINT to the process and all its children, as Ctrl-C in a terminal does."""
        os.killpg(self.pid, signal.SIGINT)

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        """Wait for the end and return the exit status; fail with the log when it runs on."""
        try:
            status = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f'{self.command} did not end:\n{self.log}') from None
        self._reader.join(timeout_s)
        return status

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, wait, and return the exit status."""
        self.send(number)
        return self.wait()

    def terminate_group(self) -> None:
        """Ask the process and its children to end."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """Kill the whole group when it does not end by itself soon."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_S)
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join()

    def group_is_empty(self) -> bool:
        """Return whether neither the process nor a child of it is left."""
        try:
            os.killpg(self.pid, 0)
        except ProcessLookupError:
            return True
        return False

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as stream:
            for line in stream:
                with self._changed:
                    self._lines.append(line)
                    self._changed.notify_all()
        with self._changed:
            self._is_ended = True
            self._changed.notify_all()


class RosProcesses:
    """Starts processes in one ROS domain of their own; a context manager that leaves none behind.

    Args:
        folder: Where parameter files and ROS logs go; the working directory of the processes.
    """

    def __init__(self, folder: Path) -> None:
        self._claim = claim_free_domain()
        self.domain_id = self._claim.domain
        self._folder = folder
        self._started: list[RosProcess] = []
        self._env = {
            **os.environ,
            'ROS_DOMAIN_ID': str(self.domain_id),
            'ROS_LOG_DIR': str(folder / 'ros_log'),
            'PYTHONPATH': f'{_ROOT}:{os.environ.get("PYTHONPATH", "")}',
            'PYTHONUNBUFFERED': '1',
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._started:
            process.terminate_group()
        for process in self._started:
            process.kill()
        self._claim.close()

    def start(self, *command: str) -> RosProcess:
        """Start any command."""
        process = RosProcess(command, env=self._env, folder=self._folder)
        self._started.append(process)
        return process

    def start_node(self, name: str, **parameters: Any) -> RosProcess:
        """Start `policy_node`, `replay_node` or `recorder_node` with parameters from a file."""
        path = self._folder / f'{name}_{len(self._started)}.yaml'
        module = f'vla_policy_ros.ros.nodes.{name}'
        arguments = ros_arguments(path, name, parameters)
        return self.start(sys.executable, '-m', module, *arguments)

    def run(self, *command: str) -> str:
        """Run a command to its end and return what it wrote; fail when its status is not 0."""
        process = self.start(*command)
        status = process.wait()
        assert status == 0, f'{process.command} ended with {status}:\n{process.log}'
        return process.log


def echoed_message(text: str) -> Any:
    """Return the message with a header that `ros2 topic echo --once` wrote; the middleware may have written before it."""
    return yaml.safe_load(text[text.index('header:') :].partition('---')[0])


def ros_arguments(path: Path, node: str, parameters: Mapping[str, Any]) -> list[str]:
    """Write the parameters of a node into a file and return the arguments that name it."""
    if not parameters:
        return []
    plain = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in parameters.items()
    }
    path.write_text(yaml.safe_dump({node: {'ros__parameters': plain}}))
    return ['--ros-args', '--params-file', str(path)]
