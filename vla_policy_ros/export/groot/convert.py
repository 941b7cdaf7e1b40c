# SPDX-License-Identifier: Apache-2.0
"""From a GR00T checkpoint to a bundle that is proven against the library."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vla_policy_ros.bundle.bundle import Bundle
from vla_policy_ros.bundle.files import hash_file
from vla_policy_ros.bundle.statistics import write_statistics
from vla_policy_ros.bundle.writer import write_bundle
from vla_policy_ros.core.dataset import Dataset
from vla_policy_ros.core.errors import ConfigurationError
from vla_policy_ros.export.groot.checkpoint import Checkpoint
from vla_policy_ros.export.groot.images import Size
from vla_policy_ros.export.groot.manifest import (
    STATISTICS,
    TOKENIZER,
    make_manifest,
    make_statistics,
)
from vla_policy_ros.export.groot.names import Names, find_names, make_names
from vla_policy_ros.export.groot.policy import GrootPolicy
from vla_policy_ros.export.groot.versions import find_version
from vla_policy_ros.export.proof import (
    PROBE,
    ProvenBundle,
    StageExample,
    compare_stages,
    new_folder,
    policy_name,
    probe_observation,
    prove_policy,
)
from vla_policy_ros.export.tracing import TracedStage, trace

_SOURCE = 'PyTorch'


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainingData:
    """What the checkpoint does not know of the data that it was trained with.

    Attributes:
        dataset: The dataset; None for none.
        modality: Its `modality.json`; None when it has none.
        step_ns: Time between two steps; the dataset's when None.
        image_size: Size of the images of all cameras; read only without a dataset.
    """

    dataset: Dataset | None = None
    modality: Path | None = None
    step_ns: int | None = None
    image_size: Size | None = None

    def find_names(self, checkpoint: Checkpoint) -> Names:
        """Return the names of cameras and columns; raises as `names` does."""
        if self.dataset is None:
            return make_names(checkpoint.embodiment, image_size=self.image_size)
        return find_names(checkpoint.embodiment, self.dataset.info, self.modality)

    def find_step(self) -> int:
        """Return the time between two steps.

        Raises:
            ConfigurationError: Nobody says it (`unknown_step_time`).
        """
        if self.step_ns is not None:
            return self.step_ns
        if self.dataset is None:
            raise ConfigurationError(
                '--fps',
                got='nothing, and no --dataset',
                expected='the rate of the training data, which the checkpoint does not hold',
                next_step='Name the dataset that the policy was trained on, or its frames per second.',
                code='unknown_step_time',
            )
        return self.dataset.info.step_ns


def export_groot(
    folder: Path,
    out: Path,
    *,
    data: TrainingData,
    embodiment: str | None = None,
    vlm: Path | None = None,
    max_words: int = 48,
    origin: str = '',
) -> ProvenBundle:
    """Write a bundle of a GR00T checkpoint and compare it with the library.

    Args:
        folder: The checkpoint, as the library's training writes it.
        out: Where the bundle goes; made when it is not there, else it must be empty.
        data: What is known of the training data.
        embodiment: The library's name of the robot; the only one of the checkpoint when None.
        vlm: Folder with configuration and tokenizer of the vision-language model; what the checkpoint names when None.
        max_words: Room for the tokens of an instruction.
        origin: What the bundle names as its checkpoint; the folder when empty.

    Raises:
        ConfigurationError: Nobody says the step (`unknown_step_time`) or the size of images (`unknown_image_size`).
        MissingDependencyError: The library or torch is not installed.
        DatasetError: The dataset is not one of the policy's.
        BundleError: The checkpoint is broken, of another version (`unsupported_policy`), or uses what a bundle cannot follow;
            or `out` is not empty.
        EngineError: A network cannot be traced, or computes something else afterwards (`not_equal`).
    """
    _, version = find_version(folder)
    checkpoint = version.read(folder, embodiment)
    step_ns, names = data.find_step(), data.find_names(checkpoint)
    with new_folder(out):
        policy = GrootPolicy.open(version, checkpoint, vlm)
        plan, backbone = policy.plan(names, max_words)
        manifest = make_manifest(checkpoint, plan, names, name=policy_name(out), step_ns=step_ns)
        manifest['source'] = _describe_source(checkpoint, origin)
        if statistics := make_statistics(checkpoint.embodiment):
            write_statistics(out / STATISTICS, statistics)
        (out / TOKENIZER).write_text(plan.words.tokenizer, encoding='utf-8')
        for stage in plan.stages:
            trace(stage, out)
        bundle = write_bundle(out, manifest)
        parities = compare_stages(bundle, _examples(bundle, plan.stages), source=_SOURCE)
        whole = prove_policy(
            bundle,
            probe_observation(bundle, data.dataset),
            partial(policy.run_library, backbone),
            source=_SOURCE,
        )
        bundle = write_bundle(out, {**manifest, 'probe': PROBE})
    return ProvenBundle(bundle, parities, whole)


def _examples(bundle: Bundle, stages: Sequence[TracedStage]) -> list[StageExample]:
    """Return every stage's example values, and what PyTorch makes of them."""
    return [
        StageExample(traced.inputs, dict.fromkeys(stage.outputs, traced.run()))
        for traced, stage in zip(stages, bundle.manifest.stages, strict=True)
    ]


def _describe_source(checkpoint: Checkpoint, origin: str) -> dict[str, str]:
    robot = checkpoint.embodiment
    hashes = [hash_file(path) for path in checkpoint.weights]
    whole = hashes[0] if len(hashes) == 1 else hashlib.sha256(''.join(hashes).encode()).hexdigest()
    return {
        'checkpoint': origin or str(checkpoint.folder),
        'sha256': whole,
        'note': f'GR00T {checkpoint.version}; {robot.tag}, projector {robot.number}.',
    }
