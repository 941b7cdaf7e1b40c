# SPDX-License-Identifier: Apache-2.0
"""`vla-policy new`: a bundle for a dataset before there is a trained policy."""

from __future__ import annotations

import argparse
from contextlib import closing
from pathlib import Path

from vla_policy_ros.tools.arguments import (
    Subparsers,
    add_command,
    add_dataset,
    at_least,
    open_named_dataset,
)
from vla_policy_ros.tools.console import print_facts, print_json, show_waiting
from vla_policy_ros.tools.summaries import bundle_summary, to_text

_EXAMPLES = """\
  vla-policy new bundles/trial --dataset ~/datasets/my_robot
  vla-policy new bundles/trial --dataset recordings/run_7.mcap --horizon 32 --image-size 224
  vla-policy new bundles/trial --dataset sample && vla-policy check bundles/trial
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        'new',
        run=run,
        summary='make an untrained bundle that fits a dataset',
        description='Make a bundle with the cameras, joints and words of a dataset and a small random network. '
        'It has learned nothing: its actions stay within the recorded range and mean nothing. Use it to prove '
        'topics, timing and checks before there is a trained policy.',
        examples=_EXAMPLES,
    )
    parser.add_argument('bundle', metavar='BUNDLE', type=Path, help='new or empty folder')
    add_dataset(parser)
    parser.add_argument(
        '--horizon', type=at_least(1), default=16, metavar='K', help='rows of a chunk (16)'
    )
    parser.add_argument(
        '--image-size',
        type=at_least(8),
        default=96,
        metavar='N',
        help='height and width in pixels that images are resized to (96)',
    )
    parser.add_argument(
        '--seed', type=at_least(0), default=0, metavar='S', help='seed of the weights (0)'
    )


def run(args: argparse.Namespace) -> int:
    """Write the bundle and print what it holds; returns 0.

    Raises:
        DatasetError: The dataset is broken.
        BundleError: The folder is not empty.
    """
    from vla_policy_ros.export.untrained import create_untrained_bundle

    with (
        closing(open_named_dataset(args.dataset)) as dataset,
        show_waiting(f'reading {dataset.info.num_episodes} episodes of {dataset.info.name}'),
    ):
        bundle = create_untrained_bundle(
            args.bundle,
            dataset,
            horizon=args.horizon,
            image_size=args.image_size,
            seed=args.seed,
        )
    summary = bundle_summary(bundle)
    if args.json:
        print_json({'bundle': str(args.bundle), 'summary': summary})
    else:
        print_facts({'bundle': str(args.bundle), **to_text(summary)})
    return 0
