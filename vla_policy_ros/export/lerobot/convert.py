# SPDX-License-Identifier: Apache-2.0
"""From a LeRobot checkpoint to a bundle that is proven against LeRobot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_policy_ros.core.dataset import Dataset, DatasetInfo
from vla_policy_ros.export.checkpoint_files import bad_checkpoint, read_json
from vla_policy_ros.export.lerobot.act import plan_act
from vla_policy_ros.export.lerobot.checkpoint import CONFIG, Checkpoint, read_checkpoint
from vla_policy_ros.export.lerobot.diffusion import plan_diffusion
from vla_policy_ros.export.lerobot.flow import settle_cameras
from vla_policy_ros.export.lerobot.library import load_policy, use_vlm
from vla_policy_ros.export.lerobot.manifest import find_names, make_manifest, make_statistics
from vla_policy_ros.export.lerobot.pi0 import (
    LINE_STEP,
    PROMPT_STEP,
    check_library,
    plan_pi0,
    plan_pi05,
)
from vla_policy_ros.export.lerobot.plan import Plan
from vla_policy_ros.export.lerobot.processors import TOKENIZER_STEP
from vla_policy_ros.export.lerobot.smolvla import NEWLINE_STEP, plan_smolvla
from vla_policy_ros.export.proof import ProvenBundle, new_folder, policy_name
from vla_policy_ros.export.traced_bundle import settle_step_ns, write_traced_bundle


def _keep(checkpoint: Checkpoint, info: DatasetInfo | None) -> Checkpoint:  # noqa: ARG001 - one signature for all
    return checkpoint


def _take_any_library() -> None:
    pass


@dataclass(frozen=True, slots=True)
class Family:
    """What is special about a model family.

    Attributes:
        make_plan: Plans the export of a checkpoint and its policy.
        own_steps: Steps before the network that the family follows by itself.
        takes_any_state: Whether the network pads the state to a fixed width.
        settle: Fits the checkpoint to the dataset of its training, None for no dataset.
        check_library: Refuses a lerobot that is too old for the family.
    """

    make_plan: Callable[[Checkpoint, Any], Plan]
    own_steps: tuple[str, ...] = ()
    takes_any_state: bool = False
    settle: Callable[[Checkpoint, DatasetInfo | None], Checkpoint] = _keep
    check_library: Callable[[], None] = _take_any_library

    def read(self, folder: Path) -> Checkpoint:
        """Read a checkpoint of this family; raises as `read_checkpoint` does."""
        return read_checkpoint(
            folder, own_steps=self.own_steps, takes_any_state=self.takes_any_state
        )


FAMILIES: Mapping[str, Family] = {
    'act': Family(plan_act),
    'diffusion': Family(plan_diffusion),
    'smolvla': Family(
        plan_smolvla,
        own_steps=(NEWLINE_STEP, TOKENIZER_STEP),
        takes_any_state=True,
        settle=settle_cameras,
    ),
    'pi0': Family(
        plan_pi0,
        own_steps=(LINE_STEP, TOKENIZER_STEP),
        takes_any_state=True,
        settle=settle_cameras,
        check_library=check_library,
    ),
    'pi05': Family(
        plan_pi05,
        own_steps=(PROMPT_STEP, TOKENIZER_STEP),
        takes_any_state=True,
        settle=settle_cameras,
        check_library=check_library,
    ),
}
"""LeRobot's name of a family to what is special about it."""


@dataclass(frozen=True, slots=True)
class Export(ProvenBundle):
    """What came out; the whole policy is held against LeRobot's own code.

    Attributes:
        executed_rows: Rows of a chunk that the policy was made to execute, from the observation on.
    """

    executed_rows: int


def export_checkpoint(
    folder: Path,
    out: Path,
    *,
    dataset: Dataset | None = None,
    step_ns: int | None = None,
    origin: str = '',
    vlm: Path | None = None,
) -> Export:
    """Write a bundle of a LeRobot checkpoint and compare it with LeRobot.

    Args:
        folder: The checkpoint, as `save_pretrained` writes it.
        out: Where the bundle goes; made when it is not there, else it must be empty.
        dataset: Names cameras and columns, says the step, and gives the observation of the probe.
        step_ns: Time between two steps of the training data; the dataset's when None.
        origin: What the bundle names as its checkpoint; the folder when empty.
        vlm: Folder with configuration and tokenizer of the vision-language model; what the checkpoint names when None.

    Raises:
        ConfigurationError: Nobody says the step (`unknown_step_time`).
        MissingDependencyError: lerobot or torch is not installed, or lerobot too old for the family.
        DatasetError: The dataset is not one of the policy's.
        BundleError: The checkpoint is broken or of another family (`unsupported_policy`), or `out` is not empty.
        EngineError: A network cannot be traced, or computes something else afterwards (`not_equal`).
    """
    family, info = _find_family(folder), dataset.info if dataset else None
    family.check_library()
    checkpoint = use_vlm(family.settle(family.read(folder), info), vlm)
    step_ns = settle_step_ns(step_ns, dataset)
    names = find_names(checkpoint, info)
    with new_folder(out):
        plan = family.make_plan(checkpoint, load_policy(checkpoint, vlm=vlm))
        manifest = make_manifest(checkpoint, plan, names, name=policy_name(out), step_ns=step_ns)
        manifest['source']['checkpoint'] = origin or str(folder)
        proven = write_traced_bundle(
            out,
            manifest,
            stages=plan.stages,
            statistics=make_statistics(checkpoint),
            words=plan.words,
            dataset=dataset,
            reference=plan.reference,
        )
    return Export(proven.bundle, proven.stages, proven.policy, plan.executed_rows)


def _find_family(folder: Path) -> Family:
    """Ask before anything else is read: other families keep things that are not known here."""
    policy_type = str(read_json(folder / CONFIG).get('type'))
    if policy_type not in FAMILIES:
        raise bad_checkpoint(
            f'{folder / CONFIG}: type',
            got=policy_type,
            expected=f'one of {", ".join(FAMILIES)}',
            next_step='Name a checkpoint of one of these; no other can be exported so far.',
            code='unsupported_policy',
        )
    return FAMILIES[policy_type]
