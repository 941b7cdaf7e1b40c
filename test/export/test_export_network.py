# SPDX-License-Identifier: Apache-2.0
"""ONNX files with descriptions, end to end: their policies' actions against those computed by hand."""

import json
from contextlib import closing

import numpy as np
import onnx
import pytest
from onnx import helper
from support.bundles import save_model
from support.described import (
    SIX,
    levels_description,
    observe,
    parts_description,
    pose_description,
    pose_of,
    save_levels,
    save_parts,
    save_pose,
    write_description,
)
from support.requirements import require

from vla_policy_ros.bundle.bundle import load_bundle
from vla_policy_ros.bundle.normalization import ActionDenormalizer
from vla_policy_ros.bundle.probe import check_probe, read_probe
from vla_policy_ros.core.errors import BundleError, ConfigurationError, EngineError
from vla_policy_ros.datasets.registry import open_dataset
from vla_policy_ros.export.network.convert import export_network
from vla_policy_ros.export.network.source import OnnxSource
from vla_policy_ros.export.proof import new_folder
from vla_policy_ros.export.support import ask_engines
from vla_policy_ros.policies.engine_policy import EnginePolicy
from vla_policy_ros.sample import sample_dataset_path
from vla_policy_ros.tools.main import main

RED, GRAY = (200, 40, 10), (128, 128, 128)


@pytest.fixture
def export(tmp_path):
    """Returns the export of a network with a description."""

    def export(network, description, **options):
        describe = write_description(tmp_path / 'description.yaml', description)
        return export_network(network, tmp_path / 'bundle', describe=describe, **options)

    return export


def actions_of(bundle, *arguments, **options):
    with closing(EnginePolicy(bundle)) as policy:
        return policy.infer(observe(bundle, *arguments, **options)).actions


def test_a_pose_regressor_becomes_a_policy(tmp_path, export):
    proven = export(save_pose(tmp_path / 'pose.onnx'), pose_description())
    bundle = load_bundle(proven.bundle.folder)
    assert [stage.name for stage in bundle.manifest.stages] == ['network', 'outputs']
    assert (bundle.spec.action.horizon, bundle.spec.action.step_ns) == (1, 100_000_000)
    assert bundle.spec.action.names[:4] == ('x', 'y', 'z', 'r0')
    assert bundle.manifest.source.checkpoint == 'pose.onnx'
    np.testing.assert_allclose(actions_of(bundle, {'wrist': RED})[0], pose_of(RED), atol=1e-5)
    with closing(EnginePolicy(bundle)) as policy:
        assert check_probe(policy, bundle).max_error < 1e-6
    assert np.ptp(read_probe(bundle.folder / 'probe.npz').inputs['image_0']) > 1


@pytest.mark.parametrize(
    ('shape', 'element', 'camera'),
    [
        ([6, 3, 8, 12], 'FLOAT', {}),
        ([1, 6, 3, 8, 12], 'FLOAT', {}),
        (['batch', 'cameras', 3, 8, 12], 'FLOAT', {}),
        (['batch', 3, 8, 12], 'FLOAT16', {}),
        ([6, 8, 12, 3], 'UINT8', {'layout': 'hwc'}),
    ],
    ids=['batch', 'one_batch', 'free', 'half', 'bytes'],
)
def test_six_cameras_go_into_one_input_in_their_order(tmp_path, export, shape, element, camera):
    network = save_levels(tmp_path / 'encoder.onnx', shape, element=element)
    bundle = export(network, levels_description(**camera)).bundle
    assert [stage.name for stage in bundle.manifest.stages] == ['inputs', 'network', 'outputs']
    levels = dict(zip(SIX, (10, 60, 110, 160, 210, 250), strict=True))
    actions = actions_of(bundle, {name: (level,) * 3 for name, level in levels.items()})
    scale = 1 if element == 'UINT8' else 255
    np.testing.assert_allclose(actions[0] * scale, list(levels.values()), rtol=1e-3)


def test_a_state_is_cut_into_inputs_and_outputs_are_joined(tmp_path, export):
    bundle = export(save_parts(tmp_path / 'parts.onnx'), parts_description()).bundle
    actions = actions_of(bundle, {}, np.array([1, 2, 3, 4, 5]))
    np.testing.assert_array_equal(actions, [[2, 4, 13, 14, 15]])


def test_a_flat_output_is_cut_into_rows(tmp_path, export):
    nodes = [
        helper.make_node('Expand', ['state', 'shape'], ['three']),
        helper.make_node('Add', ['three', 'steps'], ['rows']),
        helper.make_node('Reshape', ['rows', 'flat'], ['chunk']),
    ]
    weights = {
        'shape': np.array([3, 2]),
        'steps': np.arange(3, dtype=np.float32)[:, None],
        'flat': np.array([1, 6]),
    }
    network = save_model(
        tmp_path / 'flat.onnx',
        nodes,
        [('state', 'FLOAT', [1, 'n'])],
        [('chunk', 'FLOAT', [1, 6])],
        weights,
    )
    group = {'name': 'from', 'names': ['a', 'b'], 'units': ['rad']}
    description = {
        'state': {'tensors': ['state'], 'groups': [group]},
        'action': {'groups': [{**group, 'name': 'to'}], 'horizon': 3, 'step_ms': 20},
    }
    bundle = export(network, description).bundle
    actions = actions_of(bundle, {}, np.array([1, 5]))
    np.testing.assert_array_equal(actions, [[1, 5], [2, 6], [3, 7]])


