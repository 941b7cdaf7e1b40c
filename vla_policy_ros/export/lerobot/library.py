# SPDX-License-Identifier: Apache-2.0
"""LeRobot itself: imported here only, when a checkpoint is loaded or made."""

from __future__ import annotations

import importlib
from typing import Any

from vla_policy_ros.core.errors import MissingDependencyError
from vla_policy_ros.export.lerobot.checkpoint import CONFIG, Checkpoint
from vla_policy_ros.export.lerobot.faults import bad_checkpoint
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


def load_policy(checkpoint: Checkpoint) -> Any:
    """Load a checkpoint with LeRobot's own classes, on the CPU, for inference; downloads nothing.

    Raises:
        MissingDependencyError: lerobot is not installed.
        BundleError: This lerobot does not know the configuration (`other_lerobot`), or weights are missing
            (`missing_weights`).
    """
    config = _load_config(checkpoint)
    config.device = 'cpu'
    # Weights of the backbone are in the checkpoint; LeRobot would fetch the ones it was started from.
    config.pretrained_backbone_weights = None
    config.compile_model = False
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
