# SPDX-License-Identifier: Apache-2.0
"""What the documents tell a reader to type works, and what they show is what the code says."""

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
