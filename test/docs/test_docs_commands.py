# SPDX-License-Identifier: Apache-2.0
"""What the documents tell a reader to type works, and what they show is what the code says."""

import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PAGES = sorted([ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *(ROOT / 'doc').rglob('*.md')])
FENCE = re.compile(r'^```(\w+)[^\n]*\n(.*?)^```', re.MULTILINE | re.DOTALL)
LINK = re.compile(r'\[[^\]]*\]\(([^)#]+)(?:#[^)]*)?\)')
# Commands with these first words need minutes, a robot or a machine we do not have; they are run elsewhere or not at all.
RUN_ELSEWHERE = (
    'scripts/demo',
    'scripts/test',
    'git',
    'hf',
    'cd',
    'sudo',
    'ros2',
    'colcon',
    'source',
    'pip',
)


def commands_of(page):
    for language, block in FENCE.findall(page.read_text(encoding='utf-8')):
        if language in ('bash', 'sh'):
            text = block.replace('\\\n', ' ')
            for line in text.splitlines():
                command = line.partition('  #')[0].strip().removeprefix('scripts/shell ')
                if command and not command.startswith(('#', '$')):
                    yield command


def vla_commands():
    for page in PAGES:
        for command in commands_of(page):
            if command.startswith('vla-policy'):
                yield pytest.param(command, id=f'{page.name}: {command[:60]}')


def test_pages_are_found():
    assert len(PAGES) > 5


@pytest.mark.ros
def test_reference_pages_are_current():
    result = subprocess.run(
        [sys.executable, ROOT / 'scripts' / 'make_reference.py', '--check'],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert result.returncode == 0, f'run scripts/make_reference.py\n{result.stdout}{result.stderr}'


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in LINK.findall(page.read_text(encoding='utf-8')):
        if not target.startswith(('http://', 'https://', 'mailto:')):
            assert (page.parent / target).exists(), f'{page.name} links to {target}'


@pytest.mark.parametrize('command', list(vla_commands()))
def test_command_line_accepts_documented_command(command):
    """Every documented call parses; a page cannot name an option that does not exist."""
    from vla_policy_ros.tools.main import make_parser

    make_parser().parse_args(shlex.split(command)[1:])


@pytest.mark.parametrize(
    'page', [page for page in PAGES if page.parent.name != 'reference'], ids=lambda p: p.name
)
def test_first_words_are_known(page):
    for command in commands_of(page):
        first = command.split()[0]
        assert first.startswith((*RUN_ELSEWHERE, 'vla-policy', 'python', 'VLA_', 'benchmarks/')), (
            f'{page.name}: nobody checks {command!r}'
        )


@pytest.mark.ros
@pytest.mark.slow
def test_readme_commands_run(tmp_path):
    """Type what the README's first screen and its four commands say, with a recording that is there."""
    from vla_policy_ros.sample import sample_dataset_path

    text = (ROOT / 'README.md').read_text(encoding='utf-8')
    blocks = [block for language, block in FENCE.findall(text) if language == 'bash']
    lines = [line.partition('  #')[0].strip() for block in blocks for line in block.splitlines()]
    typed = [line for line in lines if line.startswith(('scripts/demo', 'scripts/shell'))]
    assert len(typed) == 5
    environment = {**os.environ, 'VLA_OUT': str(tmp_path / 'demo')}
    for line in typed:
        command = line.replace('~/datasets/my_robot', str(sample_dataset_path()))
        command = command.replace('bundles/', f'{tmp_path}/bundles/')
        command = command.replace('runs/', f'{tmp_path}/runs/')
        result = subprocess.run(
            ['bash', '-c', command],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=environment,
            timeout=280,
        )
        assert result.returncode == 0, f'{line}\n{result.stdout}{result.stderr}'
    for page in ('demo', 'runs/first', 'runs/open_loop'):
        assert (tmp_path / page / 'report.html').is_file()
