# SPDX-License-Identifier: Apache-2.0
"""`vla-policy infer`: a policy over recorded episodes, without ROS."""

from __future__ import annotations

import argparse
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from vla_policy_ros.tools.arguments import (
    Subparsers,
    add_bundle,
    add_command,
    add_dataset,
    add_engine,
    add_execution_horizon,
    add_plans,
    add_precision,
    add_preprocess,
    add_tolerances,
    at_least,
    bundle_path,
    check_engine,
    open_named_dataset,
    read_manifest,
    read_tolerances,
)
from vla_policy_ros.tools.console import (
    print_facts,
    print_json,
    print_table,
    print_verdict,
    show_progress,
)
from vla_policy_ros.tools.version import list_versions

if TYPE_CHECKING:
    from vla_policy_ros.core.dataset import Dataset
    from vla_policy_ros.core.policy import Policy
    from vla_policy_ros.evaluation.metrics import JointComparison
    from vla_policy_ros.evaluation.open_loop import OpenLoop
    from vla_policy_ros.evaluation.verdict import Verdict

_EXAMPLES = """\
  vla-policy infer --dataset sample --bundle sample --episodes 8-11
  vla-policy infer --dataset ~/datasets/my_robot --bundle bundles/pick_v3 --episodes all --batch 4
  vla-policy infer --dataset run_7.mcap --bundle bundles/pick_v3 --execution-horizon 8 --out runs/open_loop
"""
_NANOSECONDS = 1e9


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        'infer',
        run=run,
        summary='run a policy over recorded episodes and measure its error',
        description='Run a policy over recorded episodes without ROS: every observation is the recorded one, every '
        'chunk is held against the recorded actions (open loop).',
        examples=_EXAMPLES,
    )
    add_dataset(parser)
    add_bundle(parser)
    parser.add_argument(
        '--episodes', default='0', metavar='LIST', help='such as 0,2,5-8, or all (0)'
    )
    add_execution_horizon(parser)
    parser.add_argument(
        '--batch', type=at_least(1), default=1, metavar='N', help='episodes run at once (1)'
    )
    add_engine(parser, default='onnxruntime')
    add_preprocess(parser)
    add_precision(parser)
    add_plans(parser)
    add_tolerances(parser)
    parser.add_argument('--out', type=Path, metavar='DIR', help='write the report files there')


def run(args: argparse.Namespace) -> int:
    """Evaluate, print the figures, write the reports; returns 0 when the tolerances are kept, else 1.

    Raises:
        VlaPolicyError: Dataset, bundle or an option is wrong, or the policy failed.
    """
    from vla_policy_ros.datasets.episodes import parse_episodes

    check_engine(args.engine)
    read_tolerances(args.tolerances)  # before the long work
    with closing(open_named_dataset(args.dataset)) as dataset:
        episodes = parse_episodes(args.episodes, dataset.info.num_episodes)
        result = _evaluate(args, dataset, episodes)
        verdict = _judge(args, dataset, result)
        page = _write(args.out, dataset, result, verdict) if args.out else None
    if args.json:
        print_json(_document(verdict, result, page))
    else:
        _print_text(verdict, result, page)
    return verdict.exit_status


def _evaluate(args: argparse.Namespace, dataset: Dataset, episodes: tuple[int, ...]) -> OpenLoop:
    from vla_policy_ros.evaluation.open_loop import evaluate
    from vla_policy_ros.tools.progress import CountedPolicy, Tally

    with ExitStack() as stack:
        policies = [
            stack.enter_context(closing(_load_policy(args)))
            for _ in range(min(args.batch, len(episodes)))
        ]
        for policy in policies:
            policy.warmup()
        show = stack.enter_context(
            show_progress(f'{policies[0].spec.policy_id} on {dataset.info.name}', len(episodes))
        )
        # An episode is done when its policy begins another one.
        tally = Tally(
            lambda begun, done: show(max(begun - len(policies), 0), f'episodes, {done} chunks')
        )
        return evaluate(
            [CountedPolicy(policy, tally) for policy in policies],
            dataset,
            episodes=episodes,
            execution_horizon=args.execution_horizon,
        )


def _load_policy(args: argparse.Namespace) -> Policy:
    from vla_policy_ros.engines.settings import EngineSettings
    from vla_policy_ros.policies.registry import load_policy

    folder = bundle_path(args.bundle)
    longest = max((len(camera.history_ns) for camera in read_manifest(folder).cameras), default=1)
    # One history in work, the next one being loaded, and one image in hand.
    return load_policy(
        folder,
        engine=args.engine,
        preprocess=args.preprocess,
        slots=2 * longest + 1,
        settings=EngineSettings(precision=args.precision, plan_folder=args.plans),
    )


