# SPDX-License-Identifier: Apache-2.0
"""`vla-policy export network`: a bundle of any ONNX, TorchScript or torch.export file."""

from __future__ import annotations

import argparse
from contextlib import ExitStack, closing
from pathlib import Path

from vla_policy_ros.tools.arguments import Subparsers, add_command, open_named_dataset
from vla_policy_ros.tools.console import print_json, show_waiting
from vla_policy_ros.tools.export_report import describe_export, print_export

EXAMPLES = """\
  vla-policy export network pose.onnx --describe pose.yaml --out bundles/pose
  vla-policy export network encoder.pt2 --describe encoder.yaml --out bundles/encoder --dataset ~/datasets/pick
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        'network',
        run=run,
        summary='any ONNX, TorchScript or torch.export file with a short description',
        description='Make a bundle of a network with images and vectors in and numbers out. A short YAML file says which camera '
        'and which columns go into which input, and what the numbers mean (doc/reference/network.md). PyTorch is needed for '
        '.pt and .pt2 only.',
        examples=EXAMPLES,
    )
    parser.add_argument(
        'network',
        type=Path,
        metavar='NETWORK',
        help='file .onnx, .pt (TorchScript) or .pt2 (torch.export)',
    )
    parser.add_argument(
        '--describe', required=True, type=Path, metavar='YAML', help='what goes in and comes out'
    )
    parser.add_argument(
        '--out', required=True, type=Path, metavar='BUNDLE', help='new or empty folder'
    )
    parser.add_argument(
        '--dataset',
        metavar='D',
        help='dataset of the training, or `sample`: statistics that are not given, observation of the probe',
    )


def run(args: argparse.Namespace) -> int:
    """Write the bundle and print what it holds and how near it came; returns 0.

    Raises:
        VlaPolicyError: The description does not fit the network, a file or the dataset is wrong, torch is needed and not
            installed, or the bundle computes something else than the network.
    """
    from vla_policy_ros.export.network.convert import export_network
    from vla_policy_ros.export.support import ask_engines

    with ExitStack() as stack:
        dataset = None
        if args.dataset:
            dataset = stack.enter_context(closing(open_named_dataset(args.dataset)))
        stack.enter_context(show_waiting(f'exporting {args.network}'))
        export = export_network(args.network, args.out, describe=args.describe, dataset=dataset)
        verdicts = list(ask_engines(export.bundle))
    if args.json:
        print_json(describe_export(export, verdicts))
    else:
        print_export(export, verdicts, source=str(args.network))
    return 0
