# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint does before and after its network.

Since lerobot 0.4: `policy_preprocessor.json` and `policy_postprocessor.json`, lists of steps with a safetensors file for
those that hold numbers. Before: buffers among the weights, `normalize_inputs.buffer_<feature>.<statistic>`, with the modes
in `config.json`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_policy_ros.core.specs import Array
from vla_policy_ros.export.lerobot.faults import bad_checkpoint
from vla_policy_ros.export.lerobot.rules import EPSILON, Rule, make_rule
from vla_policy_ros.export.lerobot.tensor_file import TensorFile

PREPROCESSOR, POSTPROCESSOR = 'policy_preprocessor.json', 'policy_postprocessor.json'
_RENAME = 'rename_observations_processor'
_NORMALIZERS = ('normalizer_processor', 'unnormalizer_processor')
# Steps that move tensors and leave the numbers as they are.
_NEUTRAL = ('to_batch_processor', 'device_processor')

RuleReader = Callable[[str, str, int], Rule]
"""Takes a feature's key, its type such as STATE, and its width; returns its rule."""


@dataclass(frozen=True, slots=True, eq=False)
class Processors:
    """How features are normalised, and how the network's keys are called in the dataset.

    Attributes:
        read_input: Rule of an input.
        read_output: Rule of an output.
        sources: The network's key to the dataset's, where they differ.
    """

    read_input: RuleReader
    read_output: RuleReader
    sources: Mapping[str, str]


def read_processors(folder: Path, modes: Mapping[str, str], weights: TensorFile) -> Processors:
    """Read how a checkpoint normalises.

    Args:
        folder: The checkpoint.
        modes: Type of feature to mode, as `config.json` says it; only checkpoints before 0.4 are read by it.
        weights: The weights.

    Raises:
        BundleError: A file is broken, a step is not known (`unknown_step`), or there are no statistics.
    """
    if (folder / PREPROCESSOR).is_file():
        before = list(_read_steps(folder / PREPROCESSOR))
        after = list(_read_steps(folder / POSTPROCESSOR))
        renamed = {
            new: old
            for step in before
            if step['name'] == _RENAME
            for old, new in step['config'].get('rename_map', {}).items()
        }
        return Processors(
            _step_reader(folder, PREPROCESSOR, before),
            _step_reader(folder, POSTPROCESSOR, after),
            renamed,
        )
    if not any(name.startswith('normalize_inputs.') for name in weights.names):
        raise bad_checkpoint(
            folder / PREPROCESSOR,
            got='no such file, and no normalize_inputs among the weights',
            expected='the statistics that the policy was trained with, in one of the two places',
            next_step="Save the policy's processors beside it with their save_pretrained().",
        )
    return Processors(
        _buffer_reader(folder, 'normalize_inputs', modes, weights),
        _buffer_reader(folder, 'unnormalize_outputs', modes, weights),
        {},
    )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of a checkpoint.

    Raises:
        BundleError: It is missing or no JSON object (`bad_checkpoint`).
    """
    try:
        document = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as fault:
        document = str(fault)
    if not isinstance(document, dict):
        raise bad_checkpoint(
            path,
            got=document if isinstance(document, str) else type(document).__name__,
            expected='a JSON object, as save_pretrained() of lerobot writes it',
            next_step='Name the folder that holds config.json, often called pretrained_model.',
        )
    return document


def _read_steps(path: Path) -> Iterator[dict[str, Any]]:
    """Yield name, config and state_file of each step."""
    for step in read_json(path).get('steps', ()):
        name = step.get('registry_name') or step.get('class', '')
        if name not in (_RENAME, *_NORMALIZERS, *_NEUTRAL):
            raise bad_checkpoint(
                path,
                got=f'step {name!r}',
                expected=f'only {", ".join((_RENAME, *_NORMALIZERS, *_NEUTRAL))}',
                next_step='Remove the step when it has no effect, or train without it: a bundle cannot say what it does.',
                code='unknown_step',
            )
        yield {'config': {}, 'state_file': None, **step, 'name': name}


def _step_reader(folder: Path, file: str, steps: list[dict[str, Any]]) -> RuleReader:
    """Return a reader of the normalising step; without one, or without a feature's numbers, nothing is changed."""
    step = next((step for step in steps if step['name'] in _NORMALIZERS), None)
    config = step['config'] if step else {}
    chosen = config.get('normalize_observation_keys')
    tensors = TensorFile(folder / step['state_file']) if step and step['state_file'] else None

    def read(key: str, kind: str, width: int) -> Rule:
        statistics = _statistics(tensors, f'{key}.') if tensors else {}
        is_used = key in config.get('features', {}) and (chosen is None or key in chosen)
        mode = config.get('norm_map', {}).get(kind, 'IDENTITY') if is_used and statistics else ''
        return make_rule(
            f'{folder / file}: {key}',
            mode or 'IDENTITY',
            statistics,
            width=width,
            epsilon=float(config.get('eps', EPSILON)),
        )

    return read


def _buffer_reader(
    folder: Path, module: str, modes: Mapping[str, str], weights: TensorFile
) -> RuleReader:
    def read(key: str, kind: str, width: int) -> Rule:
        prefix = f'{module}.buffer_{key.replace(".", "_")}.'
        return make_rule(
            f'{folder}: {prefix}*',
            modes.get(kind, 'IDENTITY'),
            _statistics(weights, prefix),
            width=width,
        )

    return read


def _statistics(tensors: TensorFile, prefix: str) -> dict[str, Array]:
    names = ('min', 'max', 'mean', 'std', 'q01', 'q99')
    held = tensors.names
    return {name: tensors.read(prefix + name) for name in names if prefix + name in held}
