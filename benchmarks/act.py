# SPDX-License-Identifier: Apache-2.0
"""An ACT-sized policy (synthetic weights): PyTorch eager and in a CUDA graph, TensorRT, and this package's policy, in one run.

Every contender gets the same images and state and is held against PyTorch in fp32. The row `policy` is the wall time of
everything from prepared images to a chunk on the host; the others are device times between two events.

Usage: benchmarks/act.py [--cameras 3] [--height 224] [--width 224] [--precision fp16] [--level 3] [--chunks 300] [--json FILE]
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path
from typing import Any

import torch
from contenders import Contender, capture, compare, count_kernels, time_runs
from models.act import Act
from models.bundles import camera_bundle
from models.onnx_files import export
from parts import Parts, summarize, work_folder
from results import write_result

NUM_JOINTS, HORIZON = 14, 100
TYPES = {'fp16': torch.float16, 'bf16': torch.bfloat16, 'fp32': torch.float32}


class Bench:
    """Makes the contenders of one run."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.arguments, self.folder = arguments, folder
        self.device = torch.device(arguments.device)
        self.size = (arguments.height, arguments.width)
        torch.manual_seed(0)
        self.exact = Act(
            num_cameras=arguments.cameras, size=self.size, num_joints=NUM_JOINTS, horizon=HORIZON
        )
        self.exact = self.exact.eval().to(self.device)
        self.network = copy.deepcopy(self.exact).to(TYPES[arguments.precision])
        self.inputs = {
            f'camera{i}': torch.randn(1, 3, *self.size, device=self.device)
            for i in range(arguments.cameras)
        }
        self.inputs['state'] = torch.randn(1, NUM_JOINTS, device=self.device)
        self.reference = self.exact(*self.inputs.values())

    def eager(self) -> Contender:
        """Return PyTorch as it comes."""
        output = torch.zeros_like(self.reference)

        def run() -> None:
            output.copy_(self.network(*self.inputs.values()))

        return Contender(run, output, weight_bytes(self.network))

    def graph(self) -> Contender:
        """Return PyTorch in one CUDA graph."""
        contender = self.eager()
        capture(contender)
        return contender

    def tensorrt(self) -> Contender:
        """Return TensorRT, as an enqueue and in a CUDA graph."""
        from models.tensorrt_plan import Network, build

        path = self.folder / f'act_{self.arguments.precision}.onnx'
        plan = path.with_suffix(f'.{self.arguments.level}.plan')
        export(self.network, path, self.inputs, ['action'])
        seconds = build(path, plan, level=self.arguments.level)
        output = torch.zeros_like(self.reference)
        network = Network(plan, {**self.inputs, 'action': output})

        def run() -> None:
            network.enqueue(torch.cuda.current_stream().cuda_stream)

        contender = Contender(run, output, weight_bytes(self.network))
        contender.held = [network]
        contender.facts = {'build_s': seconds, 'plan_mb': plan.stat().st_size / 1e6}
        contender.more['enqueue'] = run
        capture(contender)
        return contender

    def policy(self) -> dict[str, Any]:
        """Return wall times of this package's policy, and how near it comes."""
        from policies import build_plans

        from vla_policy_ros.engines.settings import EngineSettings
        from vla_policy_ros.policies.engine_policy import EnginePolicy

        images = {name: value for name, value in self.inputs.items() if name != 'state'}
        bundle = camera_bundle(
            self.folder / 'bundle',
            self.network,
            images=images,
            num_joints=NUM_JOINTS,
            horizon=HORIZON,
            precision=self.arguments.precision,
        )
        is_cuda = self.device.type == 'cuda'
        if is_cuda:
            build_plans(bundle, self.folder / 'plans', level=self.arguments.level)
        policy = EnginePolicy(
            bundle,
            engine='tensorrt' if is_cuda else 'onnxruntime',
            preprocess='gpu' if is_cuda else 'cpu',
            settings=EngineSettings(plan_folder=self.folder / 'plans'),
        )
        values = {name: value.cpu().numpy() for name, value in self.inputs.items()}
        output = torch.from_numpy(policy.run_pool(values, None))
        facts = compare(output.to(self.device), self.reference)
        samples = time_policy(policy, self.size, self.arguments.chunks)
        execution = str(policy.execution)
        policy.close()
        return {**facts, 'execution': execution, **samples}


