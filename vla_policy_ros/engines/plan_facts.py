# SPDX-License-Identifier: Apache-2.0
"""What a TensorRT plan depends on, and whether it fits a machine. Nothing here needs TensorRT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from typing_extensions import Self

from vla_policy_ros.bundle.manifest import Precision

LibraryName = Literal['tensorrt', 'tensorrt_rtx']
"""Python packages that build and run plans."""

AMPERE = (8, 0)
"""Lowest compute capability of hardware-compatible plans, and of TensorRT-RTX's plans for no named target."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeRange:
    """Shapes that one input may take: the least, the one to optimise for, the greatest."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]

    @classmethod
    def fixed(cls, shape: Sequence[int]) -> Self:
        """Return the range of a single shape."""
        return cls(min=tuple(shape), opt=tuple(shape), max=tuple(shape))

    def contains(self, shape: Sequence[int]) -> bool:
        """Tell whether a shape has the right rank and lies within the range."""
        return len(shape) == len(self.min) and all(
            low <= size <= high for low, size, high in zip(self.min, shape, self.max, strict=True)
        )

    def __str__(self) -> str:
        if self.min == self.max:
            return str(list(self.min))
        return f'min {list(self.min)}, opt {list(self.opt)}, max {list(self.max)}'


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """How a plan is built. Networks are strongly typed: the ONNX file holds the precision, no option changes it.

    Attributes:
        precision: Precision of the ONNX file, the word by which an engine asks for the plan; `fp32` also stands for a
            file that is taken as it was exported.
        profiles: Range of shapes for every input that has free dimensions; inputs of fixed shape need none.
        workspace_mib: Limit for the memory of one layer's tactics; 0 leaves it to TensorRT (all that there is).
        optimization_level: 0 (fast build) to 5 (fast plan); None leaves it to TensorRT (3).
        hardware_compatible: TensorRT only: the plan also runs on other GPUs from Ampere on; slower; not on Jetson.
        version_compatible: TensorRT only: the plan also runs with later versions of the same major number.
        targets: TensorRT-RTX only: compute capabilities to build for, such as `12.0`; none takes all from 8.0 on.
    """

    precision: Precision = 'fp32'
    profiles: Mapping[str, ShapeRange] = field(default_factory=dict)
    workspace_mib: int = 0
    optimization_level: int | None = None
    hardware_compatible: bool = False
    version_compatible: bool = False
    targets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Gpu:
    """One model of GPU."""

    name: str
    compute_capability: tuple[int, int]

    def __str__(self) -> str:
        major, minor = self.compute_capability
        return f'{self.name} ({major}.{minor})'


@dataclass(frozen=True, slots=True)
class Machine:
    """Where plans are built or run; `gpu` is None for one that TensorRT-RTX builds, which needs no GPU."""

    library: LibraryName
    version: str
    gpu: Gpu | None

    def __str__(self) -> str:
        return f'{self.library} {self.version} on {self.gpu or "any GPU"}'


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanKey:
    """All that a plan depends on.

    Attributes:
        network_hash: Hash of the bundle's network, see `plans.network_hash`.
        options: How it was built.
        machine: What it was built with.
    """

    network_hash: str
    options: BuildOptions
    machine: Machine


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """Layers of one precision and one type."""

    precision: str
    kind: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildReport:
    """What came out of a build.

    Attributes:
        seconds: Wall time of parsing and building.
        workspace_bytes: Device memory of one run beside its tensors; None when no GPU was there to ask.
        layers: Layers by precision and type, most frequent first.
        layers_of: `plan` for the fused layers that run; `network` for those of the typed network before fusion, which
            is all there is to ask without a GPU.
        warnings: What the library warned of, each text once.
    """

    seconds: float
    workspace_bytes: int | None
    layers: tuple[LayerGroup, ...]
    layers_of: Literal['plan', 'network']
    warnings: tuple[str, ...] = ()

    def shares(self) -> dict[str, float]:
        """Return the share of layers of each precision, greatest first; all of them add up to 1."""
        counts: dict[str, int] = {}
        for group in self.layers:
            counts[group.precision] = counts.get(group.precision, 0) + group.count
        total = sum(counts.values())
        ordered = sorted(counts.items(), key=lambda item: -item[1])
        return {precision: count / total for precision, count in ordered}


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltPlan:
    """A plan in a store.

    Attributes:
        path: The plan file.
        key: What it depends on.
        num_bytes: Size of the file.
        sha256: Hash of the file.
        created: Time of the build, ISO 8601 in UTC.
        origin: `built` by this package, or `foreign`: built elsewhere and taken in.
        report: What came out of the build; None for a foreign plan.
    """

    path: Path
    key: PlanKey
    num_bytes: int
    sha256: str
    created: str
    origin: Literal['built', 'foreign']
    report: BuildReport | None = None

    @property
    def kernel_cache_path(self) -> Path:
        """Where TensorRT-RTX keeps the kernels that it compiled for this plan."""
        return self.path.with_suffix('.kernels')


def find_misfits(key: PlanKey, precision: Precision, machine: Machine) -> list[str]:
    """Return why a plan cannot be used, both sides named; nothing when it fits.

    A version-compatible plan fits later versions of its major number, a hardware-compatible one every GPU from Ampere
    on, one of TensorRT-RTX the compute capabilities it was built for. Every other plan fits its own version and GPU.
    """
    misfits: list[str] = []
    built = key.machine
    if key.options.precision != precision:
        misfits.append(f'precision {key.options.precision}, wanted {precision}')
    if built.library != machine.library:
        misfits.append(f'built with {built.library}, to be run with {machine.library}')
    elif not _fits_version(key, machine.version):
        later = ' or later of that major number' if key.options.version_compatible else ''
        misfits.append(
            f'built with {built.library} {built.version}{later}, here is {machine.version}'
        )
    if machine.gpu and not _fits_gpu(key, machine.gpu):
        misfits.append(f'built for {_describe_gpus(key)}, here is {machine.gpu}')
    return misfits


def _fits_version(key: PlanKey, version: str) -> bool:
    built = key.machine.version
    if not key.options.version_compatible:
        return built == version
    old, new = version_numbers(built), version_numbers(version)
    return old[:1] == new[:1] and old <= new


def _fits_gpu(key: PlanKey, gpu: Gpu) -> bool:
    if key.options.targets:
        return '{}.{}'.format(*gpu.compute_capability) in key.options.targets
    if key.machine.gpu is None or key.options.hardware_compatible:
        return gpu.compute_capability >= AMPERE
    return gpu == key.machine.gpu


def _describe_gpus(key: PlanKey) -> str:
    if key.options.targets:
        return f'compute capability {", ".join(key.options.targets)}'
    if key.machine.gpu is None or key.options.hardware_compatible:
        return 'compute capability 8.0 and higher'
    return str(key.machine.gpu)


def version_numbers(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version: `10.6.0.post1` gives (10, 6, 0)."""
    numbers: list[int] = []
    for part in version.split('.'):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)
