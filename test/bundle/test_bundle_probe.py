# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.bundles import flow_manifest, make_observation, write_flow_bundle

from vla_policy_ros.bundle.limits import ACCURACY_LIMITS, limit_for
from vla_policy_ros.bundle.probe import (
    Probe,
    ProbeResult,
    check_probe,
    compare_outputs,
    make_probe,
    read_probe,
    write_probe,
)
from vla_policy_ros.bundle.writer import write_bundle
from vla_policy_ros.core.errors import BundleError
from vla_policy_ros.policies.engine_policy import EnginePolicy


@pytest.fixture
def policy(tmp_path):
    policy = EnginePolicy(write_flow_bundle(tmp_path))
    yield policy
    policy.close()


@pytest.fixture
def probe(policy):
    return make_probe(policy, make_observation(policy.bundle))


def with_probe(policy, probe, precision='fp32'):
    """Write a probe into the policy's bundle."""
    folder = policy.bundle.folder
    write_probe(folder / 'probe.npz', probe)
    manifest = {**flow_manifest(), 'probe': 'probe.npz'}
    manifest['stages'][1]['precision'] = precision
    return write_bundle(folder, manifest)


def test_probe_survives_its_file(tmp_path, probe):
    write_probe(tmp_path / 'p.npz', probe)
    read = read_probe(tmp_path / 'p.npz')
    assert read.inputs.keys() == {'state'}
    np.testing.assert_array_equal(read.inputs['state'], probe.inputs['state'])
    np.testing.assert_array_equal(read.noise, probe.noise)
    np.testing.assert_array_equal(read.output, probe.output)


def test_bfloat16_survives_the_file(tmp_path):
    value = np.array([[0.1, -2.5]], 'bfloat16')
    write_probe(tmp_path / 'p.npz', Probe({'image': value}, None, value.astype(np.float32)))
    read = read_probe(tmp_path / 'p.npz').inputs['image']
    assert read.dtype == value.dtype
    np.testing.assert_array_equal(read, value)


def test_keys_of_the_file_are_the_documented_ones_and_its_bytes_repeat(tmp_path, probe):
    for name in ('a.npz', 'b.npz'):
        write_probe(tmp_path / name, probe)
    assert set(np.load(tmp_path / 'a.npz').files) == {'input/state', 'noise', 'output'}
    assert (tmp_path / 'a.npz').read_bytes() == (tmp_path / 'b.npz').read_bytes()


def test_same_policy_passes_exactly_and_after_other_observations(policy, probe):
    bundle = with_probe(policy, probe)
    policy.infer(make_observation(policy.bundle, state=(0, 0, 0), stamp_ns=3))
    result = check_probe(policy, bundle)
    assert result.cosine == pytest.approx(1)
    assert result.max_error == 0


def test_bundle_without_probe_is_not_checked(policy):
    assert check_probe(policy, policy.bundle) is None


def test_probe_output_depends_on_its_noise(policy, probe):
    other = policy.run_pool(probe.inputs, np.zeros_like(probe.noise))
    assert np.abs(other - probe.output).max() > 0.1


@pytest.mark.parametrize('change', [lambda x: x + 0.01, lambda x: -x, lambda x: x * np.nan])
def test_other_output_fails_with_its_numbers(policy, probe, change):
    bundle = with_probe(policy, Probe(probe.inputs, probe.noise, change(probe.output)))
    with pytest.raises(
        BundleError, match=r'cosine .*, maximum error .*cosine >= 0\.999'
    ) as caught:
        check_probe(policy, bundle)
    assert caught.value.code == 'probe_failed'


class FixedRunner:
    def __init__(self, output):
        self._output = output

    def run_pool(self, inputs, noise):
        return self._output


def test_small_outputs_are_held_to_their_direction(policy, probe):
    output = np.full_like(probe.output, 1e-4)
    bundle = with_probe(policy, Probe(probe.inputs, probe.noise, output))
    assert check_probe(FixedRunner(output * 1.5), bundle).max_error == pytest.approx(5e-5)
    with pytest.raises(BundleError) as caught:
        check_probe(FixedRunner(-output), bundle)
    assert caught.value.code == 'probe_failed'


def test_limit_is_that_of_the_least_exact_stage(policy, probe):
    near = Probe(probe.inputs, probe.noise, probe.output + 0.004)
    assert check_probe(policy, with_probe(policy, near, precision='bf16')).max_error > 0.003
    with pytest.raises(BundleError, match=r'<= 0\.001'):
        check_probe(policy, with_probe(policy, near))
    assert limit_for(['fp32', 'fp8', 'fp16']) == ACCURACY_LIMITS['fp8']
    assert all(limit.min_cosine >= 0.999 for limit in ACCURACY_LIMITS.values())


@pytest.mark.parametrize(
    'change',
    [
        lambda p: Probe({}, p.noise, p.output),
        lambda p: Probe({**p.inputs, 'more': p.output}, p.noise, p.output),
        lambda p: Probe({'state': np.zeros((1, 2), np.float32)}, p.noise, p.output),
        lambda p: Probe({'state': p.inputs['state'].astype(float)}, p.noise, p.output),
        lambda p: Probe(p.inputs, None, p.output),
        lambda p: Probe(p.inputs, p.noise[:, :2], p.output),
        lambda p: Probe(p.inputs, p.noise, p.output[:, :2]),
    ],
    ids=['no input', 'unknown', 'shape', 'dtype', 'no noise', 'noise shape', 'output shape'],
)
def test_probe_that_does_not_fit_is_refused(policy, probe, change):
    bundle = with_probe(policy, change(probe))
    with pytest.raises(BundleError) as caught:
        check_probe(policy, bundle)
    assert caught.value.code == 'bad_probe'


@pytest.mark.parametrize(
    'kind', ['noise', 'truncated', 'pickled', 'no output', 'single array', 'missing']
)
def test_file_that_is_no_probe_is_refused(tmp_path, probe, kind):
    path = tmp_path / 'p.npz'
    write_probe(path, probe)
    if kind == 'noise':
        path.write_bytes(b'not an archive')
    elif kind == 'truncated':
        path.write_bytes(path.read_bytes()[:-30])
    elif kind == 'pickled':
        np.savez(path, output=np.array([{'a': 1}], dtype=object))
    elif kind == 'no output':
        np.savez(path, noise=probe.noise)
    elif kind == 'single array':
        with path.open('wb') as file:
            np.save(file, probe.output)
    else:
        path.unlink()
    with pytest.raises(BundleError, match=r'p\.npz') as caught:
        read_probe(path)
    assert caught.value.code == 'bad_probe'


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=8))
def test_an_output_equals_itself(values):
    result = compare_outputs(np.array(values), np.array(values))
    assert result.cosine == pytest.approx(1)
    assert result.max_error == 0


def test_comparison_of_known_vectors():
    one, other = np.array([[1.0, 0.0]]), np.array([[0.0, 2.0]])
    assert compare_outputs(one, other) == ProbeResult(0.0, 2.0)
    assert compare_outputs(one, -3 * one) == ProbeResult(-1.0, 4.0)
    assert compare_outputs(one, 0 * one) == ProbeResult(0.0, 1.0)
