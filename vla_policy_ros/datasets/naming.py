# SPDX-License-Identifier: Apache-2.0
"""Names of columns and cameras, as all formats make them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vla_policy_ros.core.specs import Column, ColumnKind


def make_column(name: str) -> Column:
    """Return the column of a joint or channel in a format that says no more than its name; the unit stays empty."""
    kind = ColumnKind.GRIPPER if 'gripper' in name.lower() else ColumnKind.LINEAR
    return Column(name, '', kind)


def make_camera_names(*choices: Sequence[str]) -> tuple[str, ...]:
    """Return the first list of camera names without a repetition, written as a ROS topic may hold them.

    Everything but ASCII letters and digits becomes `_`, and a leading digit gets one before it. When every list has a
    repetition, the last one is taken and its names are numbered.
    """
    names = first_unique(*([_topic_part(name) for name in names] for names in choices))
    if len(set(names)) < len(names):
        names = [f'{name}_{index}' for index, name in enumerate(names)]
    return tuple(names)


def first_unique(*choices: Sequence[str]) -> Sequence[str]:
    """Return the first list of names without a repetition; the last one when all have some."""
    return next((names for names in choices if len(set(names)) == len(names)), choices[-1])


def _topic_part(name: str) -> str:
    part = re.sub(r'[^A-Za-z0-9_]', '_', name)
    return part if re.match(r'[A-Za-z_]', part) else f'_{part}'
