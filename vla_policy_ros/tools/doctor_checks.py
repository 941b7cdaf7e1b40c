# SPDX-License-Identifier: Apache-2.0
"""What `vla-policy doctor` looks at on a machine without ROS: Python, GPU, libraries, caches, the bundle and its plans."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vla_policy_ros.core.errors import EngineError, GpuError, VlaPolicyError
from vla_policy_ros.tools.doctor_probe import Trial, try_library
from vla_policy_ros.tools.version import package_version

if TYPE_CHECKING:
    from vla_policy_ros.bundle.manifest import Precision
    from vla_policy_ros.engines.plan_facts import Machine
    from vla_policy_ros.gpu.listing import GpuFacts

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
        'Torch-TensorRT',
        'torch_tensorrt',
        'engine torch_tensorrt',
        'Run `pip install torch_tensorrt` of the version of your PyTorch.',
    ),
    _Library(
        'ONNX Runtime',
        'onnxruntime',
        'engine onnxruntime',
        'Run `pip install onnxruntime`, or onnxruntime-gpu for its engines on the GPU, too.',
    ),
    _Library('OpenVINO', 'openvino', 'engine openvino', 'Run `pip install openvino`.'),
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
    from vla_policy_ros.core.cache import cache_folder
    from vla_policy_ros.engines.plans import PlanStore

    plans = PlanStore(plan_folder).folder
    return [
        _check_folder('kernel cache', cache_folder('kernels'), 'start without a kernel compiler'),
        _check_folder('plan folder', plans, 'plans of the TensorRT engines'),
    ]


def check_bundle(
    folder: Path, plan_folder: Path | None, *, engine: str = '', precision: Precision | None = None
) -> list[Check]:
    """Look at a bundle, and at the plans of its stages.

    Args:
        folder: The bundle.
        plan_folder: Where plans lie; None for the user's own place.
        engine: The engine that shall run it; empty when none is named.
        precision: Its precision; None for that of each stage.
    """
    from vla_policy_ros.bundle.bundle import find_bundle_faults, load_bundle

    faults = find_bundle_faults(folder)
    if faults:
        return [_faulty('bundle', str(folder), faults, 'the policy')]
    bundle = load_bundle(folder)
    name = bundle.spec.policy_id
    stages = bundle.manifest.stages
    wanted = [(folder / stage.onnx, precision or stage.precision) for stage in stages]
    files = ', '.join(stage.onnx for stage in stages)
    return [
        Check('bundle', 'ok', f'{name}: {files}', 'the policy'),
        _check_plans(wanted, plan_folder, engine),
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
                f'{gpu.name}, compute capability {_capability(gpu)}, '
                f'{gpu.memory_bytes / 2**30:.1f} GiB{", shared with the host" * gpu.is_integrated}',
                purpose,
            )
            for gpu in gpus
        ),
    ]


def _list_gpus() -> tuple[GpuFacts, ...]:
    """Return the GPUs; none where there is no driver."""
    from vla_policy_ros.gpu.listing import list_gpus

    try:
        return list_gpus()
    except GpuError:
        return ()


def _capability(gpu: GpuFacts) -> str:
    return '{}.{}'.format(*gpu.compute_capability)


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
    targets: list[str] = trial.facts.get('targets', [])
    foreign = [gpu for gpu in _list_gpus() if targets and _capability(gpu) not in targets]
    if foreign:
        found = (
            f'{version}, does not run on {foreign[0].name} ({_capability(foreign[0])}), '
            f'only on {", ".join(targets)}'
        )
        step = 'Choose engine tensorrt.'
        return [Check(library.name, 'problem', found, library.purpose, step)]
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
    step = 'Uninstall onnxruntime and run `pip install onnxruntime-gpu`.'
    return [
        *checks,
        *(
            Check(
                f'ONNX Runtime {name}',
                'ok' if provider in providers else 'missing',
                f'providers: {", ".join(providers) or "none"}',
                f'engine onnxruntime_{name.lower()}',
                f'{step}{more}',
            )
            for name, provider, more in (
                ('CUDA', 'CUDAExecutionProvider', ''),
                ('TensorRT', 'TensorrtExecutionProvider', ' It needs the libraries of TensorRT.'),
            )
        ),
    ]


def _judge_openvino(library: _Library, trial: Trial) -> list[Check]:
    devices: dict[str, str] = trial.facts.get('devices', {})
    found = ', '.join(f'{device} ({name})' for device, name in devices.items()) or 'no device'
    return [
        *_judge(library, trial),
        *(
            Check(
                f'OpenVINO {kind}',
                'ok' if any(device.startswith(kind) for device in devices) else 'missing',
                found,
                f'engine openvino_{kind.lower()}',
                f"Install Intel's driver of the {kind}, and let this user open it.",
            )
            for kind in ('GPU', 'NPU')
        ),
    ]


_JUDGES: Mapping[str, Callable[[_Library, Trial], list[Check]]] = {
    'onnxruntime': _judge_onnxruntime,
    'openvino': _judge_openvino,
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


def _check_plans(
    wanted: Sequence[tuple[Path, Precision]], plan_folder: Path | None, engine: str
) -> Check:
    """Look for plans that fit this machine; where that cannot be asked, for any of these networks."""
    from vla_policy_ros.engines.plans import PlanStore, network_hash

    purpose, store = 'engine tensorrt, tensorrt_rtx', PlanStore(plan_folder)
    machine = _find_machine(engine)
    if machine is None:
        counts = {path.name: len(store.plans(network_hash(path))) for path, _ in wanted}
        found = ', '.join(f'{name}: {count}' for name, count in counts.items())
        state: State = 'ok' if all(counts.values()) else 'missing'
        step = 'Run `vla-policy build` on this machine.'
        return Check('plans', state, f'{found} in {store.folder}', purpose, step)
    try:
        for path, precision in wanted:
            store.find(network_hash(path), precision=precision, machine=machine)
    except EngineError as fault:
        found = f'{path.name}: {fault.got}, expected {fault.expected}'
        return Check('plans', 'missing', found, purpose, fault.next_step)
    return Check('plans', 'ok', f'all for {machine} in {store.folder}', purpose)


def _find_machine(engine: str) -> Machine | None:
    """Return what an engine's plans must fit; None where driver or library, which have checks of their own, are missing."""
    from vla_policy_ros.engines.registry import PLAN_ENGINES
    from vla_policy_ros.engines.tensorrt_library import load_library, read_gpu

    if engine not in PLAN_ENGINES:
        return None
    try:
        library = load_library('tensorrt_rtx' if engine == 'tensorrt_rtx' else 'tensorrt')
        return library.machine(read_gpu())
    except VlaPolicyError:
        return None
