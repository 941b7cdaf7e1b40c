# SPDX-License-Identifier: Apache-2.0
"""Children hold a FIFO open for writing: reading it to its end proves that none of them is left."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vla_policy_ros.core.errors import VlaPolicyError
from vla_policy_ros.tools.session import Child, Patience, Session

pytestmark = pytest.mark.timeout(60)
ROOT = Path(__file__).parents[2]

# Says that it is there, then waits for a signal.
HOLD = 'import os, signal; f = os.open({fifo!r}, os.O_WRONLY); os.write(f, b"x"); '
WAIT = HOLD + 'signal.pause()'
STUBBORN = HOLD.replace(
    'import os, signal;', 'import os, signal; signal.signal(15, signal.SIG_IGN);'
)
STUBBORN += '[signal.pause() for _ in range(9)]'
QUICK = Patience(finish_s=0.1, failure_s=0.1, stop_s=0.1)


@pytest.fixture
def fifo(tmp_path):
    path = tmp_path / 'alive'
    os.mkfifo(path)
    return path


def python(name, script, *, may_end=False, **values):
    command = (sys.executable, '-c', script.format(**values))
    return Child(name, command, may_end=may_end)


def session(tmp_path, *children, patience=None):
    return Session(
        children, log_folder=tmp_path / 'log', environment=dict(os.environ), patience=patience
    )


def wait_until_there(fifo, count=1):
    """Block until `count` children have spoken; return the open FIFO."""
    reader = fifo.open('rb', buffering=0)
    for _ in range(count):
        assert reader.read(1) == b'x'
    return reader


def assert_all_gone(reader):
    with reader:
        assert reader.read() == b''


def test_the_status_of_the_last_child_is_returned(tmp_path, fifo):
    waiting = python('waiting', WAIT, fifo=str(fifo))
    last = python('last', 'import sys; sys.exit(3)')
    with session(tmp_path, waiting, last) as running:
        reader = wait_until_there(fifo)
        assert running.wait('last') == 3
    assert_all_gone(reader)


def test_a_child_that_may_end_is_no_fault(tmp_path, fifo):
    player = python('player', 'pass', may_end=True)
    last = python('last', HOLD + 'open({gate!r}).read()', fifo=str(fifo), gate=str(tmp_path / 'g'))
    os.mkfifo(tmp_path / 'g')
    with session(tmp_path, player, last) as running:
        reader = wait_until_there(fifo)
        (tmp_path / 'g').write_text('go', encoding='utf-8')
        assert running.wait('last') == 0
    assert_all_gone(reader)


def wait_for_fault(tmp_path, fifo, *children, patience=None):
    """Run children of which `last` holds the FIFO; return the fault that ends the waiting."""
    with session(tmp_path, *children, patience=patience) as running:
        reader = wait_until_there(fifo)
        with pytest.raises(VlaPolicyError) as fault:
            running.wait('last')
    assert_all_gone(reader)
    assert fault.value.code == 'node_failed'
    return fault.value


def test_an_early_death_shows_the_last_lines_and_stops_the_rest(tmp_path, fifo):
    dying = python('dying', 'print("no such bundle"); raise SystemExit(7)')
    fault = wait_for_fault(tmp_path, fifo, dying, python('last', WAIT, fifo=str(fifo)))
    assert fault.where == 'dying'
    assert 'status 7' in fault.got
    assert 'no such bundle' in fault.got
    assert str(tmp_path / 'log' / 'dying.log') in fault.next_step


def test_only_the_end_of_a_long_log_is_shown(tmp_path, fifo):
    dying = python('dying', '[print(f"line {{i}}.") for i in range(500)]')
    fault = wait_for_fault(tmp_path, fifo, dying, python('last', WAIT, fifo=str(fifo)))
    assert 'line 499.' in fault.got
    assert 'line 9.' not in fault.got


@pytest.mark.parametrize(('status', 'guilty'), [(1, 'player'), (0, 'last')])
def test_who_is_named_when_the_last_child_does_not_end(tmp_path, fifo, status, guilty):
    player = python('player', 'raise SystemExit({status})', may_end=True, status=status)
    last = python('last', WAIT, fifo=str(fifo))
    fault = wait_for_fault(tmp_path, fifo, player, last, patience=QUICK)
    assert fault.where == guilty


def test_a_killed_child_reports_its_signal(tmp_path):
    dying = python('dying', 'import os; os.kill(os.getpid(), 9)')
    with session(tmp_path, dying) as running:
        assert running.wait('dying') == -9


def test_a_child_that_ignores_sigterm_is_killed(tmp_path, fifo):
    with session(tmp_path, python('deaf', STUBBORN, fifo=str(fifo)), patience=QUICK):
        reader = wait_until_there(fifo)
    assert_all_gone(reader)


def test_grandchildren_end_even_after_their_parent(tmp_path, fifo):
    script = 'import subprocess, sys; subprocess.Popen([sys.executable, "-c", {inner!r}])'
    parent = python('parent', script, inner=STUBBORN.format(fifo=str(fifo)))
    with session(tmp_path, parent, patience=QUICK) as running:
        reader = wait_until_there(fifo)
        assert running.wait('parent') == 0
    assert_all_gone(reader)


@pytest.mark.parametrize(
    ('number', 'outcome'),
    [
        (signal.SIGINT, KeyboardInterrupt),
        (signal.SIGTERM, SystemExit),
        (signal.SIGHUP, SystemExit),
    ],
)
def test_a_signal_ends_all_children_and_gives_the_handlers_back(
    tmp_path, fifo, number, outcome, request
):
    # A shell that starts tests in the background has SIGINT ignored.
    before = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    inherited = signal.signal(number, before)
    request.addfinalizer(lambda: signal.signal(number, inherited))
    readers = []

    def run():
        with session(tmp_path, python('last', WAIT, fifo=str(fifo))) as running:
            readers.append(wait_until_there(fifo))
            running.wait('last', on_tick=lambda: os.kill(os.getpid(), number))

    with pytest.raises(outcome) as raised:
        run()
    assert_all_gone(readers[0])
    assert signal.getsignal(number) is before
    if outcome is SystemExit:
        assert raised.value.code == 128 + number


def test_a_command_that_cannot_start_leaves_nothing_behind(tmp_path, fifo):
    first = python('first', WAIT, fifo=str(fifo))
    broken = Child('broken', (sys.executable, '\0'))
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(ValueError, match='null'), session(tmp_path, first, broken):
        pass
    os.set_blocking(reader, True)
    with os.fdopen(reader, 'rb') as stream:
        stream.read()  # comes to an end: nobody holds it


def test_children_die_with_a_killed_parent(tmp_path, fifo):
    script = (
        'import os, pathlib, sys\n'
        'from vla_policy_ros.tools.session import Child, Session\n'
        f'child = Child("c", (sys.executable, "-c", {WAIT.format(fifo=str(fifo))!r}))\n'
        f'with Session([child], log_folder=pathlib.Path({str(tmp_path)!r}), environment=os.environ) as s:\n'
        '    s.wait("c")\n'
    )
    with subprocess.Popen([sys.executable, '-c', script], cwd=ROOT) as parent:
        reader = wait_until_there(fifo)
        parent.kill()
    assert_all_gone(reader)


def test_two_children_write_to_logs_of_their_own(tmp_path):
    one = python('one', 'import sys; print("out"); print("err", file=sys.stderr)', may_end=True)
    two = python('two', 'print("two")', may_end=True)
    with session(tmp_path, one, two) as running:
        assert running.wait('one') == running.wait('two') == 0
        assert sorted(running.tail('one').split()) == ['err', 'out']
        assert running.tail('two') == 'two'
