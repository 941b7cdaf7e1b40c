# SPDX-License-Identifier: Apache-2.0
"""`vla-policy replay`: a recorded episode through the real nodes, with a verdict."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla_policy_ros.tools.arguments import (
    Subparsers,
    add_bundle,
    add_command,
    add_dataset,
    add_engine,
    add_execution_horizon,
    add_executor,
    add_tolerances,
    at_least,
    in_range,
    read_tolerances,
)
from vla_policy_ros.tools.console import print_facts, print_json, print_verdict, say, show_waiting
from vla_policy_ros.tools.node_launch import make_child
from vla_policy_ros.tools.replay_plan import (
    RECORDER,
    ReplayPlan,
    ReplaySettings,
    make_plan,
    prepare_folder,
)
from vla_policy_ros.tools.ros_environment import check_ros, claim_free_domain, make_environment
from vla_policy_ros.tools.session import Session

if TYPE_CHECKING:
    from vla_policy_ros.evaluation.motion_metrics import MotionFigures
    from vla_policy_ros.evaluation.report import Report

MODES = ('timed', 'lockstep', 'fast')
_EXAMPLES = """\
  vla-policy replay --dataset ~/datasets/my_robot --bundle bundles/pick_v3 --episode 4 --out runs/pick_v3
  vla-policy replay --dataset sample --bundle sample --episode 11 --mode lockstep --out runs/exact
  vla-policy replay --dataset sample --bundle sample --episode 11 --out runs/motion --executor my_executor.yaml
  vla-policy replay --dataset run_7.mcap --config config/my_robot.yaml --episode 0 --out runs/run_7 \\
      --tolerances "max_mae: 0.05, max_p99_ms: 80, max_refused: 0"
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        'replay',
        run=run,
        summary='play an episode through the real nodes and judge the policy',
        description='Play a recorded episode to the real policy node over ROS 2 topics, record its action chunks and '
        'hold them against the recorded actions. The nodes run in a ROS domain of their own on this machine.',
        examples=_EXAMPLES,
    )
    _add_subject(parser)
    add_pace(parser)
    parser.add_argument(
        '--config', type=Path, metavar='FILE', help='deployment file: topics, matching, bundle'
    )
    add_engine(parser, default='')
    parser.add_argument(
        '--transport', choices=('raw', 'compressed'), default='', help='how images are sent'
    )
    parser.add_argument(
        '--faults',
        default='',
        metavar='TEXT',
        help='faults to inject: KIND:TARGET:WHEN[:SECONDS];...',
    )
    add_tolerances(parser)
    parser.add_argument(
        '--horizon',
        type=at_least(1),
        metavar='K',
        help="rows of a true chunk (the policy's reach)",
    )
    add_execution_horizon(parser)
    add_executor(parser, 'also execute the chunks on a simulated robot, and judge the commands')


def _add_subject(parser: argparse.ArgumentParser) -> None:
    """Add what is replayed, and where the run goes."""
    add_dataset(parser)
    add_bundle(parser, required=False)
    parser.add_argument(
        '--episode', type=at_least(0), required=True, metavar='N', help='index of the episode'
    )
    parser.add_argument('--out', type=Path, required=True, metavar='DIR', help='folder of the run')


def add_pace(parser: argparse.ArgumentParser) -> None:
    """Add `--mode`, `--rate` and `--domain`."""
    parser.add_argument(
        '--mode',
        choices=MODES,
        default='timed',
        help='timed: at the recorded pace; lockstep: the next step after the last was answered; '
        'fast: without waiting (timed)',
    )
    parser.add_argument(
        '--rate',
        type=in_range(0.01, 100.0),
        default=1.0,
        metavar='R',
        help='factor on the recorded pace (1.0)',
    )
    parser.add_argument(
        '--domain',
        type=at_least(0),
        metavar='ID',
        help='ROS domain of the nodes (a free one, so that no robot is reached)',
    )


