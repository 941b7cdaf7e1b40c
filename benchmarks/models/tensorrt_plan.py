# SPDX-License-Identifier: Apache-2.0
"""TensorRT by hand, with PyTorch's memory and stream: what the library gives without anything of this package."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor


def build(onnx_path: Path, plan_path: Path, *, level: int) -> float:
    """Build a strongly typed plan; return the seconds it took, 0 when the plan is there."""
    import tensorrt as trt

    if plan_path.exists():
        return 0.0
    started_s = time.monotonic()
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx_path)):
        raise RuntimeError('; '.join(str(parser.get_error(i)) for i in range(parser.num_errors)))
    config = builder.create_builder_config()
    config.builder_optimization_level = level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RuntimeError(f'TensorRT made no plan of {onnx_path.name}')
    plan_path.write_bytes(memoryview(plan))
    return time.monotonic() - started_s


class Network:
    """One plan bound to tensors of PyTorch."""

    def __init__(self, plan_path: Path, tensors: Mapping[str, Tensor]) -> None:
        import tensorrt as trt

        self._logger = trt.Logger(trt.Logger.ERROR)
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan_path.read_bytes())
        self._tensors = dict(tensors)
        self._context = self._bound()

    def enqueue(self, stream: int) -> None:
        """Run on a stream."""
        if not self._context.execute_async_v3(stream):
            raise RuntimeError('TensorRT refused to run')

    def profile(self, stream: int, runs: int = 5) -> dict[str, Any]:
        """Return milliseconds per run by kind of layer, numbers taken out of the names, dearest first."""
        import tensorrt as trt
        import torch

        times: Counter[str] = Counter()
        counts: Counter[str] = Counter()

        class Profiler(trt.IProfiler):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.IProfiler.__init__(self)

            def report_layer_time(self, name: str, ms: float) -> None:
                kind = re.sub(r'\d+', '#', name)[:110]
                times[kind] += ms
                counts[kind] += 1

        context = self._bound()
        context.profiler = profiler = Profiler()
        for _ in range(runs + 1):
            if _ == 1:
                times.clear()
                counts.clear()
            context.execute_async_v3(stream)
            torch.cuda.synchronize()
        del profiler
        return {
            name: {'ms': ms / runs, 'layers': counts[name] // runs}
            for name, ms in times.most_common(16)
        }

    def _bound(self) -> Any:
        context = self._engine.create_execution_context()
        for index in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(index)
            context.set_tensor_address(name, self._tensors[name].data_ptr())
        return context
