# SPDX-License-Identifier: Apache-2.0
"""From a GR00T checkpoint to a bundle that is proven against the library."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vla_policy_ros.bundle.files import hash_file
from vla_policy_ros.core.dataset import Dataset
from vla_policy_ros.export.groot.checkpoint import Checkpoint
from vla_policy_ros.export.groot.images import Size
from vla_policy_ros.export.groot.manifest import make_manifest, make_statistics
from vla_policy_ros.export.groot.names import Names, find_names, make_names
from vla_policy_ros.export.groot.policy import GrootPolicy
from vla_policy_ros.export.groot.versions import find_version
from vla_policy_ros.export.proof import ProvenBundle, new_folder, policy_name
from vla_policy_ros.export.traced_bundle import settle_step_ns, write_traced_bundle


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
    version = find_version(folder)
    checkpoint = version.read(folder, embodiment)
    step_ns, names = settle_step_ns(data.step_ns, data.dataset), data.find_names(checkpoint)
    with new_folder(out):
        policy = GrootPolicy.open(version, checkpoint, vlm)
        plan, backbone = policy.plan(names, max_words)
        manifest = make_manifest(checkpoint, plan, names, name=policy_name(out), step_ns=step_ns)
        manifest['source'] = _describe_source(checkpoint, origin)
        return write_traced_bundle(
            out,
            manifest,
            stages=plan.stages,
            statistics=make_statistics(checkpoint.embodiment),
            words=plan.words,
            dataset=data.dataset,
            reference=partial(policy.run_library, backbone),
        )


def _describe_source(checkpoint: Checkpoint, origin: str) -> dict[str, str]:
    robot = checkpoint.embodiment
    hashes = [hash_file(path) for path in checkpoint.weights]
    whole = hashes[0] if len(hashes) == 1 else hashlib.sha256(''.join(hashes).encode()).hexdigest()
    return {
        'checkpoint': origin or str(checkpoint.folder),
        'sha256': whole,
        'note': f'GR00T {checkpoint.version}; {robot.tag}, projector {robot.number}.',
    }
