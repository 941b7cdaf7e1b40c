# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from support.bundles import direct_manifest, make_observation, write_direct_bundle

from vla_policy_ros.bundle.probe import Probe, make_probe, write_probe
from vla_policy_ros.bundle.writer import write_bundle
from vla_policy_ros.core.errors import BundleError, ConfigurationError, GpuError
from vla_policy_ros.engines.registry import ENGINES, engine_memory
from vla_policy_ros.engines.settings import EngineSettings
from vla_policy_ros.gpu.driver import find_driver
from vla_policy_ros.policies import registry
from vla_policy_ros.policies.engine_policy import EnginePolicy
from vla_policy_ros.policies.hold import HoldPolicy
from vla_policy_ros.policies.registry import POLICY_ENGINES, load_policy


@pytest.fixture
def bundle(tmp_path):
    return write_direct_bundle(tmp_path)


@pytest.mark.parametrize('engine', ['onnxruntime', 'none'])
def test_every_engine_gives_a_policy_of_the_bundles_spec(bundle, engine):
    assert engine in POLICY_ENGINES
    settings = EngineSettings(threads=1)
    policy = load_policy(str(bundle.folder), engine=engine, slots=2, settings=settings)
    assert policy.spec == bundle.spec
    policy.warmup()
    assert policy.infer(make_observation(bundle)).horizon == 4
    policy.close()


def test_none_holds_the_state(bundle):
    policy = load_policy(bundle.folder, engine='none')
    assert isinstance(policy, HoldPolicy)
    chunk = policy.infer(make_observation(bundle, state=(1, 2, 3)))
    np.testing.assert_array_equal(chunk.actions[-1], [1, 2, 3])


def test_slots_reach_the_policy(bundle):
    policy = load_policy(bundle.folder, slots=3)
    images = make_observation(bundle).images['front']
    held = [policy.prepare(images[0]) for _ in range(3)]
    with pytest.raises(ValueError, match='3 prepared images'):
        policy.prepare(images[0])
    assert len(held) == 3


def test_unknown_names_are_refused(bundle):
    with pytest.raises(ConfigurationError) as caught:
        load_policy(bundle.folder, engine='warp')
    assert caught.value.code == 'unknown_engine'
    with pytest.raises(ConfigurationError) as caught:
        load_policy(bundle.folder, preprocess='gpu')
    assert caught.value.code == 'needs_device_engine'
    with pytest.raises(ConfigurationError) as caught:
        load_policy(bundle.folder, jpeg='nvjpeg')
    assert caught.value.code == 'needs_gpu_preprocess'


@pytest.mark.parametrize('engine', [name for name in ENGINES if engine_memory(name) == 'device'])
def test_without_a_gpu_a_device_engine_is_one_clear_error(bundle, engine):
    if find_driver():
        pytest.skip('there is a GPU')
    with pytest.raises(GpuError, match='CPU') as caught:
        load_policy(bundle.folder, engine=engine, preprocess='gpu')
    assert caught.value.code == 'no_driver'


def test_policy_that_fails_its_probe_is_not_handed_out(bundle, monkeypatch):
    probe = make_probe(EnginePolicy(bundle), make_observation(bundle))
    write_probe(bundle.folder / 'probe.npz', Probe(probe.inputs, None, probe.output + 0.1))
    write_bundle(bundle.folder, {**direct_manifest(), 'probe': 'probe.npz'})
    closed = []

    def close(self):
        closed.append(self)

    monkeypatch.setattr(EnginePolicy, 'close', close)
    with pytest.raises(BundleError) as caught:
        load_policy(bundle.folder)
    assert caught.value.code == 'probe_failed'
    assert len(closed) == 1


@pytest.mark.parametrize(('precision', 'passes'), [(None, False), ('fp32', False), ('bf16', True)])
def test_probe_is_held_to_the_precision_that_runs(bundle, precision, passes, monkeypatch):
    monkeypatch.setattr(registry, 'takes_precision', lambda *_: True)
    probe = make_probe(EnginePolicy(bundle), make_observation(bundle))
    write_probe(bundle.folder / 'probe.npz', Probe(probe.inputs, None, probe.output + 0.01))
    write_bundle(bundle.folder, {**direct_manifest(), 'probe': 'probe.npz'})
    settings = EngineSettings(precision=precision)
    if passes:
        load_policy(bundle.folder, settings=settings)
        return
    with pytest.raises(BundleError) as caught:
        load_policy(bundle.folder, settings=settings)
    assert caught.value.code == 'probe_failed'


@pytest.mark.parametrize('engine', ['onnxruntime', 'torch', 'torch_cpu'])
def test_a_precision_that_would_only_loosen_the_probe_is_refused(bundle, engine):
    with pytest.raises(ConfigurationError, match="'fp16' with engine") as caught:
        load_policy(bundle.folder, engine=engine, settings=EngineSettings(precision='fp16'))
    assert (caught.value.where, caught.value.code) == ('policy.precision', 'needs_plans')


def test_a_precision_that_the_engine_computes_in_is_taken(bundle):
    pytest.importorskip('openvino')
    settings = EngineSettings(precision='bf16')
    load_policy(bundle.folder, engine='openvino', settings=settings).close()
    with pytest.raises(ConfigurationError, match='tensorrt_rtx'):
        load_policy(bundle.folder, engine='openvino', settings=EngineSettings(precision='fp16'))


def test_fp32_stands_for_networks_as_they_are(bundle):
    load_policy(bundle.folder, settings=EngineSettings(precision='fp32')).close()


def test_an_unknown_engine_is_told_all_that_there_are(bundle):
    with pytest.raises(ConfigurationError, match='torch_cpu, none') as caught:
        load_policy(bundle.folder, engine='warp')
    assert (caught.value.where, caught.value.code) == ('policy.engine', 'unknown_engine')
