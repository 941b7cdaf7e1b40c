# SPDX-License-Identifier: Apache-2.0
"""Load a policy bundle: everything is checked before the first network is; nothing is executed or unpickled."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from vla_policy_ros.bundle.files import escapes, find_file_faults, find_reference_faults
from vla_policy_ros.bundle.graph import join_stages, state_width
from vla_policy_ros.bundle.manifest import (
    MANIFEST_NAME,
    ActionGroup,
    Diffusion,
    Group,
    Manifest,
)
from vla_policy_ros.bundle.onnx_model import ModelFacts, read_model
from vla_policy_ros.bundle.statistics import Statistics, read_statistics
from vla_policy_ros.bundle.strict import find_faults, read_yaml, with_count
from vla_policy_ros.core.errors import BundleError, VlaPolicyError
from vla_policy_ros.core.specs import (
    ActionSpec,
    CameraSpec,
    Column,
    ObservationSpec,
    PolicySpec,
    Representation,
    TensorSpec,
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bundle:
    """A bundle that passed every check.

    Attributes:
        folder: Where it lies.
        manifest: Its `bundle.yaml`.
        statistics: Group name to statistics; empty when no group needs them.
        spec: What the policy takes and gives.
        tensors: Every pool tensor with its fixed shape.
        content_hash: SHA-256 in hex over the manifest, which holds the hashes of all other files.
    """

    folder: Path
    manifest: Manifest
    statistics: Statistics
    spec: PolicySpec
    tensors: Mapping[str, TensorSpec]
    content_hash: str


def load_bundle(path: str | Path) -> Bundle:
    """Check a bundle's folder and load it.

    Raises:
        BundleError: Something is wrong with it; the first fault, and the number of others.
    """
    folder = Path(path)
    bundle, faults = open_document(folder, _read_document(folder))
    if bundle is None:
        raise with_count(faults)
    return bundle


def find_bundle_faults(path: str | Path) -> list[VlaPolicyError]:
    """Return every fault of a bundle, none for a sound one."""
    folder = Path(path)
    try:
        document = _read_document(folder)
    except BundleError as fault:
        return [fault]
    return open_document(folder, document)[1]


def open_document(
    folder: Path, document: dict[str, Any]
) -> tuple[Bundle | None, list[VlaPolicyError]]:
    """Check a manifest against its folder; return the bundle, or None and every fault."""
    manifest, faults = find_faults(Manifest, document, MANIFEST_NAME, BundleError)
    if manifest is None:
        return None, faults
    bad_files = find_file_faults(folder, manifest)
    faults += [*bad_files.values(), *find_reference_faults(manifest)]
    faults += _find_value_faults(manifest)
    readable = set(manifest.files) - set(bad_files)
    statistics, statistics_faults = _check_statistics(folder, manifest, readable)
    tensors, graph_faults = _check_graph(folder, manifest, readable)
    faults += [*statistics_faults, *graph_faults]
    if faults:
        return None, faults
    content_hash = hash_manifest(manifest)
    return Bundle(
        folder=folder,
        manifest=manifest,
        statistics=statistics,
        spec=policy_spec(manifest, f'{manifest.name}@{content_hash[:12]}'),
        tensors=tensors,
        content_hash=content_hash,
    ), []


def hash_manifest(manifest: Manifest) -> str:
    """Return the SHA-256 over what the manifest sets, whatever the order and layout of its YAML."""
    # Only what is set: a later version's new keys must not rename today's bundles.
    facts = manifest.model_dump(mode='json', exclude_unset=True)
    text = json.dumps(facts, sort_keys=True, ensure_ascii=False, separators=(',', ':'))
    return hashlib.sha256(text.encode()).hexdigest()


def policy_spec(manifest: Manifest, policy_id: str) -> PolicySpec:
    """Return what the policy of a manifest takes and gives; relative actions come out absolute."""
    state, words, action = manifest.state, manifest.instruction, manifest.action
    observation = ObservationSpec(
        cameras=tuple(CameraSpec(c.name, c.history_ns) for c in manifest.cameras),
        state=tuple(column for g in (state.groups if state else ()) for column in _columns(g)),
        state_history_ns=state.history_ns if state else (0,),
        needs_instruction=words is not None and not words.allow_empty,
    )
    return PolicySpec(
        policy_id=policy_id,
        observation=observation,
        action=ActionSpec(
            columns=tuple(column for group in action.groups for column in _columns(group)),
            horizon=action.horizon,
            step_ns=action.step_ns,
            offset_ns=action.offset_ns,
        ),
    )


def _read_document(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise BundleError(
            str(folder),
            got='no such folder',
            expected=f'a folder with a {MANIFEST_NAME}',
            next_step='Check the path of the bundle.',
            code='no_bundle',
        )
    return read_yaml(folder / MANIFEST_NAME, BundleError)


def _columns(group: Group) -> Iterator[Column]:
    meaning = Representation.ABSOLUTE
    if isinstance(group, ActionGroup) and group.representation is Representation.DELTA:
        meaning = Representation.DELTA
    count = len(group.names)
    units = group.units * (count // len(group.units))
    kinds = group.kinds * (count // len(group.kinds))
    for name, unit, kind in zip(group.names, units, kinds, strict=True):
        yield Column(name, unit, kind, meaning)


def _find_value_faults(manifest: Manifest) -> list[BundleError]:
    """Return the faults that only show when several keys are seen together."""
    faults = []
    loop = manifest.loop
    if isinstance(loop, Diffusion) and loop.steps > loop.train_timesteps:
        faults.append(
            _fault(
                'loop.steps',
                got=loop.steps,
                expected=f'at most train_timesteps, {loop.train_timesteps}',
                next_step='Lower the number of steps.',
                code='bad_value',
            )
        )
    state = manifest.state
    if state and state.pad_to is not None and state.pad_to < state_width(state):
        faults.append(
            _fault(
                'state.pad_to',
                got=state.pad_to,
                expected=f'{state_width(state)} or more, the width of the groups',
                next_step='Raise pad_to to the width that the network takes.',
                code='bad_width',
            )
        )
    held = {name for g in (state.groups if state else ()) for name in g.names}
    for index, group in enumerate(manifest.action.groups):
        lacking = [name for name in group.names if name not in held]
        if lacking and group.representation is Representation.RELATIVE_TO_OBSERVATION:
            faults.append(
                _fault(
                    f'action.groups[{index}].names',
                    got=f'{", ".join(lacking)}, which the state does not hold',
                    expected='state columns to add the relative actions to',
                    next_step='Name the columns as in state.groups, or change representation.',
                    code='missing_reference',
                )
            )
    return faults


def _check_statistics(
    folder: Path, manifest: Manifest, readable: set[str]
) -> tuple[Statistics, list[VlaPolicyError]]:
    needed = [place for place in _groups(manifest) if _needs_statistics(place[1])]
    if manifest.statistics is None:
        return {}, [_no_statistics(place, group) for place, group in needed]
    if manifest.statistics not in readable:
        return {}, []
    try:
        statistics = read_statistics(folder / manifest.statistics)
    except BundleError as fault:
        return {}, [fault]
    faults: list[VlaPolicyError] = []
    for place, group in needed:
        if group.name not in statistics:
            faults.append(_no_statistics(place, group))
            continue
        shape, width = statistics[group.name].min.shape, len(group.names)
        allowed: list[tuple[int, ...]] = [(width,)]
        if isinstance(group, ActionGroup):
            allowed.append((manifest.action.horizon, width))
        if shape not in allowed:
            faults.append(
                _fault(
                    place,
                    got=f'statistics of shape {list(shape)}',
                    expected=' or '.join(str(list(size)) for size in allowed),
                    next_step='Compute the statistics from the same columns, in the same order.',
                    code='bad_statistics',
                )
            )
    return statistics, faults


def _groups(manifest: Manifest) -> list[tuple[str, Group]]:
    groups: list[tuple[str, Group]] = []
    if manifest.state:
        groups += [(f'state.groups[{i}]', g) for i, g in enumerate(manifest.state.groups)]
    return groups + [(f'action.groups[{i}]', g) for i, g in enumerate(manifest.action.groups)]


def _needs_statistics(group: Group) -> bool:
    return group.normalization not in ('identity', 'sin_cos')


def _no_statistics(place: str, group: Group) -> BundleError:
    return _fault(
        place,
        got=f'normalization {group.normalization} and no statistics for {group.name!r}',
        expected=f'a key {group.name!r} in the statistics file',
        next_step='Add the statistics, or set normalization: identity.',
        code='missing_statistics',
    )


def _check_graph(
    folder: Path, manifest: Manifest, readable: set[str]
) -> tuple[dict[str, TensorSpec], list[BundleError]]:
    models: list[ModelFacts] = []
    faults: list[BundleError] = []
    for index, stage in enumerate(manifest.stages):
        place = f'stages[{index}].onnx'
        if stage.onnx not in readable:
            continue
        try:
            models.append(read_model(folder / stage.onnx, f'{MANIFEST_NAME}: {place}'))
        except BundleError as fault:
            faults.append(fault)
            continue
        faults += _find_weight_faults(manifest, place, stage.onnx, models[-1])
    if len(models) < len(manifest.stages):
        return {}, faults  # what joins cannot be told before every file can be read
    tensors, joins = join_stages(manifest, models)
    return tensors, faults + joins


def _find_weight_faults(
    manifest: Manifest, place: str, onnx_name: str, model: ModelFacts
) -> Iterator[BundleError]:
    for location in model.weight_files:
        name = (PurePosixPath(onnx_name).parent / location).as_posix()
        if escapes(name):
            got, code = f'weights in {location!r}, outside of the bundle', 'escaping_path'
        elif name not in manifest.files:
            got, code = f'weights in {name!r}, which has no hash', 'file_not_listed'
        else:
            continue
        yield _fault(
            place,
            got=got,
            expected='weights in files listed under `files`',
            next_step='Export the stage with its weights beside it and write the bundle again.',
            code=code,
        )


def _fault(place: str, *, got: object, expected: str, next_step: str, code: str) -> BundleError:
    return BundleError(
        f'{MANIFEST_NAME}: {place}', got=got, expected=expected, next_step=next_step, code=code
    )
