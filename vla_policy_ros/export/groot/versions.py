# SPDX-License-Identifier: Apache-2.0
"""What is special about a version of GR00T."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from vla_policy_ros.core.specs import Array
from vla_policy_ros.export.checkpoint_files import bad_checkpoint, read_json
from vla_policy_ros.export.groot import eagle, qwen
from vla_policy_ros.export.groot.backbone import Backbone
from vla_policy_ros.export.groot.checkpoint import (
    CONFIG,
    Checkpoint,
    processor_folder,
    read_checkpoint,
)
from vla_policy_ros.export.groot.checkpoint_n15 import (
    format_camera_n15,
    load_n15,
    make_processor_n15,
    read_checkpoint_n15,
)
from vla_policy_ros.export.groot.images import Size, read_geometry
from vla_policy_ros.export.groot.library import require_gr00t


class BackbonePlanner(Protocol):
    """Plans the vision-language half of a policy."""

    def __call__(
        self,
        model: Any,
        processor: Any,
        images: Mapping[str, Array],
        *,
        sizes: Mapping[str, Size],
        max_words: int,
    ) -> Backbone:
        """Return the plan; arguments as those of `qwen.plan_qwen`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """A version.

    Attributes:
        model_type: What its `config.json` says.
        read: Reads a checkpoint for a robot, or for its only one.
        load: Loads the policy of a checkpoint, float32, on the CPU, for inference, with the folder of its vision-language
            model or None.
        make_processor: Makes the library's processor of a checkpoint for a loaded policy.
        format_camera: Returns the entry of a camera in the manifest for such a processor and the size of the camera's images.
        plan_backbone: Plans the vision-language half.
    """

    model_type: str
    read: Callable[[Path, str | None], Checkpoint]
    load: Callable[[Checkpoint, Path | None], Any]
    make_processor: Callable[[Checkpoint, Any], Any]
    format_camera: Callable[[Any, Size], dict[str, Any]]
    plan_backbone: BackbonePlanner


def find_version(folder: Path) -> Version:
    """Return the version of a checkpoint.

    Raises:
        BundleError: It is of another family or version (`unsupported_policy`), or `config.json` is missing.
    """
    found = read_json(folder / CONFIG).get('model_type')
    for version in VERSIONS.values():
        if version.model_type == found:
            return version
    known = ', '.join(f'{version.model_type} ({name})' for name, version in VERSIONS.items())
    raise bad_checkpoint(
        f'{folder / CONFIG}: model_type',
        got=found,
        expected=f'one of {known}',
        next_step='Name a checkpoint of one of these; no other can be exported so far.',
        code='unsupported_policy',
    )


def _read(version: str) -> Callable[[Path, str | None], Checkpoint]:
    return lambda folder, tag: read_checkpoint(folder, version=version, embodiment=tag)


def _make_processor_n17(checkpoint: Checkpoint, model: Any) -> Any:
    module = require_gr00t('model.gr00t_n1d7.processing_gr00t_n1d7', version='n1.7')
    # Where the files of the vision-language model really are.
    name = model.collator.processor.tokenizer.name_or_path
    folder = processor_folder(checkpoint.folder)
    return module.Gr00tN1d7Processor.from_pretrained(folder, model_name=name)


def _make_processor_n16(checkpoint: Checkpoint, _: Any) -> Any:
    module = require_gr00t('model.gr00t_n1d6.processing_gr00t_n1d6', version='n1.6')
    return module.Gr00tN1d6Processor.from_pretrained(processor_folder(checkpoint.folder))


def _format_camera(
    format_rest: Callable[[Any, Size], dict[str, Any]], processor: Any, size: Size
) -> dict[str, Any]:
    steps, size = read_geometry(processor.eval_image_transform, size)
    rest = format_rest(processor.processor, size)
    steps += [step for step in rest['geometry'] if (step['height'], step['width']) != size]
    return {**rest, 'geometry': steps}


def _plan_eagle(
    model: Any,
    processor: Any,
    images: Mapping[str, Array],
    *,
    sizes: Mapping[str, Size],  # noqa: ARG001 - one signature for all
    max_words: int,
) -> Backbone:
    return eagle.plan_eagle(model, processor.processor, images, max_words=max_words)


def _plan_qwen(
    model: Any,
    processor: Any,
    images: Mapping[str, Array],
    *,
    sizes: Mapping[str, Size],
    max_words: int,
) -> Backbone:
    return qwen.plan_qwen(model, processor.processor, images, sizes=sizes, max_words=max_words)


VERSIONS: Mapping[str, Version] = {
    'n1.7': Version(
        model_type='Gr00tN1d7',
        read=_read('n1.7'),
        load=lambda checkpoint, vlm: qwen.load_n17(checkpoint.folder, vlm=vlm),
        make_processor=_make_processor_n17,
        format_camera=partial(_format_camera, qwen.camera_format),
        plan_backbone=_plan_qwen,
    ),
    'n1.6': Version(
        model_type='Gr00tN1d6',
        read=_read('n1.6'),
        load=lambda checkpoint, vlm: eagle.load_n16(checkpoint.folder, vlm=vlm),
        make_processor=_make_processor_n16,
        format_camera=partial(_format_camera, eagle.camera_format),
        plan_backbone=_plan_eagle,
    ),
    'n1.5': Version(
        model_type='gr00t_n1_5',
        read=lambda folder, tag: read_checkpoint_n15(folder, embodiment=tag),
        load=load_n15,
        make_processor=lambda checkpoint, _: make_processor_n15(checkpoint),
        format_camera=format_camera_n15,
        plan_backbone=_plan_eagle,
    ),
}
"""Name of a version, as in `--random-init`, to what is special about it."""
