# SPDX-License-Identifier: Apache-2.0
"""Configuration and tokenizer of the vision-language model that a policy is built around: found here, never downloaded."""

from __future__ import annotations

import importlib
from pathlib import Path

from vla_policy_ros.core.errors import BundleError
from vla_policy_ros.export.checkpoint_files import bad_checkpoint


def find_vlm(name: str) -> str:
    """Return the folder of a vision-language model.

    Args:
        name: The folder, or a name that the cache of the Hugging Face hub knows.

    Raises:
        ImportError: It is a name, and the library of the hub is not installed.
        BundleError: There is neither (`missing_vlm`).
    """
    if Path(name).is_dir():
        return name
    hub = importlib.import_module('huggingface_hub')
    try:
        return str(hub.snapshot_download(name, local_files_only=True))
    except (OSError, ValueError) as fault:  # not cached, or no name of the hub
        got = 'no such folder, and nothing of this name in the cache of the Hugging Face hub'
        raise missing_vlm(name, got) from fault


def missing_vlm(name: str, got: object) -> BundleError:
    """Return the error of files that are not there or cannot be read; `got` is cut to a line."""
    return bad_checkpoint(
        f'vision-language model {name}',
        got=' '.join(str(got).split())[:160],
        expected='its configuration and tokenizer; no weights are needed',
        next_step='Name a folder that holds them, --vlm FOLDER, or bring them into the cache: '
        "hf download NAME --include '*.json' '*.txt' '*.jinja'",
        code='missing_vlm',
    )
