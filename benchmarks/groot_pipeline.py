# SPDX-License-Identifier: Apache-2.0
"""A GR00T of the published shape (random weights): the library in PyTorch, and the bundle of it on TensorRT, in one run.

- `PyTorch eager`: Isaac-GR00T's own `get_action` in bfloat16, on the GPU where there is one
- `PyTorch compile`: the same with its action head compiled, as the library's own benchmark does it
- `TensorRT PRECISION`: this package's policy, everything in one CUDA graph
- `ONNX Runtime`: without a GPU, to try the benchmark with `--size small`

All start from preprocessed images, words and state and end with the chunk on the host, take turns, and are held against
PyTorch in fp32 with the same noise. `pre` is this package's way from raw images to the network's input, measured by itself.
Bundle and plans stay in the folder for another run. The limit is the time to read the weights once, those in the loop once
per step, at the bandwidth of a copy within the GPU.

Usage: benchmarks/groot_pipeline.py [--version n1.7] [--size full] [--precision bf16 ...] [--runs 50] [--compile MODE] [--folder DIR] [--export-only] [--json FILE]
       needs Isaac-GR00T at the tag of the version, torch and onnxscript
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
import torch
from contenders import copy_bandwidth_tb_s
from parts import Parts, summarize, work_folder
from results import write_result

from vla_policy_ros.bundle.bundle import Bundle, load_bundle
from vla_policy_ros.bundle.manifest import MANIFEST_NAME
from vla_policy_ros.bundle.probe import ProbeResult, compare_outputs, read_probe
from vla_policy_ros.core.specs import Array
from vla_policy_ros.datasets.registry import open_dataset
from vla_policy_ros.engines.plan_facts import BuildOptions
from vla_policy_ros.engines.plans import PlanStore
from vla_policy_ros.engines.settings import EngineSettings
from vla_policy_ros.evaluation.sampling import sample_observations
from vla_policy_ros.export.groot.convert import TrainingData, export_groot
from vla_policy_ros.export.groot.policy import GrootPolicy
from vla_policy_ros.export.groot.random_init import write_random_checkpoint
from vla_policy_ros.export.proof import PROBE
from vla_policy_ros.export.stage_plans import PlanBuilder, plan_jobs
from vla_policy_ros.policies.engine_policy import EnginePolicy
from vla_policy_ros.sample import sample_dataset_path

EAGER, COMPILED = 'PyTorch eager', 'PyTorch compile'
_RANDN = torch.randn


@dataclass
class Row:
    """One contender: computes a chunk, (1, K, W), on the host."""

    run: Callable[[], Array]
    close: Callable[[], None] = lambda: None
    facts: dict[str, Any] = field(default_factory=dict)
    samples_ms: list[float] = field(default_factory=list)


class Library:
    """Isaac-GR00T's policy with the noise of the probe."""

    def __init__(self, policy: GrootPolicy, inputs: dict[str, Any], noise: Array) -> None:
        self._model = policy.model
        self._rows = policy.checkpoint.embodiment.rows
        self._inputs = inputs
        self._noise = torch.from_numpy(noise)

    def move(self, device: torch.device, dtype: torch.dtype) -> None:
        """Put weights and inputs where they run; floating-point inputs become what the library makes them."""
        self._model.to(device, dtype)
        self._inputs = {name: value.to(device) for name, value in self._inputs.items()}
        self._noise = self._noise.to(device)

    def compile(self, mode: str) -> None:
        """Compile what the library's own benchmark compiles."""
        network = self._model.action_head.model
        network.forward = torch.compile(network.forward, mode=mode)

    def run(self) -> Array:
        """Return the chunk."""
        with torch.inference_mode(), patch('torch.randn', self._draw):
            actions = self._model.get_action(dict(self._inputs))['action_pred']
        result: Array = actions[:, : self._rows].float().cpu().numpy()
        return result

    def _draw(self, *shape: Any, **rules: Any) -> torch.Tensor:
        """Return the noise where it is drawn; a compiler draws tensors of its own."""
        if tuple(rules.get('size', ())) != tuple(self._noise.shape):
            return _RANDN(*shape, **rules)
        return self._noise.to(rules.get('dtype') or torch.float32)


