# SPDX-License-Identifier: Apache-2.0
"""A checkpoint with seeded random weights, made by the library's own classes from a dataset's columns and statistics."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vla_policy_ros.core.dataset import Dataset
from vla_policy_ros.core.errors import ConfigurationError, DatasetError
from vla_policy_ros.export.groot import eagle, qwen
from vla_policy_ros.export.groot.checkpoint_n15 import METADATA
from vla_policy_ros.export.groot.library import require_gr00t, silent_library
from vla_policy_ros.export.groot.random_data import DataKeys
from vla_policy_ros.export.groot.random_vlm import NetworkSize, write_qwen, write_small_eagle
from vla_policy_ros.export.tracing import require_torch

TAG = 'new_embodiment'
"""The library's name for robots that it does not know."""
_QWEN_NAME = 'nvidia/Cosmos-Reason2-2B'
_SMALL_DIT = {
    'positional_embeddings': None,
    'num_layers': 4,
    'num_attention_heads': 4,
    'attention_head_dim': 8,
    'norm_type': 'ada_norm',
    'final_dropout': True,
    'output_dim': 24,
    'interleave_self_attention': True,
}
_SMALL_SELF_ATTENTION = {
    'positional_embeddings': None,
    'num_layers': 1,
    'num_attention_heads': 6,
    'attention_head_dim': 8,
}
_SMALL_HEAD: dict[str, Any] = {
    'max_state_dim': 32,
    'max_action_dim': 32,
    'action_horizon': 12,
    'hidden_size': 24,
    'input_embedding_dim': 32,
    'backbone_embedding_dim': 48,
    'max_seq_len': 64,
    'diffusion_model_cfg': _SMALL_DIT,
}
# As the published checkpoints have it; the rest are the library's defaults.
_DIT = {
    'positional_embeddings': None,
    'num_layers': 32,
    'num_attention_heads': 32,
    'attention_head_dim': 48,
    'norm_type': 'ada_norm',
    'dropout': 0.2,
    'final_dropout': True,
    'output_dim': 1024,
    'interleave_self_attention': True,
}
_SELF_ATTENTION = {
    'positional_embeddings': None,
    'num_layers': 4,
    'num_attention_heads': 32,
    'attention_head_dim': 64,
    'dropout': 0.2,
    'final_dropout': True,
}
_N17: Mapping[NetworkSize, dict[str, Any]] = {
    'small': {
        **_SMALL_HEAD,
        'select_layer': 3,
        'vl_self_attention_cfg': _SMALL_SELF_ATTENTION,
    },
    'full': {
        'select_layer': 16,
        'diffusion_model_cfg': _DIT,
        'vl_self_attention_cfg': _SELF_ATTENTION,
    },
}
_N16: Mapping[NetworkSize, dict[str, Any]] = {
    'small': {**_SMALL_HEAD, 'select_layer': 3},
    'full': {
        'max_state_dim': 128,
        'max_action_dim': 128,
        'action_horizon': 50,
        'diffusion_model_cfg': _DIT,
    },
}
_N15_ROWS = 16  # of `so100_dualcam`
_N15_BACKBONE: Mapping[NetworkSize, dict[str, Any]] = {
    'small': {'select_layer': 3},
    'full': {'select_layer': 12},
}
_N15: Mapping[NetworkSize, dict[str, Any]] = {
    'small': {
        'max_state_dim': 64,
        'action_dim': 32,
        'action_horizon': _N15_ROWS,
        'num_inference_timesteps': 4,
        'num_target_vision_tokens': 8,
        'hidden_size': 24,
        'input_embedding_dim': 32,
        'backbone_embedding_dim': 48,
        'diffusion_model_cfg': {**_SMALL_DIT, 'cross_attention_dim': 48},
        'vl_self_attention_cfg': _SMALL_SELF_ATTENTION,
    },
    'full': {
        'max_state_dim': 64,
        'action_dim': 32,
        'action_horizon': _N15_ROWS,
        'num_inference_timesteps': 4,
        'backbone_embedding_dim': 2048,
        'diffusion_model_cfg': {**_DIT, 'num_layers': 16, 'cross_attention_dim': 2048},
        'vl_self_attention_cfg': _SELF_ATTENTION,
    },
}
_ROWS: Mapping[NetworkSize, int] = {'small': 8, 'full': 16}
_EDGE_PX: Mapping[NetworkSize, int] = {'small': 96, 'full': 256}


def write_random_checkpoint(
    folder: Path,
    dataset: Dataset,
    *,
    version: str,
    size: NetworkSize = 'small',
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    vlm: Path | None = None,
) -> Path | None:
    """Write a checkpoint as the library's training would begin it; downloads nothing.

    Args:
        folder: Where it goes.
        dataset: Its cameras, state and action, and the statistics of its numbers.
        version: One of `WRITERS`.
        size: `small` for a few narrow layers, `full` for the shape of the published checkpoints.
        seed: Seed of the weights.
        settings: Settings of the policy that differ from those of its size, under the library's names.
        vlm: Folder with configuration and tokenizer of the vision-language model; one is made when None.

    Returns:
        The folder of the vision-language model that the checkpoint is exported with; None for the library's own.

    Raises:
        ConfigurationError: The version is another one (`unsupported_policy`).
        MissingDependencyError: The library is not installed.
        DatasetError: Its episodes are shorter than a chunk (`short_episodes`), or N1.5 has no data config for it
            (`other_dataset`).
        BundleError: The vision-language model's files are not there (`missing_vlm`).
    """
    if version not in WRITERS:
        raise ConfigurationError(
            '--random-init',
            got=version,
            expected=f'one of {", ".join(WRITERS)}',
            next_step='Choose one of these.',
            code='unsupported_policy',
        )
    require_torch().manual_seed(seed)
    with silent_library():
        return WRITERS[version](folder, dataset, size, vlm, settings or {})


