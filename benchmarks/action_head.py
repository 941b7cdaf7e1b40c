# SPDX-License-Identifier: Apache-2.0
"""A GR00T-shaped action head (synthetic weights): PyTorch, TensorRT and hand-written Triton kernels in one run.

Every contender integrates the same noise over the same steps and is held against PyTorch in fp32 before it is timed. They
take turns. The limit beside each is the weight traffic alone: bytes of weights per chunk over the copy bandwidth measured
in the same run. With fewer layers than 32 the whole is smaller; microseconds per layer and step can still be compared.

Contenders:  eager:FORM  compile:FORM  graph:FORM        PyTorch in fp16: eager, torch.compile, one CUDA graph
             trt:FORM:PRECISION                          TensorRT, each as enqueues from the host and in one CUDA graph
             triton:PRECISION[+pdl][+tune]               models/triton_head.py in one CUDA graph
             policy:FORM:PRECISION                       this package's policy: a bundle, TensorRT, its own CUDA graph
Forms:       plain hoisted rows48 rows64 heads64 both64 split2 split4 (see models/action_head.py)
Precisions:  bf16 fp16 fp8 fp8t

Usage: benchmarks/action_head.py [--layers 32] [--level 3] [--chunks 200] [--contenders NAME…] [--profile] [--json FILE]
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from contenders import (
    Contender,
    capture,
    compare,
    copy_bandwidth_tb_s,
    count_kernels,
    time_runs,
)
from models.action_head import (
    ActionHead,
    Backbone,
    HeadShape,
    HoistedPrepare,
    HoistedStep,
    PlainStep,
    Product,
    time_of,
)
from models.traffic import fp8_saving, weight_bytes
from parts import Parts, summarize, work_folder
from results import write_result
from torch import Tensor, nn

DEFAULT = (
    'eager:plain',
    'graph:plain',
    'graph:hoisted',
    'trt:plain:fp16',
    'trt:hoisted:fp16',
    'trt:heads64:fp16',
    'trt:hoisted:bf16',
    'trt:hoisted:fp8',
    'triton:fp16',
    'triton:fp16+pdl',
    'triton:fp8+pdl',
)
FORMS = {
    'plain': {},
    'hoisted': {},
    'rows48': {'rows': 48},
    'rows64': {'rows': 64},
    'heads64': {'head_channels': 64},
    'both64': {'rows': 64, 'head_channels': 64},
    'split2': {'splits': 2},
    'split4': {'splits': 4},
}
TYPES = {
    'bf16': torch.bfloat16,
    'fp16': torch.float16,
    'fp8': torch.float16,
    'fp8t': torch.float16,  # one scale per weight instead of one per column
}


class Inputs:
    """The same noise, state and context for every contender."""

    def __init__(self, shape: HeadShape, device: torch.device) -> None:
        generator = torch.Generator(device).manual_seed(1)

        def normal(*sizes: int) -> Tensor:
            return torch.randn(sizes, generator=generator, device=device)

        self.noise = normal(1, shape.horizon, shape.action_width)
        self.state = normal(1, shape.state_width)
        torch.manual_seed(2)
        with torch.device(device):
            self.backbone = Backbone(shape)
        self.context = self.backbone(self.state)


class Bench:
    """Makes the contenders of one run.

    Args:
        arguments: The command line.
        folder: For ONNX files and plans.
    """

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.device = torch.device(arguments.device)
        full = HeadShape() if not arguments.small else HeadShape().small()
        self.shape = replace(full, layers=arguments.layers or full.layers)
        self.inputs = Inputs(self.shape, self.device)
        self.folder, self.level, self.profile = folder, arguments.level, arguments.profile
        self.tune_seconds = arguments.tune_seconds
        self._heads: dict[str, ActionHead] = {}

    def head(self, precision: str) -> ActionHead:
        """Return the head in one precision; the random values are the same for all."""
        if precision not in self._heads:
            with torch.device(self.device):
                head = ActionHead(self.shape)
            dtype = TYPES.get(precision, torch.float32)
            self._heads[precision] = head.to(dtype)
        return self._heads[precision]

    def reference(self) -> Tensor:
        """Return the chunk of PyTorch in fp32."""
        contender = self.torch_contender('plain', 'fp32')
        contender.run()
        del self._heads['fp32']
        return contender.sample.clone()

    def make(self, name: str) -> Contender:
        """Return one contender, ready to run."""
        kind, *rest = name.split(':')
        if kind == 'trt':
            return self.tensorrt_contender(*rest)
        if kind == 'triton':
            return self.triton_contender(rest[0])
        if kind == 'policy':
            return self.policy_contender(*rest)
        contender = self.torch_contender(rest[0], 'fp16', compiled=kind == 'compile')
        if kind == 'graph':
            capture(contender)
        return contender

    def networks(self, form: str, precision: str) -> tuple[nn.Module | None, nn.Module]:
        """Return the network before the loop, None for the plain form, and the one inside."""
        head = self.head(precision)
        head.shape = replace(self.shape, **FORMS[form])
        if form == 'plain':
            return None, PlainStep(head)
        return HoistedPrepare(head), HoistedStep(head)

    def torch_contender(self, form: str, precision: str, *, compiled: bool = False) -> Contender:
        """Return PyTorch's own kernels."""
        prepare, step = self.networks(form, precision)
        inputs, shape = self.inputs, self.shape
        call: Any = torch.compile(step) if compiled else step
        times = [time_of(index, self.head(precision)) for index in range(shape.steps)]
        sample = torch.zeros_like(inputs.noise)

        def run() -> None:
            sample.copy_(inputs.noise)
            fixed = (
                prepare(inputs.state, inputs.context)
                if prepare
                else (inputs.state, inputs.context)
            )
            for time in times:
                sample.add_(call(sample, time, *fixed), alpha=1 / shape.steps)

        traffic = weight_bytes(step) * shape.steps + (weight_bytes(prepare) if prepare else 0)
        return Contender(run, sample, traffic)

    def tensorrt_contender(self, form: str, precision: str) -> Contender:
        """Return TensorRT on exported networks; the Euler step is PyTorch's."""
        from models.onnx_files import export
        from models.tensorrt_plan import Network, build

        prepare, step = self.networks(form, precision)
        inputs, shape = self.inputs, self.shape
        head, traffic = self.head(precision), 0
        sample, velocity = torch.zeros_like(inputs.noise), torch.zeros_like(inputs.noise)
        timestep = time_of(0, head)
        times = [time_of(index, head) for index in range(shape.steps)]
        tensors = {'sample': sample, 'timestep': timestep, 'velocity': velocity}
        observed = {'state': inputs.state, 'context': inputs.context}
        networks, seconds = [], {}
        fixed: dict[str, Tensor] = observed
        stem = f'{form}_{precision}_{shape.layers}'
        if prepare:
            token, cross = prepare(*observed.values())
            fixed = {'state_token': token.clone(), 'cross': cross.clone()}
            path = self.folder / f'prepare_{stem}.onnx'
            plan = path.with_suffix(f'.{self.level}.plan')
            if not plan.exists():
                export(prepare, path, observed, list(fixed))
            seconds['build_prepare_s'] = build(path, plan, level=self.level)
            networks.append(Network(plan, {**observed, **fixed}))
            traffic += weight_bytes(prepare)
        example = {'sample': inputs.noise, 'timestep': timestep, **fixed}
        peaks = self.peaks(step, times, fixed) if precision.startswith('fp8') else None
        path = self.folder / f'step_{stem}.onnx'
        plan = path.with_suffix(f'.{self.level}.plan')
        if not plan.exists():
            by_tensor = precision == 'fp8t'
            export(step, path, example, ['velocity'], fp8_peaks=peaks, by_tensor=by_tensor)
        seconds['build_step_s'] = build(path, plan, level=self.level)
        networks.append(Network(plan, {**tensors, **fixed}))
        traffic += shape.steps * (weight_bytes(step) - (fp8_saving(step, peaks) if peaks else 0))

        def run() -> None:
            stream = torch.cuda.current_stream().cuda_stream
            sample.copy_(inputs.noise)
            for network in networks[:-1]:
                network.enqueue(stream)
            for time in times:
                timestep.copy_(time)
                networks[-1].enqueue(stream)
                sample.add_(velocity, alpha=1 / shape.steps)

        contender = Contender(run, sample, traffic)
        contender.facts = {'plan_mb': plan.stat().st_size / 1e6, **seconds}
        contender.held = [*networks]  # a list of its own: capture adds to it
        contender.more['enqueues'] = run
        capture(contender)
        if self.profile:
            stream = torch.cuda.current_stream().cuda_stream
            contender.facts['layers'] = networks[-1].profile(stream)
        return contender

    def triton_contender(self, precision: str) -> Contender:
        """Return the hand-written kernels."""
        from models.triton_head import TritonHead, tune

        name, *flags = precision.split('+')
        head = self.head(name)
        head.shape = self.shape
        built = TritonHead(head, fp8=name == 'fp8', pdl='pdl' in flags)
        stored = self.folder / f'tilings_{name}_{self.shape.width}.json'
        facts = {}
        if 'tune' in flags:
            facts['tilings'] = tune(built, stored, deadline_s=self.tune_seconds)
        inputs = self.inputs

        def run() -> None:
            built.set_context(inputs.state, inputs.context)
            built.sample.copy_(inputs.noise)
            built.run()

        products = built.linears()
        inner = sum(p.weight.numel() * p.weight.element_size() for p in products)
        outer = [head.action_in, head.action_mix, head.action_out, head.decoder]
        crosses = [m for b in head.blocks if b.is_cross for m in (b.key, b.value)]
        traffic = self.shape.steps * (inner + sum(map(weight_bytes, outer)))
        traffic += sum(map(weight_bytes, crosses))
        contender = Contender(run, built.sample, traffic)
        contender.facts, contender.held = facts, [built]
        if self.device.type == 'cuda':
            capture(contender)
        return contender

    def policy_contender(self, form: str, precision: str) -> Contender:
        """Return this package's policy on a bundle of the same networks."""
        from models.bundles import head_bundle
        from policies import build_plans

        from vla_policy_ros.engines.settings import EngineSettings
        from vla_policy_ros.policies.engine_policy import EnginePolicy

        networks = (self.inputs.backbone, *self.networks(form, precision))
        bundle = head_bundle(
            self.folder / f'bundle_{form}_{precision}', self.shape, networks, precision
        )
        build_plans(bundle, self.folder / 'plans', level=self.level)
        settings = EngineSettings(plan_folder=self.folder / 'plans')
        policy = EnginePolicy(bundle, engine='tensorrt', preprocess='gpu', settings=settings)
        noise, state = self.inputs.noise.cpu().numpy(), self.inputs.state.cpu().numpy()
        sample = torch.zeros_like(self.inputs.noise)

        def run() -> None:
            sample.copy_(torch.from_numpy(policy.run_pool({'state': state}, noise)))

        contender = Contender(run, sample, 0)
        contender.kind, contender.held = 'wall', [policy]
        return contender

    def peaks(
        self, step: nn.Module, times: list[Tensor], fixed: dict[str, Tensor]
    ) -> dict[str, float]:
        """Return the largest input of every large product of the blocks over one chunk, for fp8."""
        products = {name: m for name, m in step.named_modules() if isinstance(m, Product)}
        for product in products.values():
            product.is_watched, product.peak = True, 0.0
        sample = self.inputs.noise.clone()
        for time in times:
            sample += step(sample, time, *fixed.values()) / self.shape.steps
        for product in products.values():
            product.is_watched = False
        names = {name for name, _ in step.named_parameters()}
        return {
            f'{name}.weight': product.peak
            for name, product in products.items()
            if product.peak
            and f'{name}.weight' in names
            and product.weight.numel() >= self.shape.width**2
            and not any(part in name for part in ('action_', 'decoder', 'state_'))
        }


