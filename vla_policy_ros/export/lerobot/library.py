# SPDX-License-Identifier: Apache-2.0
"""LeRobot itself: imported here only, when a checkpoint is loaded or made."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from vla_policy_ros.core.errors import BundleError, MissingDependencyError
from vla_policy_ros.export.lerobot.checkpoint import CONFIG, Checkpoint
from vla_policy_ros.export.lerobot.faults import bad_checkpoint
from vla_policy_ros.export.lerobot.processors import PREPROCESSOR, TOKENIZER_STEP
from vla_policy_ros.export.tracing import quiet_library, require_torch


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
        vlm: Folder with configuration and tokenizer of the vision-language model, for a policy that is built around one;
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
    if hasattr(config, 'vlm_model_name'):
        config.vlm_model_name = _find_vlm(str(vlm or config.vlm_model_name))


def _find_vlm(name: str) -> str:
    """Return the folder of a vision-language model whose processor can be made of it."""
    try:
        processor = importlib.import_module('transformers').AutoProcessor
        folder = name if Path(name).is_dir() else _find_cached(name)
        with quiet_library():
            processor.from_pretrained(folder, local_files_only=True)
    except ImportError as fault:
        raise MissingDependencyError(
            'export lerobot',
            got=str(fault),
            expected='transformers and num2words in this Python environment',
            next_step="Install what LeRobot needs for the policy: pip install 'lerobot[smolvla]'",
        ) from fault
    except (OSError, ValueError) as fault:
        raise _missing_vlm(name, ' '.join(str(fault).split())[:160]) from fault
    return folder


def _find_cached(name: str) -> str:
    hub = importlib.import_module('huggingface_hub')
    try:
        return str(hub.snapshot_download(name, local_files_only=True))
    except (OSError, ValueError) as fault:  # not cached, or no name of the hub
        got = 'no such folder, and nothing of this name in the cache of the Hugging Face hub'
        raise _missing_vlm(name, got) from fault


def _missing_vlm(name: str, got: str) -> BundleError:
    return bad_checkpoint(
        f'vision-language model {name}',
        got=got,
        expected='its configuration and tokenizer; no weights are needed',
        next_step='Name a folder that holds them, --vlm FOLDER, or bring them into the cache: '
        "hf download NAME --include '*.json' '*.txt'",
        code='missing_vlm',
    )


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
    if trained not in (None, own):
        raise bad_checkpoint(
            checkpoint.folder / PREPROCESSOR,
            got=f'tokenizer {trained}',
            expected=f'that of {own}, which {CONFIG} names',
            next_step='Name the folder whose configuration and tokenizer are right for both: --vlm FOLDER.',
            code='other_tokenizer',
        )


def _check_weights(checkpoint: Checkpoint, policy: Any) -> None:
    """Refuse a checkpoint that leaves weights as they were made: LeRobot loads what is there and says no more."""
    # Statistics that some versions keep among the weights are read from the files.
    statistics = ('normalize_', 'unnormalize_')
    wanted = {name for name in policy.state_dict() if not name.startswith(statistics)}
    missing = sorted(wanted - checkpoint.weights)
    if missing:
        raise bad_checkpoint(
            checkpoint.weights_path,
            got=f'no {", ".join(missing[:3])}, {len(missing)} of {len(wanted)} missing',
            expected='all weights of the policy',
            next_step='Export with the version of lerobot that the policy was trained with.',
            code='missing_weights',
        )
