# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint of N1.5 says of itself.

Its `config.json` holds the network's settings and `experiment_cfg/metadata.json` the statistics of the training data. What is
done before and after the network it does not hold: that is a data config of the library, `--data-config` of the training.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from vla_policy_ros.bundle.statistics import GroupStatistics
from vla_policy_ros.core.errors import BundleError
from vla_policy_ros.core.specs import Representation
from vla_policy_ros.export.checkpoint_files import (
    bad_checkpoint,
    read_json,
    reading,
    unsupported,
)
from vla_policy_ros.export.groot import eagle
from vla_policy_ros.export.groot.checkpoint import (
    CONFIG,
    ActionKey,
    Checkpoint,
    Embodiment,
    VectorKey,
    check_steps,
    pick_embodiment,
)
from vla_policy_ros.export.groot.images import Size, read_geometry
from vla_policy_ros.export.groot.library import require_gr00t, silent_library
from vla_policy_ros.export.groot.rules import Normalization, Rules

METADATA = Path('experiment_cfg') / 'metadata.json'
"""The statistics, beside the weights."""
_KINDS = ('video', 'state', 'action')
# The library's names of normalizations, and ours; `binary` compares with a threshold, which no bundle does.
_NORMALIZATIONS: Mapping[str, Normalization] = {
    'min_max': 'min_max',
    'q99': 'quantile',
    'mean_std': 'mean_std',
}
# Steps of a data config that change nothing outside of the training, or only the type of an array.
_NO_CHANGE = (
    'VideoToTensor',
    'VideoToNumpy',
    'StateActionToTensor',
    'StateActionDropout',
    'StateActionPerturbation',
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CheckpointN15(Checkpoint):
    """A checkpoint, as one of its robots uses it.

    Attributes:
        image_size: Height and width of the images of the training in pixels.
        image_transforms: What the library does to images, in its order.
    """

    image_size: Size
    image_transforms: tuple[Any, ...]


def read_checkpoint_n15(folder: Path, *, embodiment: str | None = None) -> CheckpointN15:
    """Read a checkpoint of N1.5.

    Args:
        folder: Where it lies.
        embodiment: `TAG`, `DATA_CONFIG` or `TAG/DATA_CONFIG`, in the library's words; a data config of one's own is
            `MODULE:CLASS`, as for the training. The tag may be left out when there is one, the data config when the library has
            one with the keys of the training data.

    Raises:
        MissingDependencyError: Isaac-GR00T N1.5, or what it needs, is not installed.
        BundleError: Files are missing or broken (`bad_checkpoint`), tag or data config are not known
            (`unknown_embodiment`), or a step cannot be followed (`unsupported_setting`).
    """
    path = folder / METADATA
    documents = read_json(path)
    tag, _, name = (embodiment or '').partition('/')
    if tag and tag not in documents:
        tag, name = '', embodiment or ''
    tag = pick_embodiment(str(path), tuple(documents), tag or None)
    metadata = documents[tag]
    with reading(path, expected='what the library of GR00T N1.5 writes there'):
        name, data = _pick_data_config(path, name, metadata)
        reader = _Reader.of_data_config(f'{path}: {tag}', data, metadata)
        robot = reader.read(f'{tag}/{name}')
        width, height = next(iter(metadata['modalities']['video'].values()))['resolution']
    return CheckpointN15(
        folder=folder,
        version='n1.5',
        config=read_json(folder / CONFIG),
        embodiment=robot,
        cleans_words=False,  # the library can, and does not
        state_width=reader.last.max_state_dim,
        image_size=(height, width),
        image_transforms=reader.image_transforms(),
    )


def load_n15(checkpoint: Checkpoint, vlm: Path | None) -> Any:
    """Return the policy with an action head for the rows of the data config; arguments and errors as `eagle.load_n15`."""
    return eagle.load_n15(checkpoint.folder, rows=checkpoint.embodiment.rows, vlm=vlm)


def make_processor_n15(checkpoint: Checkpoint) -> Any:
    """Return what prepares images: the `checkpoint`, and the library's `processor` of the vision-language model."""
    home = require_gr00t('model.backbone.eagle_backbone', version='n1.5').DEFAULT_EAGLE_PATH
    with silent_library():
        transforms = require_gr00t('model.transforms', version='n1.5')
        processor = transforms.build_eagle_processor(home)
    return SimpleNamespace(checkpoint=checkpoint, processor=processor)


def format_camera_n15(processor: Any, size: Size) -> dict[str, Any]:
    """Return the entry of a camera in the manifest.

    The library cuts the digits off where a bundle rounds to 8 bits; half a step in the mean makes up for it.

    Args:
        processor: As `make_processor_n15` makes it.
        size: Height and width of the camera's images in pixels.

    Raises:
        BundleError: The training had images of another size (`other_image_size`), or a step cannot be followed.
    """
    checkpoint: CheckpointN15 = processor.checkpoint
    if size != checkpoint.image_size:
        raise bad_checkpoint(
            checkpoint.folder / METADATA,
            got=f'images of {checkpoint.image_size[1]} x {checkpoint.image_size[0]} px',
            expected=f'those of the camera, {size[1]} x {size[0]} px',
            next_step='Name the dataset that the policy was trained on.',
            code='other_image_size',
        )
    transform = SimpleNamespace(transforms=checkpoint.image_transforms)
    steps, inner = read_geometry(transform, size)
    rest = eagle.camera_format(processor.processor, inner)
    mean = [value + rest['scale'] / 2 for value in rest['mean']]
    return {**rest, 'mean': mean, 'geometry': [*steps, *rest['geometry']]}


def _pick_data_config(path: Path, name: str, metadata: Mapping[str, Any]) -> tuple[str, Any]:
    """Return a data config and its name: the one that is named, or the only one with the keys of the training data."""
    with silent_library():
        library = require_gr00t('experiment.data_config', version='n1.5')
    known = library.DATA_CONFIG_MAP
    if ':' in name or name in known:
        where = list(sys.path)  # the library puts the working directory first
        try:
            with silent_library():
                return name, library.load_data_config(name)
        except (ImportError, ValueError) as fault:
            raise _unknown_data_config(path, f'{name}: {fault}', known) from fault
        finally:
            sys.path[:] = where
    keys = {kind: set(metadata['modalities'][kind]) for kind in _KINDS}
    found = [other for other, data in known.items() if _keys_of(data) == keys]
    if name or len(found) != 1:
        fit = ' and '.join(found) or 'none'
        got = f'no {name}' if name else f'{fit} for the keys of the training data'
        raise _unknown_data_config(path, got, known)
    return found[0], known[found[0]]


def _keys_of(data: Any) -> dict[str, set[str]]:
    return {
        kind: {key.removeprefix(f'{kind}.') for key in config.modality_keys}
        for kind, config in data.modality_config().items()
        if kind in _KINDS
    }


def _unknown_data_config(path: Path, got: str, known: Mapping[str, Any]) -> BundleError:
    return bad_checkpoint(
        path,
        got=got,
        expected=f'the data config of the training: MODULE:CLASS, or one of {", ".join(known)}',
        next_step='Name it: --embodiment DATA_CONFIG, or TAG/DATA_CONFIG.',
        code='unknown_embodiment',
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Reader:
    """Reads one robot.

    Attributes:
        where: File and robot, for errors.
        modalities: `video`, `state` and `action` to the library's settings of them.
        steps: The library's steps of the data config, ready for the training data.
        metadata: The robot's entry in the file.
    """

    where: str
    modalities: Mapping[str, Any]
    steps: Sequence[Any]
    metadata: Mapping[str, Any]

    @classmethod
    def of_data_config(cls, where: str, data: Any, metadata: Mapping[str, Any]) -> _Reader:
        schema = require_gr00t('data.schema', version='n1.5').DatasetMetadata
        with silent_library():
            whole = data.transform()
            try:
                whole.set_metadata(schema.model_validate(metadata))
            except (AssertionError, ValueError) as fault:
                raise bad_checkpoint(
                    where,
                    got=' '.join(str(fault).split())[:300],
                    expected=f'what {type(data).__name__} takes',
                    next_step='Name the data config of the training: --embodiment DATA_CONFIG.',
                ) from fault
        return cls(
            where=where,
            modalities=data.modality_config(),
            steps=whole.transforms,
            metadata=metadata,
        )

    @property
    def last(self) -> Any:
        """The library's step that pads for the network."""
        return next(step for step in self.steps if type(step).__name__ == 'GR00TTransform')

    def read(self, name: str) -> Embodiment:
        order = next(step for step in self.steps if type(step).__name__ == 'ConcatTransform')
        rows = [int(step) for step in self.modalities['action'].delta_indices]
        if rows != list(range(rows[0], rows[0] + len(rows))):
            raise unsupported(self.where, f'action_indices {rows}', 'steps without gaps')
        rules = self._read_rules()
        state = tuple(
            self._state_key(key, rules.get(key, 'identity')) for key in order.state_concat_order
        )
        tag = self.metadata['embodiment_tag']
        return Embodiment(
            tag=name,
            number=self.last.embodiment_tag_mapping[tag],
            cameras=tuple(key.removeprefix('video.') for key in order.video_concat_order),
            camera_steps=self._observation_steps('video'),
            state=state,
            state_steps=self._observation_steps('state'),
            action=tuple(
                self._action_key(key, rules.get(key, 'identity'))
                for key in order.action_concat_order
            ),
            first_row=rows[0],
            rows=len(rows),
        )

    def image_transforms(self) -> tuple[Any, ...]:
        """Return what the library does to images.

        Raises:
            BundleError: It is not done by torchvision, or not to all cameras (`unsupported_setting`).
        """
        cameras = set(self.modalities['video'].modality_keys)
        found = [step for step in self.steps if _is_image_step(step) and step.eval_transform]
        for step in found:
            if step.backend != 'torchvision' or set(step.apply_to) != cameras:
                got = f'{type(step).__name__} by {step.backend} of {", ".join(step.apply_to)}'
                raise unsupported(self.where, got, 'torchvision, and the same for all cameras')
        return tuple(step.eval_transform for step in found)

    def _observation_steps(self, kind: str) -> tuple[int, ...]:
        return check_steps(f'{self.where}: {kind}', self.modalities[kind].delta_indices)

    def _read_rules(self) -> dict[str, Normalization]:
        """Return key to normalization, of keys that have one."""
        rules: dict[str, Normalization] = {}
        for step in self.steps:
            name = type(step).__name__
            found: dict[str, Normalization] = {}
            if name == 'StateActionSinCosTransform':
                found = dict.fromkeys(step.apply_to, 'sin_cos')
            elif name == 'StateActionTransform':
                found = self._read_normalizations(step)
            elif not (
                _is_image_step(step) or name in (*_NO_CHANGE, 'ConcatTransform', 'GR00TTransform')
            ):
                raise unsupported(self.where, f'the step {name}', 'steps of the library')
            if twice := rules.keys() & found.keys():
                got = f'several steps for {", ".join(sorted(twice))}'
                raise unsupported(self.where, got, 'one step per key')
            rules.update(found)
        return rules

    def _read_normalizations(self, step: Any) -> dict[str, Normalization]:
        if step.target_rotations:
            got = f'rotations of {", ".join(step.target_rotations)} in another form'
            raise unsupported(self.where, got, 'rotations as the data has them')
        for key, mode in step.normalization_modes.items():
            if mode not in _NORMALIZATIONS:
                raise unsupported(
                    self.where, f'{key}: {mode}', f'one of {", ".join(_NORMALIZATIONS)}'
                )
        return {key: _NORMALIZATIONS[mode] for key, mode in step.normalization_modes.items()}

    def _statistics(self, full_key: str) -> tuple[str, Rules]:
        kind, key = full_key.split('.')
        where = f'{self.where}: {full_key}'
        return key, Rules(where, self.metadata['statistics'][kind][key])

    def _state_key(self, full_key: str, normalization: Normalization) -> VectorKey:
        key, rules = self._statistics(full_key)
        statistics = rules.for_action(normalization, rows=1)
        if normalization == 'quantile':
            statistics = _pass_still(statistics)
        has_none = normalization in ('identity', 'sin_cos')
        return VectorKey(
            key=key,
            width=rules.width,
            normalization=normalization,
            clip=normalization == 'quantile',
            statistics=None if has_none else statistics,
        )

    def _action_key(self, full_key: str, normalization: Normalization) -> ActionKey:
        """Read a key; the library clips nothing on the way back, and leaves relative numbers as the data has them."""
        key, rules = self._statistics(full_key)
        if normalization == 'sin_cos':
            raise unsupported(self.where, f'sine and cosine of {full_key}', 'those of a state')
        held = rules.for_action('identity', rows=1)  # as the file has them, a deviation of 0 too
        is_absolute = self.metadata['modalities']['action'][key]['absolute']
        return ActionKey(
            key=key,
            width=rules.width,
            normalization=normalization,
            statistics=None if normalization == 'identity' else held,
            representation=Representation.ABSOLUTE if is_absolute else Representation.DELTA,
        )


def _is_image_step(step: Any) -> bool:
    return hasattr(step, 'eval_transform') and type(step).__name__ not in _NO_CHANGE


def _pass_still(statistics: GroupStatistics) -> GroupStatistics:
    """Return statistics that let columns pass as they are where both quantiles are equal."""
    still = statistics.q01 == statistics.q99
    return replace(
        statistics,
        q01=np.where(still, -1.0, statistics.q01),
        q99=np.where(still, 1.0, statistics.q99),
    )
