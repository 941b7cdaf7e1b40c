# SPDX-License-Identifier: Apache-2.0
"""The command line, run in this process."""

import json
from types import SimpleNamespace

import pytest
from support.recordings import HORIZON

from vla_policy_ros.tools.main import main


@pytest.fixture(scope='session')
def bundle(recording, tmp_path_factory):
    """A bundle made of the recording on disk, whose columns have no units."""
    folder = tmp_path_factory.mktemp('new') / 'bundle'
    size = ['--horizon', str(HORIZON), '--image-size', '32']
    assert main(['new', str(folder), '--dataset', str(recording.dataset), *size]) == 0
    return folder


@pytest.fixture
def cli(capsys):
    """Run the command line; gives `status`, `out`, `err` and, with `--json`, the `document`."""

    def run(*words):
        words = [str(word) for word in words]
        capsys.readouterr()
        status = main(words)
        said = capsys.readouterr()
        document = json.loads(said.out) if '--json' in words else None
        return SimpleNamespace(status=status, out=said.out, err=said.err, document=document)

    return run
