# SPDX-License-Identifier: Apache-2.0
"""What every export ends with: its bundle held against the source, stage by stage and as a whole, and the probe."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np

from vla_policy_ros.bundle.bundle import Bundle
from vla_policy_ros.bundle.limits import limit_for
from vla_policy_ros.bundle.manifest import Precision, Stage
from vla_policy_ros.bundle.onnx_model import read_model
from vla_policy_ros.bundle.probe import Probe, write_probe
from vla_policy_ros.core.dataset import Dataset
from vla_policy_ros.core.engine import Engine
from vla_policy_ros.core.errors import BundleError, EngineError, MissingDependencyError
from vla_policy_ros.core.frame import Frame, PreparedFrame
from vla_policy_ros.core.observation import Observation
from vla_policy_ros.core.specs import Array
from vla_policy_ros.engines.registry import load_engine
from vla_policy_ros.engines.settings import EngineSettings
from vla_policy_ros.evaluation.parity import Parity, join_parities, measure_parity
from vla_policy_ros.evaluation.sampling import sample_observations
from vla_policy_ros.export.operators import count_operators
from vla_policy_ros.export.simplify import replace_network, simplify_network
from vla_policy_ros.policies.engine_policy import EnginePolicy
from vla_policy_ros.policies.inputs import example_observation
from vla_policy_ros.policies.stage_probe import StageProbe

ENGINE: Final = 'onnxruntime'
"""What an export is proven with."""
PROBE: Final = 'probe.npz'
"""Name of the probe's file."""


@dataclass(frozen=True, slots=True, eq=False)
class StageExample:
    """What a stage is given, and what the source makes of it.

    Attributes:
        inputs: Input of the network to values.
        outputs: Output of the network to the source's values.
    """

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class StageProof:
    """One stage of an exported bundle.

    Attributes:
        parity: How near it comes to the source, as it is in the bundle.
        opset: Version of the standard operators.
        nodes_before: Number of nodes before it was simplified.
        nodes: Number of nodes in the bundle.
        unsimplified: Why it was not simplified; empty when it was, or when there was nothing to simplify.
    """

    parity: Parity
    opset: int
    nodes_before: int
    nodes: int
    unsimplified: str = ''


@dataclass(frozen=True, slots=True)
class ProvenBundle:
    """An exported bundle, and how near it came.

    Attributes:
        bundle: The bundle.
        stages: Each stage, simplified, on the CPU against the source, by its name.
        policy: The whole policy against the source, on the probe.
    """

    bundle: Bundle
    stages: Mapping[str, StageProof]
    policy: Parity


