# SPDX-License-Identifier: Apache-2.0
"""`vla-policy verify`: an engine against ONNX Runtime on the CPU, with the same inputs and the same noise."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from vla_policy_ros.tools.arguments import (
    Subparsers,
    add_bundle,
    add_command,
    add_precision,
    bundle_path,
)
from vla_policy_ros.tools.comparing import (
    PART_HEADERS,
    add_comparison,
    describe,
    make_contender,
    part_row,
    read_cases,
)
from vla_policy_ros.tools.console import (
    print_facts,
    print_json,
    print_table,
    print_verdict,
    show_waiting,
)

if TYPE_CHECKING:
    from vla_policy_ros.export.comparison import Comparison

_EXAMPLES = """\
  vla-policy verify --bundle bundles/pick_v3 --engine tensorrt --precision fp16
  vla-policy verify --bundle bundles/pick_v3 --engine tensorrt --precision fp8 --dataset ~/datasets/pick --samples 16
  vla-policy verify --bundle sample --engine onnxruntime --precision int8 --calibration pick.json     without a GPU
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        'verify',
        run=run,
        summary='hold an engine against ONNX Runtime on the CPU',
        description='Run a bundle on an engine and on ONNX Runtime on the CPU with the same inputs and the same noise, '
        "first each stage alone on the reference's inputs, then the whole policy. Exit status 1 when one lies outside of the limits.",
        examples=_EXAMPLES,
    )
    add_bundle(parser)
    parser.add_argument(
        '--engine',
        default='tensorrt',
        metavar='E',
        help='engine to hold against it (tensorrt, as `vla-policy build`), such as onnxruntime_cuda, torch, openvino',
    )
    add_precision(parser)
    add_comparison(parser)


def run(args: argparse.Namespace) -> int:
    """Compare and show; returns 0 when every stage and the policy are near enough, else 1.

    Raises:
        VlaPolicyError: Bundle, dataset or an option is wrong, or a network cannot be loaded or failed.
    """
    from vla_policy_ros.bundle.bundle import load_bundle
    from vla_policy_ros.export.compare import compare

    candidate = make_contender(args, args.engine, args.precision)
    bundle = load_bundle(bundle_path(args.bundle))
    title = f'{bundle.spec.policy_id} on {args.engine}'
    with show_waiting(title):
        [result] = compare(bundle, read_cases(args, bundle), candidates=[candidate])
    if args.json:
        print_json(describe(result))
    else:
        _print_text(title, result)
    return 0 if result.passed else 1


def _print_text(title: str, result: Comparison) -> None:
    print_verdict(passed=result.passed, text=title)
    rows = [part_row(part) for part in (*result.stages, result.policy)]
    print_table(PART_HEADERS, rows, right=(2, 3, 4, 5))
    outside = result.first_outside
    print_facts({'first outside': outside and f'stage {outside}, on inputs of the reference'})
