# SPDX-License-Identifier: Apache-2.0
"""Counts every call of the CUDA driver in this process, whoever makes it (CUPTI's callback interface, through ctypes)."""

from __future__ import annotations

import ctypes
import sys
from collections import Counter
from pathlib import Path
from types import TracebackType

from typing_extensions import Self

_DRIVER_API = 1  # CUPTI_CB_DOMAIN_DRIVER_API
_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32, ctypes.c_void_p)


class DriverCalls:
    """Names and numbers of driver calls within a `with` block.

    Raises:
        OSError: There is no CUPTI.
        RuntimeError: CUPTI refuses, for example because a profiler holds it.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._library = ctypes.CDLL(_find_cupti())
        self._subscriber = ctypes.c_void_p()
        self._callback = _CALLBACK(self._count)  # must outlive the subscription

    def __enter__(self) -> Self:
        subscribe = self._library.cuptiSubscribe
        subscribe.argtypes = [ctypes.POINTER(ctypes.c_void_p), _CALLBACK, ctypes.c_void_p]
        self._check(subscribe(ctypes.byref(self._subscriber), self._callback, None))
        enable = self._library.cuptiEnableDomain
        enable.argtypes = [ctypes.c_uint32, ctypes.c_void_p, ctypes.c_int]
        self._check(enable(1, self._subscriber, _DRIVER_API))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._library.cuptiUnsubscribe.argtypes = [ctypes.c_void_p]
        self._library.cuptiUnsubscribe(self._subscriber)

    def _count(self, _user: int, _domain: int, _number: int, data: int) -> None:
        # CUpti_CallbackData: int callbackSite (0 on entry), const char *functionName.
        if ctypes.c_int.from_address(data).value == 0:
            name = ctypes.c_char_p.from_address(data + 8).value or b'?'
            self.counts[name.decode()] += 1

    def _check(self, status: int) -> None:
        if status:
            raise RuntimeError(f'CUPTI answers {status}')


def _find_cupti() -> str:
    """Return the library that comes with PyTorch, else the name that the loader may know."""
    for folder in map(Path, sys.path):
        for pattern in ('nvidia/cu*/lib/libcupti.so.*', 'nvidia/cuda_cupti/lib/libcupti.so.*'):
            found = sorted(folder.glob(pattern)) if folder.is_dir() else []
            if found:
                return str(found[-1])
    return 'libcupti.so'
