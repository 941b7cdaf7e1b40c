# SPDX-License-Identifier: Apache-2.0
"""Bundles and observations that several benchmarks share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vla_policy_ros.bundle.bundle import Bundle, load_bundle
from vla_policy_ros.core.frame import Frame
from vla_policy_ros.core.observation import Instruction, Observation
from vla_policy_ros.core.specs import Array, PolicySpec
from vla_policy_ros.engines.registry import engine_memory
from vla_policy_ros.engines.settings import EngineSettings
from vla_policy_ros.gpu.interfaces import Device
from vla_policy_ros.policies.engine_policy import EnginePolicy

NUM_JOINTS = 14


def add_policy_options(
    parser: argparse.ArgumentParser, *, engine: str | Sequence[str], preprocess: str
) -> None:
    """Add what says which policy runs, and on which images; several engines where the default names several."""
    parser.add_argument('--bundle', type=Path, help='else a synthetic one, see --model')
    parser.add_argument('--model', choices=('small', 'act'), default='small')
    count = None if isinstance(engine, str) else '+'
    parser.add_argument('--engine', nargs=count, default=engine)
    parser.add_argument('--preprocess', choices=('cpu', 'gpu'), default=preprocess)
    parser.add_argument('--plan-folder', type=Path)
    for name, default in (('cameras', 3), ('height', 480), ('width', 640)):
        parser.add_argument(f'--{name}', type=int, default=default)


def make_bundle(arguments: argparse.Namespace, folder: Path) -> Bundle:
    """Return the bundle asked for: a given one, an untrained one, or one of ACT's size in fp16."""
    if arguments.bundle:
        return load_bundle(arguments.bundle)
    if arguments.model == 'small':
        from vla_policy_ros.datasets.synthetic import SyntheticDataset
        from vla_policy_ros.export.untrained import create_untrained_bundle

        cameras = {
            f'camera{i}': (arguments.height, arguments.width) for i in range(arguments.cameras)
        }
        dataset = SyntheticDataset(cameras=cameras, num_joints=NUM_JOINTS)
        return create_untrained_bundle(folder, dataset, image_size=224)
    return make_act_bundle(folder, arguments.cameras, 'fp16')


def make_act_bundle(
    folder: Path, num_cameras: int, precision: str, size: tuple[int, int] = (224, 224)
) -> Bundle:
    """Write a bundle of ACT's size."""
    import torch
    from models.act import Act
    from models.bundles import camera_bundle

    torch.manual_seed(0)
    network = Act(num_cameras=num_cameras, size=size, num_joints=NUM_JOINTS).eval()
    dtype = {'fp16': torch.float16, 'bf16': torch.bfloat16}.get(precision, torch.float32)
    images = {f'camera{i}': torch.zeros(1, 3, *size) for i in range(num_cameras)}
    with torch.no_grad():
        return camera_bundle(
            folder,
            network.to(dtype),
            images=images,
            num_joints=NUM_JOINTS,
            horizon=100,
            precision=precision,
        )


def build_plans(bundle: Bundle, folder: Path | None, *, level: int | None = None) -> None:
    """Build a TensorRT plan of every network of a bundle, as it was exported, where there is none."""
    from vla_policy_ros.core.errors import EngineError
    from vla_policy_ros.engines.plans import PlanStore, network_hash
    from vla_policy_ros.engines.tensorrt_build import BuildOptions, build_plan
    from vla_policy_ros.engines.tensorrt_library import load_library, read_gpu

    store = PlanStore(folder)
    machine = load_library('tensorrt').machine(read_gpu())
    networks = dict.fromkeys((stage.onnx, stage.precision) for stage in bundle.manifest.stages)
    for name, precision in networks:
        path = bundle.folder / name
        try:
            store.find(network_hash(path), precision=precision, machine=machine)
        except EngineError:
            options = BuildOptions(precision=precision, optimization_level=level)
            build_plan(path, options=options, store=store)


def open_policy(
    arguments: argparse.Namespace,
    bundle: Bundle,
    device: Device | None,
    *,
    slots: int = 8,
    cuda_graph: bool = True,
) -> EnginePolicy:
    """Return the policy that the options ask for; TensorRT plans are built first."""
    if arguments.engine == 'tensorrt':
        build_plans(bundle, arguments.plan_folder)
    return EnginePolicy(
        bundle,
        engine=arguments.engine,
        preprocess=arguments.preprocess,
        slots=slots,
        settings=EngineSettings(plan_folder=arguments.plan_folder),
        cuda_graph=cuda_graph,
        device=0 if device is None else device,
    )


def open_device_for(engine: str) -> Device | None:
    """Return the GPU for an engine that works there, None for one on the host."""
    if engine_memory(engine) == 'host':
        return None
    from vla_policy_ros.gpu.device import open_device

    return open_device()


def make_pixels(arguments: argparse.Namespace) -> Array:
    """Return one random (height, width, 3) uint8 image."""
    shape = (arguments.height, arguments.width, 3)
    return np.random.default_rng(0).integers(0, 255, shape, np.uint8)


def make_frames(spec: PolicySpec, pixels: Array, stamp_ns: int) -> dict[str, Frame]:
    """Return one frame per camera, all of the same pixels."""
    cameras = spec.observation.cameras
    return {camera.name: Frame.from_rgb(camera.name, stamp_ns, pixels) for camera in cameras}


def make_observation(
    spec: PolicySpec, images: dict[str, tuple[object, ...]], stamp_ns: int
) -> Observation:
    """Return an observation of given images, a zero state and one word."""
    observed = spec.observation
    shape = (len(observed.state_history_ns), len(observed.state))
    return Observation(
        images=images,  # type: ignore[arg-type]
        state=np.zeros(shape, np.float32),
        instruction=Instruction('wave'),
        stamp_ns=stamp_ns,
    )
