# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint of N1.6 or N1.7 says of itself, read from its files without the library.

`config.json` holds the network's settings; `processor_config.json`, `statistics.json` and `embodiment_id.json`, beside it or
in the folder `processor`, hold what is done before and after the network, per embodiment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vla_policy_ros.bundle.statistics import GroupStatistics
from vla_policy_ros.core.specs import Representation
from vla_policy_ros.export.checkpoint_files import (
    bad_checkpoint,
    read_json,
    reading,
    unsupported,
)
from vla_policy_ros.export.groot.rules import Normalization, Rules

CONFIG, PROCESSOR, STATISTICS, EMBODIMENTS = (
    'config.json',
    'processor_config.json',
    'statistics.json',
    'embodiment_id.json',
)
"""Files of a checkpoint."""
PoseFormat = Literal['none', 'xyz_rot6d', 'xyz_rotvec']
# What the library leaves as the data has it; relative numbers it turns into targets, when told so.
_REPRESENTATIONS = {'ABSOLUTE': Representation.ABSOLUTE, 'DELTA': Representation.DELTA}
_POSE_FORMATS: Mapping[str, PoseFormat] = {'XYZ_ROT6D': 'xyz_rot6d', 'XYZ_ROTVEC': 'xyz_rotvec'}
# Rows of the head by the library's own defaults, which it leaves out of `config.json`.
_DEFAULT_ROWS = {'n1.6': 16, 'n1.7': 40}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VectorKey:
    """Some columns of the state or the action, which the library keeps under one key.

    Attributes:
        key: The library's name.
        width: Number of columns.
        normalization: As in `bundle.yaml`.
        clip: Whether normalised values are clipped.
        statistics: None where none are needed.
    """

    key: str
    width: int
    normalization: Normalization
    clip: bool = False
    statistics: GroupStatistics | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ActionKey(VectorKey):
    """Some columns of the action.

    Attributes:
        representation: What the numbers mean.
        pose_format: As in `bundle.yaml`.
        reference: Key of the state that relative numbers start from; empty for others.
    """

    representation: Representation = Representation.ABSOLUTE
    pose_format: PoseFormat = 'none'
    reference: str = ''


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Embodiment:
    """A robot that the policy was trained for.

    Attributes:
        tag: The library's name.
        number: Which of the head's weights are its own.
        cameras: Keys of the cameras in the order of the policy.
        camera_steps: Steps of the images before the observation, oldest first, ending with 0.
        state: The state in its order.
        state_steps: Likewise for the state.
        action: The action in its order.
        first_row: Step of the first row of a chunk after the observation.
        rows: Rows of a chunk.
    """

    tag: str
    number: int
    cameras: tuple[str, ...]
    camera_steps: tuple[int, ...] = (0,)
    state: tuple[VectorKey, ...]
    state_steps: tuple[int, ...] = (0,)
    action: tuple[ActionKey, ...]
    first_row: int = 0
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Checkpoint:
    """A checkpoint, as one of its robots uses it.

    Attributes:
        folder: Where it lies.
        version: Such as `n1.7`.
        config: `config.json`.
        embodiment: The robot.
        cleans_words: Whether words are made small and lose their punctuation.
        state_width: Width of the state after padding.
    """

    folder: Path
    version: str
    config: Mapping[str, Any]
    embodiment: Embodiment
    cleans_words: bool
    state_width: int

    @property
    def weights(self) -> tuple[Path, ...]:
        """The files with the weights, in the order of their names."""
        return tuple(sorted(self.folder.glob('*.safetensors')))


def processor_folder(folder: Path) -> Path:
    """Return where the files of the processor are: beside the weights, or where training puts them."""
    inner = folder / 'processor'
    return inner if not (folder / PROCESSOR).exists() and inner.is_dir() else folder


def read_checkpoint(folder: Path, *, version: str, embodiment: str | None = None) -> Checkpoint:
    """Read a checkpoint of N1.6 or N1.7.

    Args:
        folder: Where it lies.
        version: Which of them it is.
        embodiment: The library's name of the robot; the only one of the checkpoint when None.

    Raises:
        BundleError: A file is missing or broken (`bad_checkpoint`), the checkpoint does not know the robot or knows several
            (`unknown_embodiment`), or it uses what a bundle cannot follow (`unsupported_setting`).
    """
    config, inner = read_json(folder / CONFIG), processor_folder(folder)
    where = str(inner / PROCESSOR)
    document = read_json(inner / PROCESSOR)
    statistics, numbers = read_json(inner / STATISTICS), read_json(inner / EMBODIMENTS)
    with reading(
        where,
        expected='what the library of GR00T writes there, its statistics and embodiment ids beside it',
    ):
        processor = document['processor_kwargs']
        modalities = processor['modality_configs']
        tag = pick_embodiment(where, [t for t in modalities if t in statistics], embodiment)
        if processor.get('exclude_state'):
            raise unsupported(where, 'exclude_state: true', 'a policy that looks at the state')
        horizon = int(config.get('action_horizon', _DEFAULT_ROWS[version]))
        reader = _Reader(where, tag, modalities[tag], processor, statistics[tag])
        return Checkpoint(
            folder=folder,
            version=version,
            config=config,
            embodiment=reader.read(int(numbers[tag]), horizon),
            cleans_words=bool(processor['formalize_language']),
            state_width=int(processor['max_state_dim']),
        )


