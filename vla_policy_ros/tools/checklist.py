# SPDX-License-Identifier: Apache-2.0
"""`vla-policy checklist`: what to look at before a robot moves by a policy, in one command and one report."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

from vla_policy_ros.evaluation.checklist import (
    ITEMS,
    MAX_ERROR,
    MAX_LOSS,
    STATUSES,
    Item,
    is_passed,
)
from vla_policy_ros.tools.arguments import (
    PRECISIONS,
    Subparsers,
    add_bundle,
    add_command,
    add_dataset,
    add_execution_horizon,
    add_executor,
    add_plans,
    add_preprocess,
    at_least,
    bundle_path,
    in_range,
    open_named_dataset,
)
from vla_policy_ros.tools.comparing import add_calibration, read_contender
from vla_policy_ros.tools.console import (
    print_facts,
    print_json,
    print_table,
    print_verdict,
    show_progress,
)
from vla_policy_ros.tools.markdown import describe_versions, to_markdown_table, write_report
from vla_policy_ros.tools.version import list_versions

_EXAMPLES = """\
  vla-policy checklist --bundle sample --dataset sample --executor sample
  vla-policy checklist --bundle bundles/pick_v3 --dataset ~/datasets/pick --engine tensorrt:fp8 --preprocess gpu \\
      --execution-horizon 8 --executor arm_executor.yaml --out runs/checklist
  vla-policy checklist --bundle bundles/pick_v3 --dataset ~/datasets/pick --engine openvino --period-ms 33.3
"""
_HEADERS = ('item', 'result', 'found', 'wanted')


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        'checklist',
        run=run,
        summary='check all that must hold before a robot moves by a policy',
        description='Check, on the machine of the robot and with its engine: files of the bundle, operators, accuracy, '
        'quantisation loss, latency against the control period, memory, inputs at the edges, and limits of the robot. '
        'WARN: more than half of a limit is used up. An item that could not be looked at is NOT CHECKED, with the reason. '
        'Exit status 1 when one FAILs.',
        examples=_EXAMPLES,
    )
    add_bundle(parser)
    add_dataset(parser)
    parser.add_argument(
        '--engine',
        default='onnxruntime',
        metavar='E[:P]',
        help='engine of the robot, with a precision where it is not to be that of the stages: '
        f'{", ".join(PRECISIONS)} (onnxruntime)',
    )
    add_plans(parser)
    add_calibration(parser)
    add_preprocess(parser)
    parser.add_argument(
        '--period-ms',
        type=in_range(1e-6, 1e6),
        metavar='MS',
        help='control period that an inference has to keep (step of the bundle times --execution-horizon)',
    )
    add_execution_horizon(parser)
    add_executor(parser, "hold the chunks against the robot's limits")
    _add_measurement(parser)


def _add_measurement(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--samples',
        type=at_least(1),
        default=32,
        metavar='N',
        help='observations to check with (32)',
    )
    parser.add_argument(
        '--runs',
        type=at_least(1),
        default=100,
        metavar='N',
        help='inferences that are timed (100)',
    )
    parser.add_argument(
        '--max-loss',
        type=in_range(0, 1e6),
        default=MAX_LOSS,
        metavar='X',
        help=f'limit of the quantisation loss ({MAX_LOSS})',
    )
    parser.add_argument(
        '--max-error',
        type=in_range(0, 1e6),
        default=MAX_ERROR,
        metavar='X',
        help=f'limit of the error against the reference ({MAX_ERROR})',
    )
    parser.add_argument(
        '--out', type=Path, metavar='DIR', help='write checklist.json and .md there'
    )


def run(args: argparse.Namespace) -> int:
    """Check, show and write; returns 0 when nothing fails, else 1.

    Raises:
        VlaPolicyError: An option is wrong, or the dataset cannot be read or does not fit the policy.
    """
    from vla_policy_ros.engines.registry import engine_library

    contender = read_contender(args, args.engine)
    items = _check(args, contender)
    document = {
        'command': args.command_line,
        'versions': list_versions('numpy', engine_library(contender.engine)),
        'bundle': args.bundle,
        'engine': contender.title,
        'passed': is_passed(items),
        'items': [
            {key: value for key, value in asdict(item).items() if key != 'table'} for item in items
        ],
    }
    if args.out:
        write_report(args.out, 'checklist', document, _to_markdown(document, items))
    if args.json:
        print_json(document)
    else:
        _print_text(document, items)
    return 0 if document['passed'] else 1


def _check(args: argparse.Namespace, contender: Any) -> list[Item]:
    from vla_policy_ros.tools.checklist_run import Job, run_checklist

    with closing(open_named_dataset(args.dataset)) as dataset:
        job = Job(
            folder=bundle_path(args.bundle),
            contender=contender,
            dataset=dataset,
            samples=args.samples,
            runs=args.runs,
            preprocess=args.preprocess,
            period_ms=args.period_ms,
            execution_horizon=args.execution_horizon or 1,
            executor=args.executor,
            max_loss=args.max_loss,
            max_error=args.max_error,
        )
        with show_progress(f'checking {args.bundle} on {contender.title}', len(ITEMS)) as show:
            begun = count()
            return run_checklist(job, lambda name: show(next(begun), name))


def _print_text(document: dict[str, Any], items: Sequence[Item]) -> None:
    print_verdict(passed=document['passed'], text=_summary(document, items))
    print_table(_HEADERS, [_row(item) for item in items])
    for item in _wanting(items):
        if item.table:
            print(f'\n{item.name}:')
            headers, *rows = item.table
            print_table(headers, rows)
    steps = _next_steps(items)
    if steps:
        print('\nwhat to do:')
        print_facts(steps)


def _to_markdown(document: dict[str, Any], items: Sequence[Item]) -> str:
    verdict = 'PASSED' if document['passed'] else 'FAILED'
    parts = [
        f'# {verdict}: {_summary(document, items)}',
        f'`{document["command"]}`',
        describe_versions(document['versions']),
        to_markdown_table(_HEADERS, [_row(item) for item in items]),
    ]
    steps = _next_steps(items)
    if steps:
        parts += [
            '## What to do',
            '\n'.join(f'- **{name}**: {text}' for name, text in steps.items()),
        ]
    for item in items:
        if item.table:
            headers, *rows = item.table
            parts += [f'## {item.name.capitalize()}', to_markdown_table(headers, rows)]
    return '\n\n'.join(parts) + '\n'


def _summary(document: dict[str, Any], items: Sequence[Item]) -> str:
    counts = Counter(item.status for item in items)
    told = ', '.join(f'{counts[status]} {status}' for status in STATUSES if counts[status])
    return f'{document["bundle"]} on {document["engine"]}: {told}'


def _row(item: Item) -> tuple[str, ...]:
    return item.name, item.status, item.found, item.wanted


def _wanting(items: Sequence[Item]) -> list[Item]:
    return [item for item in items if item.status in ('WARN', 'FAIL')]


def _next_steps(items: Sequence[Item]) -> dict[str, str]:
    return {item.name: item.next_step for item in _wanting(items) if item.next_step}
