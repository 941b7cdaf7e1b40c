# SPDX-License-Identifier: Apache-2.0
"""Parts of a benchmark that may fail without taking the rest along, their files, and the figures of their samples."""

from __future__ import annotations

import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

T = TypeVar('T')


class Parts:
    """Runs parts one after another; a failure becomes an entry of `errors`."""

    def __init__(self) -> None:
        self.errors: dict[str, str] = {}
        self.seconds: dict[str, float] = {}

    def run(self, name: str, part: Callable[[], T]) -> T | None:
        """Return what the part returns, None when it failed."""
        started_s = time.monotonic()
        try:
            return part()
        except Exception as fault:  # noqa: BLE001 - a part that fails is a result of its own
            self.errors[name] = f'{type(fault).__name__}: {str(fault)[:400]}'
            print(f'{name} FAILED: {self.errors[name][:200]}', file=sys.stderr, flush=True)
            traceback.print_exc()
            return None
        finally:
            self.seconds[name] = round(time.monotonic() - started_s, 2)

    def facts(self) -> dict[str, Any]:
        """Return errors and durations for the JSON."""
        return {'errors': self.errors, 'seconds': self.seconds}


@contextmanager
def work_folder(kept: Path | None) -> Iterator[Path]:
    """Give a folder for a `with` block: one to keep for another run, or a temporary one."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = kept or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        yield folder


def summarize(samples_ms: Sequence[float]) -> dict[str, float]:
    """Return minimum, percentiles and number of samples in milliseconds."""
    values = np.asarray(samples_ms, np.float64)
    p50, p95, p99 = (float(value) for value in np.percentile(values, (50, 95, 99)))
    return {
        'min': float(values.min()),
        'p50': p50,
        'p95': p95,
        'p99': p99,
        'max': float(values.max()),
        'n': float(values.size),
    }
