# SPDX-License-Identifier: Apache-2.0
"""Names of columns and cameras, as all formats make them."""

from __future__ import annotations

from collections.abc import Sequence

from vla_policy_ros.core.specs import Column, ColumnKind


def make_column(name: str) -> Column:
    """Return the column of a joint or channel in a format that says no more than its name; the unit stays empty."""
    kind = ColumnKind.GRIPPER if 'gripper' in name.lower() else ColumnKind.LINEAR
    return Column(name, '', kind)


def first_unique(*choices: Sequence[str]) -> Sequence[str]:
    """Return the first list of names without a repetition; the last one when all have some."""
    return next((names for names in choices if len(set(names)) == len(names)), choices[-1])
