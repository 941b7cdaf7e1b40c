# SPDX-License-Identifier: Apache-2.0
"""What preprocessing costs: three cameras to three 224x224 float32 images, Pillow's antialiased bilinear rule.

Device times are CUDA events around a CUDA graph of many sets, so the host's launch time is not in them; `eager` and
`host` rows hold it. Every set of a graph reads other images, more than the L2 cache holds; the row `in L2` reads the
same ones again and again.

- `one launch`, `launch per camera`, `with upload`: ours, images in device memory, the last one in pinned host memory
- `empty kernel`: a launch that does nothing, the floor of every device time here
- `torchvision`: v2 on the GPU, resize, to float32, normalise; eager as people run it, and captured as a CUDA graph
- `OpenCV`, `Pillow`: our CPU reference with their resizes, one thread of Python
- `bound`: bytes read and written, at the bandwidth of a copy within the device

Usage: benchmarks/gpu_preprocess.py [--sets 64] [--repeats 30] [--json FILE]
       needs an NVIDIA GPU with PyCUDA and cuda-bindings; torch and torchvision for their rows
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from parts import Parts, summarize
from results import write_result

from vla_policy_ros.bundle.manifest import Camera
from vla_policy_ros.core.frame import Frame
from vla_policy_ros.core.specs import Array
from vla_policy_ros.gpu.interfaces import Device, DeviceBuffer, Stream
from vla_policy_ros.gpu.preprocess import DevicePreprocessor, ImageJob, enqueue_set
from vla_policy_ros.preprocess.camera import CameraPreprocessor

Measure = Callable[[], float]
"""Takes one sample: milliseconds per set of three images."""

NUM_CAMERAS = 3
TARGET_PX = 224
SIZES = ((480, 640), (1080, 1920))
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SOURCE_BYTES = 256 << 20  # of all images of a graph at least: several times an L2 cache
NUM_HOST_CALLS = 200
NUM_CPU_CALLS = 5


def main() -> None:
    """Measure all rows for both sizes and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--sets', type=int, default=64, help='sets per graph, at least')
    parser.add_argument('--repeats', type=int, default=30, help='samples per row')
    parser.add_argument('--json', type=Path)
    arguments = parser.parse_args()
    from vla_policy_ros.gpu.device import open_device

    device, parts, results = open_device(), Parts(), {}
    with device.current():
        bandwidth = parts.run('copy bandwidth', partial(measure_bandwidth, device))
        for size in SIZES:
            name = f'{size[1]}x{size[0]}'
            run = partial(run_size, device, size, arguments=arguments, parts=parts)
            results[name] = parts.run(name, run) or {}
            if bandwidth:
                num_bytes = NUM_CAMERAS * 3 * (size[0] * size[1] + 4 * TARGET_PX**2)
                results[name]['bound_ms'] = num_bytes / bandwidth / 1e6
    print_table(results)
    if arguments.json:
        facts = {'device': device.name, 'copy_gb_per_s': bandwidth, **parts.facts()}
        write_result(arguments.json, {**facts, 'results': results})
    raise SystemExit(bool(parts.errors))


def print_table(results: dict[str, Any]) -> None:
    """Print medians as Markdown."""
    print('| images | row | p50 us | min us |\n| --- | --- | --- | --- |')
    for size, result in results.items():
        for name, row in result.get('rows', {}).items():
            print(f'| 3x{size} | {name} | {1e3 * row["p50"]:.2f} | {1e3 * row["min"]:.2f} |')
        for name in ('bound_ms', 'errors_in_levels'):
            print(f'| 3x{size} | {name} | {result.get(name)} | |')