def time_policy(policy: Any, size: tuple[int, int], chunks: int) -> dict[str, Any]:
    """Return wall times of an inference on images that are prepared and waited for."""
    import numpy as np
    from policies import make_frames, make_observation

    frames = make_frames(policy.spec, np.zeros((*size, 3), np.uint8), 0)
    images: dict[str, tuple[object, ...]] = {
        name: (policy.prepare(frame),) for name, frame in frames.items()
    }
    observation = make_observation(policy.spec, images, 0)
    samples: dict[str, list[float]] = {'wall': []}
    for index in range(chunks + 20):
        started_ns = time.perf_counter_ns()
        chunk = policy.infer(observation)
        if index >= 20:
            samples['wall'].append((time.perf_counter_ns() - started_ns) / 1e6)
            for name, latency_ns in chunk.stage_latencies_ns.items():
                samples.setdefault(name, []).append(latency_ns / 1e6)
    return {'samples': {name: summarize(values) for name, values in samples.items()}}


def weight_bytes(network: torch.nn.Module) -> int:
    """Return the size of all weights."""
    return sum(p.numel() * p.element_size() for p in network.parameters())


def main() -> None:
    """Make, check and time the contenders; print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (('cameras', 3), ('height', 224), ('width', 224), ('level', 3)):
        parser.add_argument(f'--{name}', type=int, default=default)
    parser.add_argument('--precision', choices=tuple(TYPES), default='fp16')
    parser.add_argument('--chunks', type=int, default=300)
    parser.add_argument('--folder', type=Path, help='keeps ONNX files and plans for another run')
    parser.add_argument('--device', default='cuda')
    parser.add_argument('--json', type=Path)
    arguments = parser.parse_args()
    torch.set_grad_enabled(False)
    with work_folder(arguments.folder) as folder:
        parts = measure(arguments, Bench(arguments, folder))
    raise SystemExit(bool(parts.errors))


def measure(arguments: argparse.Namespace, bench: Bench) -> Parts:
    """Run everything; write the JSON also after a failure. Return the parts, with what failed."""
    parts, made = Parts(), {}
    for name in ('eager', 'graph', 'tensorrt'):
        contender = parts.run(name, getattr(bench, name))
        if contender is not None:
            contender.run()
            contender.facts.update(compare(contender.sample, bench.reference))
            made[name] = contender
    if bench.device.type == 'cuda':
        for name, contender in made.items():
            counted = parts.run(f'{name} kernels', lambda c=contender: count_kernels(c.run))
            contender.facts['kernels'] = counted
        parts.run('timing', lambda: time_runs(made, chunks=arguments.chunks))
    policy = parts.run('policy', bench.policy)
    print(
        f'{arguments.cameras} cameras {arguments.width}x{arguments.height}, {arguments.precision}'
    )
    print('| contender | run | p50 ms | p99 ms | kernels | cosine |')
    print('| --- | --- | --- | --- | --- | --- |')
    rows = []
    for name, contender in made.items():
        kernels = (contender.facts.get('kernels') or {}).get('kernels', '-')
        for kind, samples in contender.samples_ms.items():
            row = summarize(samples)
            rows.append({'contender': name, 'run': kind, **row})
            print(
                f'| {name} | {kind} | {row["p50"]:.3f} | {row["p99"]:.3f} | {kernels} '
                f'| {contender.facts["cosine"]:.6f} |'
            )
    for name, row in (policy or {}).get('samples', {}).items():
        print(
            f'| policy | {name} | {row["p50"]:.3f} | {row["p99"]:.3f} | | {policy["cosine"]:.6f} |'
        )
    if arguments.json:
        facts = {name: contender.facts for name, contender in made.items()}
        result = {'torch': torch.__version__, 'rows': rows, 'facts': facts, 'policy': policy}
        write_result(arguments.json, {**result, **parts.facts()})
    return parts


if __name__ == '__main__':
    main()
