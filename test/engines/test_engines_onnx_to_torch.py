# SPDX-License-Identifier: Apache-2.0
"""Our PyTorch operators against ONNX Runtime: one by one, in networks that PyTorch exports, and in the sample bundle."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from vla_policy_ros.core.errors import EngineError
from vla_policy_ros.sample import sample_bundle_path

torch = pytest.importorskip('torch')

from vla_policy_ros.engines.onnx_to_torch import OPERATORS, OnnxNetwork  # noqa: E402

CPU = torch.device('cpu')
RNG = np.random.default_rng(7)


def f32(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def i64(*values):
    return np.array(values, np.int64)


IMAGE, ROWS, CUBE = f32(1, 4, 6, 8), f32(2, 3, 4), f32(2, 4, 6)
POSITIVE = np.abs(ROWS) + 0.5
FLAGS = ROWS > 0
NUMBERS = np.arange(-6, 6, dtype=np.int64).reshape(3, 4)
TINY = np.float32(0.1)
UNARY = [
    'Abs', 'Ceil', 'Cos', 'Elu', 'Erf', 'Exp', 'Floor', 'HardSigmoid', 'HardSwish', 'Identity',
    'LeakyRelu', 'Neg', 'Relu', 'Round', 'Sigmoid', 'Sign', 'Sin', 'Softplus', 'Softsign', 'Tanh',
    'Celu', 'Selu', 'Mish', 'Sinh', 'Cosh', 'Tan', 'Atan',
]  # fmt: skip
BINARY = [
    'Add', 'Sub', 'Mul', 'Div', 'Max', 'Min', 'Equal', 'Greater', 'GreaterOrEqual', 'Less',
    'LessOrEqual', 'Sum', 'Mean',
]  # fmt: skip
REDUCTIONS = [
    'ReduceL1', 'ReduceL2', 'ReduceLogSumExp', 'ReduceMax', 'ReduceMean', 'ReduceMin',
    'ReduceProd', 'ReduceSum', 'ReduceSumSquare',
]  # fmt: skip
NEGATIVE_STEPS = (i64(-1, 3), i64(-99, 0), i64(2, 1), i64(-2, -1))

# (operator, inputs, which of them the network gets when it runs, attributes, opset)
CASES = [
    *((name, [ROWS], 1, {}, 18) for name in UNARY),
    *((name, [POSITIVE], 1, {}, 18) for name in ('Sqrt', 'Log', 'Reciprocal', 'ReduceLogSum')),
    *((name, [ROWS, ROWS[:, :1] * -1], 2, {}, 18) for name in BINARY),
    *((name, [ROWS / 4], 1, {}, 18) for name in ('Acos', 'Asin')),
    *((name, [ROWS, i64(-1, 0)], 1, {'keepdims': 0}, 18) for name in REDUCTIONS),
    *((name, [FLAGS, FLAGS[:1]], 2, {}, 18) for name in ('And', 'Or', 'Xor')),
    ('Not', [FLAGS], 1, {}, 18),
    ('ReduceMean', [ROWS], 1, {'axes': [1], 'keepdims': 1}, 17),
    ('ReduceMax', [ROWS], 1, {}, 18),
    ('ReduceSum', [ROWS], 1, {'noop_with_empty_axes': 1}, 18),
    ('ReduceSum', [NUMBERS, i64(1)], 1, {}, 18),
    ('ArgMax', [ROWS], 1, {'axis': 1, 'keepdims': 0}, 18),
    ('ArgMin', [ROWS], 1, {'axis': -1, 'select_last_index': 1}, 18),
    ('Cast', [ROWS], 1, {'to': onnx.TensorProto.INT32}, 18),
    ('Cast', [ROWS], 1, {'to': onnx.TensorProto.FLOAT16}, 18),
    ('CastLike', [ROWS, i64(1)], 2, {}, 18),
    ('Clip', [ROWS, np.float32(-0.5), np.float32(0.5)], 1, {}, 18),
    ('Clip', [ROWS, np.float32(-0.5), np.float32(0.5)], 3, {}, 18),
    ('Clip', [ROWS], 1, {}, 18),
    ('Div', [NUMBERS, i64(4)], 2, {}, 18),
    ('Mod', [NUMBERS, i64(4)], 2, {}, 18),
    ('Mod', [ROWS, np.float32([0.7])], 2, {'fmod': 1}, 18),
    ('Pow', [POSITIVE, np.float32(2)], 1, {}, 18),
    ('Pow', [POSITIVE, ROWS], 2, {}, 18),
    ('Where', [FLAGS, ROWS, -ROWS], 3, {}, 18),
    ('IsNaN', [ROWS], 1, {}, 18),
    ('IsInf', [ROWS * np.float32('inf')], 1, {'detect_negative': 0}, 18),
    ('PRelu', [ROWS, f32(4)], 1, {}, 18),
    ('Gelu', [ROWS], 1, {'approximate': 'tanh'}, 20),
    ('Gelu', [ROWS], 1, {}, 20),
    ('MatMul', [ROWS, f32(4, 5)], 2, {}, 18),
    ('Einsum', [ROWS, f32(2, 4, 5)], 2, {'equation': 'bij,bjk->bik'}, 18),
    ('Gemm', [f32(2, 3), f32(5, 3), f32(5)], 1, {'transB': 1}, 18),
    ('Gemm', [f32(3, 2), f32(3, 5), f32(1)], 1, {'transA': 1, 'alpha': 0.5, 'beta': 2.0}, 18),
    ('CumSum', [ROWS, np.int64(1)], 1, {'exclusive': 1, 'reverse': 1}, 18),
    ('Concat', [ROWS, ROWS], 2, {'axis': -1}, 18),
    ('Expand', [ROWS[:, :1], i64(1, 3, 1)], 1, {}, 18),
    ('Flatten', [ROWS], 1, {'axis': -1}, 18),
    ('Gather', [ROWS, i64(2, -1)], 1, {'axis': 1}, 18),
    ('Gather', [ROWS, np.int64(-1)], 1, {'axis': 2}, 18),
    ('Gather', [ROWS, i64(0, 1).reshape(1, 2)], 2, {}, 18),
    ('GatherElements', [ROWS, NUMBERS[:2, :3].reshape(2, 3, 1) % 4 - 1], 2, {'axis': 2}, 18),
    ('GatherND', [ROWS, i64(0, 1, 1, 2).reshape(2, 2)], 2, {}, 18),
    ('ScatterND', [ROWS, i64(0, 1, 1, 2).reshape(2, 2), f32(2, 4)], 3, {}, 18),
    ('ScatterElements', [f32(3, 3), i64(1, 0, 2).reshape(1, 3), f32(1, 3)], 3, {}, 18),
    ('OneHot', [i64(0, 2, -1), i64(4), np.float32([0, 2])], 1, {}, 18),
    ('Pad', [ROWS, i64(0, 1, 0, 0, 0, 2), np.float32(3)], 1, {}, 18),
    ('Pad', [IMAGE, i64(1, 2, 0, 1), None, i64(-2, -1)], 1, {'mode': 'reflect'}, 18),
    ('Pad', [IMAGE, i64(0, 0, 1, 0, 0, 0, 2, 1)], 1, {'mode': 'edge'}, 18),
    ('Range', [i64(1)[0], i64(9)[0], i64(3)[0]], 0, {}, 18),
    ('Reshape', [ROWS, i64(0, -1)], 1, {}, 18),
    ('Slice', [ROWS, i64(1), i64(2**62), i64(-1)], 1, {}, 18),
    ('Slice', [ROWS, *NEGATIVE_STEPS], 1, {}, 18),
    ('Split', [ROWS, i64(1, 3)], 1, {'axis': 2}, 18),
    ('Split', [CUBE], 1, {'axis': 2, 'num_outputs': 2}, 18),
    ('Squeeze', [ROWS[:, :1], i64(1)], 1, {}, 18),
    ('Tile', [ROWS, i64(1, 2, 3)], 1, {}, 18),
    ('TopK', [ROWS, i64(2)], 1, {'axis': 1}, 18),
    ('Transpose', [ROWS], 1, {}, 18),
    ('Transpose', [ROWS], 1, {'perm': [0, 2, 1]}, 18),
    ('Trilu', [ROWS, np.int64(1)], 1, {'upper': 0}, 18),
    ('Unsqueeze', [ROWS, i64(-1, 0)], 1, {}, 18),
    ('Softmax', [ROWS], 1, {'axis': 1}, 18),
    ('LogSoftmax', [ROWS], 1, {}, 18),
    ('Dropout', [ROWS], 1, {}, 18),
    ('LayerNormalization', [ROWS, f32(3, 4), f32(3, 4)], 1, {'axis': 1}, 18),
    ('LayerNormalization', [ROWS, f32(4)], 1, {}, 18),
    ('InstanceNormalization', [IMAGE, f32(4), f32(4)], 1, {}, 18),
    ('BatchNormalization', [IMAGE, f32(4), f32(4), f32(4), np.abs(f32(4))], 1, {}, 18),
    ('GroupNormalization', [IMAGE, f32(2), f32(2)], 1, {'num_groups': 2}, 18),
    ('GroupNormalization', [IMAGE, f32(4), f32(4)], 1, {'num_groups': 2}, 21),
    ('Conv', [IMAGE, f32(6, 2, 3, 3), f32(6)], 1, {'group': 2, 'pads': [1, 0, 2, 1]}, 18),
    ('Conv', [IMAGE, f32(2, 4, 3, 3)], 1, {'auto_pad': 'SAME_UPPER', 'strides': [2, 2]}, 18),
    ('Conv', [ROWS, f32(2, 3, 2)], 1, {'dilations': [2]}, 18),
    ('ConvTranspose', [IMAGE, f32(4, 2, 2, 2)], 1, {'strides': [2, 2]}, 18),
    (
        'MaxPool',
        [IMAGE],
        1,
        {'kernel_shape': [3, 3], 'strides': [2, 2], 'pads': [1, 1, 0, 0]},
        18,
    ),
    ('AveragePool', [IMAGE], 1, {'kernel_shape': [3, 3], 'pads': [1, 1, 1, 1]}, 18),
    ('GlobalAveragePool', [IMAGE], 1, {}, 18),
    ('GlobalMaxPool', [IMAGE], 1, {}, 18),
    ('DepthToSpace', [IMAGE], 1, {'blocksize': 2}, 18),
    ('DepthToSpace', [IMAGE], 1, {'blocksize': 2, 'mode': 'CRD'}, 18),
    ('SpaceToDepth', [IMAGE], 1, {'blocksize': 2}, 18),
    ('Resize', [IMAGE, None, np.float32([1, 1, 2, 2])], 1, {'mode': 'linear'}, 18),
    ('Resize', [IMAGE, None, None, i64(1, 4, 9, 5)], 1, {'mode': 'linear'}, 18),
    (
        'Resize',
        [IMAGE, None, None, i64(1, 4, 9, 5)],
        1,
        {'mode': 'cubic', 'coordinate_transformation_mode': 'align_corners'},
        18,
    ),
    (
        'Resize',
        [IMAGE, None, np.float32([1, 1, 2, 2])],
        1,
        {'coordinate_transformation_mode': 'asymmetric', 'nearest_mode': 'floor'},
        18,
    ),
    ('QuantizeLinear', [ROWS, TINY, np.uint8(128)], 1, {}, 18),
    ('QuantizeLinear', [ROWS, np.abs(f32(3)) + TINY, np.zeros(3, np.int8)], 1, {'axis': 1}, 18),
    ('DequantizeLinear', [np.int8([[1, -2]]), np.float32([0.1, 0.2])], 1, {}, 18),
    ('RMSNormalization', [ROWS, f32(4)], 1, {}, 23),
    ('Attention', [f32(1, 2, 3, 4), f32(1, 2, 5, 4), f32(1, 2, 5, 4)], 3, {}, 23),
    (
        'Attention',
        [f32(1, 3, 8), f32(1, 5, 4), f32(1, 5, 4), f32(3, 5)],
        4,
        {'q_num_heads': 2, 'kv_num_heads': 1},
        23,
    ),
]


def save_operator(path, operator, inputs, num_given, attributes, opset):
    """Write a network of one node: the first inputs are given when it runs, the others are weights."""
    names = [f'in{i}' if value is not None else '' for i, value in enumerate(inputs)]
    counts = {'Split': 2, 'TopK': 2}
    outputs = [f'out{i}' for i in range(counts.get(operator, 1))]
    kinds = [None if v is None else helper.np_dtype_to_tensor_dtype(v.dtype) for v in inputs]
    graph = helper.make_graph(
        [helper.make_node(operator, names, outputs, **attributes)],
        'one',
        [
            helper.make_tensor_value_info(names[i], kinds[i], inputs[i].shape)
            for i in range(num_given)
        ],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [
            numpy_helper.from_array(value, names[i])
            for i, value in enumerate(inputs)
            if i >= num_given and value is not None
        ],
    )
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid('', opset)])
    model = onnx.shape_inference.infer_shapes(model)
    for output in model.graph.output:
        if not output.type.tensor_type.HasField(
            'shape'
        ):  # functions have no shape inference: as the first input
            output.type.CopyFrom(model.graph.input[0].type)
    onnx.save(model, path)
    return path


def compare(path, values, *, atol=1e-5):
    """Run a file in both libraries and compare every output: element type, shape, numbers."""
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    wanted = session.run(None, values)
    network = OnnxNetwork(path, CPU)
    module = network.build({name: value.shape for name, value in values.items()})
    with torch.inference_mode():
        inputs = [torch.from_numpy(np.array(values[spec.name])) for spec in network.inputs]
        got = [tensor.numpy() for tensor in module(*inputs)]
    for one, other in zip(got, wanted, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=atol)
    return module


@pytest.mark.parametrize('case', CASES, ids=[f'{i}-{case[0]}' for i, case in enumerate(CASES)])
def test_operator(tmp_path, case):
    operator, inputs, num_given, attributes, opset = case
    if opset > onnx.defs.onnx_opset_version():
        pytest.skip(f'onnx {onnx.__version__} has no opset {opset}')
    path = save_operator(tmp_path / 'one.onnx', operator, inputs, num_given, attributes, opset)
    compare(path, {f'in{i}': np.asarray(inputs[i]) for i in range(num_given)})


def test_every_operator_is_compared():
    shown = {case[0] for case in CASES}
    assert set(OPERATORS) - shown == {'Constant', 'ConstantOfShape'}  # the sample bundle's


@pytest.mark.parametrize('stage', ['encoder', 'velocity'])
def test_stages_of_the_sample_bundle(stage):
    path = sample_bundle_path() / f'{stage}.onnx'
    values = {}
    for tensor in onnxruntime.InferenceSession(str(path)).get_inputs():
        shape = [size if isinstance(size, int) else 1 for size in tensor.shape]
        is_float = tensor.type == 'tensor(float)'
        values[tensor.name] = f32(*shape) if is_float else np.ones(shape, np.int64)
    compare(path, values)


def test_shape_arithmetic_is_done_beforehand(tmp_path):
    nodes = [
        helper.make_node('Shape', ['x'], ['shape']),
        helper.make_node('Gather', ['shape', 'first'], ['rows']),
        helper.make_node('Concat', ['rows', 'rest'], ['target'], axis=0),
        helper.make_node('Reshape', ['x', 'target'], ['y']),
    ]
    graph = helper.make_graph(
        nodes,
        'flat',
        [helper.make_tensor_value_info('x', onnx.TensorProto.FLOAT, ['n', 2, 3])],
        [helper.make_tensor_value_info('y', onnx.TensorProto.FLOAT, ['n', 6])],
        [numpy_helper.from_array(i64(0), 'first'), numpy_helper.from_array(i64(-1), 'rest')],
    )
    path = tmp_path / 'flat.onnx'
    onnx.save(
        helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid('', 17)]), path
    )
    module = compare(path, {'x': f32(4, 2, 3)})
    assert [n.op for n in module.graph.nodes] == ['placeholder', 'call_function', 'output']


@pytest.mark.parametrize(
    ('operator', 'inputs', 'got'),
    [
        ('NonZero', [ROWS], r"operator NonZero at node 'out0'"),
        ('Reshape', [ROWS, i64(2, 12)], r"node 'out0' \(Reshape\).*'in1', whose value depends"),
    ],
)
def test_what_cannot_run_is_named(tmp_path, operator, inputs, got):
    path = save_operator(tmp_path / 'one.onnx', operator, inputs, len(inputs), {}, 18)
    with pytest.raises(EngineError, match=got) as caught:
        OnnxNetwork(path, CPU).build({f'in{i}': v.shape for i, v in enumerate(inputs)})
    assert caught.value.code == 'unsupported_operator'
    assert 'one.onnx' in caught.value.where


def test_old_opset_is_refused(tmp_path):
    path = save_operator(tmp_path / 'one.onnx', 'Relu', [ROWS], 1, {}, 11)
    with pytest.raises(EngineError, match=r'opset 11.*opset 13 or later'):
        OnnxNetwork(path, CPU)


class Attention(torch.nn.Module):
    """A block like those of ACT, SmolVLA and GR00T's action head."""

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.LayerNorm(16)
        self.attention = torch.nn.MultiheadAttention(16, 4, batch_first=True)
        self.up, self.down = torch.nn.Linear(16, 32), torch.nn.Linear(32, 16)

    def forward(self, x, time):
        angles = time[:, None, None] * torch.arange(8) / 8
        x = x + torch.cat([angles.sin(), angles.cos()], -1)
        normed = self.norm(x)
        x = x + self.attention(normed, normed, normed, need_weights=False)[0]
        hidden = torch.nn.functional.gelu(self.up(self.norm(x)), approximate='tanh')
        return x + self.down(hidden)


