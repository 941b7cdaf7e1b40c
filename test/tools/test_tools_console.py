# SPDX-License-Identifier: Apache-2.0
import io
import re
import sys

import pytest

from vla_policy_ros.core.errors import BundleError
from vla_policy_ros.tools import console

FAULT = BundleError('bundle.yaml: x', got='[red]', expected='b', next_step='Do c.')


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """Call it to make stdout and stderr one terminal; pytest would put its own streams over those of a fixture."""

    def use():
        stream = Terminal()
        monkeypatch.setenv('COLUMNS', '100')
        monkeypatch.setenv('TERM', 'xterm')
        monkeypatch.setattr(sys, 'stdout', stream)
        monkeypatch.setattr(sys, 'stderr', stream)
        return stream

    return use


def test_a_plain_table_is_aligned(capsys):
    console.print_table(('name', 'ms'), [('a', '1.5'), ('longer', '10.25')], right=(1,))
    assert capsys.readouterr().out == 'name       ms\na         1.5\nlonger  10.25\n'


def test_a_table_on_a_terminal_shows_brackets_as_they_are(terminal):
    stream = terminal()
    console.print_faults([FAULT])
    text = stream.getvalue()
    for word in ('┃', 'next step', 'bundle.yaml: x', '[red]', 'Do c.'):
        assert word in text


def test_facts_without_a_value_are_left_out(capsys):
    console.print_facts({'one': '1', 'nothing': '', 'three': '3'})
    assert capsys.readouterr().out == 'one      1\nthree    3\n'


def test_a_verdict_has_a_colour_on_a_terminal_only(terminal):
    stream = terminal()
    console.print_verdict(passed=False, text='x')
    assert stream.getvalue() == '\033[1;31mFAILED\033[0m  x\n'


def test_a_plain_verdict(capsys):
    console.print_verdict(passed=True)
    assert capsys.readouterr().out == 'PASSED\n'


def test_waiting_says_one_line_where_there_is_no_terminal(capsys):
    with console.show_waiting('replaying', expected_s=12.4) as tick:
        tick()
    with console.show_waiting('checking'):
        pass
    said = capsys.readouterr()
    assert (said.out, said.err) == ('', 'replaying (about 12 s)\nchecking\n')


def test_waiting_shows_the_time_on_a_terminal(terminal):
    stream = terminal()
    with console.show_waiting('replaying', expected_s=12.4) as tick:
        tick()
    assert 'replaying: 0 s of about 12 s' in stream.getvalue()


def test_progress_says_one_line_where_there_is_no_terminal(capsys):
    with console.show_progress('working', 3) as show:
        show(1, 'episodes')
    said = capsys.readouterr()
    assert (said.out, said.err) == ('', 'working\n')


def test_progress_draws_a_bar_on_a_terminal(terminal):
    stream = terminal()
    with console.show_progress('working', 3) as show:
        show(2, 'episodes')
    assert '2/3 episodes' in stream.getvalue()


def test_json_keeps_letters(capsys):
    console.print_json({'name': 'Größe'})
    assert '"Größe"' in capsys.readouterr().out


def test_numbers_are_never_broken_on_a_narrow_terminal(terminal, monkeypatch):
    stream = terminal()
    monkeypatch.setenv('COLUMNS', '40')
    row = ('a long name of many words', '1234.567', '8901.234')
    console.print_table(('what', 'data processing', 'p99 ms'), [row], right=(1, 2))
    text = re.sub('\033\\[[0-9;]*m', '', stream.getvalue())
    assert max(map(len, text.splitlines())) <= 40
    for word in ('1234.567', '8901.234', 'processing'):
        assert word in text
