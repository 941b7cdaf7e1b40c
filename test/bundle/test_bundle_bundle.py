# SPDX-License-Identifier: Apache-2.0
import shutil

import numpy as np
import onnx
import pytest
import yaml
from support.bundles import (
    JOINTS,
    direct_manifest,
    write_direct_bundle,
    write_direct_files,
    write_flow_bundle,
)

from vla_policy_ros.bundle.bundle import find_bundle_faults, hash_manifest, load_bundle
from vla_policy_ros.bundle.files import hash_file
from vla_policy_ros.bundle.manifest import Manifest
from vla_policy_ros.bundle.statistics import compute_statistics, write_statistics
from vla_policy_ros.bundle.writer import write_bundle
from vla_policy_ros.core.errors import BundleError
from vla_policy_ros.core.specs import Column, Representation


@pytest.fixture(scope='module')
def sound(tmp_path_factory):
    """A sound bundle with words; tests work on copies."""
    folder = tmp_path_factory.mktemp('sound') / 'bundle'
    write_direct_bundle(folder, words=True)
    return folder


@pytest.fixture
def folder(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / 'bundle')


def edit(folder, change):
    """Change the manifest in place, without looking at the result."""
    path = folder / 'bundle.yaml'
    document = yaml.safe_load(path.read_text())
    change(document)
    path.write_text(yaml.safe_dump(document))


def rehash(folder, name):
    edit(folder, lambda d: d['files'].update({name: hash_file(folder / name)}))


def test_sound_bundle_has_no_faults_and_loads(folder):
    assert find_bundle_faults(folder) == []
    bundle = load_bundle(str(folder))
    assert bundle.folder == folder
    assert set(bundle.statistics) == {'state', 'action'}
    assert bundle.tensors['action'].shape == (1, 4, 3)


def test_bundle_of_links_loads(folder, tmp_path):
    """What `colcon build --symlink-install` leaves: a real folder, and a link for every file."""
    linked = tmp_path / 'linked'
    linked.mkdir()
    for path in folder.iterdir():
        (linked / path.name).symlink_to(path)
    assert load_bundle(linked).content_hash == load_bundle(folder).content_hash


def test_spec_says_what_the_manifest_says(folder):
    spec = load_bundle(folder).spec
    assert spec.observation.state == tuple(Column(name, 'rad') for name in JOINTS)
    assert spec.observation.needs_instruction
    assert [(c.name, c.history_ns) for c in spec.observation.cameras] == [('front', (0,))]
    assert (spec.action.horizon, spec.action.step_ns) == (4, 50_000_000)
    assert spec.action.offset_ns == 10_000_000
    edit(folder, lambda d: d['instruction'].update(allow_empty=True))
    assert not load_bundle(folder).spec.observation.needs_instruction


@pytest.mark.parametrize(
    ('meaning', 'expected'),
    [
        ('absolute', Representation.ABSOLUTE),
        ('delta', Representation.DELTA),
        ('relative_to_observation', Representation.ABSOLUTE),
    ],
)
def test_relative_actions_come_out_absolute(folder, meaning, expected):
    def change(document):
        group = document['action']['groups'][0]
        group.update(representation=meaning, units=['m', 'rad', '1'])
        group.update(kinds=['linear', 'angle', 'gripper'])

    edit(folder, change)
    columns = load_bundle(folder).spec.action.columns
    assert {column.representation for column in columns} == {expected}
    assert [column.unit for column in columns] == ['m', 'rad', '1']
    assert [column.kind.value for column in columns] == ['linear', 'angle', 'gripper']


def test_policy_id_is_the_name_and_twelve_digits_of_the_content_hash(folder):
    bundle = load_bundle(folder)
    assert bundle.spec.policy_id == f'direct@{bundle.content_hash[:12]}'
    assert len(bundle.content_hash) == 64


def test_content_hash_follows_content_and_not_layout(folder):
    before = load_bundle(folder).content_hash
    path = folder / 'bundle.yaml'
    document = yaml.safe_load(path.read_text())
    path.write_text('# a comment\n' + yaml.safe_dump(dict(reversed(document.items()))))
    assert load_bundle(folder).content_hash == before
    edit(folder, lambda d: d['action'].update(offset_ns=1))
    changed = load_bundle(folder).content_hash
    assert changed != before
    tokenizer = folder / 'tokenizer.json'
    tokenizer.write_text(tokenizer.read_text() + '\n')
    rehash(folder, 'tokenizer.json')
    assert load_bundle(folder).content_hash not in (before, changed)