def test_range_and_order_of_colours(tmp_path, export):
    network = save_pose(tmp_path / 'pose.onnx')
    camera = {'name': 'wrist', 'tensor': 'image', 'range': [-1, 1], 'color': 'bgr'}
    bundle = export(network, {**pose_description(), 'cameras': [camera]}).bundle
    with closing(EnginePolicy(bundle)) as policy:
        inputs, _ = policy.pool_inputs(observe(bundle, {'wrist': (255, 128, 0)}))
    assert inputs['image_0'].shape == (1, 3, 8, 12)
    np.testing.assert_allclose(inputs['image_0'][0, :, 0, 0], [-1, 128 / 127.5 - 1, 1], atol=1e-6)


def test_a_letterbox_takes_the_size_of_the_network(tmp_path, export):
    network = save_pose(tmp_path / 'pose.onnx')
    geometry = [{'kind': 'resize', 'to': 'fit_inside'}, {'kind': 'pad', 'value': 0}]
    bundle = export(network, pose_description(geometry=geometry)).bundle
    with closing(EnginePolicy(bundle)) as policy:
        inputs, _ = policy.pool_inputs(observe(bundle, {'wrist': (255,) * 3}, size=(40, 40)))
    image = inputs['image_0'][0, 0] > 0
    assert image.sum() == 8 * 8
    assert not image[:, :2].any()


def test_a_free_size_comes_from_the_description(tmp_path, export):
    network = save_pose(tmp_path / 'pose.onnx', size=('rows', 'columns'))
    geometry = [{'kind': 'resize', 'height': 6, 'width': 10, 'library': 'opencv'}]
    bundle = export(network, pose_description(geometry=geometry)).bundle
    facts = onnx.load(bundle.folder / 'network.onnx').graph.input[0].type.tensor_type.shape
    assert [dim.dim_value for dim in facts.dim] == [1, 3, 6, 10]
    np.testing.assert_allclose(actions_of(bundle, {'wrist': GRAY})[0], pose_of(GRAY), atol=1e-5)


def test_statistics_and_probe_come_from_a_dataset(tmp_path, export):
    with closing(open_dataset(sample_dataset_path())) as dataset:
        names = [column.name for column in dataset.info.state]
        group = {'names': names, 'units': ['rad'], 'normalization': 'min_max'}
        nodes = [helper.make_node('Identity', ['state'], ['action'])]
        shape = [1, len(names)]
        network = save_model(
            tmp_path / 'keep.onnx',
            nodes,
            [('state', 'FLOAT', shape)],
            [('action', 'FLOAT', shape)],
        )
        description = {
            'state': {'tensors': ['state'], 'groups': [{'name': 'state', **group}]},
            'action': {'groups': [{'name': 'action', **group}], 'step_ms': 100},
        }
        with pytest.raises(ConfigurationError) as error:
            export(network, description)
        assert error.value.code == 'no_statistics'
        bundle = export(network, description, dataset=dataset).bundle
        episode = dataset.episode(0)
        assert (bundle.statistics['state'].min <= episode.state.min(axis=0)).all()
        first = episode.state[0].copy()
    denormalizer = ActionDenormalizer(bundle.manifest.action, None, bundle.statistics)
    actions = np.empty((1, len(names)), np.float32)
    probe = read_probe(bundle.folder / 'probe.npz')
    denormalizer.write(probe.output[0], np.zeros(0), actions)
    state, action = bundle.statistics['state'], bundle.statistics['action']
    share = (first - state.min) / (state.max - state.min)
    np.testing.assert_allclose(actions[0], action.min + share * (action.max - action.min), 1e-3)


def test_a_statistics_file_lies_beside_the_description(tmp_path, export):
    numbers = {'min': 0, 'max': 4, 'mean': 2, 'std': 2, 'q01': 0, 'q99': 4}
    statistics = {'position': {key: [value] * 3 for key, value in numbers.items()}}
    (tmp_path / 'numbers.json').write_text(json.dumps(statistics))
    description = {**pose_description(), 'statistics': 'numbers.json'}
    position, rotation = description['action']['groups']
    position = {**position, 'normalization': 'mean_std'}
    description['action'] = {**description['action'], 'groups': [position, rotation]}
    bundle = export(save_pose(tmp_path / 'pose.onnx'), description).bundle
    actions, wanted = actions_of(bundle, {'wrist': RED})[0], pose_of(RED)
    np.testing.assert_allclose(actions[:3], 2 + 2 * wanted[:3], atol=1e-5)
    np.testing.assert_allclose(actions[3:], wanted[3:], atol=1e-5)


