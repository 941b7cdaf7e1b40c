# SPDX-License-Identifier: Apache-2.0
import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from support.bundles import save_model
from support.networks import (
    WIDTH,
    build_rtx,
    draw,
    element_types,
    example_inputs,
    run_onnx,
    save_attention,
    save_convolution,
)

from vla_policy_ros.bundle.limits import ACCURACY_LIMITS
from vla_policy_ros.core.errors import EngineError
from vla_policy_ros.export.element_types import LOW_TYPES
from vla_policy_ros.export.precision import convert_precision
from vla_policy_ros.sample import sample_bundle_path

LOW_NAMES = {'fp16': 'FLOAT16', 'bf16': 'BFLOAT16'}
SAVED = {'attention': save_attention, 'convolution': save_convolution}


def evaluate(path, inputs, precision):
    # ONNX Runtime has hardly a kernel for bfloat16.
    if precision == 'bf16':
        if helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16).name != 'bfloat16':
            pytest.skip('the evaluator of this onnx version takes bfloat16 for whole numbers')
        return ReferenceEvaluator(str(path)).run(None, inputs)
    return run_onnx(path, inputs)


def save_chain(path, nodes, weights=None, inputs=None, shape=(2, WIDTH)):
    inputs = inputs or [('x', 'FLOAT', shape)]
    return save_model(path, nodes, inputs, [('y', 'FLOAT', shape)], weights)


def node(kind, inputs, output, **settings):
    return helper.make_node(kind, inputs, [output], output, **settings)


def kept(report):
    return {entry.name: entry.reason for entry in report.kept}


@pytest.fixture(params=['fp16', 'bf16'])
def precision(request):
    return request.param


@pytest.fixture(params=[*SAVED, 'encoder', 'velocity'])
def network(request, tmp_path):
    if request.param in SAVED:
        return SAVED[request.param](tmp_path / f'{request.param}.onnx')
    return sample_bundle_path() / f'{request.param}.onnx'


def test_results_stay_within_the_limits_and_borders_keep_their_types(network, precision, tmp_path):
    out = tmp_path / 'out' / 'network.onnx'
    out.parent.mkdir()
    report = convert_precision(network, out, precision)
    before, after = (onnx.load(path).graph for path in (network, out))
    assert list(after.input) == list(before.input)
    assert list(after.output) == list(before.output)
    inputs = example_inputs(network)
    for wanted, found in zip(
        run_onnx(network, inputs), evaluate(out, inputs, precision), strict=True
    ):
        unit = max(1.0, np.abs(wanted).max())
        assert np.abs(found - wanted).max() / unit <= ACCURACY_LIMITS[precision].max_error
        assert (found != wanted).any()  # or nothing was converted
    assert report.nodes[precision] > 0
    assert report.weights[precision] > 0
    build_rtx(out)


@pytest.mark.parametrize('target', ['fp32', 'fp16', 'bf16'])
def test_inputs_that_are_left_out_at_the_end_are_dropped(target, tmp_path):
    nodes = [
        node('Clip', ['x', 'least', ''], 'bounded'),
        node('Clip', ['bounded', '', 'most'], 'held'),  # this place must stay
        node('Clip', ['held', '', ''], 'y'),
    ]
    ends = {'least': np.array(-0.5, np.float32), 'most': np.array(0.5, np.float32)}
    source = save_chain(tmp_path / 'in.onnx', nodes, ends)
    out = tmp_path / 'out.onnx'
    convert_precision(source, out, target)
    clips = [n for n in onnx.load(out).graph.node if n.op_type == 'Clip']
    assert [len(n.input) for n in clips] == [2, 3, 1]
    assert clips[1].input[1] == ''
    inputs = {'x': np.linspace(-1, 1, 2 * WIDTH, dtype=np.float32).reshape(2, WIDTH)}
    if target == 'bf16':
        return  # ONNX Runtime has no Clip of it
    (found,), (wanted,) = run_onnx(out, inputs), run_onnx(source, inputs)
    np.testing.assert_allclose(found, wanted, atol=1e-3)


