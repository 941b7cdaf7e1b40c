# SPDX-License-Identifier: Apache-2.0
"""Does anything grow on the device? Thousands of inferences through one policy, with free memory read on the way.

Beside it: kernels and nodes of the policy's CUDA graph, and calls of the CUDA driver per chunk, counted by CUPTI, so that
an allocation within a step would be seen by its name.

Usage: benchmarks/gpu_memory.py [--chunks 10000] [--engine tensorrt] [--preprocess gpu] [--model act] [--json FILE]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from driver_calls import DriverCalls
from parts import Parts, summarize
from policies import (
    add_policy_options,
    make_bundle,
    make_frames,
    make_observation,
    make_pixels,
    open_device_for,
    open_policy,
)
from results import write_result

COUNTED_CHUNKS = 20


def main() -> None:
    """Run, print a table; exit with 1 when a part failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_policy_options(parser, engine='tensorrt', preprocess='gpu')
    parser.add_argument('--chunks', type=int, default=10_000)
    parser.add_argument('--no-graph', action='store_true')
    parser.add_argument('--max-seconds', type=float, default=60.0)
    parser.add_argument('--json', type=Path)
    arguments = parser.parse_args()
    parts = Parts()
    with tempfile.TemporaryDirectory() as folder:
        result = parts.run('soak', lambda: soak(arguments, Path(folder), parts)) or {}
    if arguments.json:
        write_result(arguments.json, {**result, **parts.facts()})
    raise SystemExit(bool(parts.errors))


def soak(arguments: argparse.Namespace, folder: Path, parts: Parts) -> dict[str, Any]:
    """Load the policy, run it, and print what was seen."""
    bundle = make_bundle(arguments, folder / 'bundle')
    device = open_device_for(arguments.engine)
    policy = open_policy(arguments, bundle, device, cuda_graph=not arguments.no_graph)
    print(f'{policy.spec.policy_id} {policy.execution}')
    pixels = make_pixels(arguments)

    def infer(index: int) -> None:
        frames = make_frames(policy.spec, pixels, index)
        images = {name: (policy.prepare(frame),) for name, frame in frames.items()}
        policy.infer(make_observation(policy.spec, images, index))

    marks, samples_ms = [], []
    deadline_s = time.monotonic() + arguments.max_seconds
    print('| chunks | free device memory MiB | resident memory MiB |')
    print('| --- | --- | --- |')
    for index in range(arguments.chunks):
        started_s = time.perf_counter()
        infer(index)
        samples_ms.append((time.perf_counter() - started_s) * 1e3)
        if index + 1 in (10, 100, 1000, 5000, arguments.chunks):
            marks.append(read_marks(index + 1, device))
            mark = marks[-1]
            print(f'| {mark["chunks"]} | {mark["free_mib"]} | {mark["resident_mib"]:.1f} |')
        if time.monotonic() > deadline_s:
            print(f'stopped after {index + 1} chunks: the time is over')
            break
    facts = policy.execution
    print(f'{facts.num_kernels} kernels and {facts.num_nodes} nodes in the graph')
    timing = summarize(samples_ms[100:] or samples_ms)
    print(f'prepare and infer: p50 {timing["p50"]:.3f} ms, p99 {timing["p99"]:.3f} ms')
    result = {
        'policy': bundle.spec.policy_id,
        'execution': str(facts),
        'kernels': facts.num_kernels,
        'nodes': facts.num_nodes,
        'marks': marks,
        'prepare_and_infer_ms': timing,
    }
    if arguments.json:
        write_result(arguments.json, result)  # CUPTI may take the process along
    calls = parts.run('driver calls', lambda: count_calls(infer)) if device else None
    for name, count in sorted((calls or {}).items(), key=lambda item: -item[1]):
        print(f'  {count:6.2f} {name} per chunk')
    policy.close()
    if device:
        device.close()
    return {**result, 'driver_calls_per_chunk': calls}


def count_calls(infer: Any) -> dict[str, float]:
    """Return driver calls per chunk by name."""
    infer(0)
    with DriverCalls() as calls:
        for index in range(COUNTED_CHUNKS):
            infer(index)
    return {name: count / COUNTED_CHUNKS for name, count in calls.counts.items()}


def read_marks(chunks: int, device: Any) -> dict[str, Any]:
    """Return free device memory (None without a device) and resident memory."""
    free_mib = None
    if device is not None:
        with device.current():
            free_mib = device.free_bytes() / 2**20
    pages = int(Path('/proc/self/statm').read_text(encoding='ascii').split()[1])
    return {'chunks': chunks, 'free_mib': free_mib, 'resident_mib': pages * 4096 / 2**20}


if __name__ == '__main__':
    main()
