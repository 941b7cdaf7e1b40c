# SPDX-License-Identifier: Apache-2.0
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from support.bundles import direct_manifest, flow_manifest, save_model

from vla_policy_ros.bundle.graph import join_stages, noise_draws, observation_tensors, state_width
from vla_policy_ros.bundle.manifest import Manifest
from vla_policy_ros.bundle.onnx_model import ModelFacts, ModelTensor, read_model
from vla_policy_ros.core.errors import BundleError

ENCODER = ModelFacts(
    (ModelTensor('state', 'float32', ('n', 1, 3)), ModelTensor('gain', 'float32', (1,))),
    (ModelTensor('context', 'float32', ('n', 1, 3)),),
    (),
    18,
)
VELOCITY = ModelFacts(
    (
        ModelTensor('sample', 'float32', ('n', 'rows', 3)),
        ModelTensor('time', 'float32', (1,)),
        ModelTensor('context', 'float32', ('n', 1, 3)),
    ),
    (ModelTensor('velocity', 'float32', ('n', 'rows', 3)),),
    (),
    18,
)
DECODER = ModelFacts(
    (ModelTensor('sample', 'float32', ('n', 'rows', 3)),),
    (ModelTensor('action', 'float32', ('n', 'rows', 3)),),
    (),
    18,
)


def join(document, models=(ENCODER, VELOCITY, DECODER)):
    return join_stages(Manifest.model_validate({**document, 'files': {}}), models)


def changed(model, **tensors):
    """Return facts with some inputs or outputs replaced: name=(dtype, shape), or None to drop it."""

    def replace(values):
        kept = [v for v in values if tensors.get(v.name, v) is not None]
        return tuple(
            ModelTensor(v.name, *tensors[v.name]) if v.name in tensors else v for v in kept
        )

    return ModelFacts(replace(model.inputs), replace(model.outputs), (), 18)


def test_sound_stages_fix_every_shape():
    tensors, faults = join(flow_manifest())
    assert faults == []
    assert {name: spec.shape for name, spec in tensors.items()} == {
        'state': (1, 1, 3),
        'gain': (1,),
        'context': (1, 1, 3),
        'sample': (1, 4, 3),
        'time': (1,),
        'velocity': (1, 4, 3),
        'action': (1, 4, 3),
    }
    assert all(name == spec.name for name, spec in tensors.items())


def test_sample_takes_its_rows_from_the_network_where_they_are_fixed():
    rows = ('float32', (1, 16, 3))
    decoder = changed(DECODER, sample=rows, action=('float32', (1, 4, 3)))
    tensors, faults = join(flow_manifest(), (ENCODER, changed(VELOCITY, sample=rows), decoder))
    assert faults == []
    assert tensors['sample'].shape == tensors['velocity'].shape == (1, 16, 3)


def test_cameras_state_and_words_have_the_documented_shapes():
    document = direct_manifest(history=2, words=True)
    document['state'].update(pad_to=10)
    document['cameras'][0].update(layout='hwc', dtype='uint8')
    document['stages'][0]['inputs'] = {}
    tensors, _ = join(document, (ModelFacts((), (), (), 18),))
    assert tensors['image'].shape == (1, 2, 8, 8, 3)
    assert tensors['image'].dtype == 'uint8'
    assert tensors['state'].shape == (1, 1, 10)
    assert tensors['tokens'].shape == tensors['mask'].shape == (1, 6)
    document['cameras'][0].update(layout='chw')
    document['state'].update(pad_to=None, squeeze=True)
    document['state']['groups'][0].update(normalization='sin_cos')
    tensors, _ = join(document, (ModelFacts((), (), (), 18),))
    assert tensors['image'].shape == (1, 6, 8, 8)
    assert tensors['state'].shape == (1, 6)


def test_patches_and_bfloat16_go_into_a_network_that_takes_them():
    document = direct_manifest(history=2)
    document['cameras'][0].update(layout='patches', patch_size=4, temporal=2, dtype='bfloat16')
    document['constants'] = [{'tensor': 'gain', 'dtype': 'bfloat16', 'value': 0.5}]
    document['stages'][0]['inputs'] = {'image': 'image', 'gain': 'gain'}
    inputs = (
        ModelTensor('image', 'bfloat16', (1, 8, 96)),
        ModelTensor('gain', 'bfloat16', (1,)),
    )
    action = ModelTensor('action', 'float32', (1, 4, 3))
    tensors, faults = join(document, (ModelFacts(inputs, (action,), (), 18),))
    assert faults == []
    assert (tensors['image'].shape, tensors['image'].dtype) == ((1, 8, 96), 'bfloat16')
    assert tensors['gain'].empty().dtype == np.dtype('bfloat16')


def stages(*entries):
    def change(document):
        document['stages'] = list(entries)

    return change


def at(index, key, **names):
    return lambda document: document['stages'][index][key].update(names)


