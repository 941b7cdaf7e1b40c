# SPDX-License-Identifier: Apache-2.0
"""Numbers in a safetensors file, read one by one: a few statistics beside gigabytes of weights.

Format: 8 bytes length of the header (little endian), a JSON header that maps a name to element type, shape and the bytes
from its end on, then the data. Source: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vla_policy_ros.core.errors import BundleError
from vla_policy_ros.core.specs import Array
from vla_policy_ros.export.checkpoint_files import bad_checkpoint

_TYPES = {'F64': '<f8', 'F32': '<f4', 'F16': '<f2', 'I64': '<i8', 'I32': '<i4', 'U8': '|u1'}
_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library


class TensorFile:
    """An open table of contents; the data is read when it is asked for.

    Args:
        path: The file.

    Raises:
        BundleError: It is missing or no safetensors file (`bad_checkpoint`).
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with path.open('rb') as file:
                length = int.from_bytes(file.read(8), 'little')
                header = json.loads(file.read(min(length, _MAX_HEADER_BYTES)))
        except (OSError, ValueError) as fault:
            raise self._broken(str(fault)) from fault
        if not isinstance(header, dict):
            raise self._broken('a header that is no table')
        header.pop('__metadata__', None)
        self._entries: Mapping[str, Any] = header
        self._start = 8 + length

    @property
    def names(self) -> frozenset[str]:
        """Names of the tensors."""
        return frozenset(self._entries)

    def read(self, name: str) -> Array:
        """Return a tensor of numbers, flat, float64.

        Raises:
            BundleError: Its type is none of numbers, or the file ends before it.
        """
        try:
            entry = self._entries[name]
            first, end = entry['data_offsets']
            dtype = _TYPES[entry['dtype']]
            with self._path.open('rb') as file:
                file.seek(self._start + first)
                values = np.frombuffer(file.read(end - first), dtype)
        except (KeyError, TypeError, ValueError, OSError) as fault:
            raise self._broken(f'tensor {name!r}: {fault!r}') from fault
        if values.size != np.prod(entry['shape'], dtype=np.int64):
            raise self._broken(f'{values.size} values of {name!r}')
        return values.astype(np.float64)

    def _broken(self, got: str) -> BundleError:
        return bad_checkpoint(
            self._path,
            got=got,
            expected='a whole safetensors file',
            next_step='Download or save the checkpoint again.',
        )
