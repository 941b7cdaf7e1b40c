# SPDX-License-Identifier: Apache-2.0
"""Reports for people and programs: a Markdown page beside the JSON document that it was made of."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Sequence[str]


def to_markdown_table(headers: Row, rows: Sequence[Row], *, right: Collection[int] = ()) -> str:
    """Return a table.

    Args:
        headers: One title per column.
        rows: One text per column each.
        right: Indices of columns that are aligned to the right.
    """
    rule = ['---:' if index in right else '---' for index in range(len(headers))]
    lines = (headers, rule, *rows)
    return '\n'.join(f'| {" | ".join(map(_escape, line))} |' for line in lines)


def describe_versions(versions: Mapping[str, str]) -> str:
    """Return versions on one line."""
    return ', '.join(f'{name} {text}' for name, text in versions.items())


def write_report(folder: Path, name: str, document: Mapping[str, Any], page: str) -> None:
    """Write `name.json` and `name.md` into a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(document, indent=1, ensure_ascii=False)
    (folder / f'{name}.json').write_text(f'{text}\n', encoding='utf-8')
    (folder / f'{name}.md').write_text(page, encoding='utf-8')


def _escape(cell: str) -> str:
    """Return a text that neither ends its cell nor its row."""
    return ' '.join(cell.splitlines()).replace('|', '\\|')