def _engine_library(engine: str) -> tuple[str, ...]:
    from vla_policy_ros.engines.registry import engine_library
    from vla_policy_ros.policies.registry import NO_ENGINE

    return () if engine == NO_ENGINE else (engine_library(engine),)


def _judge(args: argparse.Namespace, dataset: Dataset, result: OpenLoop) -> Verdict:
    from vla_policy_ros.evaluation.metrics import compare
    from vla_policy_ros.evaluation.timing import RunCounts, measure_timing
    from vla_policy_ros.evaluation.verdict import RunFacts, judge

    policy, info = result.policy, dataset.info
    facts = RunFacts(
        name=f'{", ".join(policy.policy_ids)} on {info.name}, open loop',
        command=args.command_line,
        versions=list_versions('numpy', *_engine_library(args.engine)),
        details={
            'dataset': f'{info.name} ({info.format})',
            'episodes': ', '.join(map(str, result.episodes)),
            'mode': 'open loop',
            'engine': args.engine,
            'preprocess': args.preprocess,
        },
    )
    return judge(
        facts,
        compare(
            policy,
            result.truth if len(result.truth) else None,
            execution_horizon=args.execution_horizon,
            held=result.held,
        ),
        timing=measure_timing(policy, RunCounts(reference_samples=len(policy))),
        tolerances=read_tolerances(args.tolerances),
    )


def _write(folder: Path, dataset: Dataset, result: OpenLoop, verdict: Verdict) -> Path:
    from vla_policy_ros.evaluation.frames import take_sample_frames
    from vla_policy_ros.evaluation.report import Recordings, write_reports

    with closing(dataset.episode(result.episodes[0])) as episode:
        frames = take_sample_frames(dataset.info, episode)
    recordings = Recordings(result.policy, result.truth)
    return write_reports(folder, verdict, recordings=recordings, sample_frames=frames)


def _document(verdict: Verdict, result: OpenLoop, page: Path | None) -> dict[str, object]:
    return {
        'passed': verdict.passed,
        'episodes': list(result.episodes),
        'chunks': len(result.policy),
        'wall_s': result.wall_ns / _NANOSECONDS,
        'policy_digest': result.policy.digest(),
        'comparison': asdict(verdict.comparison),
        'timing': asdict(verdict.timing),
        'checks': [asdict(check) for check in verdict.checks],
        'page': str(page) if page else None,
    }


def _print_text(verdict: Verdict, result: OpenLoop, page: Path | None) -> None:
    comparison = verdict.comparison
    joints = [*comparison.joints, *([comparison.overall] if comparison.overall else [])]
    print_verdict(passed=verdict.passed, text=verdict.run.name)
    if joints:
        print_table(
            ('joint', 'unit', 'MAE', 'MSE', 'largest'),
            [_joint_row(joint) for joint in joints],
            right=(2, 3, 4),
        )
    hold, wall_s = comparison.hold_last, result.wall_ns / _NANOSECONDS
    print_facts(
        {
            'standing still': f'MAE {hold.mae:.4g}, MSE {hold.mse:.4g}' if hold else '',
            'NOT COMPARED': ', '.join(comparison.left_out),
            'chunks': f'{len(result.policy)} in {wall_s:.1f} s of work, {comparison.execution_horizon} rows each',
        }
    )
    print_table(
        ('stage', 'p50 ms', 'p95 ms', 'p99 ms', 'max ms'),
        [
            (name, *(f'{ms:.2f}' for ms in (s.p50_ms, s.p95_ms, s.p99_ms, s.max_ms)))
            for name, s in verdict.timing.stages.items()
        ],
        right=(1, 2, 3, 4),
    )
    for check in verdict.checks:
        print(f'{"ok    " if check.passed else "FAILED"}  {check.detail}')
    print_facts({'report': str(page or '')})


def _joint_row(joint: JointComparison) -> tuple[str, ...]:
    errors = joint.open_loop
    if errors is None:
        return joint.name, joint.unit, 'not compared', '', ''
    numbers = (errors.mae, errors.mse, errors.max_error)
    return joint.name, joint.unit, *(f'{number:.4g}' for number in numbers)
