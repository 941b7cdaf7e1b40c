# SPDX-License-Identifier: Apache-2.0
"""Files of a checkpoint that is exported, and the errors of one that cannot be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vla_policy_ros.core.errors import BundleError, VlaPolicyError


def bad_checkpoint(
    where: object, *, got: object, expected: str, next_step: str, code: str = 'bad_checkpoint'
) -> BundleError:
    """Return the error; arguments as those of `VlaPolicyError`."""
    return BundleError(str(where), got=got, expected=expected, next_step=next_step, code=code)


def unsupported(where: object, got: object, expected: str) -> BundleError:
    """Return the error of a setting that no bundle can follow (`unsupported_setting`)."""
    return bad_checkpoint(
        where,
        got=got,
        expected=expected,
        next_step='Train without this setting; no bundle can follow it.',
        code='unsupported_setting',
    )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of a checkpoint.

    Raises:
        BundleError: It is missing or no JSON object (`bad_checkpoint`).
    """
    try:
        document = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as fault:
        document = str(fault)
    if not isinstance(document, dict):
        raise bad_checkpoint(
            path,
            got=document if isinstance(document, str) else type(document).__name__,
            expected='a JSON object, as the library of the policy writes it',
            next_step='Name the folder that holds config.json, often called pretrained_model or checkpoint-<steps>.',
        )
    return document


@contextmanager
def reading(where: object, *, expected: str) -> Iterator[None]:
    """Read what a document holds in a `with` block: keys that are missing, and values of another form, are its fault.

    Args:
        where: The file.
        expected: What it should hold.

    Raises:
        BundleError: Something is missing or of another form (`bad_checkpoint`).
    """
    try:
        yield
    except VlaPolicyError:  # says more already
        raise
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as fault:
        raise bad_checkpoint(
            where,
            got=f'{type(fault).__name__}: {fault}',
            expected=expected,
            next_step='Save the checkpoint again with the library that it was trained with.',
        ) from fault