class Unet(torch.nn.Module):
    """Convolutions over time with group norm, as in Diffusion Policy."""

    def __init__(self):
        super().__init__()
        self.enter = torch.nn.Conv1d(6, 8, 5, padding=2)
        self.norm = torch.nn.GroupNorm(2, 8)
        self.down = torch.nn.Conv1d(8, 8, 3, stride=2, padding=1)
        self.up = torch.nn.ConvTranspose1d(8, 8, 4, stride=2, padding=1)
        self.leave = torch.nn.Conv1d(16, 6, 1)
        self.film = torch.nn.Linear(4, 16)

    def forward(self, x, context):
        skip = torch.nn.functional.mish(self.norm(self.enter(x.transpose(1, 2))))
        scale, shift = self.film(context).chunk(2, -1)
        x = self.up(self.down(skip) * scale[..., None] + shift[..., None])
        return self.leave(torch.cat([x, skip], 1)).transpose(1, 2)


class Pyramid(torch.nn.Module):
    """A small backbone: batch norm, pooling, resizing, spatial softmax."""

    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = torch.nn.BatchNorm2d(8)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        small = torch.nn.functional.max_pool2d(x, 2)
        large = torch.nn.functional.interpolate(small, scale_factor=2, mode='bilinear')
        weights = torch.softmax((x + large).flatten(2), -1)
        places = torch.linspace(-1, 1, weights.shape[-1])
        return torch.einsum('bcn,n->bc', weights, places), large.mean((-2, -1))


NETWORKS = {
    'attention': (Attention, (2, 5, 16), (2,)),
    'unet': (Unet, (1, 8, 6), (1, 4)),
    'pyramid': (Pyramid, (1, 3, 16, 24)),
}


@pytest.mark.parametrize('opset', [17, 18, 20])
@pytest.mark.parametrize('exporter', ['script', 'dynamo'])
@pytest.mark.parametrize('name', NETWORKS)
@pytest.mark.filterwarnings('ignore')
def test_exported_networks(tmp_path, capfd, name, exporter, opset):
    if exporter == 'dynamo':
        pytest.importorskip('onnxscript')
        if opset == 17:
            pytest.skip('the new exporter begins at opset 18')
    make, *shapes = NETWORKS[name]
    torch.manual_seed(3)
    inputs = tuple(torch.rand(shape) for shape in shapes)
    names = [f'in{i}' for i in range(len(inputs))]
    path = tmp_path / 'net.onnx'
    torch.onnx.export(
        make().eval(),
        inputs,
        str(path),
        input_names=names,
        opset_version=opset,
        dynamo=exporter == 'dynamo',
    )
    compare(path, {name: value.numpy() for name, value in zip(names, inputs, strict=True)})