def same(document):
    return None


NORMAL = (ENCODER, VELOCITY, DECODER)
WIDE = ('float32', ('n', 'rows', 7))
FAULTS = {
    'pool tensor that nothing makes': (
        at(0, 'inputs', state='stat'),
        NORMAL,
        'stages[0].inputs.state',
        'not_produced',
    ),
    'tensor of a later stage': (
        at(0, 'inputs', state='action'),
        NORMAL,
        'stages[0].inputs.state',
        'not_produced',
    ),
    'sample before the loop': (
        at(0, 'inputs', state='sample'),
        NORMAL,
        'stages[0].inputs.state',
        'not_produced',
    ),
    'time after the loop': (
        at(2, 'inputs', sample='time'),
        NORMAL,
        'stages[2].inputs.sample',
        'not_produced',
    ),
    'prediction of this very step': (
        at(1, 'inputs', context='velocity'),
        NORMAL,
        'stages[1].inputs.context',
        'not_produced',
    ),
    'input that the network does not have': (
        at(0, 'inputs', statee='state'),
        NORMAL,
        'stages[0].inputs.statee',
        'unknown_name',
    ),
    'output that the network does not have': (
        at(0, 'outputs', contxt='more'),
        NORMAL,
        'stages[0].outputs.contxt',
        'unknown_name',
    ),
    'input without a tensor': (
        lambda d: d['stages'][0]['inputs'].pop('gain'),
        NORMAL,
        'stages[0].inputs',
        'unmapped_name',
    ),
    'output without a tensor': (
        lambda d: d['stages'][2]['outputs'].pop('action'),
        NORMAL,
        'stages[2].outputs',
        'unmapped_name',
    ),
    'input of another size': (
        same,
        (changed(ENCODER, state=('float32', (1, 1, 4))), VELOCITY, DECODER),
        'stages[0].inputs.state',
        'shape_mismatch',
    ),
    'input of another rank': (
        same,
        (changed(ENCODER, state=('float32', (1, 3))), VELOCITY, DECODER),
        'stages[0].inputs.state',
        'shape_mismatch',
    ),
    'input of another element type': (
        same,
        (changed(ENCODER, state=('float16', (1, 1, 3))), VELOCITY, DECODER),
        'stages[0].inputs.state',
        'shape_mismatch',
    ),
    'one symbol with two sizes': (
        same,
        (ENCODER, changed(VELOCITY, context=('float32', ('n', 'rows', 3))), DECODER),
        'stages[1].inputs.context',
        'shape_mismatch',
    ),
    'output of unknown size': (
        same,
        (changed(ENCODER, context=('float32', ('n', 'length', 3))), VELOCITY, DECODER),
        'stages[0].outputs.context',
        'free_dimension',
    ),
    'sample of unknown width': (
        same,
        (
            ENCODER,
            changed(
                VELOCITY,
                sample=('float32', ('n', 'r', 'w')),
                velocity=('float32', ('n', 'r', 'w')),
            ),
            DECODER,
        ),
        'loop.sample',
        'free_dimension',
    ),
    'element type that the host lacks': (
        same,
        (changed(ENCODER, context=('float8e4m3fn', (1, 1, 3))), VELOCITY, DECODER),
        'stages[0].outputs.context',
        'unsupported_type',
    ),
    'tensor made twice': (
        at(0, 'outputs', context='state'),
        NORMAL,
        'stages[0].outputs.context',
        'tensor_twice',
    ),
    'constant with the name of the state': (
        lambda d: d['constants'].append({'tensor': 'state', 'value': 1}),
        NORMAL,
        'constants[1].tensor',
        'tensor_twice',
    ),
    'prediction made outside of the loop': (
        lambda d: d['loop'].update(prediction='context'),
        NORMAL,
        'loop.prediction',
        'not_produced',
    ),
    'prediction of another shape': (
        same,
        (ENCODER, changed(VELOCITY, velocity=WIDE), DECODER),
        'loop.prediction',
        'shape_mismatch',
    ),
    'action that nothing makes': (
        lambda d: d['action'].update(tensor='actions'),
        NORMAL,
        'action.tensor',
        'not_produced',
    ),
    'action with too few rows': (
        same,
        (ENCODER, VELOCITY, changed(DECODER, action=('float32', (1, 3, 3)))),
        'action.tensor',
        'shape_mismatch',
    ),
    'action with too few columns': (
        same,
        (ENCODER, VELOCITY, changed(DECODER, action=('float32', (1, 4, 2)))),
        'action.tensor',
        'shape_mismatch',
    ),
    'action of another element type': (
        same,
        (ENCODER, VELOCITY, changed(DECODER, action=('float16', (1, 4, 3)))),
        'action.tensor',
        'shape_mismatch',
    ),
}


