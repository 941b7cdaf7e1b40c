# SPDX-License-Identifier: Apache-2.0
"""What the command line says: results on stdout, everything else on stderr; plain where there is no terminal."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, TextIO

from vla_policy_ros.core.errors import VlaPolicyError

Row = Sequence[str]


def say(text: str) -> None:
    """Tell the user what happens, on stderr."""
    print(text, file=sys.stderr, flush=True)


def print_json(document: Mapping[str, Any]) -> None:
    """Print the one JSON document of a command."""
    print(json.dumps(document, indent=2, ensure_ascii=False))


def print_facts(facts: Mapping[str, str]) -> None:
    """Print names and values in two columns; empty values are left out."""
    width = max((len(name) for name in facts), default=0)
    for name, value in facts.items():
        if value:
            print(f'{name:<{width}}  {value}')


def print_table(headers: Row, rows: Sequence[Row], *, right: Sequence[int] = ()) -> None:
    """Print a table.

    Args:
        headers: One title per column.
        rows: One text per column each.
        right: Indices of columns that are aligned to the right.
    """
    if not is_rich(sys.stdout):
        _print_plain_table([headers, *rows], right)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(header_style='bold')
    for index, header in enumerate(headers):
        # Numbers are never broken, and take no more room than they need: where the line is short, texts are.
        is_right = index in right
        table.add_column(
            header.replace(' ', '\n') if is_right else header,
            justify='right' if is_right else 'left',
            overflow='fold',
            no_wrap=is_right,
        )
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)


def print_faults(faults: Sequence[VlaPolicyError]) -> None:
    """Print faults as a table; below one another where there is no terminal to fit them into."""
    if is_rich(sys.stdout):
        rows = [(fault.where, fault.got, fault.expected, fault.next_step) for fault in faults]
        print_table(('where', 'got', 'expected', 'next step'), rows)
        return
    for number, fault in enumerate(faults, start=1):
        print(f'{number}. {_describe(fault)}')


def print_verdict(*, passed: bool, text: str = '') -> None:
    """Print PASSED or FAILED."""
    word = 'PASSED' if passed else 'FAILED'
    if sys.stdout.isatty():
        word = f'\033[1;{32 if passed else 31}m{word}\033[0m'
    print(f'{word}  {text}'.rstrip())


def show_fault(fault: VlaPolicyError, *, as_json: bool) -> None:
    """Show why a command ended: as JSON on stdout, else for people on stderr."""
    if as_json:
        print_json({'passed': False, 'error': fault.as_dict()})
        return
    say(f'error: {_describe(fault)}')


@contextlib.contextmanager
def show_waiting(text: str, *, expected_s: float | None = None) -> Iterator[Callable[[], None]]:
    """Show on one line how long something has taken; call what is yielded now and then.

    Args:
        text: What happens.
        expected_s: How long it should take, in seconds; None when nobody knows.
    """
    about = '' if expected_s is None else f'about {expected_s:.0f} s'
    if not is_rich(sys.stderr):
        say(f'{text} ({about})' if about else text)
        yield lambda: None
        return
    from rich.console import Console

    started_s = time.monotonic()
    of = f' of {about}' if about else ''
    with Console(stderr=True).status(text) as status:
        yield lambda: status.update(f'{text}: {time.monotonic() - started_s:.0f} s{of}')


@contextlib.contextmanager
def show_progress(text: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """Show a bar; call what is yielded with the number done and a note."""
    if not is_rich(sys.stderr):
        say(text)
        yield lambda _done, _note: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn('{task.description}'),
        BarColumn(),
        TextColumn('{task.completed}/{task.total} {task.fields[note]}'),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(text, total=total, note='')
        yield lambda done, note: bar.update(task, completed=done, note=note)


def is_rich(stream: TextIO) -> bool:
    """Return whether a stream is a terminal that rich may draw on."""
    return stream.isatty() and find_spec('rich') is not None


def _describe(fault: VlaPolicyError) -> str:
    """Return a fault on four lines."""
    facts = {'got': fault.got, 'expected': fault.expected, 'next step': fault.next_step}
    return '\n'.join([fault.where, *(f'   {name:<9}  {text}' for name, text in facts.items())])


def _print_plain_table(rows: Sequence[Row], right: Sequence[int]) -> None:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print('  '.join(cells).rstrip())
