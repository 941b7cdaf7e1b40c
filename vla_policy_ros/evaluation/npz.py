# SPDX-License-Identifier: Apache-2.0
"""NPZ files whose bytes depend on the arrays alone: no clock, no compression library, no pickle."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vla_policy_ros.core.errors import DatasetError
from vla_policy_ros.core.specs import Array

_NO_TIME = (1980, 1, 1, 0, 0, 0)  # the first instant that a zip file can hold


def pack_arrays(arrays: Mapping[str, Array]) -> bytes:
    """Return an NPZ file, entries sorted by name; equal arrays give equal bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w', zipfile.ZIP_STORED) as archive:
        for name in sorted(arrays):
            entry = io.BytesIO()
            np.lib.format.write_array(
                entry, np.ascontiguousarray(arrays[name]), version=(1, 0), allow_pickle=False
            )
            archive.writestr(zipfile.ZipInfo(f'{name}.npy', _NO_TIME), entry.getvalue())
    return buffer.getvalue()


def read_arrays(path: Path) -> dict[str, Array]:
    """Read all arrays of an NPZ file.

    Raises:
        DatasetError: The file is missing, broken, or holds pickled objects.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
            return {
                name.removesuffix('.npy'): np.lib.format.read_array(
                    io.BytesIO(archive.read(name)), allow_pickle=False
                )
                for name in archive.namelist()
            }
    except FileNotFoundError:
        raise DatasetError(
            str(path),
            got='no such file',
            expected='the recording of a finished run',
            next_step='Give the folder that the run wrote its reports to.',
            code='missing_file',
        ) from None
    except (ValueError, EOFError, zipfile.BadZipFile) as fault:
        raise DatasetError(
            str(path),
            got=' '.join(str(fault).split()) or 'an empty file',
            expected='an NPZ file of plain arrays',
            next_step='Record the run again.',
            code='broken_file',
        ) from fault
