# SPDX-License-Identifier: Apache-2.0
"""A 6D-pose-shaped regressor (synthetic weights) from a camera's image to a pose: the way it is trained, and faster ways.

- `PyTorch`: the module itself, eager, fp32 as PyTorch comes (its convolutions on a GPU round to TF32), on the GPU where there
  is one; images preprocessed on the CPU
- `ONNX Runtime`: its bundle, on the GPU where ONNX Runtime can, fp32; images preprocessed on the CPU
- `TensorRT FP32`: the same with TensorRT
- `TensorRT FP16 + GPU preprocessing`: the network in fp16; the raw image goes to the GPU and is preprocessed there

All get the same images in turns, and each is held against PyTorch on the CPU. `pre` is from the raw image to the network's
input (on a GPU with the copy), `infer` the network, `post` from its output to actions; `total` is measured by itself. On
the GPU path the three overlap in one graph: `infer` is its device time, `pre` what else the host waits for.

Usage: benchmarks/pose_pipeline.py [--height 480] [--width 640] [--size 224] [--runs 200] [--folder DIR] [--json FILE]
       needs torch and onnxscript; rows that need a GPU are left out without one, with the reason
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from models.pose_regressor import COLUMNS, PoseRegressor
from parts import Parts, summarize, work_folder
from policies import make_observation
from results import write_result

from vla_policy_ros.bundle.bundle import Bundle, load_bundle
from vla_policy_ros.bundle.manifest import MANIFEST_NAME, Precision
from vla_policy_ros.bundle.normalization import ActionDenormalizer
from vla_policy_ros.bundle.probe import compare_outputs
from vla_policy_ros.core.errors import EngineError, GpuError, MissingDependencyError
from vla_policy_ros.core.frame import Frame
from vla_policy_ros.core.specs import Array
from vla_policy_ros.engines.plan_facts import BuildOptions
from vla_policy_ros.engines.plans import PlanStore
from vla_policy_ros.engines.settings import EngineSettings
from vla_policy_ros.export.network.convert import export_network
from vla_policy_ros.export.stage_plans import PlanBuilder, plan_jobs
from vla_policy_ros.gpu.driver import find_driver, require_driver
from vla_policy_ros.policies.engine_policy import EnginePolicy
from vla_policy_ros.preprocess.camera import CameraPreprocessor

PARTS = ('pre', 'infer', 'post', 'total')
WARMUP = 10
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]

Times = tuple[float, float, float]
"""Milliseconds of `pre`, `infer` and `post`."""


@dataclass
class Row:
    """One contender: takes a frame, returns its actions and the times of its parts."""

    run: Callable[[Frame], tuple[Array, Times]]
    close: Callable[[], None]
    runs_on: str
    samples_ms: dict[str, list[float]] = field(
        default_factory=lambda: {name: [] for name in PARTS}
    )


class PyTorch:
    """The module as it was trained, between our preprocessing and our denormalisation."""

    def __init__(self, bundle: Bundle, network: PoseRegressor, device: torch.device) -> None:
        (camera,) = bundle.manifest.cameras
        self._preprocessor = CameraPreprocessor(camera)
        self._network = network.to(device)
        self._denormalizer = ActionDenormalizer(bundle.manifest.action, None, {})
        self._image = torch.zeros(1, *camera.image_shape, pin_memory=device.type == 'cuda')
        self._actions = np.zeros((1, len(COLUMNS)), np.float32)
        self._device = device

    def run(self, frame: Frame) -> tuple[Array, Times]:
        """Return actions and times."""
        begin = time.perf_counter()
        self._preprocessor.run(frame, self._image.numpy()[0])
        image = self._image.to(self._device)
        prepared = time.perf_counter()
        output = self._network(image)
        if self._device.type == 'cuda':
            torch.cuda.synchronize()
        inferred = time.perf_counter()
        self._denormalizer.write(output.cpu().numpy(), np.zeros(0), self._actions)
        end = time.perf_counter()
        times = (prepared - begin, inferred - prepared, end - inferred)
        return self._actions.copy(), tuple(1e3 * seconds for seconds in times)  # type: ignore[return-value]

    def close(self) -> None:
        """Let the weights go."""
        del self._network


class Policy:
    """The bundle in this package's policy."""

    def __init__(self, policy: EnginePolicy) -> None:
        self._policy = policy
        policy.warmup()

    def run(self, frame: Frame) -> tuple[Array, Times]:
        """Return actions and times."""
        images: dict[str, tuple[object, ...]] = {frame.camera: (frame,)}
        chunk = self._policy.infer(make_observation(self._policy.spec, images, frame.stamp_ns))
        latencies = dict(chunk.stage_latencies_ns)
        pre, post = latencies.pop('preprocess'), latencies.pop('postprocess')
        return chunk.actions, (pre / 1e6, sum(latencies.values()) / 1e6, post / 1e6)


