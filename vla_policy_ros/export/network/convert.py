# SPDX-License-Identifier: Apache-2.0
"""From a network and its description to a bundle that is proven against the network."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vla_policy_ros.bundle.bundle import Bundle
from vla_policy_ros.bundle.files import hash_file
from vla_policy_ros.bundle.onnx_model import read_model
from vla_policy_ros.bundle.probe import Probe
from vla_policy_ros.bundle.statistics import write_statistics
from vla_policy_ros.bundle.strict import parse_file
from vla_policy_ros.bundle.writer import write_bundle
from vla_policy_ros.core.dataset import Dataset
from vla_policy_ros.core.errors import ConfigurationError
from vla_policy_ros.core.observation import Observation
from vla_policy_ros.core.specs import Array, TensorSpec
from vla_policy_ros.evaluation.parity import Parity
from vla_policy_ros.export.compare import observed_cases
from vla_policy_ros.export.network.description import NetworkDescription
from vla_policy_ros.export.network.fit import FittedInputs, fit_inputs, fit_outputs
from vla_policy_ros.export.network.fixed_shapes import as_spec
from vla_policy_ros.export.network.joints import Reading, write_feeds, write_reading
from vla_policy_ros.export.network.manifest import (
    INPUTS,
    NETWORK,
    OUTPUTS,
    make_manifest,
    stage_file,
)
from vla_policy_ros.export.network.source import Source, open_source
from vla_policy_ros.export.network.statistics import find_statistics
from vla_policy_ros.export.proof import (
    PROBE,
    ProvenBundle,
    StageExample,
    StageProof,
    compare_stages,
    new_folder,
    policy_name,
    probe_observation,
    prove_policy,
)

_STATISTICS = 'statistics.json'


def export_network(
    network: Path, out: Path, *, describe: Path, dataset: Dataset | None = None
) -> ProvenBundle:
    """Write a bundle of a network file and compare it with the file.

    Args:
        network: `.onnx`, `.pt` (TorchScript) or `.pt2` (torch.export).
        out: Where the bundle goes; made when it is not there, else it must be empty.
        describe: The description, a YAML file.
        dataset: Gives statistics that the description does not, and the observation of the probe.

    Raises:
        ConfigurationError: The description is wrong or does not fit the network.
        MissingDependencyError: torch is needed and not installed.
        DatasetError: The dataset lacks cameras or columns of the policy.
        BundleError: The file is no such network, or `out` is not empty.
        EngineError: The network cannot be traced or loaded, or the bundle computes something else (`not_equal`).
    """
    description = parse_file(NetworkDescription, describe, ConfigurationError)
    with closing(open_source(network)) as source:
        inputs = fit_inputs(description, source.inputs, str(describe))
        statistics = find_statistics(description, dataset, describe)
        with new_folder(out):
            outputs = _write_network(source, inputs, out, opset=description.opset)
            reading = fit_outputs(description.action, outputs, str(describe))
            _write_joints(inputs, reading, out)
            name = description.name or policy_name(out)
            manifest = make_manifest(description, inputs, reading, outputs, name=name)
            manifest['source'] |= {'checkpoint': network.name, 'sha256': hash_file(network)}
            if statistics:
                write_statistics(out / _STATISTICS, statistics)
                manifest['statistics'] = _STATISTICS
            bundle = write_bundle(out, manifest)
            chain = _Chain(source, inputs, reading, _constants(bundle))
            proof = _prove(bundle, chain, probe_observation(bundle, dataset))
            return ProvenBundle(write_bundle(out, {**manifest, 'probe': PROBE}), *proof)


@dataclass(frozen=True, slots=True, eq=False)
class _Chain:
    """The source between the pool and the actions, joined in numpy: what the bundle's stages are held against."""

    source: Source
    inputs: FittedInputs
    reading: Reading
    constants: Mapping[str, Array]

    def run(self, inputs: Mapping[str, Array]) -> Probe:
        """Return the actions of the tensors of an observation."""
        return Probe(inputs, None, self.reading.read(self.source.run(self._fill(inputs))))

    def examples(self, inputs: Mapping[str, Array]) -> list[StageExample]:
        """Return what each stage is given and what must come of it."""
        pool, filled = {**inputs, **self.constants}, self._fill(inputs)
        outputs = self.source.run(filled)
        examples = [StageExample(filled, outputs)]
        joined = self.inputs.joined
        if joined:
            parts = {part.name: pool[part.name] for feed in joined for part in feed.parts}
            wanted = {feed.pool: filled[feed.spec.name] for feed in joined}
            examples.insert(0, StageExample(parts, wanted))
        if not self.reading.is_direct:
            used = zip(self.reading.pools, self.reading.outputs, strict=True)
            given = {pool_name: outputs[spec.name] for pool_name, spec in used}
            wanted = {self.reading.pool: self.reading.read(outputs)}
            examples.append(StageExample(given, wanted))
        return examples

    def _fill(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        pool = {**inputs, **self.constants}
        return {feed.spec.name: feed.fill(pool) for feed in self.inputs.feeds}


def _prove(
    bundle: Bundle, chain: _Chain, observation: Observation
) -> tuple[dict[str, StageProof], Parity]:
    """Return how near the stages come, and the policy."""
    (case,) = observed_cases(bundle, [observation])
    title = chain.source.title
    stages = compare_stages(bundle, chain.examples(case.inputs), source=title)
    return stages, prove_policy(bundle, observation, chain.run, source=title)


def _write_network(
    source: Source, inputs: FittedInputs, out: Path, *, opset: int | None
) -> list[TensorSpec]:
    """Write the network; return its outputs."""
    path = out / stage_file(NETWORK)
    source.write(path, {feed.spec.name: feed.spec for feed in inputs.feeds}, opset=opset)
    return [as_spec(tensor) for tensor in read_model(path, str(path)).outputs]


def _write_joints(inputs: FittedInputs, reading: Reading, out: Path) -> None:
    if inputs.joined:
        write_feeds(inputs.joined, out / stage_file(INPUTS))
    if not reading.is_direct:
        write_reading(reading, out / stage_file(OUTPUTS))


def _constants(bundle: Bundle) -> dict[str, Array]:
    constants = bundle.manifest.constants
    return {c.tensor: np.full(c.shape, c.value, np.dtype(c.dtype)) for c in constants}
