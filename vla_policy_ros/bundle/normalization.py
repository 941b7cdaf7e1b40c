# SPDX-License-Identifier: Apache-2.0
"""From physical units to the policy's numbers and back.

Every rule with statistics is one affine map per column, y = (x - center) * gain, x = center + y * spread:

| rule     | center          | spread            |
|----------|-----------------|-------------------|
| min_max  | (max + min) / 2 | (max - min) / 2   |
| quantile | (q99 + q01) / 2 | (q99 - q01) / 2   |
| mean_std | mean            | std               |
| identity | 0               | 1                 |

gain is 1 / spread, and 0 where the spread is 0: a column that never moved in training is 0 for the network, and comes
back as its one value. With `clip`, min_max and quantile are clipped to [-1, 1] on both ways, as GR00T does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from vla_policy_ros.bundle.manifest import Action, ActionGroup, Group, State
from vla_policy_ros.bundle.pose import compose_poses, relate_poses
from vla_policy_ros.bundle.statistics import GroupStatistics, Statistics
from vla_policy_ros.core.errors import BundleError, SpecMismatchError
from vla_policy_ros.core.specs import Array, Representation

_CLIP_SLACK = 1e-6  # a number this far outside of [-1, 1] is one at the border, rounded


@dataclass(frozen=True, slots=True, eq=False)
class _Affine:
    """The affine map of one group; arrays of shape (W,) or (K, W)."""

    center: Array
    spread: Array
    gain: Array
    clip: bool

    def normalize(self, values: Array) -> Array:
        result: Array = (values - self.center) * self.gain
        return np.clip(result, -1, 1) if self.clip else result

    def denormalize(self, values: Array) -> Array:
        values = np.clip(values, -1, 1) if self.clip else values
        result: Array = self.center + values * self.spread
        return result

    @property
    def is_per_row(self) -> bool:
        return self.center.ndim == 2

    def rows(self, wanted: slice) -> _Affine:
        """Return the map of some rows of a chunk."""
        if not self.is_per_row:
            return self
        return replace(
            self,
            center=self.center[wanted],
            spread=self.spread[wanted],
            gain=self.gain[wanted],
        )


class StateNormalizer:
    """Turns states in physical units into the policy's state tensor; safe for several threads."""

    def __init__(self, state: State, statistics: Statistics) -> None:
        """Prepare the maps.

        Raises:
            BundleError: Statistics are missing or have another width.
        """
        self._groups = [
            (group, _make_affine(group, statistics, 'state')) for group in state.groups
        ]
        used = sum(_width(group) for group in state.groups)
        self._num_columns = sum(len(group.names) for group in state.groups)
        self.width = used if state.pad_to is None else state.pad_to
        """Width of the tensor after sin_cos and padding."""
        if self.width < used:
            raise BundleError(
                'state.pad_to',
                got=self.width,
                expected=f'{used} or more',
                next_step='Raise pad_to to the width that the network takes.',
                code='bad_width',
            )

    def write(self, state: Array, out: Array) -> None:
        """Normalise states.

        Args:
            state: (T, S) in physical units, columns in the order of the groups.
            out: (T, width) float; columns after the last group become 0.

        Raises:
            SpecMismatchError: A shape is another one.
        """
        _check_shape('state', state, (len(state), self._num_columns))
        _check_shape('normalised state', out, (len(state), self.width))
        start, target = 0, 0
        for group, affine in self._groups:
            values = state[:, start : start + len(group.names)].astype(np.float64)
            if group.normalization == 'sin_cos':
                values = np.concatenate([np.sin(values), np.cos(values)], axis=1)
            else:
                values = affine.normalize(values)
            out[:, target : target + _width(group)] = values
            start, target = start + len(group.names), target + _width(group)
        out[:, target:] = 0


