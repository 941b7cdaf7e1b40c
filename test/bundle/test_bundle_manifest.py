# SPDX-License-Identifier: Apache-2.0
import pytest
from pydantic import BaseModel
from support.bundles import direct_manifest, flow_manifest

from vla_policy_ros.bundle import manifest as module
from vla_policy_ros.bundle.manifest import Manifest
from vla_policy_ros.bundle.strict import find_faults
from vla_policy_ros.core.errors import BundleError


def parse(document):
    return Manifest.model_validate({'files': {}, **document})


def faults_of(document):
    return find_faults(Manifest, {'files': {}, **document}, 'bundle.yaml', BundleError)[1]


def changed(change, build=direct_manifest):
    document = build(words=True) if build is direct_manifest else build()
    change(document)
    return document


def tell_no_state(document):
    document['instruction'].update(template='{instruction} {state}')
    del document['state']


def test_defaults_are_the_documented_ones():
    manifest = parse(direct_manifest(words=True))
    camera = manifest.cameras[0]
    assert (camera.color, camera.layout, camera.dtype, camera.history_ns) == (
        'rgb',
        'chw',
        'float32',
        (0,),
    )
    assert camera.scale == 1 / 255
    assert camera.size == (8, 8)
    assert manifest.instruction.template == '{instruction}'
    assert not manifest.instruction.allow_empty
    assert manifest.loop is None


def test_dump_of_a_manifest_parses_to_the_same():
    for document in (direct_manifest(words=True, history=2), flow_manifest(kind='ddpm')):
        manifest = parse(document)
        assert Manifest.model_validate(manifest.model_dump(mode='json')) == manifest


@pytest.mark.parametrize(
    ('geometry', 'size'),
    [
        ([{'kind': 'resize', 'height': 4, 'width': 6}], (4, 6)),
        ([{'kind': 'crop', 'top': 1, 'left': 2, 'height': 3, 'width': 5}], (3, 5)),
        (
            [
                {'kind': 'resize', 'height': 9, 'width': 9, 'to': 'fit_inside'},
                {'kind': 'pad', 'height': 9, 'width': 7},
            ],
            (9, 7),
        ),
    ],
)
def test_size_of_a_camera_is_that_of_its_last_step(geometry, size):
    document = direct_manifest()
    document['cameras'][0]['geometry'] = geometry
    assert parse(document).cameras[0].size == size


def camera(**values):
    return lambda d: d['cameras'][0].update(values)


def test_patches_have_the_shapes_of_gr00t_n1_7():
    document = direct_manifest(history=2)
    document['cameras'][0].update(
        geometry=[{'kind': 'resize', 'height': 256, 'width': 352}],
        layout='patches',
        patch_size=16,
        merge_size=2,
        temporal=2,
    )
    camera = parse(document).cameras[0]
    assert camera.image_shape == (352, 1536)
    assert camera.tensor_shape == (1, 704, 1536)


def group(part, **values):
    return lambda d: d[part]['groups'][0].update(values)


def resize(**values):
    return camera(geometry=[{'kind': 'resize', 'height': 8, 'width': 8, **values}])


