# SPDX-License-Identifier: Apache-2.0
"""LeRobot itself: imported here only, when a checkpoint is loaded or made."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from vla_policy_ros.core.errors import MissingDependencyError
from vla_policy_ros.export.checkpoint_files import bad_checkpoint
from vla_policy_ros.export.lerobot.checkpoint import CONFIG, Checkpoint
from vla_policy_ros.export.lerobot.processors import PREPROCESSOR, TOKENIZER_STEP
from vla_policy_ros.export.tracing import quiet_library, replaced, require_torch
from vla_policy_ros.export.vlm_files import find_vlm, missing_vlm


def require_lerobot(module: str) -> Any:
    """Return a module of lerobot.

    Args:
        module: Its name after `lerobot.`.

    Raises:
        MissingDependencyError: lerobot, or a library that this part of it needs, is not installed.
    """
    require_torch()
    try:
        with quiet_library():
            importlib.import_module('torchvision.io')  # lerobot's, at a time that it chooses
            return importlib.import_module(f'lerobot.{module}')
    except ImportError as fault:
        raise MissingDependencyError(
            'export lerobot',
            got=str(fault),
            expected='lerobot 0.3.3 or later in this Python environment',
            next_step='Run the export in the environment that the policy was trained in, or: pip install lerobot',
        ) from fault


def keep_local(config: Any, *, vlm: Path | None) -> None:
    """Let a policy of this configuration be made on the CPU with no download.

    Args:
        config: LeRobot's configuration of the policy.
        vlm: Folder with configuration and tokenizer of the vision-language model, for a policy that is built of them;
            when None, the folder that the configuration names, or what transformers keeps of the name in its cache.

    Raises:
        MissingDependencyError: transformers, or what it needs for this model, is not installed.
        BundleError: The vision-language model's files are not there (`missing_vlm`).
    """
    config.device = 'cpu'
    # The policy's own weights come after these.
    config.pretrained_backbone_weights = None
    config.load_vlm_weights = False
    config.compile_model = False
    config.gradient_checkpointing = False
    if hasattr(config, 'vlm_model_name'):
        # A folder of which its processor can be made.
        config.vlm_model_name, _ = _load_local('AutoProcessor', str(vlm or config.vlm_model_name))


def use_vlm(checkpoint: Checkpoint, vlm: Path | None) -> Checkpoint:
    """Return the checkpoint with the tokenizer of a folder in place of the one that it names, when there is one."""
    step = checkpoint.steps.get(TOKENIZER_STEP)
    if vlm is None or step is None:
        return checkpoint
    return replace(
        checkpoint,
        steps={**checkpoint.steps, TOKENIZER_STEP: {**step, 'tokenizer_name': str(vlm)}},
    )


def load_tokenizer(name: str) -> Any:
    """Load a tokenizer of transformers; downloads nothing.

    Args:
        name: Its folder, or a name that the cache of the Hugging Face hub knows.

    Raises:
        MissingDependencyError: transformers, or what it needs for this tokenizer, is not installed.
        BundleError: The files are not there (`missing_vlm`).
    """
    return _load_local('AutoTokenizer', name)[1]


@contextmanager
def local_tokenizers(vlm: Path | None) -> Iterator[None]:
    """Let LeRobot make its steps with no download: some families name their tokenizer in the code alone.

    Args:
        vlm: Folder of the tokenizer, whatever name LeRobot has for it; when None, what that name stands for.
    """
    module = require_lerobot('processor.tokenizer_processor')
    with replaced(module, AutoTokenizer=_LocalTokenizers(vlm)):
        yield


class _LocalTokenizers:
    """What LeRobot asks for tokenizers, in place of transformers' class."""

    def __init__(self, vlm: Path | None) -> None:
        self._vlm = vlm

    def from_pretrained(self, name: str) -> Any:
        return load_tokenizer(str(self._vlm or name))