@dataclass(frozen=True, slots=True, eq=False)
class _ActionPart:
    """One action group: its columns, its map, and where the state holds its reference (None: not relative)."""

    group: ActionGroup
    columns: slice
    affine: _Affine
    reference: Array | None

    @property
    def is_bound(self) -> bool:
        return self.reference is not None or self.affine.is_per_row

    def compose(self, values: Array, state_row: Array) -> Array:
        """Return absolute targets."""
        if self.reference is None:
            return values
        reference = state_row[self.reference].astype(np.float64)
        if self.group.pose_format == 'none':
            return values + reference
        return compose_poses(values, reference, self.group.pose_format)

    def relate(self, values: Array, state_row: Array) -> Array:
        """Return absolute targets relative to the state: the inverse of `compose`."""
        if self.reference is None:
            return values
        reference = state_row[self.reference].astype(np.float64)
        if self.group.pose_format == 'none':
            return values - reference
        return relate_poses(values, reference, self.group.pose_format)


class ActionDenormalizer:
    """Turns the policy's numbers into actions in physical units; safe for several threads.

    Groups that are `relative_to_observation` come out as absolute targets: the reference is the state's newest row,
    columns of the same names. `delta` stays what it is.
    """

    def __init__(self, action: Action, state: State | None, statistics: Statistics) -> None:
        """Prepare the maps.

        Raises:
            BundleError: Statistics are missing or of another shape, or the state lacks a reference column.
        """
        names = [name for group in state.groups for name in group.names] if state else []
        self._parts: list[_ActionPart] = []
        self._num_state_columns = len(names)
        self.num_columns = 0
        """D, the number of action columns."""
        for group in action.groups:
            columns = slice(self.num_columns, self.num_columns + len(group.names))
            affine = _make_affine(group, statistics, 'action', horizon=action.horizon)
            self._parts.append(_ActionPart(group, columns, affine, _reference(group, names)))
            self.num_columns = columns.stop
        self._horizon = action.horizon

    def write(self, raw: Array, state_row: Array, out: Array) -> None:
        """Denormalise a chunk.

        Args:
            raw: (K, >= D) the policy's numbers.
            state_row: (S,) newest row of the observed state, physical units, order of the state's groups;
                not read when no group is relative.
            out: (K, D) float, physical units.

        Raises:
            SpecMismatchError: A shape is another one.
        """
        _check_shape('actions', out, (self._horizon, self.num_columns))
        _check_shape('raw actions', raw[:, : self.num_columns], out.shape)
        self._check_state_row(state_row)
        for part in self._parts:
            values = part.affine.denormalize(raw[:, part.columns].astype(np.float64))
            out[:, part.columns] = part.compose(values, state_row)

    def normalize(self, actions: Array, state_row: Array) -> Array:
        """Return the (K, D) float32 numbers that `write` would turn into these actions; for training and tests.

        Args:
            actions: (K, D) in physical units, relative groups as absolute targets.
            state_row: (S,) state at the chunk's observation; not read when no group is relative.

        Raises:
            SpecMismatchError: A shape is another one.
        """
        _check_shape('actions', actions, (self._horizon, self.num_columns))
        self._check_state_row(state_row)
        out = np.empty(actions.shape, np.float32)
        for part in self._parts:
            values = part.relate(actions[:, part.columns].astype(np.float64), state_row)
            out[:, part.columns] = part.affine.normalize(values)
        return out

    @property
    def bound_groups(self) -> tuple[str, ...]:
        """Names of the groups whose numbers mean another action in another row, or for another observation."""
        return tuple(part.group.name for part in self._parts if part.is_bound)

    @property
    def fixed_groups(self) -> tuple[str, ...]:
        """Names of those of them that cannot be moved: they hold a column that never changed in training."""
        parts = (part for part in self._parts if part.is_bound)
        return tuple(part.group.name for part in parts if (part.affine.spread == 0).any())

    def move(self, raw: Array, steps: int, *, old_state: Array, new_state: Array) -> Array:
        """Say the later rows of one chunk in the numbers of a chunk that begins `steps` rows later.

        Every row keeps the action that it stands for. Groups that are not `bound_groups` keep their bits; the others
        are denormalised with the old observation and normalised with the new one.

        Args:
            raw: (K, >= D) the policy's numbers.
            steps: 0..K-1.
            old_state: (S,) state row of the chunk's observation; not read when no group is relative.
            new_state: (S,) state row of the later observation, likewise.

        Returns:
            (n, W) like raw, n <= K - steps: it ends before the first row that clipping leaves no numbers for.
        """
        moved: Array = raw[steps:].copy()
        count = len(moved)
        for part in self._parts:
            if not part.is_bound:
                continue
            old, new = part.affine.rows(slice(steps, None)), part.affine.rows(slice(len(moved)))
            values = old.denormalize(moved[:, part.columns].astype(np.float64))
            values = part.relate(part.compose(values, old_state), new_state)
            values = (values - new.center) * new.gain
            if new.clip:
                is_outside = (np.abs(values) > 1 + _CLIP_SLACK).any(axis=1)
                count = min(count, int(is_outside.argmax()) if is_outside.any() else count)
            moved[:, part.columns] = values
        return moved[:count]

    def _check_state_row(self, state_row: Array) -> None:
        if any(part.reference is not None for part in self._parts):
            _check_shape('state row', state_row, (self._num_state_columns,))