class Bench:
    """Makes the rows of one run."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.folder = folder
        self.network = PoseRegressor().eval()
        self.bundle = make_bundle(self.network, folder, arguments.size)
        self.has_gpu = find_driver() is not None

    def pytorch(self) -> Row:
        """Return the module, on the GPU where there is one."""
        device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
        made = PyTorch(self.bundle, self.network, device)
        is_cuda = device.type == 'cuda'
        runs_on = f'on {torch.cuda.get_device_name()}' if is_cuda else 'on the host'
        return Row(made.run, made.close, runs_on)

    def onnxruntime(self) -> Row:
        """Return ONNX Runtime, on the GPU where it can."""
        if self.has_gpu:
            try:
                return self._policy('onnxruntime_cuda')
            except (EngineError, MissingDependencyError) as fault:
                print(f'ONNX Runtime on the CPU: {fault}')
        return self._policy('onnxruntime')

    def tensorrt_fp32(self) -> Row:
        """Return TensorRT on images from the CPU."""
        return self._tensorrt('fp32', 'cpu')

    def tensorrt_fp16(self) -> Row:
        """Return TensorRT on images from the GPU."""
        return self._tensorrt('fp16', 'gpu')

    def _tensorrt(self, precision: Precision, preprocess: str) -> Row:
        require_driver()
        store = PlanStore(self.folder / 'plans')
        builder = PlanBuilder('tensorrt', store=store, options=BuildOptions())
        for job in plan_jobs(self.bundle, precision=precision):
            if builder.find(job) is None:
                builder.build(job)
        return self._policy('tensorrt', precision=precision, preprocess=preprocess)

    def _policy(
        self, engine: str, *, precision: Precision | None = None, preprocess: str = 'cpu'
    ) -> Row:
        settings = EngineSettings(precision=precision, plan_folder=self.folder / 'plans')
        policy = EnginePolicy(self.bundle, engine=engine, preprocess=preprocess, settings=settings)
        return Row(Policy(policy).run, policy.close, str(policy.execution))


def make_bundle(network: PoseRegressor, folder: Path, size: int) -> Bundle:
    """Export the network as a user would: torch.export, a description, `vla-policy export network`."""
    out = folder / f'pose_{size}'
    if (out / MANIFEST_NAME).exists():
        return load_bundle(out)
    program = folder / 'pose.pt2'
    torch.export.save(torch.export.export(network, (torch.zeros(1, 3, size, size),)), program)
    camera = {'name': 'wrist', 'tensor': 'image', 'mean': MEAN, 'std': STD}
    group = {'name': 'pose', 'names': list(COLUMNS), 'units': ['m'] * 3 + ['1'] * 6}
    description = {
        'name': 'pose_regressor',
        'source': {'note': 'Random weights.'},
        'cameras': [camera],
        'action': {'groups': [group], 'step_ms': 33},
    }
    describe = folder / 'pose.yaml'
    describe.write_text(yaml.safe_dump(description), encoding='utf-8')
    return export_network(program, out, describe=describe).bundle


def make_images(arguments: argparse.Namespace) -> list[Frame]:
    """Return frames of different images, as a camera gives them."""
    random = np.random.default_rng(0)
    shape = (arguments.height, arguments.width, 3)
    images = (random.integers(0, 256, shape, np.uint8) for _ in range(8))
    return [Frame.from_rgb('wrist', index, image) for index, image in enumerate(images)]


def reference(bench: Bench, frame: Frame) -> Array:
    """Return what PyTorch on the CPU says."""
    made = PyTorch(bench.bundle, PoseRegressor().eval(), torch.device('cpu'))
    return made.run(frame)[0]


def measure(rows: dict[str, Row], frames: list[Frame], runs: int) -> None:
    """Let the rows take turns, twenty images each."""
    turns = [min(20, runs - start) for start in range(0, runs, 20)]
    for turn, count in enumerate([WARMUP, *turns]):
        for row in rows.values():
            for index in range(count):
                begin = time.perf_counter()
                _, times = row.run(frames[index % len(frames)])
                total = 1e3 * (time.perf_counter() - begin)
                if turn:  # the first one warms up
                    for name, value in zip(PARTS, (*times, total), strict=True):
                        row.samples_ms[name].append(value)


def main() -> None:
    """Make, check and time the rows; print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (('height', 480), ('width', 640), ('size', 224), ('runs', 200)):
        parser.add_argument(f'--{name}', type=int, default=default)
    parser.add_argument('--folder', type=Path, help='keeps bundle and plans for another run')
    parser.add_argument('--json', type=Path)
    arguments = parser.parse_args()
    torch.set_grad_enabled(False)
    with work_folder(arguments.folder) as folder:
        parts = run(arguments, Bench(arguments, folder))
    raise SystemExit(bool(parts.errors))