def test_content_hash_tells_kinds_with_the_same_keys_apart():
    size = {'height': 8, 'width': 8}
    hashes = set()
    for kind in ('resize', 'pad'):
        document = {**direct_manifest(), 'files': {}}
        document['cameras'][0]['geometry'] = [{'kind': kind, **size}]
        hashes.add(hash_manifest(Manifest.model_validate(document)))
    assert len(hashes) == 2


def test_bundle_without_statistics_probe_or_camera_loads(tmp_path):
    bundle = write_flow_bundle(tmp_path / 'flow')
    assert bundle.spec.observation.cameras == ()
    assert not bundle.spec.observation.needs_instruction


def remove_model(folder):
    (folder / 'network.onnx').unlink()


def damage_model(folder):
    path = folder / 'network.onnx'
    path.write_bytes(path.read_bytes()[:-1] + b'\0')


def add_file(folder):
    (folder / 'deep').mkdir()
    (folder / 'deep' / 'notes.txt').write_text('hello')


def replace_model(folder):
    (folder / 'network.onnx').write_bytes(b'\xff no network')
    rehash(folder, 'network.onnx')


def escape_by_dots(folder):
    (folder.parent / 'outside.json').write_text('{}')
    edit(folder, lambda d: d['files'].update({'x/../../outside.json': '0' * 64}))


def leave_and_come_back(folder):
    digest = hash_file(folder / 'network.onnx')
    edit(folder, lambda d: d['files'].update({'x/../network.onnx': digest}))


def link_to_other_content(folder):
    outside = shutil.move(folder / 'statistics.json', folder.parent / 'outside.json')
    (folder / 'statistics.json').symlink_to(outside)
    outside.write_text('{}')


def damage_statistics(folder):
    (folder / 'statistics.json').write_text('{')
    rehash(folder, 'statistics.json')


def drop_group(folder):
    statistics = load_bundle(folder).statistics
    write_statistics(folder / 'statistics.json', {'state': statistics['state']})
    rehash(folder, 'statistics.json')


def widen_group(folder):
    wide = compute_statistics(np.ones((2, 4)))
    statistics = {**load_bundle(folder).statistics, 'state': wide}
    write_statistics(folder / 'statistics.json', statistics)
    rehash(folder, 'statistics.json')


def key(change):
    return lambda folder: edit(folder, change)


FAULTS = {
    'unknown key': (
        key(lambda d: d['action'].update(horizn=4)),
        'bundle.yaml: action.horizn',
        'unknown_key',
    ),
    'missing key': (key(lambda d: d.pop('name')), 'bundle.yaml: name', 'missing_key'),
    'bad value': (
        key(lambda d: d['action'].update(step_ns=0)),
        'bundle.yaml: action.step_ns',
        'bad_value',
    ),
    'absolute path': (
        key(lambda d: d.update(probe='/etc/passwd')),
        'bundle.yaml: probe',
        'bad_value',
    ),
    'missing file': (remove_model, 'bundle.yaml: files.network.onnx', 'missing_file'),
    'wrong hash': (damage_model, 'bundle.yaml: files.network.onnx', 'wrong_hash'),
    'extra file': (add_file, '{folder}/deep/notes.txt', 'unlisted_file'),
    'file without hash': (
        key(lambda d: d.update(probe='probe.npz')),
        'bundle.yaml: probe',
        'file_not_listed',
    ),
    'path with dots': (
        escape_by_dots,
        'bundle.yaml: files.x/../../outside.json',
        'escaping_path',
    ),
    'dots that stay inside': (
        leave_and_come_back,
        'bundle.yaml: files.x/../network.onnx',
        'escaping_path',
    ),
    'link to other content': (
        link_to_other_content,
        'bundle.yaml: files.statistics.json',
        'wrong_hash',
    ),
    'no network': (replace_model, 'bundle.yaml: stages[0].onnx', 'not_onnx'),
    'damaged statistics': (damage_statistics, '{folder}/statistics.json', 'bad_statistics'),
    'no statistics': (
        key(lambda d: d.pop('statistics')),
        'bundle.yaml: state.groups[0]',
        'missing_statistics',
    ),
    'statistics of one group': (drop_group, 'bundle.yaml: action.groups[0]', 'missing_statistics'),
    'statistics of another width': (
        widen_group,
        'bundle.yaml: state.groups[0]',
        'bad_statistics',
    ),
    'stages that do not join': (
        key(lambda d: d['action'].update(horizon=5)),
        'bundle.yaml: action.tensor',
        'shape_mismatch',
    ),
    'padding below the width': (
        key(lambda d: d['state'].update(pad_to=2)),
        'bundle.yaml: state.pad_to',
        'bad_width',
    ),
    'relative to nothing': (
        key(
            lambda d: d['action']['groups'][0].update(
                names=['a', 'b', 'wrist'], representation='relative_to_observation'
            )
        ),
        'bundle.yaml: action.groups[0].names',
        'missing_reference',
    ),
}