def test_weights_beside_the_file_come_along(tmp_path, export):
    (tmp_path / 'source').mkdir()
    model = onnx.load(save_pose(tmp_path / 'pose.onnx'))
    network = tmp_path / 'source' / 'pose.onnx'
    onnx.save(
        model, network, save_as_external_data=True, location='pose.weights', size_threshold=0
    )
    bundle = export(network, pose_description()).bundle
    assert (bundle.folder / 'pose.weights').is_file()
    np.testing.assert_allclose(actions_of(bundle, {'wrist': RED})[0], pose_of(RED), atol=1e-5)


@pytest.mark.parametrize(('wanted', 'found'), [(13, 17), (19, 19)])
def test_opset_is_raised_and_never_lowered(tmp_path, export, wanted, found):
    network = save_pose(tmp_path / 'pose.onnx')
    bundle = export(network, {**pose_description(), 'opset': wanted}).bundle
    assert onnx.load(bundle.folder / 'network.onnx').opset_import[0].version == found
    np.testing.assert_allclose(actions_of(bundle, {'wrist': RED})[0], pose_of(RED), atol=1e-5)


def test_another_result_than_the_files_is_refused(tmp_path, export, monkeypatch):
    run = OnnxSource.run
    monkeypatch.setattr(
        OnnxSource, 'run', lambda self, inputs: {k: v + 1 for k, v in run(self, inputs).items()}
    )
    with pytest.raises(EngineError, match='network: got cosine') as error:
        export(save_pose(tmp_path / 'pose.onnx'), pose_description())
    assert error.value.code == 'not_equal'
    assert not (tmp_path / 'bundle').exists()


def test_engines_name_what_they_do_not_take(tmp_path, export):
    require('tensorrt_rtx')
    require('openvino')
    nodes = [
        helper.make_node('Det', ['state'], ['size']),
        helper.make_node('Reshape', ['size', 'one'], ['action']),
    ]
    network = save_model(
        tmp_path / 'det.onnx',
        nodes,
        [('state', 'FLOAT', [2, 2])],
        [('action', 'FLOAT', [1, 1])],
        {'one': np.array([1, 1])},
    )
    group = {'name': 'from', 'names': ['a', 'b'], 'units': ['1']}
    description = {
        'state': {'tensors': ['state'], 'groups': [group], 'history_ns': [-1000, 0]},
        'action': {'groups': [{**group, 'name': 'to', 'names': ['c']}], 'step_ms': 20},
    }
    verdicts = {
        v.engine: v
        for v in ask_engines(export(network, description).bundle)
        if v.stage == 'network'
    }
    assert verdicts['onnxruntime'].answer == 'supported'
    for engine in ('tensorrt_rtx', 'openvino'):
        assert verdicts[engine].answer == 'not supported'
        assert 'Det' in verdicts[engine].reason


def test_a_library_that_is_missing_is_told(tmp_path, export, monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'tensorrt_rtx', None)
    from vla_policy_ros.engines import tensorrt_library

    tensorrt_library._import.cache_clear()
    bundle = export(save_pose(tmp_path / 'pose.onnx'), pose_description()).bundle
    verdict = next(v for v in ask_engines(bundle) if v.engine == 'tensorrt_rtx')
    tensorrt_library._import.cache_clear()
    assert verdict.answer == 'not asked'
    assert 'tensorrt_rtx' in verdict.reason


@pytest.mark.parametrize('name', ['pose.txt', 'pose.onnx', 'broken.onnx'])
def test_a_file_that_is_no_network_is_refused(tmp_path, export, name):
    (tmp_path / 'broken.onnx').write_bytes(b'no network')
    with pytest.raises((ConfigurationError, BundleError), match=name):
        export(tmp_path / name, pose_description())
    assert not (tmp_path / 'bundle').exists()


def test_the_command_prints_one_document_and_check_passes(tmp_path, capsys):
    network = save_pose(tmp_path / 'pose.onnx')
    describe = write_description(tmp_path / 'pose.yaml', pose_description())
    words = [str(network), '--describe', str(describe), '--out', str(tmp_path / 'pose')]
    assert main(['export', 'network', *words, '--json']) == 0
    document = json.loads(capsys.readouterr().out)
    assert [part['part'] for part in document['parity']] == ['network', 'outputs', 'policy']
    assert all(part['max_error'] < 1e-6 for part in document['parity'])
    assert {e['engine'] for e in document['engines']} == {
        *('onnxruntime', 'openvino', 'tensorrt_rtx', 'tensorrt')
    }
    assert main(['check', str(tmp_path / 'pose')]) == 0
    assert main(['verify', '--bundle', str(tmp_path / 'pose'), '--engine', 'onnxruntime']) == 0
    assert main(['export', 'network', *words]) == 1
    assert 'Choose another folder' in capsys.readouterr().err


def test_a_failed_export_leaves_the_folder_as_it_was(tmp_path):
    def fail_late(folder):
        with new_folder(folder):
            (folder / 'network.onnx').touch()
            raise ValueError('late')

    (tmp_path / 'there').mkdir()
    for name in ('there', 'new'):
        with pytest.raises(ValueError, match='late'):
            fail_late(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ['there']
    assert not list((tmp_path / 'there').iterdir())
