# SPDX-License-Identifier: Apache-2.0
"""What a LeRobot checkpoint says of itself, read from its files without lerobot.

A folder with `config.json`, `model.safetensors`, and since lerobot 0.4 the processors.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_policy_ros.export.checkpoint_files import bad_checkpoint, read_json, reading
from vla_policy_ros.export.lerobot.processors import (
    TOKENIZER_STEP,
    Processors,
    read_processors,
)
from vla_policy_ros.export.lerobot.rules import Rule
from vla_policy_ros.export.lerobot.tensor_file import TensorFile

CONFIG, WEIGHTS = 'config.json', 'model.safetensors'
STATE, ACTION = 'observation.state', 'action'
"""Keys of LeRobot's features."""


@dataclass(frozen=True, slots=True)
class ImageFeature:
    """One camera: the network's key, the dataset's, height and width in pixels, and its normalisation."""

    key: str
    source: str
    height: int
    width: int
    rule: Rule


@dataclass(frozen=True, slots=True)
class VectorFeature:
    """State or action: the number of columns and their normalisation."""

    width: int
    rule: Rule


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """A checkpoint.

    Attributes:
        folder: Where it lies.
        config: `config.json`.
        images: Cameras in the order of the network.
        state: The state.
        action: The action.
        weights: Names of all tensors in `model.safetensors`.
        steps: Settings of each step before the network by LeRobot's name of it; empty before lerobot 0.4.
    """

    folder: Path
    config: Mapping[str, Any]
    images: tuple[ImageFeature, ...]
    state: VectorFeature
    action: VectorFeature
    weights: frozenset[str]
    steps: Mapping[str, Mapping[str, Any]]

    @property
    def policy_type(self) -> str:
        """LeRobot's name of the model family, such as `act`."""
        return str(self.config['type'])

    def max_words(self) -> int:
        """Return the most tokens of an instruction; before lerobot 0.4 `config.json` says it.

        Raises:
            BundleError: Neither does (`bad_checkpoint`).
        """
        step = self.steps.get(TOKENIZER_STEP)
        with reading(self.folder, expected='max_length of the tokenizer, a number'):
            return int(step['max_length'] if step else self.config['tokenizer_max_length'])

    @property
    def weights_path(self) -> Path:
        """The file with the weights."""
        return self.folder / WEIGHTS


def read_checkpoint(
    folder: Path, *, own_steps: Collection[str] = (), takes_any_state: bool = False
) -> Checkpoint:
    """Read a checkpoint.

    Args:
        folder: Where it lies.
        own_steps: Steps before the network that its family follows by itself.
        takes_any_state: Whether the network pads the state, so that its width is that of the statistics: a policy may be
            trained further on another robot, and `config.json` keeps the width of the first.

    Raises:
        BundleError: A file is missing or broken (`bad_checkpoint`), or the policy takes what a bundle cannot give it
            (`unknown_feature`, `unknown_normalization`, `unknown_step`).
    """
    config = read_json(folder / CONFIG)
    where = folder / CONFIG
    weights = TensorFile(folder / WEIGHTS)
    processors = read_processors(folder, _modes(config), weights, own_steps=own_steps)
    with reading(where, expected='type, input_features and output_features with an action'):
        str(config['type'])
        inputs, outputs = config['input_features'], config['output_features']
        kinds = {key: feature['type'] for key, feature in inputs.items()}
        shapes = {key: tuple(map(int, feature['shape'])) for key, feature in inputs.items()}
        action_shape = tuple(map(int, outputs[ACTION]['shape']))
    _check_kinds(where, kinds, shapes)
    images = tuple(
        _image(key, shapes[key], processors) for key, kind in kinds.items() if kind == 'VISUAL'
    )
    state_width = shapes[STATE][0]
    if takes_any_state:
        sizes = [values.size for values in processors.read_statistics(STATE).values()]
        state_width = max(sizes, default=state_width)
    state = VectorFeature(state_width, processors.read_input(STATE, 'STATE', state_width))
    rule = processors.read_output(ACTION, 'ACTION', action_shape[0])
    return Checkpoint(
        folder,
        config,
        images,
        state,
        VectorFeature(action_shape[0], rule),
        weights.names,
        processors.steps,
    )


def _modes(config: Mapping[str, Any]) -> dict[str, str]:
    modes = config.get('normalization_mapping')
    return dict(modes) if isinstance(modes, dict) else {}


def _image(key: str, shape: tuple[int, ...], processors: Processors) -> ImageFeature:
    colors, height, width = shape
    return ImageFeature(
        key=key,
        source=processors.sources.get(key, key),
        height=height,
        width=width,
        rule=processors.read_input(key, 'VISUAL', colors),
    )


def _check_kinds(
    where: Path, kinds: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Refuse inputs that no observation holds; LeRobot itself cannot run these policies without a state."""
    odd = [key for key, kind in kinds.items() if kind not in ('VISUAL', 'STATE')]
    odd += [
        key
        for key, kind in kinds.items()
        if kind == 'VISUAL' and (len(shapes[key]) != 3 or shapes[key][0] != 3)
    ]
    if odd or len(shapes.get(STATE, ())) != 1:
        raise bad_checkpoint(
            where,
            got=f'the inputs {", ".join(f"{key} {list(shapes[key])}" for key in kinds)}',
            expected=f'{STATE} of one dimension, and colour images [3, height, width]',
            next_step='Train a policy on these inputs alone.',
            code='unknown_feature',
        )