@pytest.mark.parametrize('name', FAULTS)
def test_fault_is_named_with_its_path_and_code(folder, name):
    damage, where, code = FAULTS[name]
    damage(folder)
    faults = find_bundle_faults(folder)
    assert (where.format(folder=folder), code) in [(f.where, f.code) for f in faults]
    assert all(f.got and f.expected and f.next_step for f in faults)
    with pytest.raises(BundleError):
        load_bundle(folder)


def test_steps_above_the_training_steps_are_refused(tmp_path):
    with pytest.raises(BundleError, match=r'loop\.steps.*at most train_timesteps, 10') as caught:
        write_flow_bundle(
            tmp_path / 'flow', kind='ddim', steps=20, train_timesteps=10, timestep_dtype='float32'
        )
    assert caught.value.code == 'bad_value'


def test_all_faults_are_found_at_once_and_load_counts_them(folder):
    add_file(folder)
    damage_model(folder)
    edit(folder, lambda d: d.pop('statistics'))
    codes = [fault.code for fault in find_bundle_faults(folder)]
    assert codes == ['wrong_hash', 'unlisted_file', 'missing_statistics', 'missing_statistics']
    with pytest.raises(BundleError, match=r'3 more: run `vla-policy check`') as caught:
        load_bundle(folder)
    assert caught.value.code == 'wrong_hash'


@pytest.mark.parametrize(
    ('prepare', 'code'),
    [
        (lambda path: None, 'no_bundle'),
        (lambda path: path.write_text('a file'), 'no_bundle'),
        (lambda path: path.mkdir(), 'bad_bundle'),
        (lambda path: (path.mkdir(), (path / 'bundle.yaml').write_text('- a list')), 'bad_bundle'),
        (lambda path: (path.mkdir(), (path / 'bundle.yaml').write_text('a: [')), 'bad_bundle'),
    ],
    ids=['nothing', 'file', 'empty folder', 'list', 'broken yaml'],
)
def test_what_is_no_bundle_is_refused(tmp_path, prepare, code):
    prepare(tmp_path / 'x')
    assert [fault.code for fault in find_bundle_faults(tmp_path / 'x')] == [code]
    with pytest.raises(BundleError):
        load_bundle(tmp_path / 'x')


def test_yaml_tags_are_not_executed(folder, tmp_path):
    path = folder / 'bundle.yaml'
    trap = f'!!python/object/apply:os.mkdir ["{tmp_path / "trap"}"]'
    path.write_text(path.read_text() + f'\nfamily: {trap}\n')
    assert [fault.code for fault in find_bundle_faults(folder)] == ['bad_bundle']
    assert not (tmp_path / 'trap').exists()


def test_weights_beside_the_network_must_be_listed_and_inside(tmp_path):
    folder = tmp_path / 'bundle'
    write_direct_files(folder)
    model = onnx.load(folder / 'network.onnx')
    onnx.save_model(
        model,
        folder / 'network.onnx',
        save_as_external_data=True,
        location='network.data',
        size_threshold=0,
    )
    bundle = write_bundle(folder, direct_manifest())
    assert 'network.data' in bundle.manifest.files
    edit(folder, lambda d: d['files'].pop('network.data'))
    found = {(fault.where, fault.code) for fault in find_bundle_faults(folder)}
    assert ('bundle.yaml: stages[0].onnx', 'file_not_listed') in found
    model = onnx.load(folder / 'network.onnx', load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == 'location':
            entry.value = '../network.data'
    (folder / 'network.onnx').write_bytes(model.SerializeToString())
    rehash(folder, 'network.onnx')
    found = {(fault.where, fault.code) for fault in find_bundle_faults(folder)}
    assert ('bundle.yaml: stages[0].onnx', 'escaping_path') in found
