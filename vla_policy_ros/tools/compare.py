# SPDX-License-Identifier: Apache-2.0
"""`vla-policy compare`: engines and precisions against each other, on the same inputs and the same noise."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla_policy_ros.core.errors import ConfigurationError
from vla_policy_ros.tools.arguments import (
    PRECISIONS,
    Subparsers,
    add_bundle,
    add_command,
    bundle_path,
)
from vla_policy_ros.tools.comparing import (
    PART_HEADERS,
    add_comparison,
    describe,
    part_row,
    read_cases,
    read_contender,
)
from vla_policy_ros.tools.console import print_json, print_table, print_verdict, show_waiting
from vla_policy_ros.tools.markdown import describe_versions, to_markdown_table, write_report
from vla_policy_ros.tools.version import list_versions

if TYPE_CHECKING:
    from vla_policy_ros.export.compare import Contender
    from vla_policy_ros.export.comparison import ColumnVerdict, Comparison

_EXAMPLES = """\
  vla-policy compare --bundle sample --engine onnxruntime openvino openvino:bf16
  vla-policy compare --bundle bundles/pick_v3 --engine tensorrt:bf16 tensorrt:fp8 --dataset ~/datasets/pick --samples 32
  vla-policy compare --bundle bundles/pick_v3 --engine onnxruntime onnxruntime:int8 --calibration pick.json --out runs/int8
"""
_COLUMN_HEADERS = ('column', 'cosine', 'L1', 'Linf', 'unit', 'L1 in unit', 'Linf in unit', '')
_Table = tuple[tuple[str, ...], list[tuple[str, ...]], tuple[int, ...]]
"""Titles, cells, and the columns that hold numbers."""


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        'compare',
        run=run,
        summary='hold engines and precisions against each other',
        description='Run a bundle on several engines or in several precisions with the same inputs and the same noise, and '
        'hold all others against the first: each stage alone, the whole policy, and every column of the action, before '
        'and after it is denormalised. WARN: more than half of a limit is used up. Exit status 1 when one is outside (FAIL).',
        examples=_EXAMPLES,
    )
    add_bundle(parser)
    parser.add_argument(
        '--engine',
        nargs='+',
        required=True,
        metavar='E[:P]',
        help=f'two or more engines, with a precision where it is not to be that of the stages: {", ".join(PRECISIONS)}',
    )
    add_comparison(parser)
    parser.add_argument('--out', type=Path, metavar='DIR', help='write compare.json and .md there')


def run(args: argparse.Namespace) -> int:
    """Compare and show; returns 0 when nothing lies outside of its limit, else 1.

    Raises:
        VlaPolicyError: Bundle, dataset or an option is wrong, or a network cannot be loaded or failed.
    """
    from vla_policy_ros.bundle.bundle import load_bundle
    from vla_policy_ros.engines.registry import engine_library
    from vla_policy_ros.export.compare import compare

    reference, *candidates = _read_contenders(args)
    bundle = load_bundle(bundle_path(args.bundle))
    with show_waiting(f'{bundle.spec.policy_id} on {", ".join(args.engine)}'):
        cases = read_cases(args, bundle)
        results = list(compare(bundle, cases, reference=reference, candidates=candidates))
    libraries = dict.fromkeys(engine_library(c.engine) for c in (reference, *candidates))
    passed = all(result.passed for result in results)
    document = {
        'command': args.command_line,
        'versions': list_versions('numpy', *libraries),
        'policy': bundle.spec.policy_id,
        'observations': len(cases),
        'passed': passed,
        'reference': reference.title,
        'comparisons': [{'engine': result.title, **describe(result)} for result in results],
    }
    if args.out:
        write_report(args.out, 'compare', document, _to_markdown(document, results))
    if args.json:
        print_json(document)
    else:
        print_verdict(passed=passed, text=f'{bundle.spec.policy_id} against {reference.title}')
        for headers, cells, right in _tables(results):
            print_table(headers, cells, right=right)
    return 0 if passed else 1


def _read_contenders(args: argparse.Namespace) -> list[Contender]:
    if len(args.engine) < 2:
        raise ConfigurationError(
            '--engine',
            got=args.engine[0],
            expected='two or more, the first of which the others are held against',
            next_step='Name another engine or precision, as in `--engine onnxruntime openvino`.',
            code='nothing_to_compare',
        )
    return [read_contender(args, word) for word in args.engine]


def _tables(results: Sequence[Comparison]) -> tuple[_Table, _Table]:
    parts = [
        (result.title, *part_row(part))
        for result in results
        for part in (*result.stages, result.policy)
    ]
    columns = [
        (result.title, *_column_row(column)) for result in results for column in result.columns
    ]
    return (
        (('engine', *PART_HEADERS), parts, (3, 4, 5, 6)),
        (('engine', *_COLUMN_HEADERS), columns, (2, 3, 4, 6, 7)),
    )


def _column_row(column: ColumnVerdict) -> tuple[str, ...]:
    parity = column.parity
    in_unit = (column.mean_error, column.max_error)
    return (
        column.name,
        f'{parity.cosine:.6f}',
        f'{parity.mean_error:.2e}',
        f'{parity.max_error:.2e}',
        column.unit,
        *('-' if error is None else f'{error:.2e}' for error in in_unit),
        column.grade,
    )


def _to_markdown(document: dict[str, Any], results: Sequence[Comparison]) -> str:
    verdict = 'PASSED' if document['passed'] else 'FAILED'
    explanation = (
        f'Observations: {document["observations"]}. L1 and Linf are mean and greatest error before the action is '
        'denormalised, in units of the greatest magnitude where that is above 1.'
    )
    title = f'# {verdict}: {document["policy"]} against {document["reference"]}'
    versions = describe_versions(document['versions'])
    parts = [title, f'`{document["command"]}`', versions, explanation]
    for headers, cells, right in _tables(results):
        parts.append(to_markdown_table(headers, cells, right=right))
    return '\n\n'.join(parts) + '\n'
