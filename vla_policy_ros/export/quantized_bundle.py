# SPDX-License-Identifier: Apache-2.0
"""A bundle whose networks are in int8, for engines that run a file as it is.

What is not quantised stays in float32: these engines have few 16-bit kernels on a CPU. OpenVINO multiplies in 8 bits where the
activation is quantised (an ACT on a CPU with VNNI: 2.4 times as fast). ONNX Runtime would want the output of a product
quantised, too, and turns the numbers back before it multiplies (0.6 times).
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from vla_policy_ros.bundle.bundle import Bundle
from vla_policy_ros.bundle.manifest import Precision
from vla_policy_ros.bundle.onnx_model import read_model
from vla_policy_ros.bundle.probe import Probe, make_probe, read_probe
from vla_policy_ros.bundle.writer import write_bundle
from vla_policy_ros.core.errors import EngineError
from vla_policy_ros.evaluation.parity import Parity, measure_parity
from vla_policy_ros.export.calibration import Calibration
from vla_policy_ros.export.onnx_network import OnnxNetwork
from vla_policy_ros.export.prepare import quantize_by_rule
from vla_policy_ros.export.proof import (
    ENGINE,
    check_parity,
    new_folder,
    policy_name,
    probe_observation,
)
from vla_policy_ros.export.quantize import QuantizationReport
from vla_policy_ros.policies.engine_policy import EnginePolicy

PRECISION: Final = 'int8'


@dataclass(frozen=True, slots=True)
class QuantizedBundle:
    """What came out.

    Attributes:
        bundle: The new bundle.
        networks: Name of each ONNX file to what was done to it.
        policy: How near the whole policy comes to the unquantised one, on the bundle's probe.
    """

    bundle: Bundle
    networks: Mapping[str, QuantizationReport]
    policy: Parity


def quantize_bundle(bundle: Bundle, out: Path, calibration: Calibration) -> QuantizedBundle:
    """Write a bundle in int8 and compare it with the one that it was made of, on the CPU.

    Args:
        bundle: The bundle, whose networks are float32.
        out: Where the new one goes; made when it is not there, else it must be empty.
        calibration: Ranges of the bundle's networks, and the products that must not be quantised.

    Raises:
        BundleError: `out` is not empty.
        EngineError: No network has a product to quantise (`nothing_to_quantize`), the calibration is another bundle's, or
            the policy comes out too far away (`not_equal`).
    """
    names = dict.fromkeys(stage.onnx for stage in bundle.manifest.stages)
    with new_folder(out):
        _copy_others(bundle, out, names)
        reports = {
            name: _quantize(bundle.folder / name, out / name, calibration) for name in names
        }
        if not any(report.products for report in reports.values()):
            raise _nothing_to_quantize(bundle)
        made = write_bundle(out, _describe(bundle, out, calibration, reports))
        parity = _compare(bundle, made)
    return QuantizedBundle(made, reports, parity)


def _copy_others(bundle: Bundle, out: Path, names: Mapping[str, None]) -> None:
    """Copy all files but networks and their weights."""
    gone = set(names)
    for name in names:
        path = bundle.folder / name
        gone |= {
            str((path.parent / weights).relative_to(bundle.folder))
            for weights in read_model(path, name).weight_files
        }
    for name in bundle.manifest.files.keys() - gone:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.folder / name, out / name)


def _quantize(source: Path, target: Path, calibration: Calibration) -> QuantizationReport:
    network = OnnxNetwork(source)
    report = quantize_by_rule(network, PRECISION, calibration)
    target.parent.mkdir(parents=True, exist_ok=True)
    network.save(target)
    return report


def _describe(
    bundle: Bundle, out: Path, calibration: Calibration, reports: Mapping[str, QuantizationReport]
) -> dict[str, Any]:
    """Return the manifest of the new bundle."""
    facts = bundle.manifest.model_dump(mode='json', exclude_unset=True, exclude={'files'})
    note = f'int8, calibrated on {calibration.observations} observations of {calibration.source}.'
    source = facts.get('source', {})
    facts['source'] = {**source, 'note': ' '.join(filter(None, (source.get('note'), note)))}
    facts['name'] = policy_name(out)
    for stage in facts['stages']:
        if reports[stage['onnx']].products:
            stage['precision'] = PRECISION
    return facts


def _compare(bundle: Bundle, made: Bundle) -> Parity:
    """Run both on the bundle's probe, or on noise where it has none."""
    with closing(EnginePolicy(bundle, engine=ENGINE)) as policy:
        probe = _find_probe(bundle, policy)
    with closing(EnginePolicy(made, engine=ENGINE)) as policy:
        output = policy.run_pool(probe.inputs, probe.noise)
    parity = measure_parity(output, probe.output)
    precisions: list[Precision] = [stage.precision for stage in made.manifest.stages]
    check_parity('policy', parity, precisions, source='the unquantised policy')
    return parity


def _find_probe(bundle: Bundle, policy: EnginePolicy) -> Probe:
    if bundle.manifest.probe:
        return read_probe(bundle.folder / bundle.manifest.probe)
    return make_probe(policy, probe_observation(bundle, None))


def _nothing_to_quantize(bundle: Bundle) -> EngineError:
    return EngineError(
        str(bundle.folder),
        got='no product that the rules or the calibration would quantise',
        expected='a float32 network with large products',
        next_step='Use the bundle as it is; it may be in 8 bits already.',
        code='nothing_to_quantize',
    )
