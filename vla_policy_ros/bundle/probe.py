# SPDX-License-Identifier: Apache-2.0
"""The probe: stored inputs, noise and reference output, against which a policy is proven on every machine."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vla_policy_ros.bundle.bundle import Bundle
from vla_policy_ros.bundle.graph import noise_draws, observation_tensors
from vla_policy_ros.bundle.limits import limit_for
from vla_policy_ros.bundle.manifest import Precision
from vla_policy_ros.core.errors import BundleError
from vla_policy_ros.core.observation import Observation
from vla_policy_ros.core.specs import Array

_INPUT = 'input/'


class PoolRunner(Protocol):
    """What the probe needs of a policy: to be run on tensors instead of observations."""

    def pool_inputs(self, observation: Observation) -> tuple[dict[str, Array], Array | None]:
        """Return copies of the tensors and of the noise that an observation fills."""

    def run_pool(self, inputs: Mapping[str, Array], noise: Array | None) -> Array:
        """Run on given tensors and noise; return the action tensor, (1, K, W)."""


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """Stored tensors.

    Attributes:
        inputs: Pool tensors that an observation fills.
        noise: (n, K, W) float32 noise; None for a policy without a loop.
        output: (1, K, W) action tensor, as the reference computed it, before it is denormalised.
    """

    inputs: Mapping[str, Array]
    noise: Array | None
    output: Array


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """How near a policy came to the reference: cosine similarity and greatest absolute error."""

    cosine: float
    max_error: float


def make_probe(runner: PoolRunner, observation: Observation) -> Probe:
    """Run a policy on one observation and keep what went in and what came out."""
    inputs, noise = runner.pool_inputs(observation)
    return Probe(inputs, noise, runner.run_pool(inputs, noise))


def write_probe(path: Path, probe: Probe) -> None:
    """Write a probe as NPZ with the keys `input/<pool tensor>`, `noise` and `output`."""
    arrays: dict[str, Any] = {f'{_INPUT}{name}': value for name, value in probe.inputs.items()}
    if probe.noise is not None:
        arrays['noise'] = probe.noise
    with path.open('wb') as file:
        np.savez(file, output=probe.output, **arrays)


def read_probe(path: Path) -> Probe:
    """Read a probe; nothing is unpickled.

    Raises:
        BundleError: The file is no NPZ of plain arrays, or holds no output (`bad_probe`).
    """
    try:
        with path.open('rb') as file:
            archive = np.load(file, allow_pickle=False)
            names = archive.files if isinstance(archive, np.lib.npyio.NpzFile) else []
            arrays = {name: _typed(archive[name]) for name in names}
    except (OSError, EOFError, ValueError, zlib.error, zipfile.BadZipFile) as fault:
        raise _bad_probe(path, str(fault)) from fault
    if 'output' not in arrays:
        raise _bad_probe(path, f'the keys {", ".join(sorted(arrays)) or "(none)"}')
    inputs = {k.removeprefix(_INPUT): v for k, v in arrays.items() if k.startswith(_INPUT)}
    return Probe(inputs, arrays.get('noise'), arrays['output'])


def check_probe(
    runner: PoolRunner, bundle: Bundle, *, precision: Precision | None = None
) -> ProbeResult | None:
    """Run a bundle's probe; return how near it came, or None when the bundle has none.

    Args:
        runner: The policy.
        bundle: Its bundle.
        precision: What the stages really run in; None when that is what the bundle says.

    Raises:
        BundleError: The output lies outside of the limits of the precision (`probe_failed`), or the probe does not
            fit the bundle (`bad_probe`).
    """
    if bundle.manifest.probe is None:
        return None
    path = bundle.folder / bundle.manifest.probe
    probe = read_probe(path)
    _check_fit(path, probe, bundle)
    result = compare_outputs(runner.run_pool(probe.inputs, probe.noise), probe.output)
    limit = limit_for(precision or stage.precision for stage in bundle.manifest.stages)
    # Written so that a NaN fails.
    if not (result.cosine >= limit.min_cosine and result.max_error <= limit.max_error):
        raise BundleError(
            str(path),
            got=f'cosine {result.cosine:.6f}, maximum error {result.max_error:.3g}',
            expected=f'cosine >= {limit.min_cosine}, maximum error <= {limit.max_error}',
            next_step='Do not use this policy here: try a higher precision or another engine.',
            code='probe_failed',
        )
    return result


def compare_outputs(output: Array, reference: Array) -> ProbeResult:
    """Return cosine similarity and greatest absolute error of two arrays of one shape, in double precision."""
    found, wanted = output.astype(np.float64).ravel(), reference.astype(np.float64).ravel()
    length = float(np.linalg.norm(found) * np.linalg.norm(wanted))
    # Two zero vectors are equal; one alone points nowhere.
    cosine = float(found @ wanted) / length if length else float(np.array_equal(found, wanted))
    return ProbeResult(cosine, float(np.abs(found - wanted).max()))


def _check_fit(path: Path, probe: Probe, bundle: Bundle) -> None:
    manifest = bundle.manifest
    wanted = set(observation_tensors(manifest))
    if set(probe.inputs) != wanted:
        raise _bad_probe(path, f'inputs {", ".join(sorted(probe.inputs)) or "(none)"}')
    for name, value in {**probe.inputs, manifest.action.tensor: probe.output}.items():
        spec = bundle.tensors[name]
        if (spec.shape, spec.dtype) != (value.shape, value.dtype.name):
            raise _bad_probe(path, f'{value.dtype.name}{list(value.shape)} for {name!r}')
    if manifest.loop:
        shape = (noise_draws(manifest.loop), *bundle.tensors[manifest.loop.sample].shape[1:])
        if probe.noise is None or probe.noise.shape != shape:
            found = None if probe.noise is None else list(probe.noise.shape)
            raise _bad_probe(path, f'noise of shape {found}')


def _typed(value: Array) -> Array:
    """Return an array of a file; NPZ has no name for bfloat16 and stores its bits as two untyped bytes."""
    return value.view('bfloat16') if value.dtype == np.dtype('V2') else value


def _bad_probe(path: Path, got: str) -> BundleError:
    return BundleError(
        str(path),
        got=got,
        expected='an NPZ of plain arrays that fit the manifest: input/<pool tensor>, noise, output',
        next_step='Make the probe again from this bundle.',
        code='bad_probe',
    )
