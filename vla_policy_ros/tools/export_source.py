# SPDX-License-Identifier: Apache-2.0
"""Where an export takes its policy from: a checkpoint, or random weights for a dataset."""

from __future__ import annotations

import argparse
from pathlib import Path

from vla_policy_ros.core.errors import ConfigurationError
from vla_policy_ros.tools.arguments import at_least, in_range


def add_source(parser: argparse.ArgumentParser, *, checkpoint: str) -> None:
    """Add the checkpoint, the bundle, what is known of the training data, and what stands in for a checkpoint.

    Args:
        parser: Where they are added.
        checkpoint: What the folder of the checkpoint holds.
    """
    parser.add_argument(
        'checkpoint', nargs='?', type=Path, metavar='CHECKPOINT', help=f'folder with {checkpoint}'
    )
    parser.add_argument(
        '--out', required=True, type=Path, metavar='BUNDLE', help='new or empty folder'
    )
    parser.add_argument(
        '--dataset',
        metavar='D',
        help='dataset of the training, or `sample`: names of cameras and joints, rate, observation of the probe',
    )
    parser.add_argument(
        '--fps',
        type=in_range(0.1, 1000),
        metavar='F',
        help="steps per second of the training data (the dataset's)",
    )
    parser.add_argument(
        '--random-init',
        metavar='TYPE',
        help='instead of a checkpoint: the default architecture of this type for the dataset, with random weights',
    )
    parser.add_argument(
        '--seed', type=at_least(0), default=0, metavar='S', help='seed of these weights (0)'
    )


def check_source(args: argparse.Namespace) -> None:
    """Refuse options that name no policy, or two.

    Raises:
        ConfigurationError: There is no checkpoint, or both (`no_checkpoint`), or random weights for no dataset
            (`no_dataset`).
    """
    if (args.checkpoint is None) == (args.random_init is None):
        raise ConfigurationError(
            'CHECKPOINT',
            got='both a folder and --random-init' if args.checkpoint else 'no folder',
            expected='a folder, or --random-init TYPE',
            next_step='Name one of them.',
            code='no_checkpoint',
        )
    if args.random_init and not args.dataset:
        raise ConfigurationError(
            '--dataset',
            got='nothing',
            expected='a dataset, whose cameras and joints the policy is made for',
            next_step='Name one; `--dataset sample` is always there.',
            code='no_dataset',
        )


def find_step_ns(args: argparse.Namespace) -> int | None:
    """Return the time between two steps that `--fps` says."""
    return round(1e9 / args.fps) if args.fps else None