def pick_embodiment(where: str, known: Sequence[str], wanted: str | None) -> str:
    """Return the wanted robot, or the only one; letters may be small or large.

    Raises:
        BundleError: There is none of this name, or none is named and there are several (`unknown_embodiment`).
    """
    found = [tag for tag in known if wanted is None or tag.lower() == wanted.lower()]
    if len(found) == 1:
        return found[0]
    raise bad_checkpoint(
        where,
        got=f'no {wanted}' if wanted else f'{len(known)} embodiments',
        expected=f'one of {", ".join(sorted(known)) or "(none)"}',
        next_step='Name the robot that the bundle is for: --embodiment TAG.',
        code='unknown_embodiment',
    )


def check_steps(where: str, steps: Sequence[int]) -> tuple[int, ...]:
    """Return the steps of images or states; refuse those that do not end with the observation.

    Raises:
        BundleError: They do not grow up to 0 (`unsupported_setting`).
    """
    if not steps or steps[-1] != 0 or list(steps) != sorted(set(steps)):
        raise unsupported(where, f'delta_indices {list(steps)}', 'steps that grow and end with 0')
    return tuple(steps)


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads one robot.

    Attributes:
        where: The file, for errors.
        tag: The robot.
        modalities: `video`, `state`, `action` to their settings.
        processor: Settings of all robots.
        statistics: `state`, `action`, `relative_action` to key to statistics.
    """

    where: str
    tag: str
    modalities: Mapping[str, Any]
    processor: Mapping[str, Any]
    statistics: Mapping[str, Any]

    def read(self, number: int, horizon: int) -> Embodiment:
        steps = [int(step) for step in self.modalities['action']['delta_indices']]
        rows, first = len(steps), steps[0]
        if steps != list(range(first, first + rows)) or rows > horizon:
            raise unsupported(
                f'{self.where}: action of {self.tag}',
                f'delta_indices {steps}',
                f'at most {horizon} steps without gaps',
            )
        return Embodiment(
            tag=self.tag,
            number=number,
            cameras=tuple(self.modalities['video']['modality_keys']),
            camera_steps=self._steps('video'),
            state=tuple(map(self._state_key, self.modalities['state']['modality_keys'])),
            state_steps=self._steps('state'),
            action=tuple(self._action_keys(rows)),
            first_row=first,
            rows=rows,
        )

    def _steps(self, name: str) -> tuple[int, ...]:
        steps = [int(step) for step in self.modalities[name]['delta_indices']]
        return check_steps(f'{self.where}: {name} of {self.tag}', steps)

    def _rules(self, kind: str, key: str) -> Rules:
        return Rules(f'{self.where}: {kind}.{key} of {self.tag}', self.statistics[kind][key])

    def _lists(self, kind: str, name: str, key: str) -> bool:
        return key in (self.modalities[kind].get(name) or ())

    def _state_key(self, key: str) -> VectorKey:
        rules = self._rules('state', key)
        turns = self.processor.get('apply_sincos_state_encoding', False)
        if turns and self._lists('state', 'sin_cos_embedding_keys', key):
            return VectorKey(key=key, width=rules.width, normalization='sin_cos')
        normalization = self._normalization('state', key)
        return VectorKey(
            key=key,
            width=rules.width,
            normalization=normalization,
            clip=bool(self.processor['clip_outliers']) and normalization != 'mean_std',
            statistics=rules.for_state(normalization),
        )

    def _normalization(self, kind: str, key: str) -> Normalization:
        if self._lists(kind, 'mean_std_embedding_keys', key):
            return 'mean_std'
        return 'quantile' if self.processor['use_percentiles'] else 'min_max'

    def _action_keys(self, rows: int) -> list[ActionKey]:
        modality = self.modalities['action']
        keys = modality['modality_keys']
        settings = modality.get('action_configs') or [{'rep': 'ABSOLUTE'}] * len(keys)
        return [
            self._action_key(key, setting, rows)
            for key, setting in zip(keys, settings, strict=True)
        ]

    def _action_key(self, key: str, setting: Mapping[str, Any], rows: int) -> ActionKey:
        """Read a key; the library clips what comes out of the network, whatever `clip_outliers` says."""
        width, normalization = self._rules('action', key).width, self._normalization('action', key)
        is_relative = setting['rep'] == 'RELATIVE' and bool(self.processor['use_relative_action'])
        if is_relative:
            # The library takes the bounds of these, also where it takes percentiles of all others.
            normalization = 'mean_std' if normalization == 'mean_std' else 'min_max'
        rules = self._rules('relative_action' if is_relative else 'action', key)
        representation = _REPRESENTATIONS.get(setting['rep'], Representation.ABSOLUTE)
        if is_relative:
            representation = Representation.RELATIVE_TO_OBSERVATION
        return ActionKey(
            key=key,
            width=width,
            normalization=normalization,
            clip=normalization != 'mean_std',
            statistics=rules.for_action(normalization, rows=rows),
            representation=representation,
            pose_format=self._pose_format(key, setting) if is_relative else 'none',
            reference=(setting.get('state_key') or key) if is_relative else '',
        )

    def _pose_format(self, key: str, setting: Mapping[str, Any]) -> PoseFormat:
        if setting['type'] == 'NON_EEF':
            return 'none'
        if setting['format'] not in _POSE_FORMATS:
            raise unsupported(
                f'{self.where}: action.{key} of {self.tag}',
                f'relative poses in the format {setting["format"]}',
                f'one of {", ".join(_POSE_FORMATS)}',
            )
        return _POSE_FORMATS[setting['format']]
