# SPDX-License-Identifier: Apache-2.0
"""What `vla-policy doctor` looks at on a machine without ROS: Python, GPU, libraries, caches, the bundle and its plans."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from vla_policy_ros.core.errors import GpuError, VlaPolicyError
from vla_policy_ros.tools.doctor_probe import Trial, try_library
from vla_policy_ros.tools.version import package_version

State = Literal['ok', 'missing', 'problem']
_OLDEST_PYTHON = (3, 10)
_PARALLEL_TRIALS = 4


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: What it is.
        state: `ok`, `missing` when it is not there, `problem` when it is there and does not serve.
        found: What was found.
        purpose: What it is for.
        next_step: What to do when it is not ok.
    """

    name: str
    state: State
    found: str
    purpose: str
    next_step: str = ''


@dataclass(frozen=True, slots=True)
class _Library:
    """A library, what it is for and how it is installed."""

    name: str
    module: str
    purpose: str
    install: str


_LIBRARIES = (
    _Library(
        'CUDA bindings',
        'cuda.bindings',
        'CUDA graphs, kernel compiler',
        'Run `pip install cuda-bindings` of the CUDA version of your driver.',
    ),
    _Library(
        'NVRTC',
        'cuda.bindings.nvrtc',
        'compiles the kernels once, for preprocess gpu',
        'Run `pip install cuda-bindings nvidia-cuda-nvrtc`; not needed where the kernels are cached.',
    ),
    _Library(
        'PyCUDA',
        'pycuda',
        'every engine on the GPU, and preprocess gpu',
        'Run `pip install pycuda`; it is built with the CUDA toolkit and needs the driver.',
    ),
    _Library(
        'TensorRT',
        'tensorrt',
        'engine tensorrt',
        'Run `pip install tensorrt-cu12`; on a Jetson it comes with JetPack. It needs the driver.',
    ),
    _Library(
        'TensorRT-RTX', 'tensorrt_rtx', 'engine tensorrt_rtx', 'Run `pip install tensorrt-rtx`.'
    ),
    _Library(
        'PyTorch',
        'torch',
        'engines torch, torch_compile, torch_cpu',
        'Run `pip install torch`, see https://pytorch.org/get-started.',
    ),
    _Library(
        'ONNX Runtime',
        'onnxruntime',
        'engine onnxruntime',
        'Run `pip install onnxruntime`, or onnxruntime-gpu for both engines.',
    ),
    _Library('OpenVINO', 'openvino', 'no engine of this version uses it', 'Nothing to do.'),
)


def check_machine() -> list[Check]:
    """Look at Python, the driver, the GPUs and every library; blocks for some seconds."""
    with ThreadPoolExecutor(_PARALLEL_TRIALS) as pool:
        found = pool.map(_check_library, _LIBRARIES)
        nvjpeg = pool.submit(_check_nvjpeg)
        return [
            _check_python(),
            Check('vla_policy_ros', 'ok', package_version(), 'this package'),
            *_check_gpus(),
            *(check for checks in found for check in checks),
            nvjpeg.result(),
        ]


def check_caches(plan_folder: Path | None) -> list[Check]:
    """Look at the compiled kernels and the built plans of this user."""
    from vla_policy_ros.engines.plans import PlanStore
    from vla_policy_ros.gpu.nvrtc import cache_folder

    plans = PlanStore(plan_folder).folder
    return [
        _check_folder('kernel cache', cache_folder(), 'start without a kernel compiler'),
        _check_folder('plan folder', plans, 'plans of the TensorRT engines'),
    ]


def check_bundle(folder: Path, plan_folder: Path | None) -> list[Check]:
    """Look at a bundle, and at the plans of its stages."""
    from vla_policy_ros.bundle.bundle import find_bundle_faults, load_bundle

    faults = find_bundle_faults(folder)
    if faults:
        return [_faulty('bundle', str(folder), faults, 'the policy')]
    bundle = load_bundle(folder)
    name = bundle.spec.policy_id
    stages = [stage.onnx for stage in bundle.manifest.stages]
    return [
        Check('bundle', 'ok', f'{name}: {", ".join(stages)}', 'the policy'),
        _check_plans([folder / stage for stage in stages], plan_folder),
    ]