def check_empty(folder: Path) -> None:
    """Make the folder of a new bundle.

    Raises:
        BundleError: It holds something (`folder_not_empty`).
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = sorted(path.name for path in folder.iterdir())
    if found:
        raise BundleError(
            str(folder),
            got=', '.join(found[:5]),
            expected='an empty folder',
            next_step='Choose another folder, or remove the old bundle.',
            code='folder_not_empty',
        )


@contextmanager
def new_folder(folder: Path) -> Iterator[None]:
    """Make the folder of a new bundle for a `with` block; leave nothing there when the block fails.

    Raises:
        BundleError: It holds something (`folder_not_empty`).
    """
    was_there = folder.exists()
    check_empty(folder)
    with ExitStack() as undo:
        if was_there:
            undo.callback(folder.mkdir)
        undo.callback(shutil.rmtree, folder)
        yield
        undo.pop_all()


def policy_name(out: Path) -> str:
    """Return the name of a policy that is exported to a folder."""
    return re.sub(r'[^A-Za-z0-9_.\-]', '_', out.absolute().name)[:64]


def probe_observation(bundle: Bundle, dataset: Dataset | None) -> Observation:
    """Return the first observation of a dataset; without one, seeded noise for images and state.

    Noise tells cameras and columns apart where black images and zeros would hide that they are exchanged.

    Raises:
        DatasetError: The dataset lacks what the policy wants.
    """
    if dataset is not None:
        return next(sample_observations(dataset, bundle.spec, count=1))
    random = np.random.default_rng(0)
    example = example_observation(bundle)
    images = {
        name: tuple(_noise_frame(frame, random) for frame in frames)
        for name, frames in example.images.items()
    }
    return replace(example, images=images, state=_noise_state(bundle, example.state.shape, random))


def compare_stages(
    bundle: Bundle, examples: Sequence[StageExample], *, source: str
) -> dict[str, StageProof]:
    """Simplify every stage, and run it by itself on the values of its example.

    A stage that cannot be simplified, or computes something else then, stays as it was. The files of the bundle change:
    `write_bundle` must follow.

    Args:
        bundle: The bundle.
        examples: One per stage, in their order.
        source: What the wanted outputs come from, for the error.

    Raises:
        EngineError: A stage computes something else, also as it was (`not_equal`).
    """
    proofs = {}
    for stage, example in zip(bundle.manifest.stages, examples, strict=True):
        path = bundle.folder / stage.onnx
        nodes_before = nodes = _count_nodes(path)
        parity, reason = _try_simplified(bundle, stage, example)
        if parity is None:
            parity = _measure_stage(bundle, stage, example, path)
            check_parity(stage.name, parity, [stage.precision], source=source)
        else:
            nodes = _count_nodes(path)
        opset = read_model(path, str(path)).opset
        proofs[stage.name] = StageProof(parity, opset, nodes_before, nodes, reason)
    return proofs


def _try_simplified(
    bundle: Bundle, stage: Stage, example: StageExample
) -> tuple[Parity | None, str]:
    """Put a simplified network in the place of a stage's if there is one that is as good.

    Returns:
        How near it comes to the source, None when the stage is as it was, and why it is.
    """
    path = bundle.folder / stage.onnx
    with TemporaryDirectory(dir=bundle.folder) as folder:
        simpler = Path(folder) / path.name
        try:
            if not simplify_network(path, simpler):
                return None, ''
            parity = _measure_stage(bundle, stage, example, simpler)
        except MissingDependencyError as fault:
            return None, f'{fault.got}. {fault.next_step}'
        except EngineError as fault:
            return None, fault.got
        if not parity.is_within(limit_for([stage.precision])):
            return None, (
                'What onnxslim makes of it computes something else: '
                f'cosine {parity.cosine:.6f}, maximum error {parity.max_error:.3g}.'
            )
        replace_network(path, simpler)
    return parity, ''


def _measure_stage(bundle: Bundle, stage: Stage, example: StageExample, path: Path) -> Parity:
    """Run one file as a stage."""

    def load(name: str, onnx_path: Path, *, settings: EngineSettings) -> Engine:  # noqa: ARG001
        return load_engine(name, path, settings=settings)

    with closing(StageProbe(bundle, stage, engine=ENGINE, load=load)) as probe:
        outputs = probe.run(example.inputs)
    return join_parities(
        measure_parity(outputs[name], wanted) for name, wanted in example.outputs.items()
    )


def _count_nodes(path: Path) -> int:
    return sum(count_operators(path).values())


def prove_policy(
    bundle: Bundle,
    observation: Observation,
    reference: Callable[[Mapping[str, Array]], Probe],
    *,
    source: str,
) -> Parity:
    """Run the policy on an observation, here and in the source; keep the source's result as the probe.

    Args:
        bundle: The bundle.
        observation: What both get, preprocessed here.
        reference: Runs the source on the tensors that the observation fills.
        source: Its name, for the error.

    Raises:
        EngineError: The policy computes something else (`not_equal`).
    """
    with closing(EnginePolicy(bundle, engine=ENGINE)) as policy:
        inputs, _ = policy.pool_inputs(observation)
        wanted = reference(inputs)
        output = policy.run_pool(inputs, wanted.noise)
    write_probe(bundle.folder / PROBE, wanted)
    parity = measure_parity(output, wanted.output)
    check_parity('policy', parity, [s.precision for s in bundle.manifest.stages], source=source)
    return parity


def check_parity(
    name: str, parity: Parity, precisions: Sequence[Precision], *, source: str
) -> None:
    """Refuse what lies outside of the limits.

    Args:
        name: Stage or policy.
        parity: How near it came.
        precisions: Of the stages that it is made of.
        source: What it was held against.

    Raises:
        EngineError: It computes something else (`not_equal`).
    """
    limit = limit_for(precisions)
    if not parity.is_within(limit):
        raise EngineError(
            name,
            got=f'cosine {parity.cosine:.6f}, maximum error {parity.max_error:.3g} against {source}',
            expected=f'cosine >= {limit.min_cosine}, maximum error <= {limit.max_error}',
            next_step='Do not use this bundle; export with other versions of the libraries, and report the versions.',
            code='not_equal',
        )


def _noise_frame(frame: Frame | PreparedFrame, random: np.random.Generator) -> Frame:
    assert isinstance(frame, Frame)  # an example is raw
    pixels = random.integers(0, 256, (frame.height, frame.width, 3), np.uint8)
    return Frame.from_rgb(frame.camera, frame.stamp_ns, pixels)


def _noise_state(bundle: Bundle, shape: tuple[int, ...], random: np.random.Generator) -> Array:
    """Return states within what the statistics say, within [-1, 1] where there are none."""
    state = bundle.manifest.state
    values = random.uniform(0, 1, shape)
    column = 0
    for group in state.groups if state else ():
        statistics = bundle.statistics.get(group.name)
        low, high = (statistics.min, statistics.max) if statistics else (-1.0, 1.0)
        columns = slice(column, column + len(group.names))
        values[:, columns] = low + values[:, columns] * (high - low)
        column = columns.stop
    return values.astype(np.float32)
