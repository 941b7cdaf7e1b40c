# SPDX-License-Identifier: Apache-2.0
"""From a LeRobot checkpoint to a bundle that is proven against LeRobot."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_policy_ros.bundle.bundle import Bundle
from vla_policy_ros.bundle.limits import ACCURACY_LIMITS
from vla_policy_ros.bundle.probe import Probe, write_probe
from vla_policy_ros.bundle.statistics import write_statistics
from vla_policy_ros.bundle.writer import write_bundle
from vla_policy_ros.core.dataset import Dataset
from vla_policy_ros.core.errors import ConfigurationError, EngineError
from vla_policy_ros.core.observation import Observation
from vla_policy_ros.evaluation.parity import Parity, measure_parity
from vla_policy_ros.evaluation.sampling import sample_observations
from vla_policy_ros.export.lerobot.act import plan_act
from vla_policy_ros.export.lerobot.checkpoint import CONFIG, Checkpoint, read_checkpoint
from vla_policy_ros.export.lerobot.diffusion import plan_diffusion
from vla_policy_ros.export.lerobot.faults import bad_checkpoint
from vla_policy_ros.export.lerobot.library import load_policy
from vla_policy_ros.export.lerobot.manifest import (
    STATISTICS,
    find_names,
    make_manifest,
    make_statistics,
)
from vla_policy_ros.export.lerobot.plan import Plan
from vla_policy_ros.export.lerobot.processors import read_json
from vla_policy_ros.export.tracing import trace
from vla_policy_ros.export.untrained import check_empty
from vla_policy_ros.policies.engine_policy import EnginePolicy
from vla_policy_ros.policies.inputs import example_observation
from vla_policy_ros.policies.stage_probe import StageProbe

FAMILIES: Mapping[str, Callable[[Checkpoint, Any], Plan]] = {
    'act': plan_act,
    'diffusion': plan_diffusion,
}
"""LeRobot's name of a family to what plans its export."""
ENGINE = 'onnxruntime'
"""What the export is proven with."""

_PROBE = 'probe.npz'
_LIMIT = ACCURACY_LIMITS['fp32']


@dataclass(frozen=True, slots=True)
class Export:
    """What came out.

    Attributes:
        bundle: The bundle.
        stages: Each stage on the CPU against PyTorch, by its name.
        policy: The whole policy against LeRobot's own code, on the probe.
        executed_rows: Rows of a chunk that the policy was made to execute, from the observation on.
    """

    bundle: Bundle
    stages: Mapping[str, Parity]
    policy: Parity
    executed_rows: int


def export_checkpoint(
    folder: Path,
    out: Path,
    *,
    dataset: Dataset | None = None,
    step_ns: int | None = None,
    origin: str = '',
) -> Export:
    """Write a bundle of a LeRobot checkpoint and compare it with LeRobot.

    Args:
        folder: The checkpoint, as `save_pretrained` writes it.
        out: Where the bundle goes; made when it is not there, else it must be empty.
        dataset: Names cameras and columns, says the step, and gives the observation of the probe.
        step_ns: Time between two steps of the training data; the dataset's when None.
        origin: What the bundle names as its checkpoint; the folder when empty.

    Raises:
        ConfigurationError: Nobody says the step (`unknown_step_time`).
        MissingDependencyError: lerobot or torch is not installed.
        DatasetError: The dataset is not one of the policy's.
        BundleError: The checkpoint is broken or of another family (`unsupported_policy`), or `out` is not empty.
        EngineError: A network cannot be traced, or computes something else afterwards (`not_equal`).
    """
    check_empty(out)
    make_plan = _find_family(folder)
    checkpoint = read_checkpoint(folder)
    step_ns = _find_step(dataset, step_ns)
    names = find_names(checkpoint, dataset.info if dataset else None)
    plan = make_plan(checkpoint, load_policy(checkpoint))
    manifest = make_manifest(checkpoint, plan, names, name=_policy_name(out), step_ns=step_ns)
    manifest['source']['checkpoint'] = origin or str(folder)
    if statistics := make_statistics(checkpoint):
        write_statistics(out / STATISTICS, statistics)
    for stage in plan.stages:
        trace(stage, out)
    bundle = write_bundle(out, manifest)
    stages = _compare_stages(bundle, plan)
    policy = _compare_policy(bundle, plan, _observation(bundle, dataset))
    bundle = write_bundle(out, {**manifest, 'probe': _PROBE})
    return Export(bundle, stages, policy, plan.executed_rows)


def _find_family(folder: Path) -> Callable[[Checkpoint, Any], Plan]:
    """Ask before anything else is read: other families keep things that are not known here."""
    policy_type = str(read_json(folder / CONFIG).get('type'))
    if policy_type not in FAMILIES:
        raise bad_checkpoint(
            f'{folder / CONFIG}: type',
            got=policy_type,
            expected=f'one of {", ".join(FAMILIES)}',
            next_step='Only these families can be exported so far.',
            code='unsupported_policy',
        )
    return FAMILIES[policy_type]


def _find_step(dataset: Dataset | None, step_ns: int | None) -> int:
    if step_ns is None and dataset is None:
        raise ConfigurationError(
            '--fps',
            got='nothing, and no --dataset',
            expected='the rate of the training data, which the checkpoint does not hold',
            next_step='Name the dataset that the policy was trained on, or its frames per second.',
            code='unknown_step_time',
        )
    if step_ns is not None:
        return step_ns
    assert dataset
    return dataset.info.step_ns


def _policy_name(out: Path) -> str:
    return re.sub(r'[^A-Za-z0-9_.\-]', '_', out.absolute().name)[:64]


def _observation(bundle: Bundle, dataset: Dataset | None) -> Observation:
    if dataset is None:
        return example_observation(bundle)
    return next(sample_observations(dataset, bundle.spec, count=1))


def _compare_stages(bundle: Bundle, plan: Plan) -> dict[str, Parity]:
    """Run every stage on its example values, here and in PyTorch."""
    parities = {}
    for traced, stage in zip(plan.stages, bundle.manifest.stages, strict=True):
        with closing(StageProbe(bundle, stage, engine=ENGINE)) as probe:
            (output,) = probe.run(dict(traced.inputs)).values()
        parities[stage.name] = _checked(stage.name, measure_parity(output, traced.run()))
    return parities


def _compare_policy(bundle: Bundle, plan: Plan, observation: Observation) -> Parity:
    """Run the policy on an observation, here and in LeRobot; keep LeRobot's result as the probe."""
    with closing(EnginePolicy(bundle, engine=ENGINE)) as policy:
        inputs, _ = policy.pool_inputs(observation)
        wanted = plan.reference(inputs)
        output = policy.run_pool(inputs, wanted.noise)
    write_probe(bundle.folder / _PROBE, Probe(inputs, wanted.noise, wanted.output))
    return _checked('policy', measure_parity(output, wanted.output))


def _checked(name: str, parity: Parity) -> Parity:
    if not parity.is_within(_LIMIT):
        raise EngineError(
            name,
            got=f'cosine {parity.cosine:.6f}, maximum error {parity.max_error:.3g} against PyTorch',
            expected=f'cosine >= {_LIMIT.min_cosine}, maximum error <= {_LIMIT.max_error}',
            next_step='Do not use this bundle; export with another version of torch, and report the versions.',
            code='not_equal',
        )
    return parity
