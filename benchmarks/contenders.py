# SPDX-License-Identifier: Apache-2.0
"""Things that compute the same chunk with PyTorch's memory and streams: captured, compared, counted and timed in turns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Run = Callable[[], None]


class Contender:
    """Something that integrates a chunk: `run` enqueues a whole chunk, `sample` holds it afterwards."""

    def __init__(self, run: Run, sample: Tensor, weight_bytes: int) -> None:
        self.run, self.sample, self.weight_bytes = run, sample, weight_bytes
        self.kind = 'eager'
        self.more: dict[str, Run] = {}
        self.facts: dict[str, Any] = {}
        self.samples_ms: dict[str, list[float]] = {}
        self.held: list[Any] = []


def capture(contender: Contender) -> None:
    """Let a contender run as one CUDA graph of a whole chunk."""
    run, stream = contender.run, torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run()
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        run()
    # The run too: a graph does not keep what it reads.
    contender.held[:0] = [graph, run]
    contender.run, contender.kind = graph.replay, 'graph'


def copy_bandwidth_tb_s(device: torch.device) -> float:
    """Return bytes read and written per second of a copy within the device, in TB/s."""
    source = torch.zeros(1 << 31, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    target.copy_(source)
    begin.record()
    for _ in range(10):
        target.copy_(source)
    end.record()
    end.synchronize()
    return 2 * 10 * source.numel() / (begin.elapsed_time(end) * 1e-3) / 1e12


def compare(sample: Tensor, reference: Tensor) -> dict[str, float]:
    """Return cosine similarity and greatest error against the reference."""
    found, wanted = sample.double().flatten(), reference.double().flatten()
    cosine = torch.nn.functional.cosine_similarity(found, wanted, dim=0)
    return {'cosine': float(cosine), 'max_error': float((found - wanted).abs().max())}


def count_kernels(run: Run) -> dict[str, Any]:
    """Return number, device time and the dearest names of the kernels of one chunk (CUPTI)."""
    from torch.profiler import ProfilerActivity, profile

    run()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    events = [e for e in profiler.key_averages() if e.device_type.name == 'CUDA']
    top = sorted(events, key=lambda e: -e.self_device_time_total)[:10]
    return {
        'kernels': sum(e.count for e in events),
        'device_us': sum(e.self_device_time_total for e in events),
        'top': [
            {'name': e.key[:100], 'count': e.count, 'us': e.self_device_time_total} for e in top
        ],
    }


def time_runs(contenders: dict[str, Contender], *, chunks: int) -> None:
    """Let all runs take turns; every sample is one chunk between two events."""
    runs = {
        (name, kind): run
        for name, contender in contenders.items()
        for kind, run in {contender.kind: contender.run, **contender.more}.items()
    }
    rounds = max(chunks // 20, 1)
    for _ in range(rounds):
        for (name, kind), run in runs.items():
            samples = contenders[name].samples_ms.setdefault(kind, [])
            run()
            torch.cuda.synchronize()
            for _ in range(min(chunks, 20)):
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record()
                run()
                end.record()
                end.synchronize()
                samples.append(begin.elapsed_time(end))
