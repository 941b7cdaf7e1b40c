# SPDX-License-Identifier: Apache-2.0
"""CUDA graphs, through cuda-bindings: PyCUDA has no calls for them."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from vla_policy_ros.core.errors import GpuError
from vla_policy_ros.gpu.context import PrimaryContext
from vla_policy_ros.gpu.interfaces import Stream


class CudaGraph:
    """A captured sequence of device work.

    Args:
        context: Where it lives.
        executable: Its CUgraphExec; owned by this object.
        work: What was captured. The driver runs the code of kernels where it lies and keeps none of it loaded, so the
            graph holds on to everything that the work holds on to.
        num_kernels: Number of kernel launches in it.
        num_nodes: Number of all its nodes.
    """

    def __init__(
        self,
        context: PrimaryContext,
        executable: Any,
        *,
        work: Callable[[], None],
        num_kernels: int,
        num_nodes: int,
    ) -> None:
        self._context = context
        self._executable = executable
        self._work: Callable[[], None] | None = work
        self._num_kernels = num_kernels
        self._num_nodes = num_nodes

    @property
    def num_kernels(self) -> int:
        """Number of kernel launches in it; those of a library's nested graph are not counted."""
        return self._num_kernels

    @property
    def num_nodes(self) -> int:
        """Number of all its nodes: kernels, copies, fills."""
        return self._num_nodes

    def launch(self, stream: Stream) -> None:
        """Enqueue the whole sequence; does not block.

        Raises:
            GpuError: The graph is closed (`closed`), or the driver refused.
        """
        from cuda.bindings import driver

        if self._executable is None:
            raise GpuError(
                'CUDA graph',
                got='a launch after close()',
                expected='an open graph',
                next_step='Close a policy only when nothing runs on it.',
                code='closed',
            )
        _check(driver.cuGraphLaunch(self._executable, stream.handle))

    def close(self) -> None:
        """Free it; must come before what it runs is freed; may be called twice."""
        from cuda.bindings import driver

        executable, self._executable = self._executable, None
        if executable is not None and self._context.is_open:
            with self._context:
                driver.cuGraphExecDestroy(executable)
        self._work = None


def capture_graph(
    context: PrimaryContext, stream: Stream, enqueue: Callable[[], None]
) -> CudaGraph:
    """Record what a callable enqueues on a stream, and make it ready to launch.

    Only this thread is held to what may be captured: others go on preprocessing meanwhile. Python's garbage collection is
    held back so long: what it finds may be device memory, and freeing that on this thread would break the capture.

    Args:
        context: Current on this thread.
        stream: Recorded; work that other streams take over from it by events is recorded too.
        enqueue: Called once; its own errors pass through.

    Raises:
        GpuError: The driver cannot capture it (`capture_failed`); the stream is usable afterwards.
    """
    from cuda.bindings import driver

    mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
    _check(driver.cuStreamBeginCapture(stream.handle, mode), code='capture_failed')
    is_recorded = False
    try:
        with _no_collection():
            enqueue()
        is_recorded = True
    finally:
        # Also after an error: it ends the capture, and says when the driver was the cause of the error.
        result = driver.cuStreamEndCapture(stream.handle)
        if result[0] == driver.CUresult.CUDA_SUCCESS and not is_recorded:
            driver.cuGraphDestroy(result[1])
        (template,) = _check(result, code='capture_failed')
    try:
        return _make_ready(context, template, enqueue)
    finally:
        driver.cuGraphDestroy(template)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Hold back the collection of reference cycles for a `with` block."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _make_ready(context: PrimaryContext, template: Any, work: Callable[[], None]) -> CudaGraph:
    from cuda.bindings import driver

    count = _check(driver.cuGraphGetNodes(template))[-1]
    nodes = _check(driver.cuGraphGetNodes(template, count))[0] if count else []
    kinds = [_check(driver.cuGraphNodeGetType(node))[0] for node in nodes]
    (executable,) = _check(driver.cuGraphInstantiate(template, 0), code='capture_failed')
    return CudaGraph(
        context,
        executable,
        work=work,
        num_kernels=kinds.count(driver.CUgraphNodeType.CU_GRAPH_NODE_TYPE_KERNEL),
        num_nodes=len(kinds),
    )


def _check(result: tuple[Any, ...], *, code: str = 'gpu_failed') -> tuple[Any, ...]:
    """Return what a call of cuda-bindings gives beside its status.

    Raises:
        GpuError: The status is an error.
    """
    status, *values = result
    if status.value == 0:
        return tuple(values)
    raise GpuError(
        'CUDA graph',
        got=status.name,
        expected='work that the driver can record and launch',
        next_step='Set cuda_graph: false to run without graphs.',
        code=code,
    )
