# SPDX-License-Identifier: Apache-2.0
"""Seeded faults for replay: what goes wrong on real robots, on purpose and at known steps.

A fault is `KIND:TARGET:WHEN[:VALUE]`, several are separated by semicolons. WHEN is a step (`40`), a range of steps with
both ends (`40-59`), or a share of all steps (`10%`, drawn with the seed).

    drop:front:40-59        the camera sends nothing (TARGET joint_states: no joint states)
    truncate:wrist:10%      the image data ends early
    encoding:front:12       the image claims an encoding that nobody knows
    zero_stamp:front:12     the stamp is zero
    delay:wrist:20-30:0.2   the stamp is VALUE seconds older than that of the other streams
    jump:all:50-9999:-5     all stamps are shifted by VALUE seconds
    nan:elbow_flex:30       the joint's position is not a number
    missing:elbow_flex:30   the joint is not in the message

TARGET is a camera, a joint, `joint_states` for all joints, or `all`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from vla_policy_ros.core.errors import ConfigurationError

FaultKind = Literal[
    'drop', 'truncate', 'encoding', 'zero_stamp', 'delay', 'jump', 'nan', 'missing'
]
_KINDS: tuple[str, ...] = get_args(FaultKind)
_NEEDS_VALUE = ('delay', 'jump')
ALL_JOINTS = ('joint_states', 'all')
"""Targets that mean every joint."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind of fault on one target: in steps [first, last], or in a share of all steps."""

    kind: FaultKind
    target: str
    first: int = 0
    last: int = -1
    share: float = 0.0
    value_s: float = 0.0


class Faults:
    """Decides, for every step and target, what goes wrong.

    Args:
        text: Faults as described above; empty for none.
        targets: The cameras and joints that there are.
        seed: Seed of the drawn ones; the same seed gives the same steps.

    Raises:
        ConfigurationError: The text cannot be read, or names a target that is not there.
    """

    def __init__(self, text: str, *, targets: Sequence[str], seed: int = 0) -> None:
        self._faults = tuple(_parse(part) for part in text.split(';') if part.strip())
        self._seed = seed
        self.num_injected = 0
        known = (*targets, *ALL_JOINTS)
        for fault in self._faults:
            if fault.target not in known:
                raise ConfigurationError(
                    'parameter faults',
                    got=f'target {fault.target!r}',
                    expected=f'one of {", ".join(known)}',
                    next_step='Name a camera or a joint of the dataset.',
                    code='unknown_target',
                )

    def active(self, step: int, *targets: str) -> tuple[Fault, ...]:
        """Return the faults that hit one of the targets, or all, in this step; every hit counts."""
        hits = tuple(
            fault
            for index, fault in enumerate(self._faults)
            if fault.target in (*targets, 'all') and self._hits(index, fault, step)
        )
        self.num_injected += len(hits)
        return hits

    def _hits(self, index: int, fault: Fault, step: int) -> bool:
        if fault.share:
            draw = np.random.default_rng((self._seed, index, step)).random()
            return bool(draw < fault.share)
        return fault.first <= step <= fault.last


def kinds(faults: Sequence[Fault]) -> frozenset[str]:
    """Return the kinds among some faults."""
    return frozenset(fault.kind for fault in faults)


def _parse(text: str) -> Fault:
    kind, *rest = (part.strip() for part in text.split(':'))
    wants = 3 if kind in _NEEDS_VALUE else 2
    if kind not in _KINDS or len(rest) != wants:
        raise _wrong(text)
    target, when, value = rest[0], rest[1], rest[2] if wants == 3 else '0'
    fault = Fault(kind, target)  # type: ignore[arg-type]
    try:
        fault = replace(fault, value_s=float(value))
        if when.endswith('%'):
            fault = replace(fault, share=float(when[:-1]) / 100)
        else:
            first, _, last = when.partition('-')
            fault = replace(fault, first=int(first), last=int(last or first))
    except ValueError:
        raise _wrong(text) from None
    is_share = 0 < fault.share <= 1
    if not math.isfinite(fault.value_s) or not (is_share or 0 <= fault.first <= fault.last):
        raise _wrong(text)
    return fault


def _wrong(text: str) -> ConfigurationError:
    return ConfigurationError(
        'parameter faults',
        got=repr(text),
        expected=f'KIND:TARGET:WHEN, with :SECONDS for {" and ".join(_NEEDS_VALUE)}; KIND one of {", ".join(_KINDS)}',
        next_step='For example drop:front:40-59;nan:elbow_flex:10%.',
    )
