# SPDX-License-Identifier: Apache-2.0
import json
import sys
from types import ModuleType

import pytest

from vla_policy_ros.core.errors import MissingDependencyError
from vla_policy_ros.export.lerobot.library import require_lerobot
from vla_policy_ros.tools.main import main

MISSING = [
    ({'torch': None}, 'pip install torch onnxscript'),
    ({'torch': ModuleType('torch'), 'onnxscript': None}, 'pip install torch onnxscript'),
    (
        {'torch': ModuleType('torch'), 'onnxscript': ModuleType('onnxscript'), 'lerobot': None},
        'pip install lerobot',
    ),
]


@pytest.mark.parametrize(('modules', 'remedy'), MISSING, ids=['torch', 'onnxscript', 'lerobot'])
def test_a_missing_library_names_the_remedy(monkeypatch, modules, remedy):
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    with pytest.raises(MissingDependencyError, match=remedy):
        require_lerobot('policies.factory')


def test_the_command_says_so_too(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, 'torch', None)
    words = ['--random-init', 'act', '--dataset', 'sample', '--out', str(tmp_path / 'b')]
    assert main(['export', 'lerobot', *words, '--json']) == 1
    assert json.loads(capsys.readouterr().out)['error']['code'] == 'missing_dependency'


@pytest.mark.parametrize(
    ('words', 'code'),
    [
        ([], 'no_checkpoint'),
        (['folder', '--random-init', 'act'], 'no_checkpoint'),
        (['--random-init', 'act'], 'no_dataset'),
        (['--random-init', 'tdmpc', '--dataset', 'sample'], 'unsupported_policy'),
    ],
    ids=['nothing', 'both', 'dataset', 'family'],
)
def test_wrong_options_are_refused(tmp_path, capsys, words, code):
    assert main(['export', 'lerobot', *words, '--out', str(tmp_path / 'b'), '--json']) == 2
    assert json.loads(capsys.readouterr().out)['error']['code'] == code


def test_a_folder_without_a_checkpoint_is_named(tmp_path, capsys):
    words = [str(tmp_path), '--fps', '30', '--out', str(tmp_path / 'b')]
    assert main(['export', 'lerobot', *words]) == 1
    assert 'config.json' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('words', 'status', 'told'),
    [
        (['pose.tflite', '--describe', 'pose.yaml'], 2, 'pose.yaml'),
        (['pose.onnx', '--describe', 'empty.yaml'], 2, "a value for 'action'"),
        (['pose.tflite', '--describe', 'good.yaml'], 2, '.pt2 (torch.export)'),
        (['pose.onnx', '--describe', 'good.yaml'], 1, 'no such file'),
    ],
    ids=['no_description', 'empty', 'format', 'no_network'],
)
def test_wrong_networks_are_refused(tmp_path, monkeypatch, capsys, words, status, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'empty.yaml').write_text('{}')
    (tmp_path / 'good.yaml').write_text(
        'action: {step_ms: 50, groups: [{name: pose, names: [x], units: [m]}]}'
    )
    assert main(['export', 'network', *words, '--out', 'bundle', '--json']) == status
    error = json.loads(capsys.readouterr().out)['error']
    assert told in f'{error["where"]} {error["got"]} {error["expected"]}'
    assert not (tmp_path / 'bundle').exists()


@pytest.mark.parametrize('words', [[], ['groot_x'], ['network'], ['network', 'pose.onnx']])
def test_an_export_of_nothing_is_wrong_use(words, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(['export', *words])
    assert exit_.value.code == 2
    assert 'usage: vla-policy export' in capsys.readouterr().err


def test_a_missing_torch_is_told_for_its_files_only(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, 'torch', None)
    (tmp_path / 'pose.pt2').write_bytes(b'')
    describe = tmp_path / 'pose.yaml'
    describe.write_text('action: {step_ms: 50, groups: [{name: pose, names: [x], units: [m]}]}')
    words = [str(tmp_path / 'pose.pt2'), '--describe', str(describe), '--out', str(tmp_path / 'b')]
    assert main(['export', 'network', *words, '--json']) == 1
    assert json.loads(capsys.readouterr().out)['error']['code'] == 'missing_dependency'