def main() -> None:
    """Make, check and time the contenders; print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--contenders', nargs='+', default=list(DEFAULT))
    parser.add_argument('--layers', type=int, default=0)
    parser.add_argument('--level', type=int, default=3)
    parser.add_argument('--chunks', type=int, default=200)
    parser.add_argument('--tune-seconds', type=float, default=25.0)
    parser.add_argument('--folder', type=Path, help='keeps ONNX files and plans for another run')
    parser.add_argument('--profile', action='store_true')
    parser.add_argument('--small', action='store_true', help='small sizes, to try the script')
    parser.add_argument('--device', default='cuda')
    parser.add_argument('--json', type=Path)
    arguments = parser.parse_args()
    torch.set_grad_enabled(False)
    with work_folder(arguments.folder) as folder:
        parts = measure(arguments, Bench(arguments, folder))
    raise SystemExit(bool(parts.errors))


def measure(arguments: argparse.Namespace, bench: Bench) -> Parts:
    """Run everything; write the JSON also after a failure. Return the parts, with what failed."""
    parts = Parts()
    reference = bench.reference()
    is_cuda = bench.device.type == 'cuda'
    bandwidth = copy_bandwidth_tb_s(bench.device) if is_cuda else 0.1
    made: dict[str, Contender] = {}
    for name in arguments.contenders:
        contender = parts.run(name, lambda name=name: bench.make(name))
        if contender is None:
            continue
        if parts.run(f'{name} first run', lambda c=contender: (c.run(), True)[1]):
            contender.facts.update(compare(contender.sample, reference))
            made[name] = contender
            print(f'{name}: {contender.facts.get("cosine"):.6f} in {parts.seconds[name]} s')
    if is_cuda:
        for name, contender in made.items():
            counted = parts.run(f'{name} kernels', lambda c=contender: count_kernels(c.run))
            contender.facts['kernels'] = counted
        parts.run('timing', lambda: time_runs(made, chunks=arguments.chunks))
    report(arguments, bench, made, bandwidth, parts)
    return parts


def report(
    arguments: argparse.Namespace,
    bench: Bench,
    made: dict[str, Contender],
    bandwidth: float,
    parts: Parts,
) -> None:
    """Print the table and write the JSON."""
    per = bench.shape.layers * bench.shape.steps
    print(f'{bench.shape.layers} layers, {bench.shape.steps} steps, copy {bandwidth:.2f} TB/s')
    print('| contender | run | p50 ms | p99 ms | us per layer | limit ms | kernels | cosine |')
    print('| --- | --- | --- | --- | --- | --- | --- | --- |')
    rows = []
    for name, contender in made.items():
        limit = contender.weight_bytes / bandwidth / 1e9
        kernels = (contender.facts.get('kernels') or {}).get('kernels', '-')
        for kind, samples in contender.samples_ms.items():
            row = summarize(samples)
            rows.append({'contender': name, 'run': kind, 'limit_ms': limit, **row})
            print(
                f'| {name} | {kind} | {row["p50"]:.3f} | {row["p99"]:.3f} | {row["p50"] * 1e3 / per:.1f} '
                f'| {limit:.2f} | {kernels} | {contender.facts["cosine"]:.6f} |'
            )
    for name, error in parts.errors.items():
        print(f'| {name} | {error[:120]} | | | | | | |')
    if arguments.json:
        name = torch.cuda.get_device_name() if bench.device.type == 'cuda' else 'none'
        facts = {name: contender.facts for name, contender in made.items()}
        result = {
            'device': name,
            'torch': torch.__version__,
            'layers': bench.shape.layers,
            'copy_tb_s': bandwidth,
            'rows': rows,
            'facts': facts,
            **parts.facts(),
        }
        write_result(arguments.json, result)


if __name__ == '__main__':
    main()
