# SPDX-License-Identifier: Apache-2.0
"""How much of the preprocessing hides behind the inference, and how old the images are by then.

    efficiency = 1 - (T_pipe - max(T_pre, T_inf)) / min(T_pre, T_inf)

T_pre is upload and preprocessing of one set of images alone, T_inf the inference on prepared images alone, T_pipe the
period of both together; 1 means that the shorter one costs nothing, 0 that they run one after another. Depth is how many
sets are prepared ahead. The age of the images is that at the start and at the end of their inference: overlap must not be
bought with stale images, so it is reported beside it. A camera is taken to hand over a new image whenever one is wanted.

Usage: benchmarks/prefetch_overlap.py [--engine tensorrt] [--preprocess gpu] [--model act] [--height 480] [--width 640]
       [--repeat 1] [--sets 300] [--json FILE]        --repeat prepares every set several times, to make it heavier
"""

from __future__ import annotations

import argparse
import queue
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

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

from vla_policy_ros.policies.engine_policy import EnginePolicy

DEPTHS = (0, 1, 2)
Images = dict[str, tuple[Any, ...]]


class Source:
    """Prepares sets of images; `wait` blocks until a set is prepared, `infer` runs on one."""

    def __init__(self, arguments: argparse.Namespace, policy: EnginePolicy, device: Any) -> None:
        self._policy, self._device, self._repeat = policy, device, arguments.repeat
        self._pixels = make_pixels(arguments)

    def prepare(self) -> tuple[int, Images]:
        """Return the stamp and the images; the device may still work on them."""
        stamp_ns = time.monotonic_ns()
        frames = make_frames(self._policy.spec, self._pixels, stamp_ns)
        images: Images = {}
        for _ in range(self._repeat):
            images = {name: (self._policy.prepare(frame),) for name, frame in frames.items()}
        return stamp_ns, images

    def wait(self, images: Images) -> None:
        """Block until every image is prepared."""
        if self._device is not None:
            with self._device.current():
                for (image,) in images.values():
                    if hasattr(image, 'event'):
                        image.event.synchronize()

    def infer(self, stamp_ns: int, images: Images) -> None:
        """Run one inference; blocks."""
        self._policy.infer(make_observation(self._policy.spec, images, stamp_ns))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_policy_options(parser, engine='tensorrt', preprocess='gpu')
    parser.add_argument('--repeat', type=int, default=1)
    parser.add_argument('--sets', type=int, default=300)
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--json', type=Path)
    arguments = parser.parse_args()
    parts = Parts()
    with tempfile.TemporaryDirectory() as folder:
        result = parts.run('overlap', lambda: measure(arguments, Path(folder))) or {}
    if arguments.json:
        write_result(arguments.json, {**result, **parts.facts()})
    raise SystemExit(bool(parts.errors))


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure both parts alone and together, in turns; print the table."""
    bundle = make_bundle(arguments, folder / 'bundle')
    device = open_device_for(arguments.engine)
    slots = (max(DEPTHS) + 3) * arguments.repeat + 1
    policy = open_policy(arguments, bundle, device, slots=slots)
    print(f'{policy.spec.policy_id} {policy.execution}')
    source = Source(arguments, policy, device)
    for _ in range(20):
        source.infer(*source.prepare())
    samples: dict[str, list[float]] = {name: [] for name in ('prepare alone', 'infer alone')}
    ages: dict[int, list[list[float]]] = {depth: [[], []] for depth in DEPTHS}
    periods: dict[int, list[float]] = {depth: [] for depth in DEPTHS}
    for _ in range(arguments.rounds):
        samples['prepare alone'] += time_prepare(source, arguments.sets)
        samples['infer alone'] += time_infer(source, arguments.sets)
        for depth in DEPTHS:
            period_ms, starts, ends = run_pipe(source, depth, arguments.sets)
            periods[depth].append(period_ms)
            ages[depth][0] += starts
            ages[depth][1] += ends
    policy.close()
    if device is not None:
        device.close()
    return report(samples, periods, ages)


def time_prepare(source: Source, count: int) -> list[float]:
    """Return milliseconds of every set of images alone."""

    def run() -> None:
        _, images = source.prepare()
        source.wait(images)

    return time_calls(run, count)


def time_infer(source: Source, count: int) -> list[float]:
    """Return milliseconds of every inference on images that are there."""
    stamp_ns, images = source.prepare()
    source.wait(images)
    return time_calls(lambda: source.infer(stamp_ns, images), count)


def time_calls(call: Callable[[], None], count: int) -> list[float]:
    """Return milliseconds per call."""
    samples = []
    for _ in range(count):
        started_ns = time.monotonic_ns()
        call()
        samples.append((time.monotonic_ns() - started_ns) / 1e6)
    return samples


def run_pipe(source: Source, depth: int, count: int) -> tuple[float, list[float], list[float]]:
    """Return the period in milliseconds, and the ages of the images at the start and at the end of each inference."""
    starts, ends = [], []

    def use(stamp_ns: int, images: Images) -> None:
        starts.append((time.monotonic_ns() - stamp_ns) / 1e6)
        source.infer(stamp_ns, images)
        ends.append((time.monotonic_ns() - stamp_ns) / 1e6)

    if not depth:

        def one_after_another() -> None:
            stamp_ns, images = source.prepare()
            source.wait(images)
            use(stamp_ns, images)

        samples = time_calls(one_after_another, count)
        return sum(samples) / count, starts, ends
    ready: queue.Queue[tuple[int, Images] | BaseException] = queue.Queue()
    places = threading.Semaphore(depth)

    def prefetch() -> None:
        try:
            for _ in range(count + 10):
                places.acquire()
                ready.put(source.prepare())
        except Exception as fault:  # noqa: BLE001 - the main thread raises it
            ready.put(fault)

    worker = threading.Thread(target=prefetch)
    worker.start()
    started_ns = 0
    for index in range(count + 10):
        if index == 10:
            started_ns = time.monotonic_ns()
        item = ready.get()
        if isinstance(item, BaseException):
            raise item
        places.release()
        use(*item)
    period_ms = (time.monotonic_ns() - started_ns) / 1e6 / count
    worker.join()
    return period_ms, starts[10:], ends[10:]


def report(
    samples: dict[str, list[float]],
    periods: dict[int, list[float]],
    ages: dict[int, list[list[float]]],
) -> dict[str, Any]:
    """Print the table and return the figures."""
    import statistics

    alone = {name: summarize(values) for name, values in samples.items()}
    means = {name: statistics.fmean(values) for name, values in samples.items()}
    shorter, longer = sorted(means.values())
    for name, figures in alone.items():
        print(f'{name}: mean {means[name]:.3f} ms, p50 {figures["p50"]:.3f}')
    print('| depth | period ms | efficiency | age at start p50 ms | age at end p50 / p99 ms |')
    print('| --- | --- | --- | --- | --- |')
    rows = []
    for depth, values in periods.items():
        period_ms = statistics.median(values)
        row = {
            'depth': depth,
            'period_ms': period_ms,
            'periods_ms': values,
            'efficiency': 1 - (period_ms - longer) / shorter,
            'age_at_start_ms': summarize(ages[depth][0]),
            'age_at_end_ms': summarize(ages[depth][1]),
        }
        rows.append(row)
        end = row['age_at_end_ms']
        print(
            f'| {depth} | {period_ms:.3f} | {row["efficiency"]:.3f} | {row["age_at_start_ms"]["p50"]:.3f} '
            f'| {end["p50"]:.3f} / {end["p99"]:.3f} |'
        )
    return {'alone_ms': alone, 'mean_ms': means, 'rows': rows}


if __name__ == '__main__':
    main()
