# SPDX-License-Identifier: Apache-2.0
from itertools import islice
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper
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

from vla_policy_ros.bundle.bundle import load_bundle
from vla_policy_ros.core.errors import ConfigurationError, EngineError
from vla_policy_ros.datasets.registry import open_dataset
from vla_policy_ros.engines.plans import network_hash
from vla_policy_ros.engines.settings import EngineSettings
from vla_policy_ros.evaluation.sampling import sample_observations
from vla_policy_ros.export import calibration as calibration_module
from vla_policy_ros.export.calibration import (
    Calibration,
    NetworkRanges,
    calibrate,
    read_calibration,
    write_calibration,
)
from vla_policy_ros.export.element_types import encode_fp8
from vla_policy_ros.export.onnx_network import OnnxNetwork
from vla_policy_ros.export.prepare import choose_loader, prepare_network
from vla_policy_ros.export.quantize import find_products, quantize, round_scale
from vla_policy_ros.policies.stage_probe import StageProbe
from vla_policy_ros.sample import sample_bundle_path, sample_dataset_path

CODES = {'int8': 'INT8', 'fp8': 'FLOAT8E4M3FN'}


@pytest.fixture(params=['int8', 'fp8'])
def precision(request):
    return request.param


@pytest.fixture(scope='module')
def sample():
    return load_bundle(sample_bundle_path())


@pytest.fixture(scope='module')
def calibration(sample):
    dataset = open_dataset(sample_dataset_path())
    observations = sample_observations(dataset, sample.spec, count=6)
    made = calibrate(sample, observations, source='pick_blocks')
    dataset.close()
    return made


def ranges_of(path, inputs):
    """Measure ranges in another way: with every activation as an output."""
    names = {product.activation for product in find_products(OnnxNetwork(path))}
    model = onnx.load(path)
    known = {value.name for value in (*model.graph.input, *model.graph.output)}
    made = [name for name in sorted(names) if name not in known]
    for name in made:
        model.graph.output.append(helper.make_tensor_value_info(name, 1, None))
    wide = path.with_name('wide.onnx')
    wide.write_bytes(model.SerializeToString())
    count = len(model.graph.output) - len(made)
    values = {**inputs, **dict(zip(made, run_onnx(wide, inputs)[count:], strict=True))}
    return {name: float(np.abs(values[name]).max()) for name in names}


@pytest.mark.parametrize('save', [save_attention, save_convolution])
def test_the_result_is_near(save, precision, tmp_path):
    source = save(tmp_path / 'in.onnx')
    inputs = example_inputs(source)
    out = tmp_path / 'out.onnx'
    report = quantize(source, out, precision=precision, ranges=ranges_of(source, inputs))
    (wanted,), (found,) = run_onnx(source, inputs), run_onnx(out, inputs)
    assert 0 < np.abs(found - wanted).max() <= 0.1 * np.abs(wanted).max()
    assert len(report.products) == 3
    build_rtx(out)


def test_products_with_weights_are_quantized_and_attention_is_not(precision, tmp_path):
    source = save_attention(tmp_path / 'in.onnx')
    out = tmp_path / 'out.onnx'
    ranges = ranges_of(source, example_inputs(source))
    report = quantize(source, out, precision=precision, ranges=ranges)
    assert report.products == ('q', 'k', 'v')
    # One weight and one activation serve several products.
    assert report.weights == 2 * WIDTH * WIDTH
    graph = onnx.load(out).graph
    kinds = [node.op_type for node in graph.node]
    assert (kinds.count('QuantizeLinear'), kinds.count('DequantizeLinear')) == (1, 3)
    types = element_types(out)
    assert types['w_q_axis1_codes'] == types['scaled_codes'] == CODES[precision]
    assert 'w_q' not in types
    zero = next(t for t in graph.initializer if t.name == 'scaled_zero')
    assert not numpy_helper.to_array(zero).astype(np.float32).any()


def test_each_output_channel_has_its_scale(tmp_path):
    weight = np.array([[1.0, 100.0], [-0.5, 20.0]], np.float32)
    nodes = [helper.make_node('MatMul', ['x', 'weight'], ['y'], 'product')]
    size = [('x', 'FLOAT', (1, 2))]
    source = save_model(
        tmp_path / 'in.onnx', nodes, size, [('y', 'FLOAT', (1, 2))], {'weight': weight}
    )
    out = tmp_path / 'out.onnx'
    quantize(source, out, precision='int8', ranges={'x': 1.0})
    held = {t.name: numpy_helper.to_array(t) for t in onnx.load(out).graph.initializer}
    scale, codes = held['weight_axis1_scale'], held['weight_axis1_codes']
    assert scale.shape == (2,)
    assert (np.abs(codes).max(axis=0) >= 126).all()
    np.testing.assert_allclose(codes * scale, weight, atol=scale.max() / 2)


