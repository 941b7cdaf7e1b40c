# SPDX-License-Identifier: Apache-2.0
"""One process of ours: allocator and middleware set for images, signals that end it cleanly, the executor that costs least."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from vla_policy_ros.core.errors import VlaPolicyError

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
# Above any image: glibc then reuses heap memory instead of mapping and faulting fresh pages for every message.
_LARGEST_MESSAGE_BYTES = 256 * 1024 * 1024
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Signals are seen when the executor comes back to Python.
_SPIN_TIMEOUT_S = 0.1


class RunnableNode(Protocol):
    """A node that this module can run to its end."""

    exit_status: int | None
    """None while it wants to run on, else the status of the process."""

    def close(self) -> None:
        """Stop threads and publishers, in any state."""


def tune_allocator() -> bool:
    """Keep image-sized allocations on one heap (glibc); return whether the C library took the setting.

    One heap for all threads: with one per thread, the decoder's threads, which come and go with every video file, leave
    holes of their frames' size behind. Measured over 100 episodes: 18 MB of growth, and none with one heap.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(
        mallopt(_M_ARENA_MAX, 1)
        and mallopt(_M_MMAP_THRESHOLD, _LARGEST_MESSAGE_BYTES)
        and mallopt(_M_TRIM_THRESHOLD, 2 * _LARGEST_MESSAGE_BYTES)
    )


def use_shipped_middleware_profile() -> Path | None:
    """Point Fast DDS at the shipped profile unless the user named one; return the profile in force.

    Must run before `rclpy.init`. Fast DDS 3 (Kilted and later) and 2 read differently named variables, and name the parts of
    a profile differently.
    """
    prefixes = [Path(prefix) for prefix in os.environ.get('AMENT_PREFIX_PATH', '').split(':')]
    is_version_3 = any((prefix / 'share' / 'fastdds').is_dir() for prefix in prefixes)
    library = 'fastdds' if is_version_3 else 'fastrtps'
    variable = f'{library.upper()}_DEFAULT_PROFILES_FILE'
    if chosen := os.environ.get(variable):
        return Path(chosen)
    for prefix in prefixes:
        profile = prefix / 'share' / 'vla_policy_ros' / 'config' / f'{library}.xml'
        if profile.is_file():
            os.environ[variable] = str(profile)
            return profile
    return None


def make_executor() -> Any:
    """Return rclpy's events executor where there is one, else the single-threaded one."""
    try:
        from rclpy.experimental import EventsExecutor
    except ImportError:
        from rclpy.executors import SingleThreadedExecutor

        return SingleThreadedExecutor()
    return EventsExecutor()


class _RosLogHandler(logging.Handler):
    """Sends the log records of the rooms below to the node's logger."""

    def __init__(self, logger: Any) -> None:
        super().__init__()
        self._logger = logger

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        if record.levelno >= logging.ERROR:
            self._logger.error(text)
        elif record.levelno >= logging.WARNING:
            self._logger.warning(text)
        else:
            self._logger.info(text)


def run_node(make_node: Callable[[], Any]) -> int:
    """Run one node until it ends or SIGINT or SIGTERM arrives; return the exit status of the process.

    Both signals end the node in the same way and give status 0. An error of our own prints one message and gives 1.
    """
    import rclpy
    from rclpy.signals import SignalHandlerOptions

    tune_allocator()
    use_shipped_middleware_profile()
    stop_requested = False

    def request_stop(_number: int, _frame: FrameType | None) -> None:
        nonlocal stop_requested
        stop_requested = True

    for number in _SIGNALS:
        signal.signal(number, request_stop)
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    status = 0
    executor = make_executor()
    node: Any = None
    try:
        node = make_node()
        logging.getLogger('vla_policy_ros').addHandler(_RosLogHandler(node.get_logger()))
        executor.add_node(node)
        while not stop_requested and node.exit_status is None:
            # EventsExecutor.spin() busy-waits in rclpy 9.1, spin_once in a loop does not.
            executor.spin_once(timeout_sec=_SPIN_TIMEOUT_S)
        status = node.exit_status or 0
    except VlaPolicyError as error:
        sys.stderr.write(f'error: {error}\n')
        status = 1
    except Exception:  # noqa: BLE001 - the border of the process: nothing above could tell the user
        traceback.print_exc()
        status = 1
    finally:
        # First of all, so that no event of the middleware meets an entity that is being destroyed.
        executor.shutdown()
        if node is not None:
            node.close()
            node.destroy_node()
        rclpy.try_shutdown()
        # Ctrl-C under `ros2 launch` comes twice; while Python finalises, the second one would kill the process.
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
    return status
