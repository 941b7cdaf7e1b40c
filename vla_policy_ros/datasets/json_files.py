# SPDX-License-Identifier: Apache-2.0
"""JSON and JSON-lines files of a dataset, with the line number of every fault."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vla_policy_ros.core.errors import DatasetError
from vla_policy_ros.datasets.faults import Report, missing_file


def read_json(path: Path, report: Report) -> dict[str, Any] | None:
    """Read a JSON file that holds one object; report a fault and return None when it is missing or broken."""
    text = _read_text(path, report)
    return None if text is None else _parse(text, str(path), report)


def read_json_lines(path: Path, report: Report) -> list[dict[str, Any]]:
    """Read a file with one JSON object per line; faulty lines are reported and left out, empty ones are skipped."""
    text = _read_text(path, report)
    return list(_parse_lines(text or '', path, report))


def _parse_lines(text: str, path: Path, report: Report) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(text.split('\n'), start=1):
        row = _parse(line, f'{path}:{number}', report) if line.strip() else None
        if row is not None:
            yield row


def _read_text(path: Path, report: Report) -> str | None:
    try:
        return path.read_text(encoding='utf-8')
    except FileNotFoundError:
        report(missing_file(path, 'a JSON file'))
    except UnicodeDecodeError as fault:
        report(_broken(str(path), str(fault)))
    return None


def _parse(text: str, where: str, report: Report) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as fault:
        report(_broken(where, f'{fault.msg} at column {fault.colno} of line {fault.lineno}'))
        return None
    if not isinstance(value, dict):
        report(_broken(where, f'a {type(value).__name__}'))
        return None
    return value


def _broken(where: str, got: str) -> DatasetError:
    return DatasetError(
        where,
        got=got,
        expected='one JSON object in UTF-8',
        next_step='Mend the line, or copy the file again.',
        code='broken_json',
    )
