# SPDX-License-Identifier: Apache-2.0
"""Exported networks without nodes that compute what is known beforehand; needs onnxslim, except where it is missing."""

import json
import sys
from contextlib import closing

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from support.bundles import save_model
from support.described import (
    BIAS,
    HEIGHT,
    WEIGHTS,
    WIDTH,
    observe,
    pose_description,
    pose_of,
    save_pose,
    write_description,
)
from support.networks import run_onnx

from vla_policy_ros.bundle.bundle import load_bundle
from vla_policy_ros.core.errors import EngineError
from vla_policy_ros.core.specs import TensorSpec
from vla_policy_ros.export.network.convert import export_network
from vla_policy_ros.export.network.fixed_shapes import fix_shapes
from vla_policy_ros.export.onnx_network import OnnxNetwork
from vla_policy_ros.export.operators import count_operators
from vla_policy_ros.export.simplify import simplify_network
from vla_policy_ros.policies.engine_policy import EnginePolicy
from vla_policy_ros.tools.main import main

onnxslim = pytest.importorskip('onnxslim')

RED = (200, 40, 10)
IMAGE = ('image', 'FLOAT', ['batch', 3, HEIGHT, WIDTH])
LONG = np.random.default_rng(1).standard_normal((2000, 9)).astype(np.float32)


@pytest.fixture
def export(tmp_path):
    """Returns the export of a pose regressor."""

    def export(network):
        describe = write_description(tmp_path / 'description.yaml', pose_description())
        return export_network(network, tmp_path / 'bundle', describe=describe)

    return export


def save_roundabout(path):
    """Write the network of `save_pose` with the shape of its result computed from the image's."""
    nodes = [
        helper.make_node('ReduceMean', ['image'], ['color'], axes=[2, 3], keepdims=0),
        helper.make_node('MatMul', ['color', 'weights'], ['turned']),
        helper.make_node('Add', ['turned', 'bias'], ['sum']),
        helper.make_node('Shape', ['image'], ['shape']),
        helper.make_node('Gather', ['shape', 'first'], ['batch']),
        helper.make_node('Concat', ['batch', 'nine'], ['target'], axis=0),
        helper.make_node('Reshape', ['sum', 'target'], ['pose']),
    ]
    numbers = {'first': np.array([0]), 'nine': np.array([9])}
    outputs = [('pose', 'FLOAT', ['batch', 9])]
    return save_model(path, nodes, [IMAGE], outputs, {'weights': WEIGHTS, 'bias': BIAS, **numbers})


def actions_of(bundle):
    with closing(EnginePolicy(bundle)) as policy:
        return policy.infer(observe(bundle, {'wrist': RED})).actions


def weights_of(path):
    network = OnnxNetwork(path)
    return {t.name: network.read(t).tobytes() for t in network.graph.initializer}


def test_what_is_known_beforehand_goes_and_the_actions_stay(tmp_path, export):
    proven = export(save_roundabout(tmp_path / 'pose.onnx'))
    network = proven.stages['network']
    assert (network.nodes_before, network.unsimplified) == (7, '')
    assert network.nodes == sum(count_operators(proven.bundle.folder / 'network.onnx').values())
    assert not {'Shape', 'Gather', 'Concat'} & set(
        count_operators(proven.bundle.folder / 'network.onnx')
    )
    weights = weights_of(proven.bundle.folder / 'network.onnx')
    assert (weights['weights'], weights['bias']) == (WEIGHTS.tobytes(), BIAS.tobytes())
    bundle = load_bundle(proven.bundle.folder)  # with the hashes of what is there now
    np.testing.assert_allclose(actions_of(bundle)[0], pose_of(RED), atol=1e-5)
    assert sorted(path.name for path in bundle.folder.iterdir()) == [
        *('bundle.yaml', 'network.onnx', 'outputs.onnx', 'probe.npz')
    ]


def test_weights_beside_the_file_stay_beside_it(tmp_path, export):
    (tmp_path / 'source').mkdir()
    model = onnx.load(save_roundabout(tmp_path / 'pose.onnx'))
    network = tmp_path / 'source' / 'pose.onnx'
    options = {'save_as_external_data': True, 'size_threshold': 50}  # not the numbers of shapes
    onnx.save(model, network, location='pose.weights', **options)
    bundle = load_bundle(export(network).bundle.folder)
    assert (bundle.folder / 'network.onnx.data').is_file()
    assert not (bundle.folder / 'pose.weights').exists()
    assert weights_of(bundle.folder / 'network.onnx')['weights'] == WEIGHTS.tobytes()
    np.testing.assert_allclose(actions_of(bundle)[0], pose_of(RED), atol=1e-5)


def test_nothing_is_written_when_there_is_nothing_to_do(tmp_path):
    network = save_pose(tmp_path / 'pose.onnx')
    assert not simplify_network(network, tmp_path / 'simple.onnx')
    assert not (tmp_path / 'simple.onnx').exists()


def test_weights_are_never_folded_or_copied(tmp_path):
    nodes = [
        helper.make_node('Transpose', ['long'], ['turned'], perm=[1, 0]),
        helper.make_node('Mul', ['one', 'state'], ['scaled']),
        helper.make_node('Identity', ['scaled'], ['same']),
        helper.make_node('MatMul', ['same', 'turned'], ['out']),
    ]
    weights = {'long': LONG, 'one': np.ones((1, 9), np.float32)}
    network = save_model(
        tmp_path / 'long.onnx',
        nodes,
        [('state', 'FLOAT', [1, 9])],
        [('out', 'FLOAT', [1, 2000])],
        weights,
    )
    assert simplify_network(network, tmp_path / 'simple.onnx')
    # Ones may be what a training begins with: the random weights of an untrained policy are no reason to drop a layer.
    assert list(count_operators(tmp_path / 'simple.onnx')) == ['MatMul', 'Mul', 'Transpose']
    assert weights_of(tmp_path / 'simple.onnx') == {k: v.tobytes() for k, v in weights.items()}


