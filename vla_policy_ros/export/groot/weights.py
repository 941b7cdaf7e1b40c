# SPDX-License-Identifier: Apache-2.0
"""Weights of a policy that the library's own classes make: left as the memory is, and filled from a checkpoint."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vla_policy_ros.export.checkpoint_files import bad_checkpoint


@contextmanager
def left_empty() -> Iterator[None]:
    """Leave the weights of modules that are made as the memory is; does not nest, since transformers' own does not."""
    with importlib.import_module('transformers.modeling_utils').no_init_weights():
        yield


def load_weights(model: Any, folder: Path) -> None:
    """Fill a module with the weights of a checkpoint.

    Raises:
        BundleError: Some are not there (`missing_weights`), or they are of other shapes (`other_vlm`).
    """
    read = importlib.import_module('safetensors.torch').load_file
    # The head of the language model is not used, and not kept where it is the embedding.
    wanted = {name for name in model.state_dict() if not name.endswith('lm_head.weight')}
    missing = set(wanted)
    for path in sorted(folder.glob('*.safetensors')):
        weights = read(path)
        try:
            model.load_state_dict(weights, strict=False)
        except RuntimeError as fault:  # of PyTorch: other shapes
            raise bad_checkpoint(
                path,
                got=' '.join(str(fault).split())[:300],
                expected='weights that fit the configuration of the vision-language model',
                next_step='Name the folder of the model that the policy was trained with: --vlm FOLDER.',
                code='other_vlm',
            ) from fault
        missing -= weights.keys()
    if missing:
        raise bad_checkpoint(
            folder,
            got=f'no {", ".join(sorted(missing)[:3])}, {len(missing)} of {len(wanted)} missing',
            expected='all weights of the policy',
            next_step='Take the whole checkpoint: every .safetensors file and their index.',
            code='missing_weights',
        )
