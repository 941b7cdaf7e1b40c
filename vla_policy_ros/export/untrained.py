# SPDX-License-Identifier: Apache-2.0
"""A policy that has learned nothing: a small random network with the shapes of a dataset.

It proves the whole way from cameras to actions on a dataset of any layout before there is a trained model. Its actions
mean nothing; they stay within the range that the dataset recorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from vla_policy_ros.bundle.bundle import Bundle
from vla_policy_ros.bundle.probe import make_probe, write_probe
from vla_policy_ros.bundle.statistics import compute_statistics, write_statistics
from vla_policy_ros.bundle.writer import write_bundle
from vla_policy_ros.core.dataset import Dataset, DatasetInfo
from vla_policy_ros.core.specs import Column
from vla_policy_ros.export.dataset_numbers import DatasetNumbers, read_numbers
from vla_policy_ros.export.proof import PROBE, check_empty, probe_observation
from vla_policy_ros.export.random_network import RandomNetwork
from vla_policy_ros.policies.engine_policy import EnginePolicy

_MODEL, _STATISTICS, _TOKENIZER = 'policy.onnx', 'statistics.json', 'tokenizer.json'
_MIN_TOKENS = 16


def create_untrained_bundle(
    folder: Path, dataset: Dataset, *, horizon: int = 16, image_size: int = 96, seed: int = 0
) -> Bundle:
    """Write a bundle whose cameras, state, words and actions are those of a dataset.

    The same dataset and seed give the same files. Reads all numbers of the dataset, and of the images the first ones.

    Args:
        folder: Where the bundle goes; made when it is not there, else it must be empty.
        dataset: Any recording. Without recorded actions, the action columns are those of the state.
        horizon: K, the rows of a chunk.
        image_size: Height and width in pixels that images are resized to.
        seed: Seed of the weights.

    Raises:
        DatasetError: The dataset has no episode, or neither state nor action (`no_columns`).
        BundleError: The folder is not empty (`folder_not_empty`).
    """
    check_empty(folder)
    info = dataset.info
    numbers = read_numbers(dataset)
    words = _vocabulary(numbers.texts)
    max_tokens = max([_MIN_TOKENS, *(len(_split(text)) for text in numbers.texts)])
    network = RandomNetwork(
        cameras=[f'image_{index}' for index in range(len(info.cameras))],
        image_size=image_size,
        num_states=len(info.state),
        vocabulary=len(words),
        max_tokens=max_tokens,
        num_actions=numbers.action.shape[1],
        horizon=horizon,
        seed=seed,
    )
    network.write(folder / _MODEL)
    _write_statistics(folder / _STATISTICS, numbers)
    manifest = _manifest(info, horizon=horizon, image_size=image_size, seed=seed)
    manifest['stages'] = [network.stage(_MODEL)]
    if words:
        _write_tokenizer(folder / _TOKENIZER, words)
        manifest['instruction'] = _instruction(max_tokens, allow_empty='' in numbers.texts)
    return _prove(folder, manifest, dataset)


def _write_statistics(path: Path, numbers: DatasetNumbers) -> None:
    statistics = {'action': compute_statistics(numbers.action)}
    if numbers.state.shape[1]:
        statistics['state'] = compute_statistics(numbers.state)
    write_statistics(path, statistics)


def _instruction(max_tokens: int, *, allow_empty: bool) -> dict[str, Any]:
    return {
        'tokenizer': _TOKENIZER,
        'tokens': 'tokens',
        'mask': 'mask',
        'max_tokens': max_tokens,
        'allow_empty': allow_empty,
    }


def _manifest(info: DatasetInfo, *, horizon: int, image_size: int, seed: int) -> dict[str, Any]:
    resize = {'kind': 'resize', 'height': image_size, 'width': image_size}
    half = [0.5, 0.5, 0.5]
    manifest: dict[str, Any] = {
        'schema_version': 1,
        'name': 'untrained',
        'family': 'untrained',
        'source': {
            'note': f'Random weights, seed {seed}; shapes of {info.name}. Its actions mean nothing.'
        },
        'cameras': [
            {
                'name': camera.name,
                'tensor': f'image_{index}',
                'geometry': [resize],
                'mean': half,
                'std': half,
            }
            for index, camera in enumerate(info.cameras)
        ],
        'action': {
            'tensor': 'action',
            'groups': [_group('action', info.action or info.state)],
            'horizon': horizon,
            'step_ns': info.step_ns,
        },
        'statistics': _STATISTICS,
    }
    if info.state:
        groups = [_group('state', info.state)]
        manifest['state'] = {'tensor': 'state', 'groups': groups, 'squeeze': True}
    return manifest


def _group(name: str, columns: Sequence[Column]) -> dict[str, Any]:
    return {
        'name': name,
        'names': [column.name for column in columns],
        'units': [column.unit for column in columns],
        'kinds': [column.kind.value for column in columns],
        'normalization': 'min_max',
    }


def _prove(folder: Path, manifest: dict[str, Any], dataset: Dataset) -> Bundle:
    """Run the policy once on the first step and keep that as the probe."""
    bundle = write_bundle(folder, manifest)
    with closing(EnginePolicy(bundle)) as policy:
        write_probe(folder / PROBE, make_probe(policy, probe_observation(bundle, dataset)))
    return write_bundle(folder, {**manifest, 'probe': PROBE})


def _vocabulary(texts: frozenset[str]) -> dict[str, int]:
    """Number the words that occur; empty when none do."""
    found = sorted({word for text in texts for word in _split(text)})
    names = ['[PAD]', '[UNK]', *found] if found else []
    return {word: index for index, word in enumerate(names)}


def _split(text: str) -> list[str]:
    return text.lower().split()


def _write_tokenizer(path: Path, vocabulary: dict[str, int]) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.normalizers import Lowercase
    from tokenizers.pre_tokenizers import WhitespaceSplit

    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token='[UNK]'))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(path))