def run(args: argparse.Namespace) -> int:
    """Replay and print the verdict; returns 0 when it passed, else 1.

    Raises:
        VlaPolicyError: Something given is wrong, ROS is missing, or a node failed.
    """
    settings = ReplaySettings(
        dataset=args.dataset,
        bundle=args.bundle or '',
        episode=args.episode,
        mode=args.mode,
        rate=args.rate,
        out=args.out,
        config=args.config,
        executor=args.executor,
        engine=args.engine,
        transport=args.transport,
        faults=args.faults,
        tolerances=read_tolerances(args.tolerances).model_dump(exclude_none=True),
        horizon=args.horizon,
        execution_horizon=args.execution_horizon,
        command=args.command_line,
    )
    return replay(settings, domain=args.domain, as_json=args.json)


def replay(settings: ReplaySettings, *, domain: int | None, as_json: bool) -> int:
    """Replay and print the verdict; returns 0 when it passed, else 1.

    Args:
        settings: What is replayed.
        domain: ROS domain; None takes a free one.
        as_json: Print JSON.

    Raises:
        VlaPolicyError: Something given is wrong, ROS is missing, or a node failed.
    """
    from vla_policy_ros.evaluation.report import load_run

    check_ros()
    plan = make_plan(settings)
    prepare_folder(settings.out)
    with ExitStack() as claims:
        if domain is None:
            domain = claims.enter_context(claim_free_domain()).domain
        status = run_nodes(plan, out=settings.out, mode=settings.mode, domain=domain)
    report = load_run(settings.out).report
    # The recorder also counts a replay that broke off as not passed.
    passed = report.passed and status == 0
    _print_result(report, settings.out, passed=passed, as_json=as_json)
    return 0 if passed else 1


def run_nodes(plan: ReplayPlan, *, out: Path, mode: str, domain: int) -> int:
    """Run the nodes of a plan until the recorder has written its report; return the recorder's exit status.

    Raises:
        VlaPolicyError: A node ended early, or the recorder wrote no report.
    """
    logs = out.absolute() / 'log'
    logs.mkdir(exist_ok=True)
    children = [make_child(node, logs) for node in plan.nodes]
    say(f'{plan.title}: {plan.num_steps} steps, {mode}, ROS domain {domain} on this machine only')
    with (
        show_waiting('replaying', expected_s=plan.duration_s) as tick,
        Session(children, log_folder=logs, environment=make_environment(domain)) as session,
    ):
        status = session.wait(RECORDER, on_tick=tick)
        if not (out / 'report.json').is_file():
            raise session.failed(RECORDER, f'its end with status {status} and no report')
    return status


def _print_result(report: Report, out: Path, *, passed: bool, as_json: bool) -> None:
    page = out / 'report.html'
    if as_json:
        print_json(
            {'passed': passed, 'page': str(page), 'report': _as_document(out / 'report.json')}
        )
        return
    verdict = report.verdict
    print_verdict(passed=passed, text=verdict.run.name)
    for check in verdict.checks:
        print(f'  {"ok    " if check.passed else "FAILED"}  {check.detail}')
    overall, latency = verdict.comparison.overall, verdict.timing.capture_to_chunk
    mae = overall.open_loop.mae if overall and overall.open_loop else None
    share = verdict.timing.chunk_share
    print_facts(
        {
            'replay': '' if passed else verdict.run.details.get('replay', ''),
            'NOT COMPARED': ', '.join(verdict.comparison.left_out),
            'mean absolute error': 'not compared' if mae is None else f'{mae:.4g}',
            'capture to chunk, p99': f'{latency.p99_ms:.1f} ms'
            if latency.count
            else 'not measured',
            'answered with a chunk': 'nothing was sent' if share is None else f'{share:.1%}',
            'commands': _describe_motion(verdict.motion) if verdict.motion else '',
            'report': str(page),
        }
    )


def _describe_motion(motion: MotionFigures) -> str:
    outside = motion.num_outside
    where = 'limits unknown' if outside is None else f'{outside} outside of limits'
    error = f', {motion.error.mae:.4g} from the recording on average' if motion.error else ''
    return f'{motion.num_commands} in {motion.duration_s:.1f} s, {where}{error}'


def _as_document(path: Path) -> Any:
    import json

    return json.loads(path.read_text(encoding='utf-8'))
