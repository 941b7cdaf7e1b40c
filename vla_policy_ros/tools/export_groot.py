# SPDX-License-Identifier: Apache-2.0
"""`vla-policy export groot`: a bundle of a checkpoint of Isaac-GR00T."""

from __future__ import annotations

import argparse
import re
from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from vla_policy_ros.tools.arguments import (
    Subparsers,
    add_command,
    at_least,
    dataset_path,
    open_named_dataset,
)
from vla_policy_ros.tools.console import print_json, show_waiting
from vla_policy_ros.tools.export_report import describe_export, print_export
from vla_policy_ros.tools.export_source import add_source, check_source, find_step_ns

if TYPE_CHECKING:
    from vla_policy_ros.core.dataset import Dataset

EXAMPLES = """\
  vla-policy export groot checkpoint-20000 --out bundles/pick --dataset ~/datasets/pick --embodiment new_embodiment
  vla-policy export groot --random-init n1.7 --dataset sample --out bundles/shape_of_groot     a small one, random weights
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        'groot',
        run=run,
        summary='a checkpoint of Isaac-GR00T: N1.5, N1.6, N1.7',
        description="Load a checkpoint with the library's own classes, turn it into ONNX networks, statistics and bundle.yaml "
        'for one robot, and compare every network and the whole policy with the library. Runs where Isaac-GR00T of that '
        'version and torch are installed, on the CPU; the bundle needs neither. Versions: n1.5, n1.6, n1.7.',
        examples=EXAMPLES,
    )
    add_source(parser, checkpoint='config.json and what else the training wrote')
    parser.add_argument(
        '--embodiment',
        metavar='TAG',
        help="the robot, as the library calls it; n1.5: TAG/DATA_CONFIG (the checkpoint's only one)",
    )
    parser.add_argument(
        '--image-size',
        type=_image_size,
        metavar='HxW',
        help="height and width of the cameras' images in pixels (the dataset's)",
    )
    parser.add_argument(
        '--vlm',
        type=Path,
        metavar='FOLDER',
        help='configuration and tokenizer of the vision-language model (n1.7: what the checkpoint names)',
    )
    parser.add_argument(
        '--max-words',
        type=at_least(1),
        default=48,
        metavar='N',
        help='room for the tokens of an instruction (48)',
    )
    parser.add_argument(
        '--size',
        choices=('small', 'full'),
        default='small',
        help='of random weights: a few narrow layers, or the shape of the published checkpoints (small)',
    )


def run(args: argparse.Namespace) -> int:
    """Write the bundle and print what it holds and how near it came; returns 0.

    Raises:
        VlaPolicyError: An option, the checkpoint or the dataset is wrong, the library or torch is not installed, or the
            bundle computes something else than the library.
    """
    from vla_policy_ros.export.groot.convert import TrainingData, export_groot
    from vla_policy_ros.export.support import ask_engines

    check_source(args)
    with ExitStack() as stack:
        dataset, modality = None, None
        if args.dataset:
            dataset = stack.enter_context(closing(open_named_dataset(args.dataset)))
            modality = _find_modality(args)
        folder, vlm, origin = args.checkpoint, args.vlm, str(args.checkpoint)
        if folder is None:
            assert dataset  # refused by check_source
            origin = f'groot {args.random_init} ({args.size}), random weights, seed {args.seed}'
            folder = Path(stack.enter_context(TemporaryDirectory())) / 'random_init'
            vlm = _write_random(args, folder, dataset)
        stack.enter_context(show_waiting(f'exporting {origin}'))
        data = TrainingData(
            dataset=dataset,
            modality=modality,
            step_ns=find_step_ns(args),
            image_size=args.image_size,
        )
        export = export_groot(
            folder,
            args.out,
            data=data,
            embodiment=args.embodiment,
            vlm=vlm,
            max_words=args.max_words,
            origin=origin,
        )
        verdicts = list(ask_engines(export.bundle))
    if args.json:
        print_json(describe_export(export, verdicts))
    else:
        print_export(export, verdicts, source='Isaac-GR00T')
    return 0


def _image_size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r'(\d+)x(\d+)', text)
    size = (int(match[1]), int(match[2])) if match else (0, 0)
    if min(size) < 1:
        raise argparse.ArgumentTypeError(f'{text!r}: height and width such as 480x640')
    return size


def _find_modality(args: argparse.Namespace) -> Path | None:
    """Return the dataset's own list of keys; random weights are made for the columns as they are."""
    path = dataset_path(args.dataset) / 'meta' / 'modality.json'
    return path if args.checkpoint and path.is_file() else None


def _write_random(args: argparse.Namespace, folder: Path, dataset: Dataset) -> Path | None:
    from vla_policy_ros.export.groot.random_init import write_random_checkpoint

    return write_random_checkpoint(
        folder, dataset, version=args.random_init, size=args.size, seed=args.seed, vlm=args.vlm
    )
