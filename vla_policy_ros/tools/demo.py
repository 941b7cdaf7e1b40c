# SPDX-License-Identifier: Apache-2.0
"""`vla-policy demo`: the whole way once, with what comes in the package."""

from __future__ import annotations

import argparse
from pathlib import Path

from vla_policy_ros.tools.arguments import SAMPLE, Subparsers, add_command
from vla_policy_ros.tools.console import say
from vla_policy_ros.tools.replay import add_pace, replay
from vla_policy_ros.tools.replay_plan import ReplaySettings

TOLERANCES = {
    'max_mae': 0.04,
    'max_joint_mae': 0.08,
    'min_compared_share': 0.99,
    'min_chunk_share': 0.99,
    'max_refused': 0,
    'max_missing': 0,
    'max_sequence_gaps': 0,
}
"""Limits of the demo: wide enough for any laptop, too narrow for a policy that does not look."""

_EXAMPLES = """\
  vla-policy demo
  vla-policy demo --mode lockstep --out runs/exact   twice: the chunks of both runs have the same bytes
  vla-policy demo --rate 2 --out runs/double         at twice the recorded pace
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        'demo',
        run=run,
        summary='prove the embedded policy on the embedded dataset',
        description='Replay an episode of the embedded dataset, one that the embedded policy was not trained on, '
        'through the real ROS 2 nodes, and judge what the policy says.',
        examples=_EXAMPLES,
    )
    parser.add_argument(
        '--out', type=Path, default=Path('runs/demo'), metavar='DIR', help='folder (runs/demo)'
    )
    add_pace(parser)


def run(args: argparse.Namespace) -> int:
    """Replay the sample and print the verdict; returns 0 when it passed, else 1.

    Raises:
        VlaPolicyError: ROS is missing, or a node failed.
    """
    from vla_policy_ros.sample import HELD_OUT_EPISODES

    episode = HELD_OUT_EPISODES[-1]
    say(
        f'1. The sample: a rendered arm picks up coloured blocks. Its policy never saw episode {episode}.\n'
        '2. Three processes start: replay_node plays cameras and joint states as a robot would,\n'
        '   policy_node answers with action chunks, recorder_node listens to both.\n'
        f'3. Every chunk is held against what was recorded; the report goes to {args.out}.'
    )
    settings = ReplaySettings(
        dataset=SAMPLE,
        bundle=SAMPLE,
        episode=episode,
        mode=args.mode,
        rate=args.rate,
        out=args.out,
        tolerances=TOLERANCES,
        command=args.command_line,
    )
    return replay(settings, domain=args.domain, as_json=args.json)
