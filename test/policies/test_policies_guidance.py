# SPDX-License-Identifier: Apache-2.0
"""Guided real-time chunking, on the host and on a device that runs on the host, with a network of known gradient."""

import logging

import numpy as np
import pytest
from support.bundles import HORIZON, SPANS, write_flow_bundle
from support.host_device import HostDevice
from support.lazy_device import LazyDevice
from support.linear_gradient import LinearGradients
from support.rtc_bundles import infer_all, observe, write_chain_bundle

from vla_policy_ros.bundle.chunk_prefix import write_weights
from vla_policy_ros.core.errors import ConfigurationError
from vla_policy_ros.deployment.rtc import RtcSettings
from vla_policy_ros.engines.registry import load_engine
from vla_policy_ros.policies.engine_policy import EnginePolicy

GUIDED = RtcSettings(kind='guided', frozen_steps=1, max_guidance_weight=3.0)
STATE = np.array([0.5, 1.0, -1.5]) / SPANS


@pytest.fixture(params=['host', HostDevice, LazyDevice], ids=['host', 'device', 'late device'])
def make(request):
    closing = []

    def make(bundle, rtc=GUIDED, jacobian=-1.0):
        device = None if request.param == 'host' else request.param()
        gradients = LinearGradients(jacobian, device)
        settings = {'engine': 'torch', 'device': device} if device else {'engine': 'torch_cpu'}
        policy = EnginePolicy(bundle, load=gradients.load, rtc=rtc, **settings)
        closing.extend([policy, *([device] if device else [])])
        return policy

    yield make
    for thing in closing:
        thing.close()


def guide_by_the_paper(start, wanted, weights, *, steps=4, limit=3.0):
    """Algorithm 1 of arXiv 2506.07339 for the network of `write_flow_bundle`: v = 2 state - x + t, so dv/dx = -1."""
    x = start.astype(np.float64)
    for index in range(steps):
        time = index / steps
        left = 1 - time
        velocity = 2 * STATE - x + time
        error = (wanted - (x + left * velocity)) * weights[:, None]
        gradient = error + left * -1.0 * error
        ratio = left**2 / (time**2 + left**2)
        weight = min(limit, left / (time * ratio)) if time else limit
        x = x + (velocity + weight * gradient) / steps
    return x


def test_a_guided_chunk_is_that_of_the_paper(tmp_path, make):
    bundle = write_flow_bundle(tmp_path, seed=5)
    policy = make(bundle)
    first, second = infer_all(policy, [observe(bundle, 0), observe(bundle, 1)])
    noise = policy.pool_inputs(observe(bundle, 1))[1][0]
    weights = np.zeros(HORIZON)
    write_weights(weights, num_rows=HORIZON - 1, num_frozen=1, schedule='exp')
    wanted = np.zeros((HORIZON, 3))
    wanted[:-1] = first[1:] / SPANS * 2
    expected = guide_by_the_paper(noise, wanted, weights) * SPANS / 2
    np.testing.assert_allclose(second, expected, atol=1e-5)
    (alone,) = infer_all(make(bundle, None), [observe(bundle, 1)])
    assert np.abs(alone[0] - first[1]).max() > 3 * np.abs(second[0] - first[1]).max()


def test_without_a_chunk_before_it_a_chunk_is_that_of_today(tmp_path, make):
    bundle = write_flow_bundle(tmp_path, seed=5)
    guided, plain = make(bundle), make(bundle, None)
    for steps in (0, 10):
        found = guided.infer(observe(bundle, steps)).actions
        np.testing.assert_array_equal(found, plain.infer(observe(bundle, steps)).actions)


def test_time_that_runs_down_is_guided_alike(tmp_path, make):
    """A network of the other convention predicts -v(x, 1 - t): here -1 times the prediction, as dp/dx = +1."""
    up = write_flow_bundle(tmp_path / 'up', seed=5)
    mirrored = write_mirrored_bundle(tmp_path / 'down')
    stream = [observe(up, 0), observe(up, 1)]
    expected = infer_all(make(up), stream)
    found = infer_all(make(mirrored, jacobian=1.0), stream)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def write_mirrored_bundle(folder):
    """Write `write_flow_bundle` with time that runs down: prediction `x - 2 state - (1 - t)`."""
    from onnx import helper
    from support.bundles import flow_manifest, save_model, write_flow_files

    from vla_policy_ros.bundle.writer import write_bundle

    write_flow_files(folder)
    nodes = [
        helper.make_node('Sub', ['sample', 'context'], ['pull']),
        helper.make_node('Sub', ['one', 'time'], ['done']),
        helper.make_node('Sub', ['pull', 'done'], ['velocity']),
    ]
    rows = ('FLOAT', ['batch', 'rows', 3])
    inputs = [('sample', *rows), ('time', 'FLOAT', [1]), ('context', 'FLOAT', ['batch', 1, 3])]
    one = {'one': np.ones(1, np.float32)}
    save_model(folder / 'velocity.onnx', nodes, inputs, [('velocity', *rows)], one)
    return write_bundle(folder, flow_manifest(seed=5, noise_at=1))


def test_an_engine_without_gradients_is_told_of(tmp_path):
    bundle = write_flow_bundle(tmp_path)

    def load(name, path, *, settings):
        return load_engine('onnxruntime', path, settings=settings)

    with pytest.raises(ConfigurationError, match='velocity') as caught:
        EnginePolicy(bundle, engine='torch_cpu', load=load, rtc=GUIDED)
    assert caught.value.code == 'needs_gradient'


def test_stages_that_are_no_chain_are_told_of(tmp_path):
    bundle = write_chain_bundle(tmp_path, stages=2, is_chain=False)
    with pytest.raises(ConfigurationError, match='takes 2 tensors') as caught:
        EnginePolicy(bundle, engine='torch_cpu', load=LinearGradients(-1.0).load, rtc=GUIDED)
    assert caught.value.code == 'no_chain'


def test_the_gradient_goes_back_through_every_stage(tmp_path, make):
    """Two stages that say 0.5 each are one that says 0.25; what the networks really have does not matter here."""
    one = write_chain_bundle(tmp_path / 'one', stages=1)
    two = write_chain_bundle(tmp_path / 'two', stages=2)
    stream = [observe(one, 0), observe(one, 1)]
    found = infer_all(make(two, jacobian=0.5), stream)
    np.testing.assert_allclose(found, infer_all(make(one, jacobian=0.25), stream), atol=1e-5)


def test_a_gradient_that_cannot_be_captured_runs_without_a_graph(tmp_path, caplog):
    bundle, device = write_flow_bundle(tmp_path), HostDevice(capture_fault='a gradient')
    gradients = LinearGradients(-1.0, device)
    with caplog.at_level(logging.WARNING, 'vla_policy_ros'):
        policy = EnginePolicy(
            bundle, engine='torch', device=device, load=gradients.load, rtc=GUIDED
        )
    assert not policy.execution.cuda_graph
    before = gradients.num_gradients
    policy.infer(observe(bundle, 0))
    assert gradients.num_gradients - before == 4
    policy.close()
    device.close()
