# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint does before and after its network.

Since lerobot 0.4: `policy_preprocessor.json` and `policy_postprocessor.json`, lists of steps with a safetensors file for
those that hold numbers. Before: buffers among the weights, `normalize_inputs.buffer_<feature>.<statistic>`, with the modes
in `config.json`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_policy_ros.core.specs import Array
from vla_policy_ros.export.checkpoint_files import bad_checkpoint, read_json
from vla_policy_ros.export.lerobot.rules import EPSILON, Rule, make_rule
from vla_policy_ros.export.lerobot.tensor_file import TensorFile

PREPROCESSOR, POSTPROCESSOR = 'policy_preprocessor.json', 'policy_postprocessor.json'
TOKENIZER_STEP = 'tokenizer_processor'
"""LeRobot's name of the step that makes tokens of words."""
_RENAME = 'rename_observations_processor'
_NORMALIZERS = ('normalizer_processor', 'unnormalizer_processor')
# Steps that move tensors and leave the numbers as they are, and those that do so until they are switched on.
_NEUTRAL = ('to_batch_processor', 'device_processor')
_SWITCHED = ('relative_actions_processor', 'absolute_actions_processor')

RuleReader = Callable[[str, str, int], Rule]
"""Takes a feature's key, its type such as STATE, and its width; returns its rule."""
StatisticsReader = Callable[[str], Mapping[str, Array]]
"""Takes a feature's key; returns name to (W,) float64."""


@dataclass(frozen=True, slots=True, eq=False)
class Processors:
    """How features are normalised, and how the network's keys are called in the dataset.

    Attributes:
        read_input: Rule of an input.
        read_output: Rule of an output.
        sources: The network's key to the dataset's, where they differ.
        read_statistics: Statistics of an input, none where there are none.
        steps: Settings of each step before the network by its name; empty before 0.4.
    """

    read_input: RuleReader
    read_output: RuleReader
    sources: Mapping[str, str]
    read_statistics: StatisticsReader
    steps: Mapping[str, Mapping[str, Any]]


def read_processors(
    folder: Path, modes: Mapping[str, str], weights: TensorFile, *, own_steps: Collection[str] = ()
) -> Processors:
    """Read how a checkpoint normalises.

    Args:
        folder: The checkpoint.
        modes: Type of feature to mode, as `config.json` says it; only checkpoints before 0.4 are read by it.
        weights: The weights.
        own_steps: Steps that the model family follows by itself.

    Raises:
        BundleError: A file is broken, a step is not known (`unknown_step`), or there are no statistics.
    """
    if (folder / PREPROCESSOR).is_file():
        before = list(_read_steps(folder / PREPROCESSOR, own_steps))
        after = list(_read_steps(folder / POSTPROCESSOR))
        renamed = {
            new: old
            for step in before
            if step['name'] == _RENAME
            for old, new in step['config'].get('rename_map', {}).items()
        }
        inputs, outputs = (_step_statistics(folder, steps) for steps in (before, after))
        return Processors(
            _step_reader(f'{folder / PREPROCESSOR}', before, inputs),
            _step_reader(f'{folder / POSTPROCESSOR}', after, outputs),
            renamed,
            inputs,
            {step['name']: step['config'] for step in before},
        )
    if not any(name.startswith('normalize_inputs.') for name in weights.names):
        raise bad_checkpoint(
            folder / PREPROCESSOR,
            got='no such file, and no normalize_inputs among the weights',
            expected='the statistics that the policy was trained with, in one of the two places',
            next_step="Save the policy's processors beside it with their save_pretrained().",
        )
    inputs, outputs = (
        _buffer_statistics(module, weights)
        for module in ('normalize_inputs', 'unnormalize_outputs')
    )
    return Processors(
        _buffer_reader(f'{folder}: normalize_inputs', modes, inputs),
        _buffer_reader(f'{folder}: unnormalize_outputs', modes, outputs),
        {},
        inputs,
        {},
    )


def _read_steps(path: Path, own_steps: Collection[str] = ()) -> Iterator[dict[str, Any]]:
    """Yield name, config and state_file of each step."""
    known = (_RENAME, *_NORMALIZERS, *_NEUTRAL, *own_steps)
    for step in read_json(path).get('steps', ()):
        name = step.get('registry_name') or step.get('class', '')
        is_off = name in _SWITCHED and not step.get('config', {}).get('enabled')
        if name not in known and not is_off:
            raise bad_checkpoint(
                path,
                got=f'step {name!r}',
                expected=f'only {", ".join(known)}',
                next_step='Remove the step when it has no effect, or train without it: a bundle cannot say what it does.',
                code='unknown_step',
            )
        yield {'config': {}, 'state_file': None, **step, 'name': name}


def _normalizing_step(steps: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the normalising step; an empty one when there is none."""
    nothing: dict[str, Any] = {'config': {}, 'state_file': None}
    return next((step for step in steps if step['name'] in _NORMALIZERS), nothing)


def _step_statistics(folder: Path, steps: list[dict[str, Any]]) -> StatisticsReader:
    file = _normalizing_step(steps)['state_file']
    tensors = TensorFile(folder / file) if file else None
    return lambda key: _statistics(tensors, f'{key}.') if tensors else {}


def _step_reader(
    where: str, steps: list[dict[str, Any]], read_statistics: StatisticsReader
) -> RuleReader:
    """Return a reader of the normalising step; without one, or without a feature's numbers, nothing is changed."""
    config = _normalizing_step(steps)['config']
    chosen = config.get('normalize_observation_keys')

    def read(key: str, kind: str, width: int) -> Rule:
        statistics = read_statistics(key)
        is_used = key in config.get('features', {}) and (chosen is None or key in chosen)
        mode = config.get('norm_map', {}).get(kind, 'IDENTITY') if is_used and statistics else ''
        return make_rule(
            f'{where}: {key}',
            mode or 'IDENTITY',
            statistics,
            width=width,
            epsilon=float(config.get('eps', EPSILON)),
        )

    return read


def _buffer_statistics(module: str, weights: TensorFile) -> StatisticsReader:
    return lambda key: _statistics(weights, f'{module}.buffer_{key.replace(".", "_")}.')


def _buffer_reader(
    where: str, modes: Mapping[str, str], read_statistics: StatisticsReader
) -> RuleReader:
    def read(key: str, kind: str, width: int) -> Rule:
        return make_rule(
            f'{where}: {key}', modes.get(kind, 'IDENTITY'), read_statistics(key), width=width
        )

    return read


def _statistics(tensors: TensorFile, prefix: str) -> dict[str, Array]:
    names = ('min', 'max', 'mean', 'std', 'q01', 'q99')
    held = tensors.names
    return {name: tensors.read(prefix + name) for name in names if prefix + name in held}
