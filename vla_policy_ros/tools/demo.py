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

MOTION_TOLERANCES = {'max_command_mae': 0.08, 'max_lag': 0.05, 'max_starvations': 3}
"""Limits of the motion; the end of the recording is one time that no row is left, a machine that is held up makes more."""

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
        'through the real ROS 2 nodes, let the executor move a simulated robot by what the policy says, and judge both. '
        'At another pace than the recorded one the robot is left out.',
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
    from vla_policy_ros.sample import HELD_OUT_EPISODES, sample_executor_path

    episode = HELD_OUT_EPISODES[-1]
    moves = args.mode == 'timed' and args.rate == 1.0
    motion = (
        '   executor_node turns them into commands within limits, simulated_robot_node follows those.\n'
        if moves
        else '   (Without the executor and its robot: they need the recorded pace.)\n'
    )
    say(
        f'1. The sample: a rendered arm picks up coloured blocks. Its policy never saw episode {episode}.\n'
        f'2. {"Five" if moves else "Three"} processes start: replay_node plays cameras and joint states as a robot '
        'would,\n   policy_node answers with action chunks, recorder_node listens to all.\n'
        f'{motion}'
        f'3. Chunks and commands are held against what was recorded; the report goes to {args.out}.'
    )
    settings = ReplaySettings(
        dataset=SAMPLE,
        bundle=SAMPLE,
        episode=episode,
        mode=args.mode,
        rate=args.rate,
        out=args.out,
        executor=sample_executor_path() if moves else None,
        tolerances=TOLERANCES | (MOTION_TOLERANCES if moves else {}),
        command=args.command_line,
    )
    return replay(settings, domain=args.domain, as_json=args.json)
