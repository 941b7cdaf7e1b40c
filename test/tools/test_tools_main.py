# SPDX-License-Identifier: Apache-2.0
import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vla_policy_ros.core.errors import BundleError, ConfigurationError
from vla_policy_ros.tools import report
from vla_policy_ros.tools.main import COMMANDS, main, make_parser

HEAVY = (
    'numpy',
    'yaml',
    'pydantic',
    'cv2',
    'av',
    'onnx',
    'onnxruntime',
    'pyarrow',
    'rosbags',
    'tokenizers',
    'matplotlib',
    'rich',
    'rclpy',
    'torch',
    'vla_policy_ros.ros',
)
ROOT = Path(__file__).parents[2]
_REPORT_IMPORTS = f"""
import atexit, sys
atexit.register(lambda: sys.stderr.write(' '.join(m for m in {HEAVY} if m in sys.modules)))
from vla_policy_ros.tools.main import main
sys.exit(main(sys.argv[1:]))
"""


def run_bare(*words):
    """Run the command line in a fresh interpreter with nothing on its PATH; stderr lists the heavy imports."""
    return subprocess.run(
        [sys.executable, '-c', _REPORT_IMPORTS, *words],
        env={'PATH': '', 'PYTHONPATH': str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize('words', [(), *((name,) for name in COMMANDS)])
def test_help_needs_no_heavy_library(words):
    result = run_bare(*words, '--help')
    assert (result.returncode, result.stderr) == (0, '')
    assert 'usage: vla-policy' in result.stdout


@pytest.mark.parametrize('name', COMMANDS)
def test_help_ends_with_examples_that_parse(name, capsys):
    with pytest.raises(SystemExit):
        main([name, '--help'])
    page = capsys.readouterr().out
    lines = page.split('examples:\n')[1].replace('\\\n', '').splitlines()
    commands = [line.split('   ')[0].split(' && ')[0].strip() for line in map(str.strip, lines)]
    assert len(commands) >= 2
    for command in commands:
        words = re.findall(r'"[^"]*"|\S+', command)
        assert words[:2] == ['vla-policy', name]
        make_parser().parse_args([word.strip('"') for word in words[1:]])


def test_the_commands_have_the_names_of_their_modules():
    assert set(COMMANDS) == {
        *('demo', 'check', 'new', 'infer', 'replay', 'report'),
        *('export', 'quantize', 'build', 'verify', 'compare', 'benchmark', 'checklist', 'doctor'),
    }


def test_version_is_a_number():
    result = run_bare('--version')
    assert re.fullmatch(r'vla-policy \d+\.\d+\.\d+\n', result.stdout)


@pytest.mark.parametrize(
    'words',
    [
        [],
        ['fly'],
        ['replay', '--dataset', 'sample'],
        ['replay', '--dataset', 'sample', '--episode', '-1', '--out', 'x'],
        ['demo', '--mode', 'slowly'],
        ['demo', '--rate', '0'],
        ['new', 'x', '--dataset', 'sample', '--image-size', '7'],
        ['infer', '--dataset', 'sample', '--bundle', 'sample', '--batch', 'two'],
    ],
)
def test_wrong_use_exits_with_2(words, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(words)
    assert exit_.value.code == 2
    assert 'usage:' in capsys.readouterr().err


def raising(fault):
    def run(_args):
        raise fault

    return run


FACTS = {'got': 'a', 'expected': 'b', 'next_step': 'Do c.'}


@pytest.mark.parametrize(
    ('fault', 'status'),
    [(ConfigurationError('place', **FACTS), 2), (BundleError('place', **FACTS), 1)],
)
def test_the_border_tells_all_four_facts(fault, status, monkeypatch, cli):
    monkeypatch.setattr(report, 'run', raising(fault))
    result = cli('report', 'x')
    assert (result.status, result.out) == (status, '')
    for fact in ('place', *FACTS.values()):
        assert fact in result.err


def test_the_border_speaks_json(monkeypatch, cli):
    fault = BundleError('place', **FACTS, code='odd')
    monkeypatch.setattr(report, 'run', raising(fault))
    result = cli('report', '--json', 'x')
    assert result.status == 1
    assert result.document == {
        'passed': False,
        'error': {'code': 'odd', 'where': 'place', **FACTS},
    }


def test_a_file_system_fault_is_told_without_a_traceback(monkeypatch, cli):
    fault = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), 'runs/demo')
    monkeypatch.setattr(report, 'run', raising(fault))
    result = cli('report', '--json', 'x')
    assert result.status == 1
    assert result.document['error']['where'] == 'runs/demo'
    assert result.document['error']['got'] == os.strerror(errno.ENOSPC)


def test_an_interrupt_gives_130(monkeypatch, cli):
    monkeypatch.setattr(report, 'run', raising(KeyboardInterrupt()))
    assert cli('report', 'x').status == 130


def test_a_reader_that_left_is_no_error():
    script = (
        'import sys\n'
        'from vla_policy_ros.tools import main, report\n'
        'report.run = lambda args: print("x" * 10**6) or 0\n'
        'sys.exit(main.main(["report", "x"]))\n'
    )
    with subprocess.Popen(
        [sys.executable, '-c', script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b''
    assert process.returncode == 1
