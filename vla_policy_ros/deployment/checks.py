# SPDX-License-Identifier: Apache-2.0
"""Does a robot fit a policy: the same cameras, every joint of the state once, a reference that exists."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from vla_policy_ros.core.errors import ConfigurationError, VlaPolicyError
from vla_policy_ros.core.specs import ObservationSpec

JOINT_STATES = 'joint_states'


def find_mismatches(
    observation: ObservationSpec,
    *,
    cameras: Sequence[str],
    joint_sources: Mapping[str, Sequence[str]],
    renames: Mapping[str, Sequence[str]],
    reference: str,
) -> list[VlaPolicyError]:
    """Return every place where what a robot gives is not what a policy needs.

    Args:
        observation: What the policy needs.
        cameras: Cameras of the robot under the policy's names.
        joint_sources: Name of each joint source to the joints it gives; none means all.
        renames: Place of each table of renamed joints to the policy's names in it.
        reference: Reference stream as written in the file; empty for the default.
    """
    return [
        *_check_cameras([camera.name for camera in observation.cameras], cameras),
        *_check_joints(observation.state_names, joint_sources),
        *(
            fault
            for place, names in renames.items()
            for fault in _check_known(observation.state_names, place, names)
        ),
        *_check_reference(reference, cameras, has_joints=bool(joint_sources)),
    ]


def _check_cameras(wanted: Sequence[str], given: Sequence[str]) -> Iterator[VlaPolicyError]:
    for name in wanted:
        if name not in given:
            yield _fault(
                f'cameras.{name}',
                got='nothing',
                expected=f'a topic for camera {name!r} of the policy',
                next_step='Add the camera.',
                code='missing_camera',
            )
    for name in given:
        if name not in wanted:
            yield _fault(
                f'cameras.{name}',
                got='a camera that the policy does not have',
                expected=_one_of(wanted),
                next_step=_hint(name, wanted),
                code='unknown_camera',
            )
        if name == JOINT_STATES:
            yield _fault(
                f'cameras.{name}',
                got='the name of the joint streams',
                expected='another name',
                next_step='Rename the camera in the bundle.',
                code='reserved_name',
            )


def _check_joints(
    wanted: Sequence[str], sources: Mapping[str, Sequence[str]]
) -> Iterator[VlaPolicyError]:
    given: Counter[str] = Counter()
    for source, names in sources.items():
        given.update(names or wanted)
        yield from _check_known(wanted, source, names)
        if not wanted:
            yield _fault(
                source,
                got='a joint source',
                expected='none: the policy takes no state',
                next_step='Remove the source.',
                code='unused_source',
            )
    missing = [name for name in wanted if not given[name]]
    if missing:
        yield _fault(
            JOINT_STATES,
            got=f'no source for {", ".join(missing)}',
            expected='every joint of the policy exactly once',
            next_step='Add the joints to the names of a source, or add a source.',
            code='missing_joint',
        )
    twice = [name for name in wanted if given[name] > 1]
    if twice:
        yield _fault(
            JOINT_STATES,
            got=f'{", ".join(twice)} from more than one source',
            expected='every joint of the policy exactly once',
            next_step='Say with names which source gives which joints.',
            code='duplicate_joint',
        )


def _check_known(
    wanted: Sequence[str], place: str, names: Sequence[str]
) -> Iterator[VlaPolicyError]:
    for name in names:
        if name not in wanted:
            yield _fault(
                place,
                got=f'joint {name!r}, which the policy does not have',
                expected=_one_of(wanted),
                next_step=_hint(name, wanted),
                code='unknown_joint',
            )


def _check_reference(
    reference: str, cameras: Sequence[str], *, has_joints: bool
) -> Iterator[VlaPolicyError]:
    streams = [*cameras, JOINT_STATES] if has_joints else list(cameras)
    if not streams:
        yield _fault(
            'matching.reference',
            got='neither cameras nor joint states',
            expected='at least one stream',
            next_step='Add a camera or a joint source.',
            code='no_streams',
        )
    elif reference and reference not in streams:
        yield _fault(
            'matching.reference',
            got=repr(reference),
            expected=_one_of(streams),
            next_step=_hint(reference, streams),
            code='unknown_reference',
        )


def _fault(where: str, *, got: str, expected: str, next_step: str, code: str) -> VlaPolicyError:
    return ConfigurationError(where, got=got, expected=expected, next_step=next_step, code=code)


def _one_of(names: Sequence[str]) -> str:
    return f'one of {", ".join(names)}' if names else 'none'


def _hint(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f'Did you mean {close[0]!r}?' if close else 'Change or remove the name.'
