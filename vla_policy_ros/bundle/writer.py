# SPDX-License-Identifier: Apache-2.0
"""Write a bundle's manifest over the files that already lie in its folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from vla_policy_ros.bundle.bundle import Bundle, open_document
from vla_policy_ros.bundle.files import hash_file, list_files
from vla_policy_ros.bundle.manifest import MANIFEST_NAME
from vla_policy_ros.bundle.strict import with_count


def write_bundle(folder: str | Path, manifest: Mapping[str, Any]) -> Bundle:
    """Hash every file of the folder, check the whole bundle, write `bundle.yaml`, and return the bundle.

    Args:
        folder: Holds the ONNX files, and the statistics, tokenizer and probe where there are any.
        manifest: Keys of `bundle.yaml`; `files` is filled in here.

    Raises:
        BundleError: The bundle would be refused at load; nothing is written then.
    """
    root = Path(folder)
    names = (name for name in list_files(root) if (root / name).is_file())
    hashes = {name: hash_file(root / name) for name in names}
    bundle, faults = open_document(root, {**manifest, 'files': hashes})
    if bundle is None:
        raise with_count(faults)
    # The model's own dump turns tuples and enums into what YAML can say.
    facts = bundle.manifest.model_dump(mode='json', exclude_unset=True)
    text = yaml.safe_dump(facts, sort_keys=False, allow_unicode=True, width=120)
    (root / MANIFEST_NAME).write_text(text, encoding='utf-8')
    return bundle
