# SPDX-License-Identifier: Apache-2.0
"""Messages of a rosbag2 recording (MCAP or SQLite) through the rosbags library; needs no ROS."""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rosbags.highlevel import AnyReader, AnyReaderError
from rosbags.rosbag2 import ReaderError
from rosbags.typesys import Stores, get_typestore

from vla_policy_ros.datasets.faults import broken_file, missing_file

_BROKEN = (
    AnyReaderError,
    ReaderError,
    sqlite3.Error,
    struct.error,
    OSError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
)
"""What rosbags lets through when a file is truncated or overwritten."""

_REMEDY = ' A recording that was cut off: `mcap recover`, then `ros2 bag reindex`.'


@dataclass(frozen=True, slots=True)
class BagMessage:
    """One message: topic, type, the time the recorder got it, and its fields."""

    topic: str
    kind: str
    received_ns: int
    fields: Any

    @property
    def stamp_ns(self) -> int:
        """Header stamp; the time of receipt for a message that is not stamped."""
        return self._header_ns() or self.received_ns

    @property
    def is_stamped(self) -> bool:
        """Whether it has a header with a stamp other than zero."""
        return self._header_ns() != 0

    def _header_ns(self) -> int:
        header = getattr(self.fields, 'header', None)
        return int(header.stamp.sec) * 10**9 + int(header.stamp.nanosec) if header else 0


def read_topics(path: Path) -> dict[str, str]:
    """Return the topics that have messages, with their types.

    Raises:
        DatasetError: The bag is missing or broken.
    """
    with _open_bag(path) as bag, _naming_faults(path):
        return {c.topic: c.msgtype for c in bag.connections if c.msgcount}


def iter_messages(
    path: Path,
    topics: Collection[str],
    *,
    start_ns: int | None = None,
    stop_ns: int | None = None,
) -> Iterator[BagMessage]:
    """Yield the messages of some topics received within [start_ns, stop_ns), in the order of receipt.

    Raises:
        DatasetError: The bag is missing or broken.
    """
    with _open_bag(path) as bag:
        connections = [c for c in bag.connections if c.topic in topics]
        messages = bag.messages(connections, start=start_ns, stop=stop_ns)
        while (message := _next_message(path, bag, messages)) is not None:
            yield message


def _next_message(path: Path, bag: AnyReader, messages: Iterator[Any]) -> BagMessage | None:
    with _naming_faults(path):
        for connection, received_ns, data in messages:
            fields = _deserialize(bag, data, connection.msgtype)
            return BagMessage(connection.topic, connection.msgtype, received_ns, fields)
    return None


def _deserialize(bag: AnyReader, data: bytes, kind: str) -> Any:
    """Read one serialised message; bytes after its end are ignored, as ROS does.

    A bag that a program wrote itself has such bytes: rclpy's `serialize_message` returns as many bytes as the message
    could need. rosbags' own reader refuses them.
    """
    if data[:2] not in (b'\0\0', b'\0\1'):
        raise ValueError(f'{kind} in an encapsulation that is not plain CDR: {data[:2].hex()}')
    definition = bag.typestore.get_msgdef(kind)
    read = definition.deserialize_cdr_le if data[1] else definition.deserialize_cdr_be
    fields, _ = read(data[4:], 0, definition.cls, bag.typestore)
    return fields


@contextmanager
def _open_bag(path: Path) -> Iterator[AnyReader]:
    """Open a bag; the definitions in it come first, those of the current ROS distribution fill the gaps."""
    if not path.exists():
        raise missing_file(path, 'a rosbag2 folder or an .mcap file')
    latest = get_typestore(Stores.LATEST)
    with _naming_faults(path):
        bag = AnyReader([path], default_typestore=latest)
        bag.open()
    try:
        known = bag.typestore.fielddefs
        absent = {name: kind for name, kind in latest.fielddefs.items() if name not in known}
        bag.typestore.register(absent)
        yield bag
    finally:
        bag.close()


@contextmanager
def _naming_faults(path: Path) -> Iterator[None]:
    try:
        yield
    except _BROKEN as fault:
        raise broken_file(
            path, 'a readable rosbag2 recording', fault, 'broken_bag', remedy=_REMEDY
        ) from fault
