# SPDX-License-Identifier: Apache-2.0
"""`vla-policy export`: a bundle of a checkpoint of another library, or of any network."""

from __future__ import annotations

import argparse
from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from vla_policy_ros.tools import export_groot, export_network
from vla_policy_ros.tools.arguments import (
    Subparsers,
    add_command,
    open_named_dataset,
)
from vla_policy_ros.tools.console import print_json, show_waiting
from vla_policy_ros.tools.export_report import describe_export, print_export
from vla_policy_ros.tools.export_source import add_source, check_source, find_step_ns

if TYPE_CHECKING:
    from vla_policy_ros.core.dataset import Dataset

_EXAMPLES = """\
  vla-policy export lerobot outputs/train/act_pick/checkpoints/last/pretrained_model --out bundles/pick --dataset ~/datasets/pick
  vla-policy export lerobot my_checkpoint --out bundles/pick --fps 30
  vla-policy export lerobot --random-init act --dataset sample --out bundles/shape_of_act     weights that mean nothing
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        'export',
        help='make a bundle of a checkpoint or a network',
        description='Turn a checkpoint or a network into ONNX networks, statistics and bundle.yaml, and compare every network and '
        'the whole policy with what it was made of.',
        epilog=f'examples:\n{_EXAMPLES}{export_groot.EXAMPLES}{export_network.EXAMPLES}',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = parser.add_subparsers(title='what is exported', metavar='KIND', required=True)
    _add_lerobot(kinds)
    export_groot.add_parser(kinds)
    export_network.add_parser(kinds)


def _add_lerobot(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers,
        'lerobot',
        run=run,
        summary='a checkpoint of LeRobot: act, diffusion, smolvla, pi0, pi05',
        description="Load a checkpoint with LeRobot's own classes, turn it into ONNX networks, statistics and bundle.yaml, "
        'and compare every network and the whole policy with LeRobot. Runs where lerobot and torch are installed; '
        'the bundle needs neither. Families: act, diffusion, smolvla, pi0, pi05.',
        examples=_EXAMPLES,
    )
    add_source(parser, checkpoint='config.json and model.safetensors')
    parser.add_argument(
        '--vlm',
        type=Path,
        metavar='FOLDER',
        help='smolvla: configuration and tokenizer of its vision-language model; pi0, pi05: the tokenizer (what the checkpoint names)',
    )


def run(args: argparse.Namespace) -> int:
    """Write the bundle and print what it holds and how near it came; returns 0.

    Raises:
        VlaPolicyError: An option, the checkpoint or the dataset is wrong, lerobot or torch is not installed, or the bundle
            computes something else than the library.
    """
    from vla_policy_ros.export.lerobot.convert import export_checkpoint
    from vla_policy_ros.export.support import ask_engines

    check_source(args)
    with ExitStack() as stack:
        dataset = None
        if args.dataset:
            dataset = stack.enter_context(closing(open_named_dataset(args.dataset)))
        folder, origin = args.checkpoint, str(args.checkpoint)
        if folder is None:
            assert dataset  # refused by check_source
            folder = Path(stack.enter_context(TemporaryDirectory())) / 'random_init'
            origin = f'lerobot {args.random_init}, random weights, seed {args.seed}'
            _write_random(args, folder, dataset)
        stack.enter_context(show_waiting(f'exporting {origin}'))
        export = export_checkpoint(
            folder,
            args.out,
            dataset=dataset,
            step_ns=find_step_ns(args),
            origin=origin,
            vlm=args.vlm,
        )
        verdicts = list(ask_engines(export.bundle))
    if args.json:
        document = describe_export(export, verdicts)
        print_json({**document, 'executed_rows': export.executed_rows})
    else:
        print_export(export, verdicts, source='lerobot')
        print(f'\nThe policy was made to execute {export.executed_rows} rows of a chunk.')
    return 0


def _write_random(args: argparse.Namespace, folder: Path, dataset: Dataset) -> None:
    from vla_policy_ros.export.lerobot.random_init import write_random_checkpoint

    write_random_checkpoint(
        folder, dataset, policy_type=args.random_init, seed=args.seed, vlm=args.vlm
    )
