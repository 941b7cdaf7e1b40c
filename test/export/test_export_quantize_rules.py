# SPDX-License-Identifier: Apache-2.0
import numpy as np
import onnx
import pytest
from onnx import helper
from support.bundles import save_model
from support.networks import draw

from vla_policy_ros.export.onnx_network import OnnxNetwork
from vla_policy_ros.export.quantize_rules import LEAST_WEIGHTS, keep_by_rule

WIDTH = 128
assert WIDTH * WIDTH == LEAST_WEIGHTS


def node(kind, inputs, output, **settings):
    return helper.make_node(kind, inputs, [output], output, **settings)


def keep(tmp_path, nodes, *, inputs=('x',), shapes=None):
    """Return what stays in 16 bits; weights are square, but for those whose shape is given."""
    names = {name for entry in nodes for name in entry.input if name.startswith('w')}
    weights = {name: draw(*(shapes or {}).get(name, (WIDTH, WIDTH))) for name in sorted(names)}
    path = save_model(
        tmp_path / 'network.onnx',
        nodes,
        [(name, 'FLOAT', (1, WIDTH)) for name in inputs],
        [('y', 'FLOAT', (1, 'n'))],
        weights,
    )
    return keep_by_rule(OnnxNetwork(path))


def chain(length):
    tensors = ['x', *(f'h{index}' for index in range(length - 1)), 'y']
    return [
        node('MatMul', [tensors[index], f'w{index}'], tensors[index + 1])
        for index in range(length)
    ]


def test_the_ends_of_a_chain_stay(tmp_path):
    assert keep(tmp_path, chain(4)) == {'h0': 'first product', 'y': 'last product'}


@pytest.mark.parametrize(('width', 'reason'), [(WIDTH - 1, 'few weights'), (WIDTH, None)])
def test_few_weights_stay(tmp_path, width, reason):
    shapes = {'w1': (WIDTH, width), 'w2': (width, 2 * WIDTH), 'w3': (2 * WIDTH, WIDTH)}
    found = keep(tmp_path, chain(4), shapes=shapes)
    assert found.get('h1') == reason
    assert 'h2' not in found


def test_an_input_beside_computed_features_makes_a_first_product(tmp_path):
    nodes = [
        node('MatMul', ['x', 'w0'], 'h0'),
        node('Split', ['h0'], 'left'),
        node('Split', ['state'], 'part'),
        node('Concat', ['left', 'part'], 'joined', axis=1),
        node('MatMul', ['joined', 'w1'], 'h1'),
        node('MatMul', ['h1', 'w2'], 'h2'),
        node('MatMul', ['h2', 'w3'], 'y'),
    ]
    for index in (1, 2):
        nodes[index].attribute.append(helper.make_attribute('axis', 1))
        nodes[index].output.append(f'rest{index}')
    found = keep(tmp_path, nodes, inputs=('x', 'state'))
    assert found == {'h0': 'first product', 'h1': 'first product', 'y': 'last product'}


def test_a_residual_stream_makes_neither_first_nor_last_products(tmp_path):
    nodes = [
        node('MatMul', ['x', 'w0'], 'a'),
        node('Add', ['x', 'a'], 'stream'),
        node('MatMul', ['stream', 'w1'], 'b'),
        node('Relu', ['b'], 'b_positive'),
        node('MatMul', ['b_positive', 'w2'], 'c'),
        node('Add', ['stream', 'c'], 'stream_2'),
        node('MatMul', ['stream_2', 'w3'], 'd'),
        node('Add', ['stream_2', 'd'], 'y'),
    ]
    assert keep(tmp_path, nodes) == {'a': 'first product', 'd': 'last product'}


def test_a_shape_carries_nothing_of_an_input(tmp_path):
    nodes = [
        node('MatMul', ['x', 'w0'], 'h0'),
        node('Shape', ['h0'], 'size'),
        node('Reshape', ['x', 'size'], 'same'),
        node('MatMul', ['same', 'w1'], 'h1'),
        node('Mul', ['h0', 'h1'], 'h2'),
        node('MatMul', ['h2', 'w2'], 'h3'),
        node('MatMul', ['h3', 'w3'], 'h4'),
        node('Shape', ['h4'], 'size_4'),
        node('MatMul', ['h4', 'w4'], 'h5'),
        node('Reshape', ['h5', 'size_4'], 'y'),
    ]
    found = keep(tmp_path, nodes)
    assert found == {'h0': 'first product', 'h1': 'first product', 'h5': 'last product'}


def test_weights_listed_as_inputs_are_weights(tmp_path):
    """Files of IR version 3 name every initialiser among the inputs, too."""
    keep(tmp_path, chain(3))
    model = onnx.load(tmp_path / 'network.onnx')
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, 1, tensor.dims))
    onnx.save(model, tmp_path / 'old.onnx')
    kept = keep_by_rule(OnnxNetwork(tmp_path / 'old.onnx'))
    assert kept == {'h0': 'first product', 'y': 'last product'}
    assert np.prod(model.graph.initializer[0].dims) == LEAST_WEIGHTS