def test_an_input_that_no_node_reads_stays(tmp_path):
    nodes = [
        helper.make_node('Identity', ['state'], ['same']),
        helper.make_node('Neg', ['same'], ['out']),
    ]
    tensors = [('unused', 'FLOAT', [1, 2]), ('state', 'FLOAT', [1, 3])]
    network = save_model(tmp_path / 'two.onnx', nodes, tensors, [('out', 'FLOAT', [1, 3])])
    assert simplify_network(network, tmp_path / 'simple.onnx')
    graph = onnx.load(tmp_path / 'simple.onnx').graph
    assert [value.name for value in graph.input] == ['unused', 'state']
    assert len(graph.node) == 1


def test_without_onnxslim_the_export_goes_on_and_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'onnxslim', None)
    network = save_roundabout(tmp_path / 'pose.onnx')
    describe = write_description(tmp_path / 'pose.yaml', pose_description())
    words = ['export', 'network', str(network), '--describe', str(describe), '--out']
    assert main([*words, str(tmp_path / 'a')]) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if 'Run `pip' in line]
    assert told == [
        'Not simplified (network, outputs): no library onnxslim. Run `pip install onnxslim`.'
    ]
    assert main([*words, str(tmp_path / 'b'), '--json']) == 0
    (document, _) = json.loads(capsys.readouterr().out)['networks']
    assert document['unsimplified'].startswith('no library onnxslim')
    assert (document['opset'], document['nodes_before'], document['nodes']) == (17, 7, 7)


def break_numbers(model, **options):
    model = onnxslim.slim(model, **options)
    next(node for node in model.graph.node if node.op_type == 'Add').op_type = 'Sub'
    return model


def break_rules(model, **options):
    model = onnxslim.slim(model, **options)
    next(node for node in model.graph.node if node.op_type == 'Add').op_type = 'NoSuchOperator'
    return model


def break_shapes(model, **options):
    model = onnxslim.slim(model, **options)
    model.graph.node[-1].output[0] = 'wide'
    model.graph.node.append(helper.make_node('Concat', ['wide', 'wide'], ['pose'], axis=0))
    return model


def fail(model, **options):
    raise KeyError('shape')


@pytest.mark.parametrize(
    ('slim', 'told'),
    [
        (break_numbers, 'computes something else: cosine'),
        (break_rules, 'NoSuchOperator'),
        (break_shapes, 'Inferred shape'),
        (fail, "KeyError: 'shape'"),
    ],
)
def test_a_network_that_onnxslim_breaks_stays_as_it_was(tmp_path, export, monkeypatch, slim, told):
    class Library:
        pass

    Library.slim = staticmethod(slim)
    monkeypatch.setitem(sys.modules, 'onnxslim', Library)
    proven = export(save_roundabout(tmp_path / 'pose.onnx'))
    assert told in proven.stages['network'].unsimplified
    assert proven.stages['network'].nodes == 7
    bundle = load_bundle(proven.bundle.folder)
    np.testing.assert_allclose(actions_of(bundle)[0], pose_of(RED), atol=1e-5)


def test_a_network_with_branches_is_left_alone(tmp_path):
    branch = helper.make_graph(
        [helper.make_node('Neg', ['state'], ['negated'])],
        'branch',
        [],
        [helper.make_tensor_value_info('negated', TensorProto.FLOAT, [1])],
    )
    nodes = [
        helper.make_node('Cast', ['state'], ['truth'], to=TensorProto.BOOL),
        helper.make_node('If', ['truth'], ['out'], then_branch=branch, else_branch=branch),
    ]
    network = save_model(
        tmp_path / 'if.onnx', nodes, [('state', 'FLOAT', [1])], [('out', 'FLOAT', [1])]
    )
    with pytest.raises(EngineError, match='subgraphs') as error:
        simplify_network(network, tmp_path / 'simple.onnx')
    assert error.value.code == 'subgraph'


@pytest.mark.filterwarnings('ignore')  # PyTorch warns about its older exporter
def test_half_of_an_old_export_with_free_dimensions_goes(tmp_path):
    torch = pytest.importorskip('torch')

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.qkv, self.out = torch.nn.Linear(16, 48), torch.nn.Linear(16, 16)

        def forward(self, x):
            batch, rows, width = x.shape
            q, k, v = self.qkv(x).reshape(batch, rows, 3, 4, width // 4).permute(2, 0, 3, 1, 4)
            weights = (q @ k.transpose(-1, -2) / 2).softmax(-1)
            return x + self.out((weights @ v).transpose(1, 2).reshape(batch, rows, width))

    network, x = tmp_path / 'block.onnx', torch.randn(1, 5, 16)
    module = torch.nn.Sequential(Block(), Block()).eval()
    axes = {'x': {0: 'batch', 1: 'rows'}}
    words = {'input_names': ['x'], 'output_names': ['y'], 'dynamic_axes': axes, 'dynamo': False}
    torch.onnx.export(module, (x,), str(network), opset_version=17, **words)
    fix_shapes(network, {'x': TensorSpec('x', (1, 5, 16), 'float32')})
    before = sum(count_operators(network).values())
    assert simplify_network(network, tmp_path / 'simple.onnx')
    assert sum(count_operators(tmp_path / 'simple.onnx').values()) < 0.6 * before
    (y,) = run_onnx(tmp_path / 'simple.onnx', {'x': x.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(y, module(x).numpy(), atol=1e-5)