WRONG = {
    'another schema': (lambda d: d.update(schema_version=2), 'schema_version', '1'),
    'no geometry': (camera(geometry=[]), 'cameras[0]', 'fixes the size'),
    'open size': (resize(to='fit_inside'), 'cameras[0]', 'fixes the size'),
    'crop of unknown size last': (
        camera(geometry=[{'kind': 'center_crop', 'fraction': 0.9}]),
        'cameras[0]',
        'fixes the size',
    ),
    'area outside of OpenCV': (
        resize(filter='area'),
        'cameras[0].geometry[0].resize',
        'library opencv',
    ),
    'zero std': (camera(std=[1, 0, 1]), 'cameras[0]', 'std without zeros'),
    'patches without a size': (camera(layout='patches'), 'cameras[0]', 'a patch_size'),
    'patches that do not fit': (
        camera(layout='patches', patch_size=3),
        'cameras[0]',
        'multiples of 3 px',
    ),
    'windows that do not fit': (
        camera(layout='patches', patch_size=2, merge_size=3),
        'cameras[0]',
        'multiples of 6 px',
    ),
    'a patch size without patches': (camera(patch_size=4), 'cameras[0]', 'only with layout'),
    'windows without patches': (camera(merge_size=2), 'cameras[0]', 'only with layout'),
    'repetitions without patches': (camera(temporal=2), 'cameras[0]', 'only with layout'),
    'history that ends early': (camera(history_ns=[-5]), 'cameras[0]', 'ends with 0'),
    'history out of order': (camera(history_ns=[-5, -9, 0]), 'cameras[0]', 'grows'),
    'no history': (camera(history_ns=[]), 'cameras[0]', 'grows'),
    'huge image': (resize(height=10**6), 'cameras[0].geometry[0].resize.height', '16384'),
    'cameras of one name': (
        lambda d: d['cameras'].append({**d['cameras'][0], 'tensor': 'other'}),
        '(top level)',
        'camera names that are unique (twice: front)',
    ),
    'stages of one name': (
        lambda d: d['stages'].append(d['stages'][0]),
        '(top level)',
        'stage names that are unique',
    ),
    'columns of one name': (
        lambda d: d['action']['groups'].append({**d['action']['groups'][0], 'name': 'more'}),
        '(top level)',
        'action column names that are unique',
    ),
    'groups of one name': (
        group('action', name='state'),
        '(top level)',
        'state and action group names that are unique',
    ),
    'a name over two lines': (
        group('action', names=['a\nb', 'c', 'd']),
        'action.groups[0].names[0]',
        'pattern',
    ),
    'a name with a space at its end': (
        group('action', names=['a', 'b ', 'c']),
        'action.groups[0].names[1]',
        'pattern',
    ),
    'units of another number': (group('state', units=['rad', 'm']), 'state.groups[0]', '1 or 3'),
    'kinds of another number': (
        group('action', kinds=['linear', 'angle']),
        'action.groups[0]',
        '1 or 3 kinds',
    ),
    'sin_cos action': (
        group('action', normalization='sin_cos'),
        'action.groups[0]',
        'only a state',
    ),
    'pose of three columns': (
        group('action', pose_format='xyz_rot6d'),
        'action.groups[0]',
        '9 names',
    ),
    'squeezed history': (
        lambda d: d['state'].update(squeeze=True, history_ns=[-1, 0]),
        'state',
        'history of one',
    ),
    'template without words': (
        lambda d: d['instruction'].update(template='do it'),
        'instruction',
        '{instruction}',
    ),
    'state in words and no state': (
        tell_no_state,
        '(top level)',
        'a state, which the template',
    ),
    'loop without stages': (
        lambda d: d.update(loop=flow_manifest()['loop']),
        '(top level)',
        'exactly when there is a loop',
    ),
    'hash that is none': (lambda d: d.update(files={'a.onnx': 'f00'}), 'files.a.onnx', 'pattern'),
    'absolute file': (
        lambda d: d['stages'][0].update(onnx='/a.onnx'),
        'stages[0].onnx',
        'pattern',
    ),
    'file above the folder': (
        lambda d: d['stages'][0].update(onnx='../a.onnx'),
        'stages[0].onnx',
        'pattern',
    ),
}


@pytest.mark.parametrize('name', WRONG)
def test_wrong_manifest_is_refused_where_it_is_wrong(name):
    change, where, expected = WRONG[name]
    faults = faults_of(changed(change))
    assert faults[0].where == f'bundle.yaml: {where}'
    assert expected in faults[0].expected


@pytest.mark.parametrize(
    'change',
    [
        lambda d: d['stages'][1].update(in_loop=False),
        lambda d: d.pop('loop'),
        lambda d: (
            d['stages'][0].update(in_loop=True),
            d['stages'].insert(1, {**d['stages'][2], 'name': 'between'}),
        ),
    ],
    ids=['loop without stages', 'stages without loop', 'stage in between'],
)
def test_stages_of_a_loop_stand_together(change):
    (fault,) = faults_of(changed(change, flow_manifest))
    assert 'in_loop' in fault.expected


def test_every_key_is_documented():
    models = [m for m in vars(module).values() if isinstance(m, type) and issubclass(m, BaseModel)]
    lacking = [
        f'{model.__name__}.{name}'
        for model in models
        for name, field in model.model_fields.items()
        if not field.description and name != 'kind'
    ]
    assert lacking == []