class Benchmark:
    """Makes the contenders of one run."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
        self.seconds: dict[str, float] = {}
        self.bundle = self._export()
        self.probe = read_probe(self.bundle.folder / PROBE)

    def _export(self) -> Bundle:
        """Return the bundle; made when the folder has none."""
        checkpoint, bundle = self.folder / 'checkpoint', self.folder / 'bundle'
        options = self.options
        with closing(open_dataset(sample_dataset_path())) as dataset:
            if not checkpoint.exists():
                with self._timed('random weights'):
                    vlm = write_random_checkpoint(
                        checkpoint, dataset, version=options.version, size=options.size
                    )
                (self.folder / 'vlm').write_text(str(vlm or ''), encoding='utf-8')
            if not (bundle / MANIFEST_NAME).exists():
                with self._timed('export'):
                    data = TrainingData(dataset=dataset)
                    export_groot(checkpoint, bundle, data=data, vlm=self._vlm())
        return load_bundle(bundle)

    def _vlm(self) -> Path | None:
        name = (self.folder / 'vlm').read_text(encoding='utf-8')
        return Path(name) if name else None

    def _timed(self, name: str) -> Any:
        return timed(self.seconds, name)

    def library(self) -> Library:
        """Return the library's policy with the inputs of the probe."""
        policy = GrootPolicy.load(self.folder / 'checkpoint', vlm=self._vlm())
        with closing(open_dataset(sample_dataset_path())) as dataset:
            names = TrainingData(dataset=dataset).find_names(policy.checkpoint)
            _, backbone = policy.plan(names, max_words=48)
        return Library(policy, policy.library_inputs(backbone, self.probe.inputs), self.noise)

    @property
    def noise(self) -> Array:
        """(1, K, W), the noise of the probe."""
        noise = self.probe.noise
        assert noise is not None  # of a flow-matching policy
        return noise

    def reference(self, library: Library) -> Array:
        """Return the chunk in fp32."""
        library.move(self.device, torch.float32)
        return library.run()

    def engine_rows(self) -> dict[str, Row]:
        """Return the rows of this package's policy."""
        if self.device.type == 'cpu':
            return {'ONNX Runtime': self._policy_row('onnxruntime', EngineSettings())}
        return {
            f'TensorRT {precision}': self._tensorrt_row(precision)
            for precision in self.options.precision
        }

    def _tensorrt_row(self, precision: Any) -> Row:
        plans = self.folder / 'plans'
        level = BuildOptions(optimization_level=self.options.level)
        builder = PlanBuilder('tensorrt', store=PlanStore(plans), options=level)
        with self._timed(f'build {precision}'):
            for job in plan_jobs(self.bundle, precision=precision):
                builder.build(job)
        row = self._policy_row(
            'tensorrt', EngineSettings(plan_folder=plans, precision=precision), preprocess='gpu'
        )
        plan_bytes = sum(path.stat().st_size for path in plans.glob(f'**/*{precision}*.plan'))
        row.facts['plan_mb'] = round(plan_bytes / 1e6)
        return row

    def _policy_row(self, engine: str, settings: EngineSettings, preprocess: str = 'cpu') -> Row:
        policy = EnginePolicy(self.bundle, engine=engine, preprocess=preprocess, settings=settings)
        inputs = dict(self.probe.inputs)
        row = Row(lambda: policy.run_pool(inputs, self.noise), policy.close)
        row.facts['runs_on'] = str(policy.execution)
        row.facts['whole_ms'] = self._time_whole(policy)
        return row

    def _time_whole(self, policy: EnginePolicy) -> dict[str, Any]:
        """Return wall times from raw images to actions, and of its parts."""
        with closing(open_dataset(sample_dataset_path())) as dataset:
            observation = next(sample_observations(dataset, policy.spec, count=1))
        samples: dict[str, list[float]] = {'whole': []}
        for index in range(self.options.runs + 5):
            started_s = time.perf_counter()
            chunk = policy.infer(observation)
            elapsed_ms = (time.perf_counter() - started_s) * 1e3
            if index >= 5:
                samples['whole'].append(elapsed_ms)
                for name, latency_ns in chunk.stage_latencies_ns.items():
                    samples.setdefault(name, []).append(latency_ns / 1e6)
        return {name: summarize(values) for name, values in samples.items()}

    def limit(self) -> dict[str, Any]:
        """Return the time to read all weights of a chunk in 16 bits."""
        torch.cuda.empty_cache()
        speed = copy_bandwidth_tb_s(self.device)
        traffic = 2 * self.count_weights()
        return {
            'gpu': torch.cuda.get_device_name(),
            'copy_tb_s': speed,
            'weights_read_gb': traffic / 1e9,
            'limit_ms': traffic / speed / 1e9,
        }

    def count_weights(self) -> int:
        """Return the weights that the products of one chunk read, those in the loop once per step."""
        loop = self.bundle.manifest.loop
        total = 0
        for stage in self.bundle.manifest.stages:
            runs = loop.steps if loop and stage.in_loop else 1
            total += runs * count_weights(self.bundle.folder / stage.onnx)
        return total


def count_weights(path: Path) -> int:
    """Return the number of weights that the products of a network read; tables that are looked up in are left out."""
    graph = onnx.load(str(path), load_external_data=False).graph
    read = {
        name
        for node in graph.node
        if node.op_type in ('MatMul', 'Gemm', 'Conv')
        for name in node.input
    }
    # A weight may be turned before it is multiplied.
    read |= {
        node.input[0]
        for node in graph.node
        if node.op_type == 'Transpose' and node.output[0] in read
    }
    return sum(int(np.prod(tensor.dims)) for tensor in graph.initializer if tensor.name in read)


