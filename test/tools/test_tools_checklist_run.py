# SPDX-License-Identifier: Apache-2.0
"""The checklist on bundles whose networks are made to fail, and on a device."""

import shutil
from contextlib import closing

import numpy as np
import onnx
import pytest
import yaml
from onnx import helper, numpy_helper
from support.bundles import make_observation, write_flow_bundle
from support.device_engines import DeviceEngines
from support.host_device import open_host_devices

from vla_policy_ros.bundle.writer import write_bundle
from vla_policy_ros.datasets.registry import open_dataset
from vla_policy_ros.evaluation.checklist import ITEMS
from vla_policy_ros.export.compare import Contender
from vla_policy_ros.tools.checklist_run import Job, run_checklist

HOST = Contender(engine='onnxruntime')


@pytest.fixture
def check(recording):
    """Go through the checklist of a bundle with the recording; gives the items by name."""

    def run(folder, contender=HOST, **words):
        with closing(open_dataset(recording.dataset)) as dataset:
            job = Job(
                folder=folder,
                contender=contender,
                dataset=dataset,
                samples=2,
                runs=2,
                period_ms=1e6,  # no test depends on the speed of the machine
                **words,
            )
            return {item.name: item for item in run_checklist(job, lambda _name: None)}

    return run


def statuses(items):
    return {name: item.status for name, item in items.items()}


def rewrite(source, folder, change):
    """Copy a bundle of one network, change the network, and write the manifest anew, without the probe."""
    shutil.copytree(source, folder)
    (path,) = folder.glob('*.onnx')
    model = onnx.load(path)
    change(model)
    path.write_bytes(model.SerializeToString())
    manifest = yaml.safe_load((folder / 'bundle.yaml').read_text())
    (folder / manifest.pop('probe')).unlink()
    return write_bundle(folder, manifest)


def test_an_operator_that_the_engine_lacks_fails(check, bundle, tmp_path):
    def boil(model):
        node = next(node for node in model.graph.node if node.op_type == 'Relu')
        node.op_type, node.domain = 'Boil', 'steam'
        model.opset_import.append(helper.make_opsetid('steam', 1))

    rewrite(bundle, tmp_path / 'boiling', boil)
    items = check(tmp_path / 'boiling')
    assert statuses(items) == {
        **dict.fromkeys(ITEMS, 'NOT CHECKED'),
        'bundle': 'PASS',
        'operators': 'FAIL',
    }
    assert items['operators'].found.startswith('stage network: operator steam:Boil: ')
    [stage] = items['operators'].details['stages']
    assert (stage['named'], stage['operators']['steam:Boil']) == (['steam:Boil'], 1)


def spoil_white(model):
    """Let the network answer images that are white all over with NaN: the root of less than nothing."""
    image = model.graph.input[0].name
    action = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ['sound' if name == action else name for name in node.output]
    model.graph.node.extend(
        [
            helper.make_node('ReduceMin', [image], ['darkest'], keepdims=0),
            helper.make_node('Sub', ['nearly_white', 'darkest'], ['left']),
            helper.make_node('Sqrt', ['left'], ['root']),
            helper.make_node('Mul', ['root', 'nothing'], ['spoiling']),
            helper.make_node('Add', ['sound', 'spoiling'], [action]),
        ]
    )
    for name, value in (('nearly_white', 0.999), ('nothing', 0.0)):
        array = np.array(value, np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))


def test_a_network_that_breaks_down_on_white_images_fails(check, bundle, tmp_path):
    rewrite(bundle, tmp_path / 'blinded', spoil_white)
    items = check(tmp_path / 'blinded')
    edge = items['edge inputs']
    assert edge.status == 'FAIL'
    wrong = [case for case in edge.details['cases'] if not case['is_right']]
    assert [case['name'] for case in wrong] == ['images: white']
    assert wrong[0]['got'].startswith('refused (not_finite)')
    assert statuses(items)['accuracy'] == 'PASS'


def test_a_network_that_computes_nothing_but_nan_fails_throughout(check, bundle, tmp_path):
    def spoil(model):
        spoil_white(model)
        limit = next(t for t in model.graph.initializer if t.name == 'nearly_white')
        limit.CopyFrom(numpy_helper.from_array(np.array(-9, np.float32), limit.name))

    rewrite(bundle, tmp_path / 'spoiled', spoil)
    items = check(tmp_path / 'spoiled')
    assert statuses(items) == {
        'bundle': 'PASS',
        'operators': 'PASS',
        'accuracy': 'FAIL',
        'quantisation loss': 'NOT CHECKED',
        'latency': 'FAIL',
        'memory': 'NOT CHECKED',
        'edge inputs': 'FAIL',
        'limits': 'NOT CHECKED',
    }
    assert 'nan' in items['latency'].found


@pytest.fixture
def devices(monkeypatch):
    """Stand-ins for the GPU, one for each time that it is opened."""
    return open_host_devices(monkeypatch)


@pytest.mark.parametrize('preprocess', ['cpu', 'gpu'])
def test_on_a_device(check, bundle, devices, preprocess):
    def load(name, path, *, settings):
        return DeviceEngines(devices[-1]).load(name, path, settings=settings)

    contender = Contender(engine='tensorrt', load=load)
    items = check(bundle, contender, preprocess=preprocess)
    assert [name for name, item in items.items() if item.status != 'PASS'] == [
        'quantisation loss',
        'limits',
    ]
    details = items['memory'].details
    assert details['device_bytes'] > 0
    assert details['device_growth_bytes'] == 0
    assert 'GPU' in items['memory'].found
    assert all(device.is_closed for device in devices)


def test_a_policy_without_images_words_and_probe(tmp_path, monkeypatch):
    """What a policy does not take is not asked of it."""
    bundle = write_flow_bundle(tmp_path / 'flow')
    seen = [make_observation(bundle, stamp_ns=stamp) for stamp in (1, 2)]
    monkeypatch.setattr(
        'vla_policy_ros.evaluation.sampling.sample_observations', lambda *_, **__: iter(seen)
    )
    job = Job(
        folder=bundle.folder,
        contender=HOST,
        dataset=None,
        samples=2,
        runs=2,
        period_ms=1e6,
    )
    told = []
    items = {item.name: item for item in run_checklist(job, told.append)}
    assert set(told) == set(ITEMS) - {'memory', 'quantisation loss'}
    assert {item.status for item in items.values()} == {'PASS', 'NOT CHECKED'}
    assert len(items['edge inputs'].details['cases']) == 5
