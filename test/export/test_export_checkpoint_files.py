# SPDX-License-Identifier: Apache-2.0
import sys
from types import SimpleNamespace

import pytest

from vla_policy_ros.core.errors import BundleError
from vla_policy_ros.export.checkpoint_files import read_json, reading, unsupported
from vla_policy_ros.export.vlm_files import find_vlm


@pytest.mark.parametrize('text', [None, '{', '[1]'], ids=['missing', 'broken', 'list'])
def test_what_is_no_json_object(tmp_path, text):
    path = tmp_path / 'config.json'
    if text is not None:
        path.write_text(text)
    with pytest.raises(BundleError, match=r'config\.json') as error:
        read_json(path)
    assert error.value.code == 'bad_checkpoint'


@pytest.mark.parametrize(
    'document', [{}, {'rows': None}, {'rows': 1}, {'rows': []}, {'rows': 'a'}]
)
def test_what_a_document_lacks_is_its_fault(document):
    wanted = 'rows of numbers'
    with pytest.raises(BundleError, match=wanted) as error, reading('x', expected=wanted):
        int(document['rows'][0])
    assert error.value.code == 'bad_checkpoint'


def test_an_error_that_says_more_stays_as_it_is():
    fault = unsupported('x', 'a: 1', 'a: 2')
    with pytest.raises(BundleError) as error, reading('x', expected='a number'):
        raise fault
    assert error.value is fault


def test_vision_language_model_in_a_folder_or_in_the_cache(tmp_path, monkeypatch):
    def download(name, *, local_files_only):
        assert local_files_only
        if name != 'google/known':
            raise OSError('not cached')
        return str(tmp_path / 'cached')

    hub = SimpleNamespace(snapshot_download=download)
    monkeypatch.setitem(sys.modules, 'huggingface_hub', hub)
    assert find_vlm(str(tmp_path)) == str(tmp_path)
    assert find_vlm('google/known') == str(tmp_path / 'cached')
    with pytest.raises(BundleError, match='google/other: got no such folder') as error:
        find_vlm('google/other')
    assert error.value.code == 'missing_vlm'
