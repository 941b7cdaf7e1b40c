# SPDX-License-Identifier: Apache-2.0
import onnx
import pytest
from onnx import TensorProto, helper
from support.bundles import flow_manifest, save_model, write_flow_bundle, write_flow_files
from support.device_engines import DeviceEngines
from support.host_device import HostDevice

from vla_policy_ros.bundle.writer import write_bundle
from vla_policy_ros.core.errors import ConfigurationError, GpuError
from vla_policy_ros.engines.settings import EngineSettings
from vla_policy_ros.export.compare import Contender
from vla_policy_ros.export.operators import count_operators, find_support
from vla_policy_ros.export.prepare import PreparingLoader

HOST = Contender(engine='onnxruntime')


def write_bundle_with(folder, operator, domain=''):
    """Write the flow bundle whose decoder has another operator."""
    write_flow_files(folder)
    path = folder / 'decoder.onnx'
    model = onnx.load(path)
    node = model.graph.node[0]
    node.op_type, node.domain = operator, domain
    if domain:
        model.opset_import.append(helper.make_opsetid(domain, 1))
    path.write_bytes(model.SerializeToString())
    return write_bundle(folder, flow_manifest())


def test_every_stage_is_loaded(tmp_path):
    bundle = write_flow_bundle(tmp_path / 'flow')
    support = list(find_support(bundle, HOST))
    assert [(stage.stage, stage.operators, stage.fault) for stage in support] == [
        ('encoder', {'Mul': 1}, None),
        ('velocity', {'Add': 1, 'Sub': 1}, None),
        ('decoder', {'Mul': 1}, None),
    ]


@pytest.mark.parametrize(('operator', 'domain'), [('Boil', ''), ('Boil', 'steam')])
def test_the_stage_and_the_operator_are_named(tmp_path, operator, domain):
    bundle = write_bundle_with(tmp_path / 'flow', operator, domain)
    *sound, bad = find_support(bundle, HOST)
    assert [stage.fault for stage in sound] == [None, None]
    assert bad.stage == 'decoder'
    assert bad.named == (f'{domain}:{operator}' if domain else operator,)
    assert bad.fault.next_step


def test_on_a_device(tmp_path, monkeypatch):
    devices = []

    def open_device(_index=0):
        devices.append(HostDevice())
        return devices[-1]

    def load(name, path, *, settings):
        return DeviceEngines(devices[-1]).load(name, path, settings=settings)

    monkeypatch.setattr('vla_policy_ros.gpu.device.open_device', open_device)
    bundle = write_flow_bundle(tmp_path / 'flow')
    support = list(find_support(bundle, Contender(engine='tensorrt', load=load)))
    assert [stage.fault for stage in support] == [None, None, None]
    assert [device.is_closed for device in devices] == [True]


def test_no_gpu(tmp_path, monkeypatch):
    def refuse(_index=0):
        raise GpuError('GPU', got='none', expected='one', next_step='Plug one in.')

    monkeypatch.setattr('vla_policy_ros.gpu.device.open_device', refuse)
    with pytest.raises(GpuError, match='Plug one in'):
        list(find_support(write_flow_bundle(tmp_path / 'flow'), Contender(engine='tensorrt')))


def test_a_wrong_option_is_no_fault_of_a_stage(tmp_path):
    settings = EngineSettings(precision='int8')
    contender = Contender(engine='onnxruntime', settings=settings, load=PreparingLoader())
    with pytest.raises(ConfigurationError) as caught:
        list(find_support(write_flow_bundle(tmp_path / 'flow'), contender))
    assert caught.value.code == 'no_calibration'


def test_operators_of_subgraphs_count(tmp_path):
    branches = {
        name: helper.make_graph(
            [helper.make_node(kind, ['x'], ['r'])],
            name,
            [],
            [helper.make_tensor_value_info('r', TensorProto.FLOAT, [2])],
        )
        for name, kind in (('then_branch', 'Exp'), ('else_branch', 'Neg'))
    }
    nodes = [
        helper.make_node('If', ['is_on'], ['chosen'], **branches),
        helper.make_node('Neg', ['chosen'], ['y']),
    ]
    inputs = [('x', 'FLOAT', [2]), ('is_on', 'BOOL', [])]
    path = save_model(tmp_path / 'a.onnx', nodes, inputs, [('y', 'FLOAT', [2])])
    assert count_operators(path) == {'Exp': 1, 'If': 1, 'Neg': 2}
