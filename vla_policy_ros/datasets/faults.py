# SPDX-License-Identifier: Apache-2.0
"""Where a fault goes: readers report faults, and the caller decides whether the first one ends the reading."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vla_policy_ros.core.errors import DatasetError

Report = Callable[[DatasetError], None]
"""Takes a fault; raises it, or keeps it and returns so that the reading goes on."""


def raise_fault(fault: DatasetError) -> None:
    """Raise the fault: the report of everyone who wants to use the dataset, not to examine it.

    Raises:
        DatasetError: Always.
    """
    raise fault


def missing_file(path: Path, expected: str) -> DatasetError:
    """Return the fault of a file that is not there."""
    return DatasetError(
        str(path),
        got='no such file',
        expected=expected,
        next_step='Copy the dataset again; its download may be incomplete.',
        code='missing_file',
    )


def broken_file(
    path: Path, expected: str, fault: object, code: str, *, remedy: str = ''
) -> DatasetError:
    """Return the fault of a file that is there and cannot be read; a remedy goes behind the usual advice."""
    return DatasetError(
        str(path),
        got=' '.join(str(fault).split())[:200] or type(fault).__name__,
        expected=expected,
        next_step=f'Copy the file again; when it is a Git LFS pointer, run `git lfs pull`.{remedy}',
        code=code,
    )


def unknown_camera(name: str, known: tuple[str, ...], where: str) -> DatasetError:
    """Return the fault of asking for a camera that the dataset does not have."""
    return DatasetError(
        where,
        got=f'camera {name!r}',
        expected=f'one of {", ".join(known) or "(the dataset has no camera)"}',
        next_step='Name one of these cameras.',
        code='unknown_camera',
    )


def check_episode_index(index: int, num_episodes: int, where: str) -> None:
    """Check an episode index.

    Raises:
        DatasetError: It is not within [0, num_episodes).
    """
    if not 0 <= index < num_episodes:
        raise DatasetError(
            where,
            got=f'episode {index}',
            expected=f'0 to {num_episodes - 1}',
            next_step='Choose an episode that the dataset has.',
            code='unknown_episode',
        )


def check_range(start: int, stop: int | None, length: int, where: str) -> range:
    """Return the steps [start, stop) of an episode; a stop of None is the episode's end.

    Raises:
        DatasetError: The range does not lie within [0, length].
    """
    end = length if stop is None else stop
    if not 0 <= start <= end <= length:
        raise DatasetError(
            where,
            got=f'steps {start} to {end}',
            expected=f'a range within 0 to {length}',
            next_step='Ask for steps that the episode has.',
            code='unknown_step',
        )
    return range(start, end)
