# SPDX-License-Identifier: Apache-2.0
"""Gradients in PyTorch, and guided real-time chunking with them."""

import numpy as np
import pytest
from onnx import helper
from support.bundles import save_model, write_flow_bundle
from support.rtc_bundles import infer_all, observe, write_chain_bundle

from vla_policy_ros.core.engine import DifferentiableExecution
from vla_policy_ros.core.errors import EngineError, SpecMismatchError

torch = pytest.importorskip('torch')

from vla_policy_ros.deployment.rtc import RtcSettings  # noqa: E402
from vla_policy_ros.engines.torch import TorchCpuEngine  # noqa: E402
from vla_policy_ros.policies.engine_policy import EnginePolicy  # noqa: E402


@pytest.fixture
def bound(tmp_path):
    """y = tanh(x w) + x * b, z = b: bound to small arrays."""
    nodes = [
        helper.make_node('MatMul', ['x', 'w'], ['mixed']),
        helper.make_node('Tanh', ['mixed'], ['bent']),
        helper.make_node('Mul', ['x', 'b'], ['scaled']),
        helper.make_node('Add', ['bent', 'scaled'], ['y']),
        helper.make_node('Identity', ['b'], ['z']),
    ]
    weights = {'w': np.random.default_rng(0).standard_normal((3, 3)).astype(np.float32)}
    inputs = [('x', 'FLOAT', [2, 3]), ('b', 'FLOAT', [1, 3])]
    outputs = [('y', 'FLOAT', [2, 3]), ('z', 'FLOAT', [1, 3])]
    path = save_model(tmp_path / 'net.onnx', nodes, inputs, outputs, weights)
    arrays = {name: np.zeros(shape, np.float32) for name, _, shape in (*inputs, *outputs)}
    execution = TorchCpuEngine(path).bind(arrays)
    yield execution, arrays, weights['w']
    execution.close()


def test_the_gradient_is_that_of_the_formula_for_the_inputs_of_each_run(bound):
    execution, arrays, w = bound
    assert isinstance(execution, DifferentiableExecution)
    seed, gradient = np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32)
    back = execution.bind_gradient(output_name='y', seed=seed, input_name='x', gradient=gradient)
    rng = np.random.default_rng(1)
    for _ in range(2):
        for array in (arrays['x'], arrays['b'], seed):
            array[:] = rng.standard_normal(array.shape)
        execution.enqueue()
        back.enqueue()
        x, b = arrays['x'].astype(np.float64), arrays['b']
        expected = (seed * (1 - np.tanh(x @ w) ** 2)) @ w.T + seed * b
        np.testing.assert_allclose(gradient, expected, atol=1e-5)
    back.close()


def test_an_output_that_does_not_depend_on_the_input_gives_zeros(bound):
    execution, _, _ = bound
    seed, gradient = np.ones((1, 3), np.float32), np.ones((2, 3), np.float32)
    execution.bind_gradient(
        output_name='z', seed=seed, input_name='x', gradient=gradient
    ).enqueue()
    assert not gradient.any()


@pytest.mark.parametrize(
    'changes',
    [
        {'output_name': 'w'},
        {'input_name': 'y'},
        {'seed': np.zeros((3, 3), np.float32)},
        {'gradient': np.zeros((2, 3))},
    ],
)
def test_what_does_not_fit_is_refused(bound, changes):
    rows = np.zeros((2, 3), np.float32)
    right = {'output_name': 'y', 'seed': rows, 'input_name': 'x', 'gradient': rows.copy()}
    with pytest.raises(SpecMismatchError):
        bound[0].bind_gradient(**{**right, **changes})


def test_a_closed_execution_gives_no_gradient(bound):
    execution, _, _ = bound
    execution.close()
    rows = np.zeros((2, 3), np.float32)
    with pytest.raises(EngineError) as caught:
        execution.bind_gradient(output_name='y', seed=rows, input_name='x', gradient=rows)
    assert caught.value.code == 'closed'


def test_guided_chunks_follow_the_one_before(tmp_path):
    bundle = write_flow_bundle(tmp_path, seed=5)
    rtc = RtcSettings(kind='guided', frozen_steps=1)
    policy, plain = EnginePolicy(bundle, engine='torch_cpu', rtc=rtc), EnginePolicy(bundle)
    first, second = infer_all(policy, [observe(bundle, 0), observe(bundle, 1)])
    alone = plain.infer(observe(bundle, 1)).actions
    np.testing.assert_allclose(first, plain.infer(observe(bundle, 0)).actions, atol=1e-5)
    assert np.abs(alone[0] - first[1]).max() > 3 * np.abs(second[0] - first[1]).max()
    policy.close()
    plain.close()


def test_the_gradient_goes_through_all_stages_of_the_loop(tmp_path):
    rtc = RtcSettings(kind='guided', frozen_steps=1)
    found = []
    for stages in (1, 2):
        bundle = write_chain_bundle(tmp_path / str(stages), stages=stages)
        policy = EnginePolicy(bundle, engine='torch_cpu', rtc=rtc)
        found.append(infer_all(policy, [observe(bundle, 0), observe(bundle, 1)]))
        policy.close()
    np.testing.assert_allclose(found[1], found[0], atol=1e-5)
    plain = EnginePolicy(bundle).infer(observe(bundle, 1)).actions
    assert np.abs(plain - found[0][1]).max() > 0.01
