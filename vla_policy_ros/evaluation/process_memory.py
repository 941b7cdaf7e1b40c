# SPDX-License-Identifier: Apache-2.0
"""How much memory this process holds, as Linux counts it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

STATUS_FILE = Path('/proc/self/status')


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """Memory of the process in bytes: resident now, and the most that ever was."""

    resident_bytes: int
    peak_bytes: int


def read_process_memory(path: Path = STATUS_FILE) -> ProcessMemory | None:
    """Return what the kernel says (proc(5): VmRSS, VmHWM); None where it does not."""
    if not path.is_file():
        return None
    lines = path.read_text(encoding='ascii', errors='replace').splitlines()
    values = dict(line.split(':', 1) for line in lines if ':' in line)
    if 'VmRSS' not in values:
        return None
    resident_bytes = _read_kib(values['VmRSS'])
    # The kernel counts both in its own time, so that the peak may lag behind.
    peak_bytes = _read_kib(values.get('VmHWM', values['VmRSS']))
    return ProcessMemory(resident_bytes, max(resident_bytes, peak_bytes))


def _read_kib(text: str) -> int:
    return int(text.split(maxsplit=1)[0]) << 10