def test_fp32_is_the_same_network(network, tmp_path):
    out = tmp_path / 'same.onnx'
    report = convert_precision(network, out, 'fp32')
    inputs = example_inputs(network)
    for wanted, found in zip(run_onnx(network, inputs), run_onnx(out, inputs), strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert report.share('fp32') == 1
    assert report.kept == ()


def test_an_exported_layer_norm_stays_whole_and_products_do_not(precision, tmp_path):
    out = tmp_path / 'out.onnx'
    report = convert_precision(save_attention(tmp_path / 'in.onnx'), out, precision)
    norm = ['mean', 'centered', 'squares', 'variance', 'shifted', 'deviation', 'normal', 'scaled']
    assert set(kept(report)) == set(norm)
    types = element_types(out)
    assert {types[name] for name in norm} == {'FLOAT'}
    assert {types[name] for name in ('h', 'q', 'scores', 'shares', 'mixed')} == {
        LOW_NAMES[precision]
    }
    # epsilon has no correct digits in fp16; its node is in float32 in any case.
    assert ('epsilon' in report.wide_weights) == (precision == 'fp16')


def test_large_activations_do_not_overflow_in_a_norm(tmp_path):
    source = save_attention(tmp_path / 'in.onnx')
    out = tmp_path / 'out.onnx'
    convert_precision(source, out, 'fp16')
    inputs = example_inputs(source)
    inputs['x'] *= 1000  # the squares are far beyond 65504
    (wanted,), (found,) = run_onnx(source, inputs), run_onnx(out, inputs)
    assert np.abs(found - wanted).max() <= 2e-3 * np.abs(wanted).max()


def test_angles_are_computed_in_float32(precision, tmp_path):
    nodes = [
        node('Cast', ['steps'], 'numbers', to=TensorProto.FLOAT),
        node('MatMul', ['numbers', 'frequencies'], 'angles'),
        node('Concat', ['angles', 'angles'], 'both', axis=1),
        node('Cos', ['both'], 'waves'),
        node('MatMul', ['waves', 'weight'], 'y'),
    ]
    weights = {'frequencies': draw(1, WIDTH // 2), 'weight': draw(WIDTH, WIDTH, scale=0.2)}
    inputs = [('steps', 'INT64', (2, 1))]
    source = save_chain(tmp_path / 'in.onnx', nodes, weights, inputs)
    out = tmp_path / 'out.onnx'
    report = convert_precision(source, out, precision)
    assert {'angles', 'both', 'waves'} <= set(kept(report))
    assert report.nodes[precision] == 1
    feed = {'steps': np.array([[999], [401]])}
    (wanted,), (found,) = run_onnx(source, feed), evaluate(out, feed, precision)
    assert np.abs(found - wanted).max() < 0.05


def test_divisors_are_computed_in_float32(precision, tmp_path):
    """Between 1 - time and its division nothing is rounded: 16 bits of a small difference are mostly noise."""
    nodes = [
        node('Sub', ['one', 'time'], 'left'),
        node('Clip', ['left', 'least'], 'divisor'),
        node('MatMul', ['x', 'weight'], 'way'),
        node('Div', ['way', 'divisor'], 'velocity'),
        node('MatMul', ['velocity', 'weight'], 'y'),
    ]
    weights = {'one': np.float32(1), 'least': np.float32(1e-3)}
    weights['weight'] = draw(WIDTH, WIDTH, scale=0.2)
    inputs = [('time', 'FLOAT', (1,)), ('x', 'FLOAT', (2, WIDTH))]
    source = save_chain(tmp_path / 'in.onnx', nodes, weights, inputs)
    out = tmp_path / 'out.onnx'
    report = convert_precision(source, out, precision)
    assert set(kept(report)) == {'left', 'divisor', 'velocity'}
    feed = {'time': np.array([0.997], np.float32), 'x': draw(2, WIDTH)}
    (wanted,), (found,) = run_onnx(source, feed), evaluate(out, feed, precision)
    assert np.abs(found - wanted).max() < 0.02 * np.abs(wanted).max()


def test_constants_out_of_range_keep_their_node(tmp_path):
    nodes = [
        node('Where', ['is_free', 'x', 'lowest'], 'masked'),
        node('MatMul', ['x', 'weight'], 'z'),
        node('Softmax', ['masked'], 'shares'),
        node('Add', ['shares', 'z'], 'y'),
    ]
    weights = {
        'lowest': np.array(-3e38, np.float32),
        'weight': draw(WIDTH, WIDTH),
        'is_free': np.arange(WIDTH) < 9,
    }
    source = save_chain(tmp_path / 'in.onnx', nodes, weights)
    report = convert_precision(source, tmp_path / 'out.onnx', 'fp16')
    assert report.wide_weights == {'lowest': '3e+38 is beyond fp16'}
    assert kept(report) == {
        'masked': '3e+38 is beyond fp16',
        'shares': 'between delicate ones',
    }
    assert convert_precision(source, tmp_path / 'out.onnx', 'bf16').wide_weights == {}
    inputs = example_inputs(source)
    (found,) = evaluate(tmp_path / 'out.onnx', inputs, 'bf16')
    assert np.isfinite(found).all()


def test_infinite_constants_are_held_by_16_bits(tmp_path):
    nodes = [node('Max', ['x', 'bound'], 'y')]
    weights = {'bound': np.array(-np.inf, np.float32)}
    report = convert_precision(
        save_chain(tmp_path / 'in.onnx', nodes, weights), tmp_path / 'out.onnx', 'fp16'
    )
    assert (report.kept, report.wide_weights) == ((), {})


def test_a_weight_that_is_read_in_both_types_is_stored_in_both(tmp_path):
    nodes = [
        node('Mul', ['x', 'gain'], 'low'),
        node('Exp', ['gain'], 'grown'),
        node('Add', ['low', 'grown'], 'y'),
    ]
    source = save_chain(tmp_path / 'in.onnx', nodes, {'gain': draw(WIDTH)})
    out = tmp_path / 'out.onnx'
    report = convert_precision(source, out, 'fp16')
    assert report.weights == {'fp32': WIDTH, 'fp16': WIDTH}
    assert [t.name for t in onnx.load(out).graph.initializer] == ['gain', 'gain_fp16']


def test_constant_nodes_count_as_weights_and_old_ones_go(tmp_path):
    value = numpy_helper.from_array(draw(WIDTH, WIDTH))
    nodes = [
        helper.make_node('Constant', [], ['weight'], value=value),
        helper.make_node('Constant', [], ['half'], value_float=0.5),
        helper.make_node('Constant', [], ['shape'], value_ints=[2, WIDTH]),
        node('MatMul', ['x', 'weight'], 'product'),
        node('Mul', ['product', 'half'], 'small'),
        node('Reshape', ['small', 'shape'], 'y'),
    ]
    out = tmp_path / 'out.onnx'
    source = save_chain(tmp_path / 'in.onnx', nodes)
    report = convert_precision(source, out, 'fp16')
    assert report.weights == {'fp16': WIDTH * WIDTH + 1}
    assert {t.name for t in onnx.load(out).graph.initializer} == {
        'weight_fp16',
        'half_fp16',
        'shape',
    }
    inputs = example_inputs(source)
    np.testing.assert_allclose(
        run_onnx(out, inputs), run_onnx(source, inputs), rtol=0.01, atol=0.01
    )


def test_an_output_that_others_read_has_both_types(precision, tmp_path):
    nodes = [node('MatMul', ['x', 'weight'], 'y'), node('Relu', ['y'], 'z')]
    outputs = [('y', 'FLOAT', (2, WIDTH)), ('z', 'FLOAT', (2, WIDTH))]
    source = save_model(
        tmp_path / 'in.onnx',
        nodes,
        [('x', 'FLOAT', (2, WIDTH))],
        outputs,
        {'weight': draw(WIDTH, WIDTH)},
    )
    out = tmp_path / 'out.onnx'
    report = convert_precision(source, out, precision)
    assert report.casts == 3  # x down, y and z up
    types = element_types(out)
    assert (types['y'], types[f'y_{precision}']) == ('FLOAT', LOW_NAMES[precision])


def test_operators_that_lack_the_type_in_the_opset_stay(tmp_path):
    source = save_convolution(tmp_path / 'in.onnx')
    reasons = kept(convert_precision(source, tmp_path / 'out.onnx', 'bf16'))
    assert reasons['edges'] == reasons['features'] == 'no bf16 in this opset'
    assert 'edges' not in kept(convert_precision(source, tmp_path / 'out.onnx', 'fp16'))


def test_weights_beside_the_file_stay_beside_it(precision, tmp_path):
    source = save_attention(tmp_path / 'in.onnx')
    model = onnx.load(source)
    (tmp_path / 'wide').mkdir()
    wide = tmp_path / 'wide' / 'in.onnx'
    onnx.save_model(model, wide, save_as_external_data=True, location='in.bin', size_threshold=0)
    (tmp_path / 'out').mkdir()
    out = tmp_path / 'out' / 'net.onnx'
    convert_precision(wide, out, precision)
    assert sorted(path.name for path in out.parent.iterdir()) == ['net.onnx', 'net.onnx.data']
    convert_precision(source, tmp_path / 'in_one.onnx', precision)
    inputs = example_inputs(source)
    for found, wanted in zip(
        evaluate(out, inputs, precision),
        evaluate(tmp_path / 'in_one.onnx', inputs, precision),
        strict=True,
    ):
        np.testing.assert_array_equal(found, wanted)


def test_weights_that_are_not_float32_are_written_as_they_were(tmp_path):
    table = np.arange(4000, dtype=np.int64).reshape(-1, 2)
    nodes = [
        node('Gather', ['table', 'ids'], 'rows'),
        node('Cast', ['rows'], 'numbers', to=TensorProto.FLOAT),
        node('MatMul', ['numbers', 'weight'], 'y'),
    ]
    source = save_model(
        tmp_path / 'in.onnx',
        nodes,
        [('ids', 'INT64', (3,))],
        [('y', 'FLOAT', (3, 4))],
        {'table': table, 'weight': draw(2, 4, scale=1e-3)},
    )
    out = tmp_path / 'out.onnx'
    convert_precision(source, out, 'fp16')
    (held,) = (t for t in onnx.load(out).graph.initializer if t.name == 'table')
    np.testing.assert_array_equal(numpy_helper.to_array(held), table)


def test_subgraphs_are_refused(tmp_path):
    branch = helper.make_graph(
        [helper.make_node('Identity', ['x'], ['b'])],
        'branch',
        [],
        [helper.make_tensor_value_info('b', TensorProto.FLOAT, (2, WIDTH))],
    )
    nodes = [
        helper.make_node('If', ['is_on'], ['y'], 'choice', then_branch=branch, else_branch=branch)
    ]
    inputs = [('x', 'FLOAT', (2, WIDTH)), ('is_on', 'BOOL', ())]
    source = save_chain(tmp_path / 'in.onnx', nodes, None, inputs)
    with pytest.raises(EngineError, match=r'choice.*If with subgraphs') as caught:
        convert_precision(source, tmp_path / 'out.onnx', 'fp16')
    assert caught.value.code == 'subgraph'


def test_functions_of_the_model_are_inlined(tmp_path):
    body = [helper.make_node('MatMul', ['a', 'b'], ['c'])]
    opsets = [helper.make_opsetid('', 17), helper.make_opsetid('own', 1)]
    function = helper.make_function('own', 'Product', ['a', 'b'], ['c'], body, opsets[:1])
    graph = helper.make_graph(
        [helper.make_node('Product', ['x', 'weight'], ['y'], domain='own')],
        'graph',
        [helper.make_tensor_value_info('x', TensorProto.FLOAT, (2, WIDTH))],
        [helper.make_tensor_value_info('y', TensorProto.FLOAT, (2, WIDTH))],
        [numpy_helper.from_array(draw(WIDTH, WIDTH), 'weight')],
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=opsets, functions=[function])
    path = tmp_path / 'in.onnx'
    path.write_bytes(model.SerializeToString())
    assert convert_precision(path, tmp_path / 'out.onnx', 'fp16').nodes == {'fp16': 1, 'fp32': 0}


@pytest.mark.parametrize(
    ('content', 'code'), [(b'no model', 'not_onnx'), (b'', 'not_onnx'), (None, 'not_onnx')]
)
def test_what_is_no_network_is_refused(content, code, tmp_path):
    path = tmp_path / 'in.onnx'
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EngineError) as caught:
        convert_precision(path, tmp_path / 'out.onnx', 'fp16')
    assert caught.value.code == code


def test_a_network_is_not_written_over_itself(tmp_path):
    source = save_attention(tmp_path / 'in.onnx')
    with pytest.raises(EngineError) as caught:
        convert_precision(source, tmp_path / '.' / 'in.onnx', 'fp16')
    assert caught.value.code == 'same_file'


def test_types_that_do_not_fit_are_refused(tmp_path):
    model = onnx.load(save_attention(tmp_path / 'in.onnx'))
    model.graph.node[1].input[1] = 'ids'
    (tmp_path / 'in.onnx').write_bytes(model.SerializeToString())
    with pytest.raises(EngineError) as caught:
        convert_precision(tmp_path / 'in.onnx', tmp_path / 'out.onnx', 'fp16')
    assert caught.value.code == 'bad_types'


@given(st.lists(st.floats(width=32), min_size=1))
def test_rounding_is_that_of_ieee(values):
    array = np.array(values, np.float32)
    for name, dtype in (('fp16', np.float16), ('bf16', ml_dtypes.bfloat16)):
        low = LOW_TYPES[name]
        with np.errstate(over='ignore', invalid='ignore'):
            wanted = array.astype(dtype).astype(np.float32)
        np.testing.assert_array_equal(low.decode(low.encode(array)), wanted)
