# SPDX-License-Identifier: Apache-2.0
"""Where things are kept that can be made again, and how they are written beside other processes."""

from __future__ import annotations

import os
import threading
from pathlib import Path


def cache_folder(name: str) -> Path:
    """Return `vla_policy_ros/<name>` in the user's cache folder (XDG base directories); it may not be there yet."""
    base = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    return Path(base) / 'vla_policy_ros' / name


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write a file so that others see the old one or the new one, never a part; missing folders are made.

    Raises:
        OSError: It cannot be written; the old one stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'.{path.name}-{os.getpid()}-{threading.get_ident()}')
    try:
        part.write_bytes(content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