@pytest.mark.parametrize(('precision', 'largest'), [('int8', 127 / 1.2), ('fp8', 448 / 2)])
def test_activations_have_room_above_what_calibration_saw(precision, largest, tmp_path):
    source = save_attention(tmp_path / 'in.onnx')
    ranges = ranges_of(source, example_inputs(source))
    quantize(source, tmp_path / 'out.onnx', precision=precision, ranges=ranges)
    graph = onnx.load(tmp_path / 'out.onnx').graph
    scale = next(t for t in graph.initializer if t.name == 'scaled_scale')
    assert numpy_helper.to_array(scale) == pytest.approx(ranges['scaled'] / largest, rel=0.01)


def test_names_can_be_left_out(tmp_path):
    source = save_attention(tmp_path / 'in.onnx')
    ranges = ranges_of(source, example_inputs(source))
    out = tmp_path / 'out.onnx'
    report = quantize(source, out, precision='int8', ranges=ranges, leave_out={'q': 'why'})
    assert (report.products, report.left_out) == (('k', 'v'), {'q': 'why'})
    with pytest.raises(EngineError, match='nobody') as caught:
        quantize(source, out, precision='int8', ranges=ranges, leave_out={'nobody': ''})
    assert caught.value.code == 'unknown_product'


def test_an_activation_without_a_range_is_refused(tmp_path):
    source = save_attention(tmp_path / 'in.onnx')
    with pytest.raises(EngineError, match="tensor 'scaled'") as caught:
        quantize(source, tmp_path / 'out.onnx', precision='int8', ranges={'x': 1.0})
    assert caught.value.code == 'no_range'


@pytest.mark.parametrize('settings', [{'transA': 1}, {}])
def test_gemm_and_what_is_not_quantized(settings, tmp_path):
    nodes = [helper.make_node('Gemm', ['x', 'weight'], ['y'], 'product', **settings)]
    source = save_model(
        tmp_path / 'in.onnx',
        nodes,
        [('x', 'FLOAT', (4, 4))],
        [('y', 'FLOAT', (4, 4))],
        {'weight': draw(4, 4)},
    )
    assert len(list(find_products(OnnxNetwork(source)))) == (0 if settings else 1)


def test_calibration_sees_every_step_of_the_loop(sample, calibration, tmp_path):
    # The loop's sample starts as noise: the first step alone has another range.
    velocity = calibration.network(sample.folder / 'velocity.onnx').largest
    encoder = calibration.network(sample.folder / 'encoder.onnx').largest
    assert calibration.observations == 6
    assert all(value > 0 for value in (*velocity.values(), *encoder.values()))
    names = {p.activation for p in find_products(OnnxNetwork(sample.folder / 'velocity.onnx'))}
    assert set(velocity) == names


def test_calibration_files(sample, calibration, tmp_path):
    path = tmp_path / 'ranges.json'
    write_calibration(path, calibration)
    assert read_calibration(path) == calibration
    with pytest.raises(EngineError, match='ranges of encoder') as caught:
        calibration.network(save_attention(tmp_path / 'another.onnx'))
    assert caught.value.code == 'stale_calibration'
    path.write_text('{"format": "something else"}', encoding='utf-8')
    with pytest.raises(EngineError, match='format'):
        read_calibration(path)
    path.write_bytes(b'\x80')
    with pytest.raises(EngineError) as caught:
        read_calibration(path)
    assert caught.value.code == 'bad_calibration'


def test_calibration_needs_observations(sample):
    with pytest.raises(EngineError) as caught:
        calibrate(sample, [])
    assert caught.value.code == 'no_observations'


@pytest.mark.parametrize('stage', ['encoder', 'velocity'])
def test_the_sample_stages_in_8_bits_with_16_around(
    stage, precision, calibration, sample, tmp_path
):
    source, out = sample.folder / f'{stage}.onnx', tmp_path / f'{stage}.onnx'
    report = prepare_network(source, out, precision, calibration)
    blocks = [
        f'/blocks.{block}/blocks.{block}.{part}/Gemm' for block in range(3) for part in (1, 3)
    ]
    quantized = {'encoder': ['/mix/mix.2/Gemm'], 'velocity': blocks}[stage]
    assert list(report.quantization.products) == quantized
    assert report.quantization.weights == sum(
        product.weight.dims[0] * product.weight.dims[1]
        for product in find_products(OnnxNetwork(source))
        if product.name in quantized
    )
    types = element_types(out)
    scales = [kind for name, kind in types.items() if '_scale' in name]
    assert set(scales) == {'FLOAT16'}
    build_rtx(out)


