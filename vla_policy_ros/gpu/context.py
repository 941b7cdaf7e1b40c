# SPDX-License-Identifier: Apache-2.0
"""The CUDA context that PyTorch shares, and PyCUDA objects that live and die in it."""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from vla_policy_ros.core.errors import GpuError

P = ParamSpec('P')
R = TypeVar('R')


def driver_call(function: Callable[P, R]) -> Callable[P, R]:
    """Turn a driver's error, as PyCUDA raises it, into ours."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except _pycuda_error() as error:
            raise _translate(error) from error

    return call


class PrimaryContext:
    """The primary context of one GPU; a `with` block makes it current on the calling thread, and may be nested.

    PyCUDA aborts a process that ends while a context is still pushed, so nothing but `with` pushes it.

    Args:
        index: Number of the GPU.
    """

    def __init__(self, index: int) -> None:
        import pycuda.driver
        from cuda.bindings import driver

        # A thread that waits for the GPU sleeps instead of spinning: cores are for camera threads. When another library
        # has started the context before (CUDA_ERROR_PRIMARY_CONTEXT_ACTIVE), its choice stands.
        driver.cuDevicePrimaryCtxSetFlags(index, driver.CUctx_flags.CU_CTX_SCHED_BLOCKING_SYNC)
        self._context = pycuda.driver.Device(index).retain_primary_context()
        self._release = weakref.finalize(self, _release, self._context)

    @property
    def is_open(self) -> bool:
        """Whether the context can still be used."""
        return self._release.alive

    @driver_call
    def __enter__(self) -> None:
        if not self.is_open:
            raise GpuError(
                'GPU',
                got='a call after close()',
                expected='an open device',
                next_step='Close what uses a device before the device itself.',
                code='closed',
            )
        self._context.push()

    @driver_call
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._context.pop()

    def close(self) -> None:
        """Let the context go; PyTorch keeps it alive where it uses it; may be called twice."""
        self._release()


class Owned:
    """A PyCUDA object that frees what it stands for when it dies.

    PyCUDA frees on another thread than the one that made the context only while the context is current there, and
    otherwise leaks with a warning. So the last reference is dropped here, inside the context.

    Args:
        context: Where it lives.
        item: The object; nobody else keeps it.
    """

    __slots__ = ('_context', '_item')

    def __init__(self, context: PrimaryContext, item: Any) -> None:
        self._context = context
        self._item = item

    @property
    def item(self) -> Any:
        """The object; None once it is dropped."""
        return self._item

    def drop(self) -> None:
        """Free it now; may be called twice; does nothing when the context is gone, which has freed it."""
        if self._item is not None and self._context.is_open:
            with self._context:
                self._item = None

    def __del__(self) -> None:
        # A context that a fault has broken takes everything along; who drops the last reference cannot help it.
        with contextlib.suppress(GpuError):
            self.drop()


def _release(context: Any) -> None:
    """Give back the reference on the primary context.

    PyCUDA's `detach` believes that the driver takes the context off the thread's stack, which holds for contexts of its
    own only; so it is taken off first.
    """
    from cuda.bindings import driver

    context.push()
    driver.cuCtxPopCurrent()
    context.detach()


def _pycuda_error() -> type[Exception]:
    """Return the root of PyCUDA's errors; looked up only when something was raised, so that it costs nothing."""
    import pycuda.driver

    root: type[Exception] = pycuda.driver.Error
    return root


def _translate(error: Exception) -> GpuError:
    import pycuda.driver

    memory = isinstance(error, pycuda.driver.MemoryError)  # not a MemoryError of Python's
    return GpuError(
        'NVIDIA driver',
        got=str(error),
        expected='enough free memory' if memory else 'a call that succeeds',
        next_step='Use fewer slots or a smaller network, or end other processes on the GPU (nvidia-smi lists them).'
        if memory
        else 'Look for an earlier fault on the GPU; `dmesg` and `nvidia-smi` name it.',
        code='out_of_memory' if memory else 'gpu_failed',
    )