def run_size(
    device: Device, size: tuple[int, int], *, arguments: argparse.Namespace, parts: Parts
) -> dict[str, Any]:
    """Return all rows for images of one size, sampled in turn, and how far the results lie apart."""
    name = f'{size[1]}x{size[0]}'
    images = np.random.default_rng(0).integers(0, 256, (NUM_CAMERAS, *size, 3), np.uint8)
    sets = max(arguments.sets, SOURCE_BYTES // images.nbytes)
    ours = Ours(device, images, num_sets=sets)
    makers: dict[str, Callable[[], Measure]] = {
        'one launch': partial(ours.measure_launches, in_cache=False, together=True),
        'one launch in L2': partial(ours.measure_launches, in_cache=True, together=True),
        'launch per camera': partial(ours.measure_launches, in_cache=False, together=False),
        'one launch with upload': ours.measure_uploads,
        'one launch, host call': ours.measure_host,
        'empty kernel': partial(measure_empty, device, sets),
        'OpenCV on the CPU': partial(measure_cpu, images, 'opencv'),
        'Pillow on the CPU': partial(measure_cpu, images, 'pil'),
    }
    for antialias in (True, False):
        for graph in (False, True):
            kind = f'{"antialias" if antialias else "plain"}, {"graph" if graph else "eager"}'
            makers[f'torchvision {kind}'] = partial(
                measure_torchvision, images, antialias=antialias, graph=graph
            )
    measures = {key: parts.run(f'{name} {key}: setup', make) for key, make in makers.items()}
    samples: dict[str, list[float]] = {key: [] for key, measure in measures.items() if measure}
    for _ in range(arguments.repeats):
        for key, values in samples.items():
            measure = measures[key]
            sample = parts.run(f'{name} {key}', measure) if measure else None
            if sample is None:
                measures[key] = None
            else:
                values.append(sample)
    errors = {
        'ours': parts.run(f'{name} error', ours.error_in_levels),
        'torchvision': parts.run(f'{name} torchvision error', partial(torchvision_error, images)),
    }
    ours.close()
    rows = {key: summarize(values) for key, values in samples.items() if values}
    return {'sets_per_graph': sets, 'rows': rows, 'errors_in_levels': errors}


def make_camera(library: str = 'pil') -> Camera:
    """Return the camera of all rows, resized as a library does it."""
    resize = {'kind': 'resize', 'height': TARGET_PX, 'width': TARGET_PX, 'library': library}
    settings = {'name': 'camera', 'tensor': 'images', 'mean': MEAN, 'std': STD}
    return Camera.model_validate({**settings, 'geometry': [resize]})


def run_reference(images: Array, library: str = 'pil') -> Array:
    """Return what the CPU reference makes of the images."""
    preprocessor = CameraPreprocessor(make_camera(library))
    out = np.empty((len(images), *preprocessor.image_shape), np.float32)
    for image, target in zip(images, out, strict=True):
        preprocessor.run(Frame.from_rgb('camera', 0, image), target)
    return out


def in_levels(got: Array, expected: Array) -> float:
    """Return the largest difference in levels of uint8."""
    std = np.array(STD).reshape(3, 1, 1)
    return float((np.abs(got.astype(np.float64) - expected) * std).max() * 255)


class Ours:
    """Our kernel over many sets of images in device memory; the device must be current."""

    def __init__(self, device: Device, images: Array, *, num_sets: int) -> None:
        self._device = device
        self._images = images
        self._num_sets = num_sets
        self._stream = device.new_stream()
        self._preprocessors = [DevicePreprocessor(device, make_camera()) for _ in images]
        self._pinned = device.allocate_pinned(images.shape, 'uint8')
        self._pinned.array[...] = images
        self._sources = device.allocate((num_sets, *images.shape), 'uint8')
        for index in range(num_sets):
            self._device.upload(self._source(index), self._pinned, self._stream)
        shape = self._preprocessors[0].image_shape
        self._target = device.allocate((len(images), *shape), 'float32')
        self._enqueue(0)
        self._stream.synchronize()

    def measure_launches(self, *, in_cache: bool, together: bool) -> Measure:
        """Measure a graph of sets, each in one launch or in one per camera."""

        def enqueue() -> None:
            for index in range(self._num_sets):
                self._enqueue(0 if in_cache else index, together=together)

        return measure_graph(self._device, self._stream, enqueue, self._num_sets)

    def measure_uploads(self) -> Measure:
        """Measure a graph of sets that begin in pinned host memory."""

        def enqueue() -> None:
            for index in range(self._num_sets):
                self._device.upload(self._source(index), self._pinned, self._stream)
                self._enqueue(index)

        return measure_graph(self._device, self._stream, enqueue, self._num_sets)

    def measure_host(self) -> Measure:
        """Measure what a call costs the host, the device left to itself."""

        def measure() -> float:
            started_s = time.perf_counter()
            for _ in range(NUM_HOST_CALLS):
                self._enqueue(0)
            spent_s = time.perf_counter() - started_s
            self._stream.synchronize()
            return 1e3 * spent_s / NUM_HOST_CALLS

        return measure

    def error_in_levels(self) -> float:
        """Return the largest difference to the CPU reference."""
        self._enqueue(self._num_sets - 1)
        result = self._device.allocate_pinned(self._target.shape, 'float32')
        self._device.download(result, self._target, self._stream)
        self._stream.synchronize()
        error = in_levels(result.array, run_reference(self._images))
        result.free()
        return error

    def close(self) -> None:
        """Free all memory."""
        self._stream.synchronize()
        for preprocessor in self._preprocessors:
            preprocessor.close()
        for buffer in (self._pinned, self._sources, self._target):
            buffer.free()

    def _source(self, index: int) -> DeviceBuffer:
        return self._sources.view(index * self._images.nbytes, self._images.shape, 'uint8')

    def _enqueue(self, index: int, *, together: bool = True) -> None:
        num_cameras, height, width, channels = self._images.shape
        source_bytes = height * width * channels
        target_bytes = self._target.num_bytes // num_cameras
        jobs = [
            ImageJob(
                source_address=self._source(index).address + camera * source_bytes,
                encoding='rgb8',
                height=height,
                width=width,
                step_bytes=width * channels,
                target_address=self._target.address + camera * target_bytes,
            )
            for camera in range(num_cameras)
        ]
        work = list(zip(self._preprocessors, jobs, strict=True))
        for items in [work] if together else [[item] for item in work]:
            enqueue_set(self._stream, items)


def measure_graph(
    device: Device, stream: Stream, enqueue: Callable[[], None], num_sets: int
) -> Measure:
    """Capture work as a graph; a sample is its device time, divided by the number of sets."""
    graph = device.capture(stream, enqueue)
    begin, end = device.new_event(timing=True), device.new_event(timing=True)
    graph.launch(stream)
    stream.synchronize()

    def measure() -> float:
        begin.record(stream)
        graph.launch(stream)
        end.record(stream)
        end.synchronize()
        return end.elapsed_ms(begin) / num_sets

    return measure


def measure_bandwidth(device: Device) -> float:
    """Return bytes read and written per second by a copy within the device, in GB/s."""
    source, target = (device.allocate((1 << 30,), 'uint8') for _ in range(2))
    stream = device.new_stream()
    measure = measure_graph(device, stream, lambda: device.copy(target, source, stream), 1)
    best_ms = min(measure() for _ in range(10))
    for buffer in (source, target):
        buffer.free()
    return 2 * source.num_bytes / best_ms / 1e6


def measure_empty(device: Device, num_sets: int) -> Measure:
    """Measure a kernel that does nothing, with as many blocks as ours has."""
    import pycuda.driver

    from vla_policy_ros.gpu.nvrtc import compile_cubin
    from vla_policy_ros.gpu.objects import pycuda_stream

    major, minor = device.compute_capability
    text = 'extern "C" __global__ void empty() {}'
    cubin = compile_cubin(text, 'empty', arch=f'sm_{major}{minor}', defines={}, headers={})
    kernel = pycuda.driver.module_from_buffer(cubin).get_function('empty')
    kernel.prepare('')
    stream, tiles = device.new_stream(), TARGET_PX * TARGET_PX // (8 * 32)

    def enqueue() -> None:
        for _ in range(num_sets):
            kernel.prepared_async_call((tiles, 1, NUM_CAMERAS), (256, 1, 1), pycuda_stream(stream))

    return measure_graph(device, stream, enqueue, num_sets)


def measure_cpu(images: Array, library: str) -> Measure:
    """Measure the CPU reference with the resize of a library."""
    preprocessor = CameraPreprocessor(make_camera(library))
    out = np.empty((len(images), *preprocessor.image_shape), np.float32)
    frames = [Frame.from_rgb('camera', 0, image) for image in images]

    def measure() -> float:
        started_s = time.perf_counter()
        for _ in range(NUM_CPU_CALLS):
            for frame, target in zip(frames, out, strict=True):
                preprocessor.run(frame, target)
        return 1e3 * (time.perf_counter() - started_s) / NUM_CPU_CALLS

    measure()
    return measure


def make_torchvision(*, antialias: bool) -> Callable[[Any], Any]:
    """Return torchvision's transforms for (N, 3, H, W) uint8 on the GPU."""
    import torch
    from torchvision.transforms import v2

    return v2.Compose(
        [
            v2.Resize([TARGET_PX, TARGET_PX], antialias=antialias),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )


def make_capturable(*, antialias: bool) -> Callable[[Any], Any]:
    """Return the same in functions that copy nothing from the host, as a CUDA graph needs it."""
    import torch
    from torchvision.transforms.v2 import functional

    mean, std = (torch.tensor(values, device='cuda').view(3, 1, 1) for values in (MEAN, STD))

    def transform(images: Any) -> Any:
        small = functional.resize(images, [TARGET_PX, TARGET_PX], antialias=antialias)
        return (small.to(torch.float32) / 255 - mean) / std

    return transform


def measure_torchvision(images: Array, *, antialias: bool, graph: bool) -> Measure:
    """Measure torchvision v2 on the three images as one batch."""
    import torch

    batch = torch.from_numpy(images).cuda().permute(0, 3, 1, 2)
    transform = (make_capturable if graph else make_torchvision)(antialias=antialias)
    num_calls = 50
    run = partial(_call, transform, batch, num_calls)
    run()
    torch.cuda.synchronize()
    if graph:
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            run()
        run = captured.replay
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def measure() -> float:
        begin.record()
        run()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / num_calls

    return measure


def _call(function: Callable[[Any], Any], argument: Any, count: int) -> None:
    for _ in range(count):
        function(argument)


def torchvision_error(images: Array) -> float:
    """Return the largest difference of torchvision on the GPU, antialiased, to the CPU reference."""
    import torch

    batch = torch.from_numpy(images).cuda().permute(0, 3, 1, 2)
    got = make_torchvision(antialias=True)(batch).cpu().numpy()
    return in_levels(got, run_reference(images))


if __name__ == '__main__':
    main()
