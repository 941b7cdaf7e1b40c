# SPDX-License-Identifier: Apache-2.0
"""`vla-policy report`: make the page of a finished run again."""

from __future__ import annotations

import argparse
from pathlib import Path

from vla_policy_ros.tools.arguments import Subparsers, add_command
from vla_policy_ros.tools.console import print_json

_EXAMPLES = """\
  vla-policy report runs/demo
  vla-policy report --json runs/2024-05-17
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        'report',
        run=run,
        summary='make report.html of a finished run again',
        description='Make report.html again from report.json and the recorded chunks of a finished run.',
        examples=_EXAMPLES,
    )
    parser.add_argument('folder', metavar='DIR', type=Path, help='folder that the run wrote')


def run(args: argparse.Namespace) -> int:
    """Write the page and print its path; returns 0.

    Raises:
        DatasetError: The folder does not hold a finished run.
    """
    from vla_policy_ros.evaluation.report import render_report

    page = render_report(args.folder)
    if args.json:
        print_json({'page': str(page)})
    else:
        print(page)
    return 0
