# SPDX-License-Identifier: Apache-2.0
import pytest
from support.bundles import make_observation, write_direct_bundle
from support.device_engines import DeviceEngines
from support.host_device import open_host_devices

from vla_policy_ros.core.errors import ChunkRejectedError, EngineError
from vla_policy_ros.engines.registry import load_engine
from vla_policy_ros.engines.settings import EngineSettings
from vla_policy_ros.export.measured_policy import MeasuredPolicy

COMPONENTS = ['receive', 'preprocess', 'inputs', 'network', 'postprocess', 'total']


@pytest.fixture
def bundle(tmp_path):
    return write_direct_bundle(tmp_path / 'direct')


@pytest.fixture
def devices(monkeypatch):
    return open_host_devices(monkeypatch)


def open_policy(bundle, *, engine='onnxruntime', load=load_engine, **words):
    return MeasuredPolicy(
        bundle, engine=engine, settings=EngineSettings(), load=load, slots=3, **words
    )


def test_on_the_host(bundle):
    policy = open_policy(bundle)
    times, chunk = policy.infer(make_observation(bundle))
    assert list(times) == COMPONENTS
    assert chunk.actions.shape == (4, 3)
    assert (policy.free_at_start_bytes, policy.free_device_bytes()) == (None, None)
    for _ in range(2):
        policy.close()
    with pytest.raises(EngineError):
        policy.infer(make_observation(bundle))


@pytest.mark.parametrize('preprocess', ['cpu', 'gpu'])
def test_on_a_device(bundle, devices, preprocess):
    def load(name, path, *, settings):
        return DeviceEngines(devices[-1]).load(name, path, settings=settings)

    policy = open_policy(bundle, engine='tensorrt', load=load, preprocess=preprocess)
    policy.policy.warmup()
    times, chunk = policy.infer(make_observation(bundle))
    assert ('upload' in times) == (preprocess == 'gpu')
    assert chunk.actions.shape == (4, 3)
    free_bytes = policy.free_device_bytes()
    assert free_bytes < policy.free_at_start_bytes
    policy.infer(make_observation(bundle))
    assert policy.free_device_bytes() == free_bytes
    policy.close()
    assert devices[0].is_closed


def test_a_policy_that_does_not_open_lets_the_device_go(bundle, devices):
    def refuse(name, path, *, settings):
        raise EngineError(path.name, got='x', expected='y', next_step='Z.')

    with pytest.raises(EngineError):
        open_policy(bundle, engine='tensorrt', load=refuse)
    assert devices[0].is_closed


def test_a_failing_run_is_told(bundle, monkeypatch):
    policy = open_policy(bundle)

    def refuse(_observation):
        raise ChunkRejectedError('chunk', got='nan', expected='finite', next_step='Look.')

    monkeypatch.setattr(policy.policy, 'infer', refuse)
    with pytest.raises(ChunkRejectedError):
        policy.infer(make_observation(bundle))
    policy.close()
