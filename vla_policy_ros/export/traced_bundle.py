# SPDX-License-Identifier: Apache-2.0
"""From a library's policy in stages to a bundle that is proven against the library."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vla_policy_ros.bundle.probe import Probe
from vla_policy_ros.bundle.statistics import GroupStatistics, write_statistics
from vla_policy_ros.bundle.writer import write_bundle
from vla_policy_ros.core.dataset import Dataset
from vla_policy_ros.core.errors import ConfigurationError
from vla_policy_ros.core.specs import Array
from vla_policy_ros.export.proof import (
    PROBE,
    ProvenBundle,
    StageExample,
    compare_stages,
    probe_observation,
    prove_policy,
)
from vla_policy_ros.export.traced_policy import STATISTICS, TOKENIZER, Words
from vla_policy_ros.export.tracing import TracedStage, trace

_SOURCE = 'PyTorch'


def settle_step_ns(step_ns: int | None, dataset: Dataset | None) -> int:
    """Return the time between two steps of the training data: the one that is said, else the dataset's.

    Raises:
        ConfigurationError: Nobody says it (`unknown_step_time`).
    """
    if step_ns is not None:
        return step_ns
    if dataset is None:
        raise ConfigurationError(
            '--fps',
            got='nothing, and no --dataset',
            expected='the rate of the training data, which the checkpoint does not hold',
            next_step='Name the dataset that the policy was trained on, or its frames per second.',
            code='unknown_step_time',
        )
    return dataset.info.step_ns


def write_traced_bundle(
    out: Path,
    manifest: Mapping[str, Any],
    *,
    stages: Sequence[TracedStage],
    statistics: Mapping[str, GroupStatistics],
    words: Words | None,
    dataset: Dataset | None,
    reference: Callable[[Mapping[str, Array]], Probe],
) -> ProvenBundle:
    """Write the files of a bundle and compare every stage, and the whole policy, with the library.

    Args:
        out: Where the bundle goes; empty.
        manifest: Everything but `probe` and `files`.
        stages: The networks.
        statistics: Group to its statistics; none where no group has any.
        words: The instruction; None for a policy that takes none.
        dataset: Gives the observation of the probe; None for noise.
        reference: Runs the library's own way from the tensors of an observation on.

    Raises:
        DatasetError: The dataset lacks what the policy wants.
        EngineError: A network cannot be traced, or computes something else afterwards (`not_equal`).
    """
    if statistics:
        write_statistics(out / STATISTICS, statistics)
    if words:
        (out / TOKENIZER).write_text(words.tokenizer, encoding='utf-8')
    for stage in stages:
        trace(stage, out)
    bundle = write_bundle(out, manifest)
    examples = [
        StageExample(traced.inputs, dict.fromkeys(stage.outputs, traced.run()))
        for traced, stage in zip(stages, bundle.manifest.stages, strict=True)
    ]
    proofs = compare_stages(bundle, examples, source=_SOURCE)
    observation = probe_observation(bundle, dataset)
    policy = prove_policy(bundle, observation, reference, source=_SOURCE)
    return ProvenBundle(write_bundle(out, {**manifest, 'probe': PROBE}), proofs, policy)
