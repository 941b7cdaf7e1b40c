# SPDX-License-Identifier: Apache-2.0
"""Isaac-GR00T itself: imported here only, when a checkpoint is loaded or made."""

from __future__ import annotations

import importlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any

from vla_policy_ros.core.errors import MissingDependencyError
from vla_policy_ros.export.tracing import quiet_library, require_torch


def require_gr00t(module: str, *, version: str) -> Any:
    """Return a module of Isaac-GR00T.

    Args:
        module: Its name after `gr00t.`.
        version: The version that has it, such as `n1.7`; all of them are called `gr00t`.

    Raises:
        MissingDependencyError: The library, or another one that this part of it needs, is not installed.
    """
    require_torch()
    os.environ.setdefault(
        'NO_ALBUMENTATIONS_UPDATE', '1'
    )  # else it asks the network when it is imported
    try:
        with quiet_library():
            return importlib.import_module(f'gr00t.{module}')
    except ImportError as fault:
        raise MissingDependencyError(
            'export groot',
            got=str(fault),
            expected=f'Isaac-GR00T {version} and what it needs in this Python environment',
            next_step=f'Run the export where the policy was trained, or take the sources at the tag {version}-release.',
        ) from fault


@contextmanager
def silent_library() -> Iterator[None]:
    """Keep back what the library says while it makes a policy: a line for every tensor; its errors are raised."""
    with redirect_stderr(io.StringIO()), quiet_library():
        yield
