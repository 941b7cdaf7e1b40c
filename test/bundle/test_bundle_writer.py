# SPDX-License-Identifier: Apache-2.0
import pytest
import yaml
from support.bundles import (
    direct_manifest,
    flow_manifest,
    write_direct_bundle,
    write_direct_files,
    write_flow_files,
)

from vla_policy_ros.bundle.bundle import load_bundle
from vla_policy_ros.bundle.files import hash_file
from vla_policy_ros.bundle.writer import write_bundle
from vla_policy_ros.core.errors import BundleError


@pytest.mark.parametrize('kind', ['direct', 'flow'])
def test_written_bundle_is_the_one_that_loads(tmp_path, kind):
    files, manifest = (
        (write_direct_files, direct_manifest())
        if kind == 'direct'
        else (write_flow_files, flow_manifest())
    )
    files(tmp_path)
    written, loaded = write_bundle(tmp_path, manifest), load_bundle(tmp_path)
    assert written.manifest == loaded.manifest
    assert written.content_hash == loaded.content_hash
    assert written.spec == loaded.spec
    assert written.tensors == loaded.tensors


def test_every_file_is_hashed_and_the_callers_mapping_is_left_alone(tmp_path):
    write_direct_files(tmp_path)
    (tmp_path / 'deep').mkdir()
    (tmp_path / 'deep' / 'card.txt').write_text('trained on nothing')
    manifest = direct_manifest()
    bundle = write_bundle(tmp_path, manifest)
    assert manifest == direct_manifest()
    names = ['deep/card.txt', 'network.onnx', 'statistics.json']
    assert bundle.manifest.files == {name: hash_file(tmp_path / name) for name in names}


def test_writing_again_follows_changed_files(tmp_path):
    first = write_direct_bundle(tmp_path)
    (tmp_path / 'card.txt').write_text('more')
    second = write_bundle(tmp_path, direct_manifest())
    assert first.content_hash != second.content_hash
    assert load_bundle(tmp_path).content_hash == second.content_hash


def test_yaml_holds_what_was_said_and_no_defaults(tmp_path):
    write_direct_bundle(tmp_path)
    document = yaml.safe_load((tmp_path / 'bundle.yaml').read_text())
    assert document.pop('files').keys() == {'network.onnx', 'statistics.json'}
    said = direct_manifest()
    said['state']['groups'][0]['names'] = list(said['state']['groups'][0]['names'])
    said['action']['groups'][0]['names'] = list(said['action']['groups'][0]['names'])
    assert document == said


def test_nothing_is_written_when_the_bundle_would_be_refused(tmp_path):
    write_direct_files(tmp_path)
    manifest = direct_manifest()
    manifest['action']['horizon'] = 9
    with pytest.raises(BundleError, match=r'action\.tensor'):
        write_bundle(tmp_path, manifest)
    assert not (tmp_path / 'bundle.yaml').exists()


def test_broken_link_in_the_folder_is_named(tmp_path):
    write_direct_files(tmp_path)
    (tmp_path / 'gone').symlink_to(tmp_path / 'nowhere')
    with pytest.raises(BundleError) as caught:
        write_bundle(tmp_path, direct_manifest())
    assert (caught.value.where, caught.value.code) == (str(tmp_path / 'gone'), 'unlisted_file')