@pytest.mark.parametrize('name', FAULTS)
def test_one_fault_is_named_once(name):
    change, models, place, code = FAULTS[name]
    document = flow_manifest()
    change(document)
    _, faults = join(document, models)
    found = [(fault.where, fault.code) for fault in faults]
    assert (f'bundle.yaml: {place}', code) in found
    assert len(found) == len(set(found))


def test_fault_says_both_shapes_with_the_sizes_that_are_known():
    _, (fault,) = join(
        flow_manifest(), (changed(ENCODER, state=('float32', ('n', 'k', 4))), VELOCITY, DECODER)
    )
    assert fault.got == "'state' as float32[1, 1, 3]"
    assert fault.expected == 'float32[1, 1, 4]'


def test_fault_lists_the_tensors_that_are_there():
    document = flow_manifest()
    document['stages'][0]['inputs']['state'] = 'stat'
    fault = join(document)[1][0]
    assert fault.expected == 'one of gain, state'


def test_wider_action_tensor_is_padding():
    decoder = changed(DECODER, action=('float32', (1, 4, 32)))
    assert join(flow_manifest(), (ENCODER, VELOCITY, decoder))[1] == []


def test_stage_that_follows_a_fault_is_not_blamed():
    _, faults = join(
        flow_manifest(),
        (changed(ENCODER, context=('float32', ('n', 'length', 3))), VELOCITY, DECODER),
    )
    assert len(faults) == 1


def test_widths_draws_and_observation_tensors_follow_the_manifest():
    manifest = Manifest.model_validate({**direct_manifest(words=True), 'files': {}})
    assert state_width(manifest.state) == 3
    assert observation_tensors(manifest) == ('image', 'state', 'tokens', 'mask')
    for kind, draws in (('flow_matching_euler', 1), ('ddim', 1), ('ddpm', 4)):
        loop = Manifest.model_validate({**flow_manifest(kind=kind), 'files': {}}).loop
        assert noise_draws(loop) == draws


def test_facts_of_a_file(tmp_path):
    path = save_model(
        tmp_path / 'net.onnx',
        [helper.make_node('Add', ['x', 'w'], ['y'])],
        [('x', 'FLOAT', ['n', 3]), ('w', 'FLOAT', [3])],
        [('y', 'FLOAT', ['n', 3])],
        {'w': np.zeros(3, np.float32)},
    )
    facts = read_model(path, 'here')
    assert facts.inputs == (ModelTensor('x', 'float32', ('n', 3)),)  # w is a weight
    assert facts.outputs == (ModelTensor('y', 'float32', ('n', 3)),)
    assert facts.weight_files == ()


def test_weight_files_are_found_wherever_they_hide(tmp_path):
    def outside(name):
        tensor = TensorProto(name=name, data_type=1, dims=[1], data_location=1)
        tensor.external_data.add(key='location', value=f'{name}.bin')
        return tensor

    branch = helper.make_graph(
        [helper.make_node('Constant', [], ['c'], value=outside('inner'))],
        'branch',
        [],
        [helper.make_tensor_value_info('c', 1, [1])],
    )
    nodes = [helper.make_node('If', ['x'], ['y'], then_branch=branch, else_branch=branch)]
    graph = helper.make_graph(
        nodes,
        'g',
        [helper.make_tensor_value_info('x', TensorProto.BOOL, [])],
        [helper.make_tensor_value_info('y', 1, [1])],
        [outside('outer')],
    )
    model = helper.make_model(graph)
    model.functions.append(
        helper.make_function(
            'd',
            'f',
            [],
            ['v'],
            [helper.make_node('Constant', [], ['v'], value=outside('func'))],
            [],
        )
    )
    path = tmp_path / 'net.onnx'
    path.write_bytes(model.SerializeToString())
    assert read_model(path, 'here').weight_files == ('func.bin', 'inner.bin', 'outer.bin')


@pytest.mark.parametrize(
    ('content', 'code'), [(b'\xff\xff', 'not_onnx'), (b'', 'not_onnx')], ids=['noise', 'empty']
)
def test_what_is_no_network_is_refused(tmp_path, content, code):
    path = tmp_path / 'net.onnx'
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r'net\.onnx') as caught:
        read_model(path, 'here')
    assert (caught.value.where, caught.value.code) == ('here', code)


@pytest.mark.parametrize('kind', ['sequence', 'no shape'])
def test_tensors_without_rank_are_refused(tmp_path, kind):
    value = (
        helper.make_tensor_sequence_value_info('y', 1, [1])
        if kind == 'sequence'
        else helper.make_tensor_value_info('y', 1, None)
    )
    graph = helper.make_graph(
        [helper.make_node('Identity', ['x'], ['y'])],
        'g',
        [helper.make_tensor_value_info('x', 1, [1])],
        [value],
    )
    path = tmp_path / 'net.onnx'
    onnx.save(helper.make_model(graph), path)
    with pytest.raises(BundleError) as caught:
        read_model(path, 'here')
    assert caught.value.code == 'unsupported_type'
