# SPDX-License-Identifier: Apache-2.0
"""Kernel sources built by g++ for the host, once per test session and variant."""

from __future__ import annotations

import atexit
import ctypes
import functools
import hashlib
import os
import shutil
import struct
import subprocess
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

import vla_policy_ros.gpu
from vla_policy_ros.gpu.signature import argument_codes, argument_offsets

_KERNELS = Path(vla_policy_ros.gpu.__file__).parent / 'kernels'
_FLAGS = ('-O2', '-shared', '-fPIC', '-std=c++17', '-ffp-contract=off')
_WARNINGS = ('-Wall', '-Wextra', '-Werror')
_MAIN = """
#include "host.h"
#include "{source}.cu"
extern "C" void host_launch(const dim3 *grid, const dim3 *block, void *const *arguments) {{
    host::launch({entry}, *grid, *block, arguments);
}}
extern "C" unsigned int host_layout(unsigned int *offsets) {{ return host::layout({entry}, offsets); }}
"""
_Dim3 = ctypes.c_uint * 3
_lock = threading.Lock()


@dataclass(frozen=True)
class HostFunction:
    """One compiled kernel."""

    library: ctypes.CDLL
    layout: struct.Struct
    offsets: tuple[int, ...]

    def pack(self, arguments):
        """Return the arguments as one buffer, laid out as `gpu.device` hands them to the driver."""
        return ctypes.create_string_buffer(self.layout.pack(*arguments), self.layout.size)

    def run(self, grid, block, packed):
        start = ctypes.addressof(packed)
        addresses = (ctypes.c_void_p * len(self.offsets))(*(start + at for at in self.offsets))
        self.library.host_launch(
            ctypes.byref(_Dim3(*grid)), ctypes.byref(_Dim3(*block)), addresses
        )


def build_kernel(source, entry, signature, defines):
    """Compile one entry of a source with its defines, and check the signature against the real parameters."""
    with _lock:  # functools.cache would compile twice when two threads ask at once
        return _load(source, entry, signature, tuple(sorted(defines.items())))


@functools.cache
def _load(source, entry, signature, defines):
    library = ctypes.CDLL(str(_compile(source, entry, defines)))
    offsets = (ctypes.c_uint * 64)()
    count = library.host_layout(offsets)
    found, expected = tuple(offsets[: count + 1]), argument_offsets(signature)
    assert found == expected, (
        f'{entry}: by the signature {signature!r} the arguments (and the end) are at bytes {expected}, '
        f'the kernel has them at {found}'
    )
    layout = struct.Struct('@' + ''.join(argument_codes(signature)))
    return HostFunction(library, layout, found[:-1])


def _compile(source, entry, defines):
    text = _MAIN.format(source=source, entry=entry)
    options = [f'-D{name}={value}' for name, value in defines]
    name = hashlib.sha256('\n'.join([text, *options]).encode()).hexdigest()[:16]
    main, target = _folder() / f'{name}.cpp', _folder() / f'{name}.so'
    main.write_text(text)
    _run_compiler(main, target, *options, f'-I{_KERNELS}')
    return target


def _run_compiler(main, target, *options):
    compiler = os.environ.get('CXX', 'g++').split()
    command = [*compiler, *_FLAGS, *_WARNINGS, *options, str(main), '-o', str(target)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, f'{" ".join(command)}\n{built.stderr}'


@functools.cache
def _folder():
    folder = Path(tempfile.mkdtemp(prefix='vla_kernels_'))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def build_library(text):
    """Compile C++ text to a shared library and return its path; stands in for libraries that only a GPU machine has."""
    name = hashlib.sha256(text.encode()).hexdigest()[:16]
    main, target = _folder() / f'{name}.cpp', _folder() / f'{name}.so'
    main.write_text(text)
    _run_compiler(main, target)
    return target
