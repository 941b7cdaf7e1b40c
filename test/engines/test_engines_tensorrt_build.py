# SPDX-License-Identifier: Apache-2.0
"""Builds with the real TensorRT-RTX, which needs no GPU."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import tensorrt_rtx as rtx
from onnx import TensorProto, helper
from support.bundles import save_doubler, save_model

import vla_policy_ros.sample
from vla_policy_ros.core.errors import ConfigurationError, EngineError, GpuError
from vla_policy_ros.engines.build_progress import BuildMonitor, BuildProgress
from vla_policy_ros.engines.plan_facts import Gpu, Machine
from vla_policy_ros.engines.plans import PlanStore, network_hash, open_plan
from vla_policy_ros.engines.tensorrt_build import (
    BuildOptions,
    ShapeRange,
    _Build,
    build_plan,
    check_options,
)
from vla_policy_ros.engines.tensorrt_layers import group_layers, precision_of
from vla_policy_ros.engines.tensorrt_library import Library, Messages, load_library
from vla_policy_ros.gpu.driver import find_driver

SAMPLE = Path(vla_policy_ros.sample.__path__[0]) / 'bundle'
ROWS = ShapeRange(min=(1, 3), opt=(2, 3), max=(4, 3))
BLACKWELL = Machine('tensorrt_rtx', rtx.__version__, Gpu('GeForce RTX 5090', (12, 0)))


@pytest.fixture
def store(tmp_path):
    return PlanStore(tmp_path / 'plans')


def build(path, store, *, on_progress=None, network=None, **options):
    return build_plan(
        path,
        options=BuildOptions(**options),
        store=store,
        library='tensorrt_rtx',
        network=network,
        on_progress=on_progress,
    )


def save_product(path, element='FLOAT', *, wide=False):
    """y = x @ w; with `wide` the product is computed in float32 and cast back."""
    dtype = {'FLOAT': np.float32, 'FLOAT16': np.float16}[element]
    weights = {'w': np.eye(8, dtype=np.float32 if wide else dtype)}
    nodes = [helper.make_node('MatMul', ['x', 'w'], ['y'])]
    if wide:
        nodes = [
            helper.make_node('Cast', ['x'], ['wide'], to=TensorProto.FLOAT),
            helper.make_node('MatMul', ['wide', 'w'], ['product']),
            helper.make_node('Cast', ['product'], ['y'], to=getattr(TensorProto, element)),
        ]
    return save_model(path, nodes, [('x', element, [4, 8])], [('y', element, [4, 8])], weights)


def test_built_plan_is_found_by_the_machines_that_can_run_it(tmp_path, store):
    path = save_product(tmp_path / 'product.onnx')
    plan = build(path, store)
    assert plan.key.machine == Machine('tensorrt_rtx', rtx.__version__, None)
    found = store.find(network_hash(path), precision='fp32', machine=BLACKWELL)
    assert found == plan
    with open_plan(found) as content:
        assert content.nbytes == plan.num_bytes > 1000
    turing = Machine('tensorrt_rtx', rtx.__version__, Gpu('Tesla T4', (7, 5)))
    with pytest.raises(EngineError, match=r'8\.0 and higher, here is Tesla T4'):
        store.find(network_hash(path), precision='fp32', machine=turing)


def test_targets_narrow_a_plan_down(tmp_path, store):
    path = save_product(tmp_path / 'product.onnx')
    both = build(path, store, targets=('8.6', '12.0'))
    one = build(path, store, targets=('8.6',))
    assert one.num_bytes != both.num_bytes
    assert store.find(network_hash(path), precision='fp32', machine=BLACKWELL) == both


def test_plan_of_a_converted_network_is_found_by_the_bundles_network(tmp_path, store):
    original = save_product(tmp_path / 'product.onnx')
    converted = save_product(tmp_path / 'half.onnx', 'FLOAT16')
    plan = build(converted, store, precision='fp16', network=network_hash(original))
    found = store.find(network_hash(original), precision='fp16', machine=BLACKWELL)
    assert found == plan


@pytest.mark.parametrize(
    ('element', 'wide', 'precisions'),
    [
        ('FLOAT', False, {'fp32'}),
        ('FLOAT16', False, {'fp16'}),
        ('FLOAT16', True, {'fp16', 'fp32'}),
    ],
)
def test_report_tells_the_precision_of_the_file(tmp_path, store, element, wide, precisions):
    report = build(save_product(tmp_path / 'product.onnx', element, wide=wide), store).report
    if find_driver() is None:
        assert report.layers_of == 'network'
        assert report.workspace_bytes is None
        products = {g.precision for g in report.layers if g.kind == 'MATRIX_MULTIPLY'}
        assert products == ({'fp32'} if wide else precisions)
    assert set(report.shares()) == precisions
    assert sum(report.shares().values()) == pytest.approx(1)
    assert report.seconds > 0


def test_free_dimensions_need_a_range(tmp_path, store):
    path = save_doubler(tmp_path / 'doubler.onnx')
    assert build(path, store, profiles={'x': ROWS}).key.options.profiles == {'x': ROWS}
    assert build(path, store, profiles={'x': ShapeRange.fixed((2, 3))}).num_bytes


@pytest.mark.parametrize(
    ('sizes', 'got'),
    [
        (None, 'no range'),
        (ShapeRange.fixed((2, 4)), r'range \[2, 4\]'),
        (ShapeRange.fixed((2,)), r'range \[2\]'),
        (ShapeRange(min=(3, 3), opt=(2, 3), max=(4, 3)), r'min \[3, 3\], opt \[2, 3\]'),
    ],
    ids=['none', 'fixed size', 'rank', 'order'],
)
def test_unfit_range_is_named_with_the_input(tmp_path, store, sizes, got):
    path = save_doubler(tmp_path / 'doubler.onnx')
    with pytest.raises(EngineError, match=rf"input 'x': got .*{got}.*\[\*, 3\]") as caught:
        build(path, store, profiles={'x': sizes} if sizes else {})
    assert caught.value.code == 'bad_profile'


@pytest.mark.parametrize('options', [{'workspace_mib': 16}, {'optimization_level': 0}])
def test_options_are_taken_and_kept_apart(tmp_path, store, options):
    path = save_product(tmp_path / 'product.onnx')
    plans = [build(path, store), build(path, store, **options)]
    assert len({plan.path for plan in plans}) == 2
    assert store.plans(network_hash(path))[0] == plans[1]


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'targets': ('12.0', '1.0')}, r"target '1.0', which tensorrt_rtx.*12\.0"),
        ({'hardware_compatible': True}, 'hardware_compatible, which tensorrt_rtx'),
        ({'version_compatible': True}, 'version_compatible, which tensorrt_rtx'),
    ],
)
def test_options_that_the_library_lacks_are_refused(tmp_path, store, options, message):
    with pytest.raises(ConfigurationError, match=message) as caught:
        build(save_product(tmp_path / 'product.onnx'), store, **options)
    assert caught.value.code == 'unsupported_option'


def test_targets_are_refused_where_plans_are_for_one_gpu():
    library = Library('tensorrt', SimpleNamespace(__version__='10.6.0'), Messages(), None)
    with pytest.raises(ConfigurationError, match=r'targets, which tensorrt 10\.6\.0'):
        check_options(library, BuildOptions(targets=('9.0',)))


def test_weights_in_a_file_beside_are_read(tmp_path, store):
    path = save_product(tmp_path / 'product.onnx')
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location='product.bin', size_threshold=0)
    assert (tmp_path / 'product.bin').stat().st_size == 8 * 8 * 4
    assert build(path, store).num_bytes
    (tmp_path / 'product.bin').unlink()
    with pytest.raises(EngineError) as caught:
        build(path, store, network='ab' * 32)
    assert caught.value.code == 'not_parsed'


def save_unsupported(path):
    """A network whose second node has an operator that TensorRT does not know."""
    nodes = [
        helper.make_node('Add', ['x', 'x'], ['sum'], name='first'),
        helper.make_node('Det', ['sum'], ['y'], name='second'),
    ]
    return save_model(path, nodes, [('x', 'FLOAT', [2, 3, 3])], [('y', 'FLOAT', [2])])


def test_unsupported_operator_is_named_with_its_node(tmp_path, store):
    message = r"bad\.onnx: got node 'second', operator Det: UNSUPPORTED_NODE"
    with pytest.raises(EngineError, match=message) as caught:
        build(save_unsupported(tmp_path / 'bad.onnx'), store)
    assert caught.value.code == 'not_parsed'
    assert f'tensorrt_rtx {rtx.__version__}' in caught.value.expected


@pytest.mark.parametrize('content', [b'', b'not a network'])
def test_file_that_is_no_network_is_named(tmp_path, store, content):
    path = tmp_path / 'junk.onnx'
    path.write_bytes(content)
    with pytest.raises(EngineError, match=r'junk\.onnx') as caught:
        build(path, store, network='ab' * 32)
    assert caught.value.code == 'not_parsed'


@pytest.mark.parametrize('stage', ['encoder', 'velocity'])
def test_sample_bundle_is_built_and_progress_is_told(store, stage):
    told = []
    plan = build(SAMPLE / f'{stage}.onnx', store, on_progress=told.append)
    assert plan.num_bytes > 500_000
    assert all(0 <= p.step <= p.steps for p in told)
    outermost = [p for p in told if not p.parent]
    assert len({p.phase for p in outermost}) == 1
    assert outermost[-1].step == outermost[-1].steps
    assert {p.parent for p in told} <= {p.phase for p in told} | {''}


def test_caller_that_stops_listening_stops_the_build(store):
    def interrupt(progress: BuildProgress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(SAMPLE / 'encoder.onnx', store, on_progress=interrupt)
    assert not list(store.folder.rglob('*.plan'))


def test_cancelled_monitor_tells_tensorrt_to_stop():
    monitor = BuildMonitor()
    interface = monitor.as_interface(rtx)
    interface.phase_start('Building', None, 2)
    assert interface.step_complete('Building', 0) is True
    monitor.cancel()
    assert interface.step_complete('Building', 1) is False
    interface.phase_finish('Building')
    told = [monitor.events.get_nowait() for _ in range(4)]
    assert [p.step for p in told] == [0, 1, 2, 2]
    assert {(p.phase, p.parent, p.steps) for p in told} == {('Building', '', 2)}


def test_build_that_the_library_breaks_off_tells_why(tmp_path, store):
    library = load_library('tensorrt_rtx')

    class Builder:
        def __init__(self, logger):
            builder = rtx.Builder(logger)
            self.create_network = builder.create_network
            self.create_builder_config = builder.create_builder_config

        def build_serialized_network(self, network, config):
            library.logger.log(rtx.ILogger.ERROR, 'no tactic for this layer')

    module = SimpleNamespace(**{**vars(rtx), 'Builder': Builder})
    broken = Library('tensorrt_rtx', module, library.messages, library.logger)
    path = save_product(tmp_path / 'product.onnx')
    build = _Build(path, BuildOptions(), store, broken, broken.machine(None))
    with pytest.raises(EngineError, match='no tactic for this layer') as caught:
        build.run_watched(None, None, None)
    assert caught.value.code == 'build_failed'
    assert store.plans(network_hash(path)) == []


def test_without_a_driver_tensorrt_is_not_touched(tmp_path, store):
    if find_driver():
        pytest.skip('there is a driver')
    with pytest.raises(GpuError) as caught:
        build_plan(save_doubler(tmp_path / 'd.onnx'), options=BuildOptions(), store=store)
    assert caught.value.code == 'no_driver'


def test_library_says_what_it_is():
    library = load_library('tensorrt_rtx')
    assert library is load_library('tensorrt_rtx')
    assert library.version == rtx.__version__
    assert library.compiles_at_run_time
    assert library.network_flags == 1 << int(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    names = {
        library.dtype(getattr(rtx.DataType, n), 'x') for n in ('BF16', 'FP8', 'BOOL', 'INT64')
    }
    assert names == {'bfloat16', 'float8_e4m3fn', 'bool', 'int64'}


@pytest.mark.parametrize(
    ('types', 'precision'),
    [
        (['Half', 'Float'], 'fp16'),
        (['Row major linear FP32'], 'fp32'),
        (['Channel major FP16 format where channel % 4 == 0'], 'fp16'),
        (['BFloat16', 'Float'], 'bf16'),
        (['Int8', 'Float'], 'int8'),
        (['FP8', 'BF16'], 'fp8'),
        (['E4M3', 'Half'], 'fp8'),
        (['FLOAT'], 'fp32'),
        (['HALF', 'FLOAT'], 'fp16'),
        (['Int64', 'Bool', 'Int32'], 'other'),
        ([], 'other'),
    ],
)
def test_precision_is_the_narrowest_type(types, precision):
    assert precision_of(types) == precision


def test_layers_of_the_inspector_are_grouped():
    text = """{"Layers": [
        {"Name": "a", "LayerType": "gemm", "Inputs": [{"Name": "x", "Format/Datatype": "Half"}],
         "Outputs": [{"Name": "y", "Format/Datatype": "Float"}]},
        {"Name": "b", "LayerType": "gemm", "Inputs": [{"Name": "y", "Datatype": "Half",
         "Format": "(Linear) Row major linear format"}], "Outputs": []},
        {"Name": "c", "LayerType": "kgen", "Inputs": [], "Outputs": [{"Datatype": "Int32"}]},
        "a layer of which only the name is kept"], "Bindings": ["x"]}"""
    groups = group_layers(json.loads(text)['Layers'])
    assert [(g.precision, g.kind, g.count) for g in groups] == [
        ('fp16', 'gemm', 2),
        ('other', 'kgen', 1),
        ('other', 'unknown', 1),
    ]