def _width(group: Group) -> int:
    return len(group.names) * (2 if group.normalization == 'sin_cos' else 1)


def _make_affine(
    group: Group, statistics: Statistics, where: str, *, horizon: int | None = None
) -> _Affine:
    if group.normalization in ('identity', 'sin_cos'):
        one = np.ones(len(group.names))
        return _Affine(np.zeros_like(one), one, one, clip=False)
    held = _find_statistics(group, statistics, where, horizon)
    if group.normalization == 'mean_std':
        center, spread = held.mean, held.std
    elif group.normalization == 'min_max':
        center, spread = (held.max + held.min) / 2, (held.max - held.min) / 2
    else:
        center, spread = (held.q99 + held.q01) / 2, (held.q99 - held.q01) / 2
    gain = np.divide(1, spread, out=np.zeros_like(spread), where=spread > 0)
    return _Affine(center, spread, gain, clip=group.clip and group.normalization != 'mean_std')


def _find_statistics(
    group: Group, statistics: Statistics, where: str, horizon: int | None
) -> GroupStatistics:
    held = statistics.get(group.name)
    if held is None:
        raise BundleError(
            f'statistics of {where} group {group.name!r}',
            got=f'groups {", ".join(sorted(statistics)) or "none"}',
            expected=f'an entry {group.name!r} for normalization {group.normalization}',
            next_step='Add the group to the statistics file, or correct its name in bundle.yaml.',
            code='missing_statistics',
        )
    width = len(group.names)
    shapes = [(width,), *([] if horizon is None else [(horizon, width)])]
    if held.min.shape not in shapes:
        raise BundleError(
            f'statistics of {where} group {group.name!r}',
            got=f'shape {list(held.min.shape)}',
            expected=' or '.join(str(list(shape)) for shape in shapes),
            next_step='Use the statistics that belong to these names and this horizon.',
            code='bad_statistics',
        )
    return held


def _reference(group: ActionGroup, state_names: Sequence[str]) -> Array | None:
    if group.representation is not Representation.RELATIVE_TO_OBSERVATION:
        return None
    missing = [name for name in group.names if name not in state_names]
    if missing:
        raise BundleError(
            f'action group {group.name!r}',
            got=f'a state without {", ".join(missing)}',
            expected='state columns of the same names, since the group is relative_to_observation',
            next_step='Add the columns to the state in bundle.yaml, under the names of the action.',
            code='missing_reference',
        )
    return np.array([state_names.index(name) for name in group.names])


def _check_shape(what: str, value: Array, shape: tuple[int, ...]) -> None:
    if value.shape != shape:
        raise SpecMismatchError(
            what,
            got=list(value.shape),
            expected=str(list(shape)),
            next_step='Check the state, the action and the horizon in bundle.yaml.',
        )
