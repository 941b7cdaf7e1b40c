# SPDX-License-Identifier: Apache-2.0
"""The command with random weights, with whichever Isaac-GR00T is installed: N1.5, N1.6 or N1.7."""

import json
from contextlib import closing
from dataclasses import replace

import pytest
from support.groot_version import VERSION

from vla_policy_ros.core.errors import ConfigurationError, DatasetError
from vla_policy_ros.datasets.registry import open_dataset
from vla_policy_ros.export.groot.random_init import WRITERS, write_random_checkpoint
from vla_policy_ros.export.groot.versions import VERSIONS
from vla_policy_ros.sample import sample_dataset_path
from vla_policy_ros.tools.main import main

# The library and its libraries warn about each other.
pytestmark = pytest.mark.filterwarnings('ignore')
# The data config of N1.5 uses all rows that the head makes.
CHUNK = [] if VERSION == 'n1.5' else ['chunk']


@pytest.fixture
def dataset():
    with closing(open_dataset(sample_dataset_path())) as dataset:
        yield dataset


def test_every_version_has_random_weights():
    assert set(WRITERS) == set(VERSIONS) == {'n1.5', 'n1.6', 'n1.7'}


def test_command(tmp_path, capfd):
    out = tmp_path / 'bundle'
    words = ['--random-init', VERSION, '--dataset', 'sample', '--max-words', '20']
    assert main(['export', 'groot', *words, '--out', str(out), '--json']) == 0
    captured = capfd.readouterr()
    document = json.loads(captured.out)
    parts = {part['part']: part['max_error'] for part in document['parity']}
    stages = ['vision', 'language', 'memory', 'state', 'velocity', *CHUNK]
    assert list(parts) == [*stages, 'policy']
    assert max(parts.values()) < 1e-4
    assert len(captured.err.splitlines()) < 5
    assert main(['check', str(out)]) == 0
    assert main(['verify', '--bundle', str(out), '--engine', 'onnxruntime']) == 0


def test_unknown_version(tmp_path, dataset):
    with pytest.raises(ConfigurationError, match=r'n1\.7, n1\.6, n1\.5') as error:
        write_random_checkpoint(tmp_path / 'c', dataset, version='n9')
    assert error.value.code == 'unsupported_policy'


@pytest.mark.skipif(VERSION != 'n1.5', reason='others take any dataset')
def test_dataset_of_another_robot(tmp_path, dataset):
    dataset._info = replace(dataset.info, cameras=dataset.info.cameras[:1])
    with pytest.raises(DatasetError, match='front and wrist') as error:
        write_random_checkpoint(tmp_path / 'c', dataset, version='n1.5')
    assert error.value.code == 'other_dataset'
