# SPDX-License-Identifier: Apache-2.0
"""Kernels: compiled by NVRTC for exactly one architecture, and kept on disk so that the next start needs no compiler."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Any

from vla_policy_ros.core.cache import write_atomically
from vla_policy_ros.core.errors import GpuError

_INCLUDE = re.compile(r'^#include "(\w+\.h)"', re.MULTILINE)
# No fast math: the same numbers as on the CPU count for more than the last microsecond.
_OPTIONS = ('--std=c++17',)
_DIGEST_BYTES = hashlib.sha256().digest_size


def read_kernel(source_name: str) -> tuple[str, dict[str, str]]:
    """Return a source of `gpu/kernels`, and the headers beside it that it includes, by their names."""
    folder = resources.files('vla_policy_ros.gpu') / 'kernels'
    source = (folder / f'{source_name}.cu').read_text('utf-8')
    headers: dict[str, str] = {}
    wanted = _INCLUDE.findall(source)
    while wanted:
        name = wanted.pop()
        if name not in headers:
            headers[name] = (folder / name).read_text('utf-8')
            wanted += _INCLUDE.findall(headers[name])
    return source, headers


class KernelCache:
    """Compiled kernels on disk. Several processes may use one folder.

    A file is the SHA-256 of the code, then the code. One that is damaged is compiled again; a folder that cannot be
    written costs the next start a compilation, nothing else.

    Args:
        folder: Where they lie; made when the first is stored.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, source_name: str, *, arch: str, defines: Mapping[str, str | int]) -> bytes:
        """Return the code of a kernel source, compiled now if it is not there.

        Args:
            source_name: Name of the source in `gpu/kernels` without its suffix.
            arch: Architecture, such as `sm_90`.
            defines: Preprocessor names and values.

        Raises:
            GpuError: It is not there and there is no compiler (`no_compiler`), or it does not compile
                (`compile_failed`).
        """
        source, headers = read_kernel(source_name)
        key = hashlib.sha256(
            repr(
                (source, sorted(headers.items()), arch, _define_options(defines), _OPTIONS)
            ).encode()
        )
        path = self._folder / f'{source_name}-{arch}-{key.hexdigest()[:32]}.cubin'
        cubin = _read(path)
        if cubin is None:
            cubin = compile_cubin(source, source_name, arch=arch, defines=defines, headers=headers)
            _write(path, cubin)
        return cubin


def compile_cubin(
    source: str,
    name: str,
    *,
    arch: str,
    defines: Mapping[str, str | int],
    headers: Mapping[str, str],
) -> bytes:
    """Compile CUDA C to machine code; needs no GPU.

    Args:
        source: The source.
        name: Its name in the compiler's messages.
        arch: Architecture, such as `sm_90`.
        defines: Preprocessor names and values.
        headers: Text of every header that it includes, by name.

    Raises:
        GpuError: There is no compiler (`no_compiler`), or it does not compile (`compile_failed`).
    """
    nvrtc = _load_compiler()
    texts, names = ([part.encode() for part in parts] for parts in (headers.values(), headers))
    program = _take(
        nvrtc.nvrtcCreateProgram(
            source.encode(), f'{name}.cu'.encode(), len(headers), texts, names
        )
    )
    try:
        options = [f'--gpu-architecture={arch}', *_OPTIONS, *_define_options(defines)]
        (status,) = nvrtc.nvrtcCompileProgram(
            program, len(options), [option.encode() for option in options]
        )
        if status.value != 0:
            raise _compile_failed(name, arch, status.name, _read_log(nvrtc, program))
        cubin = bytes(_take(nvrtc.nvrtcGetCUBINSize(program)))
        _take(nvrtc.nvrtcGetCUBIN(program, cubin))
        return cubin
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _define_options(defines: Mapping[str, str | int]) -> list[str]:
    return [f'--define-macro={name}={value}' for name, value in sorted(defines.items())]


def _load_compiler() -> Any:
    """Return cuda-bindings' NVRTC, once it has found the library."""
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError) as error:  # the second when there is no library
        raise GpuError(
            'kernel compiler',
            got=str(error),
            expected='NVRTC, for a kernel that is not in the cache yet',
            next_step='Run: pip install cuda-bindings nvidia-cuda-nvrtc (CUDA 12: nvidia-cuda-nvrtc-cu12); '
            'on Jetson: apt install cuda-nvrtc',
            code='no_compiler',
        ) from error
    return nvrtc


def _take(result: tuple[Any, ...]) -> Any:
    """Return the value of a call that cannot fail with good arguments."""
    status, *values = result
    if status.value != 0:
        raise _compile_failed('kernel', 'this architecture', status.name, '')
    return values[0] if values else None


def _read_log(nvrtc: Any, program: Any) -> str:
    log = bytes(_take(nvrtc.nvrtcGetProgramLogSize(program)))
    _take(nvrtc.nvrtcGetProgramLog(program, log))
    return log.rstrip(b'\0 \n').decode('utf-8', 'replace')


def _compile_failed(name: str, arch: str, status: str, log: str) -> GpuError:
    return GpuError(
        f'{name}.cu',
        got=f'{status} for {arch}\n{log}'.rstrip(),
        expected='a kernel that compiles',
        next_step='A compiler older than the GPU does not know it: update NVRTC. Otherwise report this text.',
        code='compile_failed',
    )


def _read(path: Path) -> bytes | None:
    """Return what was stored; None when it is not there or not whole."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    digest, cubin = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    return cubin if hashlib.sha256(cubin).digest() == digest else None


def _write(path: Path, cubin: bytes) -> None:
    """Store it, where that can be done."""
    with suppress(OSError):
        write_atomically(path, hashlib.sha256(cubin).digest() + cubin)
