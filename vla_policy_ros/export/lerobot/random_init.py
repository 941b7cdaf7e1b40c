# SPDX-License-Identifier: Apache-2.0
"""A checkpoint with seeded random weights, made by LeRobot's own classes from a dataset's features and statistics."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vla_policy_ros.core.dataset import Dataset
from vla_policy_ros.core.errors import ConfigurationError
from vla_policy_ros.core.specs import Array
from vla_policy_ros.datasets.lerobot_statistics import compute_number_statistics
from vla_policy_ros.export.dataset_numbers import read_episodes
from vla_policy_ros.export.lerobot.checkpoint import ACTION, STATE
from vla_policy_ros.export.lerobot.convert import FAMILIES
from vla_policy_ros.export.lerobot.library import keep_local, local_tokenizers, require_lerobot
from vla_policy_ros.export.tracing import quiet_library, require_torch

# LeRobot's training takes these for images by default, in place of the dataset's own.
_IMAGENET = {'mean': (0.485, 0.456, 0.406), 'std': (0.229, 0.224, 0.225)}
_IMAGE_BOUNDS = {'min': (0.0, 0.0, 0.0), 'max': (1.0, 1.0, 1.0)}


def write_random_checkpoint(
    folder: Path,
    dataset: Dataset,
    *,
    policy_type: str,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    vlm: Path | None = None,
) -> None:
    """Write a checkpoint as LeRobot's training would begin it; downloads nothing.

    Args:
        folder: Where it goes.
        dataset: Its cameras, state and action, and the statistics of its numbers.
        policy_type: One of `convert.FAMILIES`.
        seed: Seed of the weights.
        settings: Settings of the policy that differ from LeRobot's defaults, under LeRobot's names.
        vlm: Folder with configuration and tokenizer of the vision-language model, for a type that is built around one;
            name it to the export too: a type that has its name in the code keeps that name.

    Raises:
        ConfigurationError: The type is another one (`unsupported_policy`).
        MissingDependencyError: lerobot is not installed, or too old for the type.
        BundleError: The vision-language model's files are not there (`missing_vlm`).
    """
    if policy_type not in FAMILIES:
        raise ConfigurationError(
            '--random-init',
            got=policy_type,
            expected=f'one of {", ".join(FAMILIES)}',
            next_step='Choose one of these.',
            code='unsupported_policy',
        )
    torch = require_torch()
    FAMILIES[policy_type].check_library()
    factory = require_lerobot('policies.factory')
    config = factory.make_policy_config(
        policy_type,
        **{**_features(dataset), 'device': 'cpu', 'push_to_hub': False, **(settings or {})},
    )
    keep_local(config, vlm=vlm)
    statistics = {
        key: {name: torch.from_numpy(values) for name, values in entry.items()}
        for key, entry in _statistics(dataset).items()
    }
    torch.manual_seed(seed)
    # Until 0.3 the statistics are among the policy's weights, since 0.4 in processors beside it.
    with quiet_library():
        policy = factory.get_policy_class(policy_type)(config, dataset_stats=statistics)
        policy.save_pretrained(folder)
        if hasattr(factory, 'make_pre_post_processors'):
            with local_tokenizers(vlm):
                processors = factory.make_pre_post_processors(config, dataset_stats=statistics)
            for processor in processors:
                processor.save_pretrained(folder)


def _features(dataset: Dataset) -> dict[str, Any]:
    types = require_lerobot('configs.types')
    kinds, info = types.FeatureType, dataset.info
    images = {
        camera.key: types.PolicyFeature(kinds.VISUAL, (3, camera.height, camera.width))
        for camera in info.cameras
    }
    state = types.PolicyFeature(kinds.STATE, (len(info.state),))
    action = types.PolicyFeature(kinds.ACTION, (len(info.action or info.state),))
    return {'input_features': {**images, STATE: state}, 'output_features': {ACTION: action}}


def _statistics(dataset: Dataset) -> dict[str, dict[str, Array]]:
    """Return feature to statistic to float32 values; those of images stand in their first dimension."""
    states, actions = zip(*read_episodes(dataset), strict=True)
    numbers = {
        key: {
            name: np.array(values, np.float32)
            for name, values in compute_number_statistics(parts).items()
        }
        for key, parts in ((STATE, states), (ACTION, actions))
    }
    colors = {
        name: np.array(values, np.float32).reshape(3, 1, 1)
        for name, values in {**_IMAGENET, **_IMAGE_BOUNDS}.items()
    }
    return {**{camera.key: colors for camera in dataset.info.cameras}, **numbers}
