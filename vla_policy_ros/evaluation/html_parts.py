# SPDX-License-Identifier: Apache-2.0
"""The pieces a report's page is put together from; every text is escaped here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

NOT_MEASURED = '–'
DIMENSIONLESS = '1'


@dataclass(frozen=True, slots=True)
class Markup:
    """HTML that is safe to put into the page as it is."""

    text: str


Cell = str | Markup


def to_markup(cell: Cell) -> str:
    """Return a cell's HTML; plain text is escaped."""
    return cell.text if isinstance(cell, Markup) else escape(cell)


def format_number(value: float | None, unit: str = '') -> str:
    """Return a number with three significant digits (whole numbers in full) and its unit; a dash for None."""
    if value is None:
        return NOT_MEASURED
    if float(value).is_integer() or abs(value) >= 1000:
        text = f'{value:,.0f}'
    else:
        text = f'{value:#.3g}'.rstrip('.')
    return text if unit in ('', DIMENSIONLESS) else f'{text} {unit}'


def section(title: str, body: str, *, note: str = '') -> str:
    """Return one titled card of the page."""
    remark = f'<p class="note">{escape(note)}</p>' if note else ''
    return f'<section><h2>{escape(title)}</h2>{remark}{body}</section>'


def table(
    head: Sequence[str], rows: Sequence[Sequence[Cell]], *, right: Sequence[int] = ()
) -> str:
    """Return a table; the columns in `right` hold numbers."""
    tops = ''.join(
        f'<th{_align(index, right)}>{escape(name)}</th>' for index, name in enumerate(head)
    )
    lines = ''.join(f'<tr>{_cells(row, right)}</tr>' for row in rows)
    return f'<table><thead><tr>{tops}</tr></thead><tbody>{lines}</tbody></table>'


def meter(share: float, *, is_bad: bool = False) -> Markup:
    """Return a horizontal bar for a share of 0 to 1."""
    style = 'meter bad' if is_bad else 'meter'
    width = min(max(share, 0.0), 1.0) * 100
    return Markup(f'<div class="{style}"><i style="width:{width:.1f}%"></i></div>')


def pill(text: str, style: str) -> Markup:
    """Return a small label; style `good`, `warn` or empty for bad."""
    return Markup(f'<span class="pill {style}">{escape(text)}</span>')


def legend(entries: Sequence[tuple[str, str]]) -> str:
    """Return a legend of (style of the mark, text)."""
    keys = ''.join(f'<span>{_key(style)}{escape(text)}</span>' for style, text in entries)
    return f'<div class="legend">{keys}</div>'


def _key(style: str) -> str:
    """Return the sign of a style: an area, an upright mark or a line."""
    area = '<rect class="{}" x="4" width="18" height="10"/>'
    line = '<path class="{}" d="{}"/>'
    if style.startswith('band '):
        sign = area.format(style)
    else:
        sign = line.format(style, 'M13 10v-8' if style in ('seam', 'acted') else 'M1 6h24')
    return f'<svg viewBox="0 0 26 10" aria-hidden="true">{sign}</svg>'


def _align(index: int, right: Sequence[int]) -> str:
    return ' class="right"' if index in right else ''


def _cells(row: Sequence[Cell], right: Sequence[int]) -> str:
    return ''.join(
        f'<td class="wide">{cell.text}</td>'
        if isinstance(cell, Markup) and 'meter' in cell.text
        else f'<td{_align(index, right)}>{to_markup(cell)}</td>'
        for index, cell in enumerate(row)
    )