def test_the_sample_policy_in_int8_is_near(calibration, sample, tmp_path):
    entry = sample.manifest.stages[0]

    def load(name, onnx_path, *, settings):
        from vla_policy_ros.engines.registry import load_engine

        out = tmp_path / onnx_path.name
        prepare_network(onnx_path, out, 'int8', calibration)
        return load_engine(name, out, settings=settings)

    dataset = open_dataset(sample_dataset_path())
    observation = next(islice(sample_observations(dataset, sample.spec, count=3), 2, None))
    dataset.close()
    from vla_policy_ros.export.compare import observed_cases

    (case,) = observed_cases(sample, [observation])
    inputs = {name: case.inputs[pool] for name, pool in entry.inputs.items()}
    outputs = []
    for loader in ({}, {'load': load}):
        probe = StageProbe(sample, entry, engine='onnxruntime', **loader)
        outputs.append(probe.run(inputs)['context'])
        probe.close()
    wanted, found = (value.ravel().astype(np.float64) for value in outputs)
    # 0.9998 with ONNX Runtime 1.31, 0.998 with 1.18 (the same without its optimiser).
    assert wanted @ found / np.linalg.norm(wanted) / np.linalg.norm(found) > 0.99


def test_fp8_on_onnxruntime_is_computed_as_the_file_says(tmp_path):
    nodes = [
        helper.make_node('Conv', ['x', 'first'], ['edges'], pads=[1, 1, 1, 1]),
        helper.make_node('Relu', ['edges'], ['positive']),  # which the optimiser would drop
        helper.make_node('Conv', ['positive', 'middle'], ['parts'], pads=[1, 1, 1, 1]),
        helper.make_node('Conv', ['parts', 'last'], ['y'], pads=[1, 1, 1, 1]),
    ]
    shapes = {'first': (128, 16, 3, 3), 'middle': (32, 128, 3, 3), 'last': (64, 32, 3, 3)}
    weights = {name: draw(*shape, scale=0.05) for name, shape in shapes.items()}
    tensors = [('x', 'FLOAT', (1, 16, 6, 6))], [('y', 'FLOAT', (1, 64, 6, 6))]
    source = save_model(tmp_path / 'in.onnx', nodes, *tensors, weights)
    inputs = example_inputs(source)
    measured = NetworkRanges(file='in.onnx', largest=ranges_of(source, inputs))
    calibration = Calibration(observations=1, networks={network_hash(source): measured})
    load = choose_loader('onnxruntime', 'fp8', calibration)
    engine = load('onnxruntime', source, settings=EngineSettings(precision='fp8'))
    found = np.zeros((1, 64, 6, 6), np.float32)
    engine.bind({**inputs, 'y': found}).enqueue()
    engine.close()
    prepare_network(source, tmp_path / 'out.onnx', 'fp8', calibration)
    assert element_types(tmp_path / 'out.onnx')['positive_codes'] == CODES['fp8']
    (as_written,), (wanted,) = run_onnx(tmp_path / 'out.onnx', inputs), run_onnx(source, inputs)
    np.testing.assert_array_equal(found, as_written)
    assert 0 < np.linalg.norm(found - wanted) < 0.05 * np.linalg.norm(wanted)


def test_8_bits_need_a_calibration(tmp_path):
    source = save_attention(tmp_path / 'in.onnx')
    with pytest.raises(ConfigurationError, match='--calibrate') as caught:
        prepare_network(source, tmp_path / 'out.onnx', 'fp8')
    assert caught.value.code == 'no_calibration'


@given(st.floats(min_value=0, max_value=400, width=32))
def test_scales_are_numbers_of_both_16_bit_types(value):
    (scale,) = round_scale(np.array([value], np.float32))
    assert value <= scale <= max(value * 1.07, 2.0**-20)
    assert np.float16(scale) == scale
    assert ml_dtypes.bfloat16(scale) == scale


@given(st.lists(st.floats(min_value=-1000, max_value=1000, width=32), min_size=1))
def test_float8_rounds_to_nearest_even_and_saturates(values):
    array = np.array(values, np.float32)
    wanted = np.clip(array, -448, 448).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    np.testing.assert_array_equal(encode_fp8(array), wanted)


def test_a_calibration_of_no_observation_is_no_calibration():
    with pytest.raises(ValueError, match='observations'):
        Calibration(observations=0, networks={})


@pytest.mark.parametrize('value', [np.inf, np.nan])
def test_an_activation_that_is_not_finite_is_named(sample, monkeypatch, value):
    class Spoiled(calibration_module._RangeExecution):
        def __init__(self, execution, measures, largest):
            for measure in measures.values():
                measure[...] = value
            super().__init__(SimpleNamespace(enqueue=lambda stream: None), measures, largest)

        def close(self):
            pass

    monkeypatch.setattr(calibration_module, '_RangeExecution', Spoiled)
    dataset = open_dataset(sample_dataset_path())
    observations = list(sample_observations(dataset, sample.spec, count=1))
    dataset.close()
    with pytest.raises(EngineError, match='activation') as caught:
        calibrate(sample, observations)
    assert caught.value.code == 'not_finite'