def _load_local(kind: str, name: str) -> tuple[str, Any]:
    """Return a folder, and what one of transformers' automatic classes makes of it."""
    try:
        auto = getattr(importlib.import_module('transformers'), kind)
        folder = find_vlm(name)
        try:
            with quiet_library():
                return folder, auto.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as fault:
            raise missing_vlm(name, fault) from fault
    except ImportError as fault:
        raise MissingDependencyError(
            'export lerobot',
            got=str(fault),
            expected='transformers, and what it needs for this policy, in this Python environment',
            next_step="Install what LeRobot needs for the policy: pip install 'lerobot[smolvla]' or 'lerobot[pi]'",
        ) from fault


def load_policy(checkpoint: Checkpoint, *, vlm: Path | None = None) -> Any:
    """Load a checkpoint with LeRobot's own classes, on the CPU, for inference; downloads nothing.

    Args:
        checkpoint: The checkpoint.
        vlm: As `keep_local` takes it.

    Raises:
        MissingDependencyError: lerobot is not installed.
        BundleError: This lerobot does not know the configuration (`other_lerobot`), or weights are missing
            (`missing_weights`), or the vision-language model's files are not there (`missing_vlm`) or not those of its
            tokenizer (`other_tokenizer`).
    """
    config = _load_config(checkpoint)
    if vlm is None:
        _check_tokenizer(checkpoint)
    keep_local(config, vlm=vlm)
    policy_class = require_lerobot('policies.factory').get_policy_class(checkpoint.policy_type)
    with quiet_library():
        policy = policy_class.from_pretrained(str(checkpoint.folder), config=config)
    _check_weights(checkpoint, policy)
    return policy.eval()


def _load_config(checkpoint: Checkpoint) -> Any:
    require_lerobot('policies.factory')  # registers the configurations of all families
    base = require_lerobot('configs.policies').PreTrainedConfig
    unknown_setting = importlib.import_module('draccus.utils').DraccusException
    try:
        return base.from_pretrained(str(checkpoint.folder))
    except unknown_setting as fault:
        raise bad_checkpoint(
            checkpoint.folder / CONFIG,
            got=' '.join(str(fault).split())[:300],
            expected='settings that the installed lerobot knows',
            next_step='Export with the version of lerobot that the policy was trained with, or a later one.',
            code='other_lerobot',
        ) from fault


def _check_tokenizer(checkpoint: Checkpoint) -> None:
    """Refuse a tokenizer that is not the network's: a policy may be trained with another folder of the same model."""
    trained = checkpoint.steps.get(TOKENIZER_STEP, {}).get('tokenizer_name')
    own = checkpoint.config.get('vlm_model_name')
    if own is not None and trained not in (None, own):
        raise bad_checkpoint(
            checkpoint.folder / PREPROCESSOR,
            got=f'tokenizer {trained}',
            expected=f'that of {own}, which {CONFIG} names',
            next_step='Name the folder whose configuration and tokenizer are right for both: --vlm FOLDER.',
            code='other_tokenizer',
        )


def _check_weights(checkpoint: Checkpoint, policy: Any) -> None:
    """Refuse weights that are not those of the file: LeRobot leaves some as they were made, after a fault too, and goes on."""
    # Statistics that some versions keep among the weights are read from the files.
    statistics = ('normalize_', 'unnormalize_')
    wanted = {
        name: values
        for name, values in policy.state_dict().items()
        if not name.startswith(statistics)
    }
    other = sorted(_find_other_weights(checkpoint, wanted))
    if other:
        raise bad_checkpoint(
            checkpoint.weights_path,
            got=f'{", ".join(other[:3])} missing or not loaded, {len(other)} of {len(wanted)} weights',
            expected='all weights of the policy, as LeRobot loads them',
            next_step='Export with the version of lerobot that the policy was trained with.',
            code='missing_weights',
        )


def _find_other_weights(checkpoint: Checkpoint, wanted: Mapping[str, Any]) -> Iterator[str]:
    """Yield the weights that are not in the file, or in use with other values; π0's may lack `model.` before their names."""
    torch, safetensors = require_torch(), importlib.import_module('safetensors')
    with safetensors.safe_open(str(checkpoint.weights_path), framework='pt') as file:
        for name, values in wanted.items():
            names = {name, name.removeprefix('model.')} & checkpoint.weights
            held = [file.get_tensor(found).to(values.dtype) for found in names]
            if not any(torch.equal(one, values) for one in held):
                yield name