class timed:  # noqa: N801 - reads as a statement
    """Note how long a `with` block took."""

    def __init__(self, seconds: dict[str, float], name: str) -> None:
        self._seconds, self._name = seconds, name

    def __enter__(self) -> None:
        self._started_s = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._seconds[self._name] = round(time.monotonic() - self._started_s, 1)
        print(f'{self._name}: {self._seconds[self._name]} s', flush=True)


def take_turns(rows: dict[str, Row], runs: int) -> None:
    """Time all rows, in turns of five."""
    for row in rows.values():
        for _ in range(3):
            row.run()
    for _ in range(max(runs // 5, 1)):
        for row in rows.values():
            for _ in range(5):
                started_s = time.perf_counter()
                row.run()
                row.samples_ms.append((time.perf_counter() - started_s) * 1e3)


class Session:
    """One run: what is measured so far can be asked for at any time."""

    def __init__(self, benchmark: Benchmark) -> None:
        self._benchmark = benchmark
        self._parts = Parts()
        self._rows: dict[str, Row] = {}
        self._found: dict[str, ProbeResult] = {}
        self._library = benchmark.library()
        self._wanted = benchmark.reference(self._library)
        self._limit: dict[str, Any] = {}

    def measure_engines_and_eager(self) -> None:
        """Measure this package's policy and the library as it comes, in turns."""
        benchmark = self._benchmark
        self._rows |= self._parts.run('engines', benchmark.engine_rows) or {}
        self._library.move(benchmark.device, torch.bfloat16)
        self._rows[EAGER] = Row(self._library.run)
        self._measure(self._rows)
        if benchmark.device.type == 'cuda':
            self._limit = benchmark.limit()

    def measure_compiled(self, mode: str) -> None:
        """Measure the library compiled, by itself: the eager one is the same policy."""
        self._library.compile(mode)
        compiled = {COMPILED: Row(self._library.run)}
        with timed(self._benchmark.seconds, COMPILED):
            self._parts.run(COMPILED, lambda: self._measure(compiled))
        self._rows |= compiled

    def _measure(self, rows: dict[str, Row]) -> None:
        for name, row in rows.items():
            self._found[name] = compare_outputs(row.run(), self._wanted)
            row.samples_ms.clear()
        take_turns(rows, self._benchmark.options.runs)

    def result(self) -> dict[str, Any]:
        """Return what was measured."""
        rows = [
            {
                'row': name,
                'cosine': self._found[name].cosine,
                'max_error': self._found[name].max_error,
                'ms': summarize(row.samples_ms),
                **row.facts,
            }
            for name, row in self._rows.items()
            if row.samples_ms
        ]
        return {
            'errors_against': 'PyTorch fp32, same noise',
            'rows': rows,
            **self._limit,
            'torch': torch.__version__,
            'made_s': self._benchmark.seconds,
            **self._parts.facts(),
        }

    def close(self) -> None:
        """Free the policies."""
        for row in self._rows.values():
            row.close()


def print_table(result: dict[str, Any]) -> None:
    """Print the rows for people."""
    print('| row | median | p99 | cosine | greatest error |\n| --- | --- | --- | --- | --- |')
    for row in result['rows']:
        ms = row['ms']
        print(
            f'| {row["row"]} | {ms["p50"]:.2f} | {ms["p99"]:.2f} | {row.get("cosine", 0):.6f} | {row.get("max_error", 0):.2g} |'
        )
    if 'limit_ms' in result:
        print(f'| weights read once per run | {result["limit_ms"]:.2f} | | | |')


def show(result: dict[str, Any], path: Path | None) -> None:
    """Print a result and keep it."""
    print_table(result)
    if path:
        write_result(path, result)


def main() -> None:
    """Make, check and time the contenders; print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--version', choices=('n1.5', 'n1.6', 'n1.7'), default='n1.7')
    parser.add_argument('--size', choices=('small', 'full'), default='full')
    parser.add_argument('--precision', nargs='+', default=['bf16'])
    parser.add_argument('--level', type=int, help='optimization level of TensorRT')
    parser.add_argument('--runs', type=int, default=50)
    parser.add_argument('--compile', default='max-autotune', help='mode of torch.compile, or none')
    parser.add_argument('--folder', type=Path)
    parser.add_argument('--export-only', action='store_true', help='for another run in the folder')
    parser.add_argument('--json', type=Path)
    options = parser.parse_args()
    with work_folder(options.folder) as folder, ExitStack() as stack:
        benchmark = Benchmark(options, folder)
        if options.export_only:
            return
        session = stack.enter_context(closing(Session(benchmark)))
        session.measure_engines_and_eager()
        show(session.result(), options.json)
        if options.compile != 'none':  # takes minutes: what is there is kept
            session.measure_compiled(options.compile)
            show(session.result(), options.json)


if __name__ == '__main__':
    main()