def is_installed(module: str) -> bool:
    """Return whether a Python module can be found; its parents are imported, itself is not."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _faulty(name: str, where: str, faults: Sequence[VlaPolicyError], purpose: str) -> Check:
    more = f' (and {len(faults) - 1} more)' if len(faults) > 1 else ''
    found = f'{where}: {faults[0].got}, expected {faults[0].expected}{more}'
    return Check(name, 'problem', found, purpose, f'Run `vla-policy check {where}`.')


def _check_python() -> Check:
    is_new = tuple(map(int, platform.python_version_tuple()[:2])) >= _OLDEST_PYTHON
    found = f'{platform.python_version()} on {platform.platform(terse=True)}, {platform.machine()}'
    purpose = 'everything'
    return Check('Python', 'ok' if is_new else 'problem', found, purpose, 'Use 3.10 or later.')


def _check_gpus() -> list[Check]:
    from vla_policy_ros.gpu.driver import find_driver
    from vla_policy_ros.gpu.listing import list_gpus

    purpose = 'every engine on the GPU, and preprocess gpu'
    try:
        gpus = list_gpus()
    except GpuError as fault:
        return [Check('NVIDIA driver', 'missing', fault.got, purpose, fault.next_step)]
    return [
        Check('NVIDIA driver', 'ok', f'runs CUDA up to {find_driver()}', purpose),
        *(
            Check(
                f'GPU {gpu.index}',
                'ok',
                f'{gpu.name}, compute capability {gpu.compute_capability[0]}.{gpu.compute_capability[1]}, '
                f'{gpu.memory_bytes / 2**30:.1f} GiB{", shared with the host" * gpu.is_integrated}',
                purpose,
            )
            for gpu in gpus
        ),
    ]


def _check_library(library: _Library) -> list[Check]:
    if not is_installed(library.module):
        found = f'no Python module {library.module}'
        return [Check(library.name, 'missing', found, library.purpose, library.install)]
    trial = try_library(library.module)
    return _JUDGES.get(library.module, _judge)(library, trial)


def _judge(library: _Library, trial: Trial) -> list[Check]:
    version = str(trial.facts.get('version', ''))
    if trial.failure:
        found = f'{version}: {trial.failure}'.lstrip(': ')
        return [Check(library.name, 'problem', found, library.purpose, library.install)]
    return [Check(library.name, 'ok', version, library.purpose)]


def _judge_tensorrt(library: _Library, trial: Trial) -> list[Check]:
    """A library that cannot run here may yet build, for other machines."""
    version, can_build = trial.facts.get('version'), trial.facts.get('builds')
    if trial.facts.get('runs') and not trial.failure:
        found = f'{version}, builds plans; running them needs the driver above'
        return [Check(library.name, 'ok', found, library.purpose)]
    if not can_build:
        return _judge(library, trial)
    found = f'{version}, builds plans, but does not run them: {trial.failure}'
    step = 'Run plans on a machine with an NVIDIA driver.'
    return [Check(library.name, 'problem', found, library.purpose, step)]


def _judge_torch(library: _Library, trial: Trial) -> list[Check]:
    checks = _judge(library, trial)
    cuda, sees_gpu = trial.facts.get('cuda'), trial.facts.get('sees_gpu')
    found = f'built for {f"CUDA {cuda}" if cuda else "the CPU only"}'
    return [
        *checks,
        Check(
            'PyTorch on the GPU',
            'ok' if sees_gpu else 'missing' if not cuda else 'problem',
            found if sees_gpu else f'{found}; it finds no GPU',
            'engines torch, torch_compile',
            'Install the driver, and a PyTorch for its CUDA version.',
        ),
    ]


def _judge_onnxruntime(library: _Library, trial: Trial) -> list[Check]:
    checks = _judge(library, trial)
    providers: list[str] = trial.facts.get('providers', [])
    return [
        *checks,
        Check(
            'ONNX Runtime CUDA',
            'ok' if 'CUDAExecutionProvider' in providers else 'missing',
            f'providers: {", ".join(providers) or "none"}',
            'engine onnxruntime_cuda',
            'Uninstall onnxruntime and run `pip install onnxruntime-gpu`.',
        ),
    ]


_JUDGES: Mapping[str, Callable[[_Library, Trial], list[Check]]] = {
    'onnxruntime': _judge_onnxruntime,
    'tensorrt': _judge_tensorrt,
    'tensorrt_rtx': _judge_tensorrt,
    'torch': _judge_torch,
}


def _check_nvjpeg() -> Check:
    trial = try_library('nvjpeg')
    found: Any = trial.facts.get('version', 'no library libnvjpeg')
    state: State = 'missing' if trial.failure else 'ok'
    step = 'Run `pip install nvidia-nvjpeg`, or decode on the CPU (jpeg: cpu).'
    return Check('nvJPEG', state, str(found), 'jpeg nvjpeg', step)


def _check_folder(name: str, folder: Path, purpose: str) -> Check:
    files = [path for path in folder.rglob('*') if path.is_file()]
    if not files:
        return Check(name, 'missing', f'nothing in {folder}', purpose, 'It is filled when needed.')
    size_mib = sum(path.stat().st_size for path in files) / 2**20
    return Check(name, 'ok', f'{len(files)} files, {size_mib:.1f} MiB in {folder}', purpose)


def _check_plans(stages: Sequence[Path], plan_folder: Path | None) -> Check:
    from vla_policy_ros.engines.plans import PlanStore, network_hash

    store = PlanStore(plan_folder)
    counts = {stage.name: len(store.plans(network_hash(stage))) for stage in stages}
    found = ', '.join(f'{name}: {count}' for name, count in counts.items())
    state: State = 'ok' if all(counts.values()) else 'missing'
    step = 'Run `vla-policy build` on this machine.'
    return Check(
        'plans', state, f'{found} in {store.folder}', 'engine tensorrt, tensorrt_rtx', step
    )