def _processor_settings(dataset: Dataset, size: NetworkSize) -> dict[str, Any]:
    """Return what the processors of N1.6 and N1.7 are made of."""
    keys = DataKeys.of_dataset(dataset.info, rows=_ROWS[size])
    return {
        'modality_configs': {TAG: keys.modality_config()},
        'statistics': {TAG: keys.compute_statistics(dataset)},
        'shortest_image_edge': _EDGE_PX[size],
        'crop_fraction': 0.95,
        'use_albumentations': True,
        'use_relative_action': True,
        'use_percentiles': True,
    }


def _write_n17(
    folder: Path,
    dataset: Dataset,
    size: NetworkSize,
    vlm: Path | None,
    settings: Mapping[str, Any],
) -> Path | None:
    configs = require_gr00t('configs.model.gr00t_n1d7', version='n1.7')
    processors = require_gr00t('model.gr00t_n1d7.processing_gr00t_n1d7', version='n1.7')
    files = vlm or folder / 'vlm'
    if vlm is None:
        write_qwen(files, size=size)
    config = configs.Gr00tN1d7Config(model_name=_QWEN_NAME, **{**_N17[size], **settings})
    _save_policy(qwen.build_n17(config, vlm=files), folder)
    processor = processors.Gr00tN1d7Processor(
        model_name=str(files), **_processor_settings(dataset, size), **_state_and_action(config)
    )
    processor.model_name = _QWEN_NAME
    processor.save_pretrained(folder)
    return files


def _write_n16(
    folder: Path,
    dataset: Dataset,
    size: NetworkSize,
    vlm: Path | None,
    settings: Mapping[str, Any],
) -> Path | None:
    configs = require_gr00t('configs.model.gr00t_n1d6', version='n1.6')
    processors = require_gr00t('model.gr00t_n1d6.processing_gr00t_n1d6', version='n1.6')
    vlm = _settle_eagle(folder, size, vlm, version='n1.6')
    config = configs.Gr00tN1d6Config(**{**_N16[size], **settings})
    _save_policy(eagle.build_n16(config, vlm=vlm), folder)
    processor = processors.Gr00tN1d6Processor(
        **_processor_settings(dataset, size), **_state_and_action(config)
    )
    processor.save_pretrained(folder)
    return vlm


def _write_n15(
    folder: Path,
    dataset: Dataset,
    size: NetworkSize,
    vlm: Path | None,
    settings: Mapping[str, Any],
) -> Path | None:
    """Write a checkpoint for the library's data config `so100_dualcam`, which needs a dataset like that arm's."""
    library = require_gr00t('model.gr00t_n1', version='n1.5')
    info = dataset.info
    keys = DataKeys.of_dataset(info, rows=_N15_ROWS, joints='single_arm')
    found = [set(keys.cameras), list(keys.state), list(keys.action)]
    if found != [{'front', 'wrist'}, ['single_arm', 'gripper'], ['single_arm', 'gripper']]:
        raise DatasetError(
            info.name,
            got=f'cameras {", ".join(keys.cameras)}; state {", ".join(keys.state)}; action {", ".join(keys.action)}',
            expected='cameras front and wrist, the joints of an arm and then a gripper, for n1.5',
            next_step='Name a dataset of such an arm; `--dataset sample` is one.',
            code='other_dataset',
        )
    vlm = _settle_eagle(folder, size, vlm, version='n1.5')
    head = {**_N15[size], **settings}
    config = library.GR00T_N1_5_Config(
        backbone_cfg={**_N15_BACKBONE[size], 'project_to_dim': None, 'use_flash_attention': True},
        action_head_cfg=head,
        action_horizon=head['action_horizon'],
        action_dim=head['action_dim'],
    )
    _save_policy(eagle.build_n15(config, vlm=vlm), folder)
    metadata = folder / METADATA
    metadata.parent.mkdir()
    metadata.write_text(json.dumps({TAG: keys.describe_n15(dataset, TAG)}))
    return vlm


def _settle_eagle(
    folder: Path, size: NetworkSize, vlm: Path | None, *, version: str
) -> Path | None:
    """Return the folder of the vision-language model: the one named, a small one that is made here, or None for the library's."""
    if vlm is None and size == 'small':
        vlm = folder / 'vlm'
        write_small_eagle(vlm, version=version)
    return vlm


def _state_and_action(config: Any) -> dict[str, Any]:
    return {
        'max_state_dim': config.max_state_dim,
        'max_action_dim': config.max_action_dim,
        'max_action_horizon': config.action_horizon,
    }


def _save_policy(policy: Any, folder: Path) -> None:
    """Save a policy in the 16 bits of the published ones.

    The layers of each embodiment begin so small that nothing of an observation would show in the actions; they are drawn anew.
    """
    torch = require_torch()
    for layer in policy.action_head.modules():
        if type(layer).__name__ == 'CategorySpecificLinear':
            layer.W.data = torch.randn_like(layer.W) / layer.W.shape[1] ** 0.5
            layer.b.data = 0.1 * torch.randn_like(layer.b)
    policy.to(torch.bfloat16).save_pretrained(folder)


WRITERS: Mapping[str, Callable[..., Path | None]] = {
    'n1.7': _write_n17,
    'n1.6': _write_n16,
    'n1.5': _write_n15,
}
"""Name of a version to what writes a checkpoint of it."""