def run(arguments: argparse.Namespace, bench: Bench) -> Parts:
    """Make and time everything; return the parts, with what failed."""
    parts, rows, missing = Parts(), {}, {}
    frames = make_images(arguments)
    makers = {
        'PyTorch': bench.pytorch,
        'ONNX Runtime': bench.onnxruntime,
        'TensorRT FP32': bench.tensorrt_fp32,
        'TensorRT FP16 + GPU preprocessing': bench.tensorrt_fp16,
    }
    for title, make in makers.items():
        made = parts.run(title, lambda make=make: make_or_tell(make))
        if isinstance(made, Row):
            rows[title] = made
        elif made:
            missing[title] = made
    wanted = reference(bench, frames[0])
    facts = {title: compare_outputs(row.run(frames[0])[0], wanted) for title, row in rows.items()}
    parts.run('timing', lambda: measure(rows, frames, arguments.runs))
    table = print_table(arguments, list(makers), rows, facts, {**missing, **parts.errors})
    for row in rows.values():
        row.close()
    if arguments.json:
        write_result(arguments.json, {'torch': torch.__version__, 'rows': table, **parts.facts()})
    return parts


def make_or_tell(make: Callable[[], Row]) -> Row | str:
    """Return a row, or why this machine cannot have it."""
    try:
        return make()
    except (GpuError, MissingDependencyError) as fault:
        return f'not run: {fault.got}'


def print_table(
    arguments: argparse.Namespace,
    titles: list[str],
    rows: dict[str, Row],
    facts: dict[str, Any],
    missing: dict[str, str],
) -> list[dict[str, Any]]:
    """Print median and p99 of every part; return the same for the JSON."""
    size = f'{arguments.width}x{arguments.height} to {arguments.size}x{arguments.size}'
    print(f'one camera {size}, {arguments.runs} runs; median / p99 in ms')
    print(f'| row | runs on | {" | ".join(PARTS)} | cosine |\n|{" --- |" * (len(PARTS) + 3)}')
    table: list[dict[str, Any]] = []
    for title in titles:
        row = rows.get(title)
        if row is None:
            table.append({'row': title, 'not_run': missing[title]})
            print(f'| {title} | {missing[title]} |{" - |" * (len(PARTS) + 1)}')
            continue
        parts = {name: summarize(samples) for name, samples in row.samples_ms.items()}
        result = facts[title]
        entry = {'cosine': result.cosine, 'max_error': result.max_error}
        table.append({'row': title, 'runs_on': row.runs_on, 'ms': parts, **entry})
        cells = [f'{part["p50"]:.2f} / {part["p99"]:.2f}' for part in parts.values()]
        print(f'| {title} | {row.runs_on} | {" | ".join(cells)} | {result.cosine:.6f} |')
    return table


if __name__ == '__main__':
    main()
