# SPDX-License-Identifier: Apache-2.0
"""`vla-policy benchmark`: where the time of an inference goes, per engine and precision, in one run."""

from __future__ import annotations

import argparse
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

from vla_policy_ros.core.errors import ConfigurationError
from vla_policy_ros.tools.arguments import (
    PRECISIONS,
    Subparsers,
    add_bundle,
    add_command,
    add_dataset,
    add_plans,
    add_preprocess,
    at_least,
    bundle_path,
    check_engine,
    open_named_dataset,
)
from vla_policy_ros.tools.console import print_json, print_table, say, show_progress
from vla_policy_ros.tools.markdown import write_report

if TYPE_CHECKING:
    from vla_policy_ros.bundle.bundle import Bundle
    from vla_policy_ros.core.observation import Observation
    from vla_policy_ros.tools.benchmark_rows import Contender, Row

_EXAMPLES = """\
  vla-policy benchmark --bundle sample --dataset sample
  vla-policy benchmark --bundle bundles/pick --dataset sample --engine onnxruntime tensorrt torch --preprocess gpu
  vla-policy benchmark --bundle bundles/pick --dataset run_7.mcap --engine tensorrt --precision bf16 fp8 \\
      --cuda-graph both --episode 3 --out runs/benchmark
"""
_AS_EXPORTED = 'exported'
_PRECISIONS = (_AS_EXPORTED, *PRECISIONS)
_GRAPHS = {'on': (True,), 'off': (False,), 'both': (False, True)}


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        'benchmark',
        run=run,
        summary='measure where the time of an inference goes, per engine and precision',
        description='Measure every component of an inference (receive, upload, preprocess, each stage, postprocess) '
        'for several engines and precisions, which take turns. The chunks of each are held against those of the first, '
        'so that a fast wrong one is seen. Stages have times of their own where no CUDA graph joins them.',
        examples=_EXAMPLES,
    )
    add_bundle(parser)
    add_dataset(parser)
    _add_contenders(parser)
    _add_measurement(parser)


def _add_contenders(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--engine',
        nargs='+',
        default=['onnxruntime'],
        metavar='E',
        help='engines to compare; the first one is what speed-up and difference refer to (onnxruntime)',
    )
    parser.add_argument(
        '--precision',
        nargs='+',
        default=[_AS_EXPORTED],
        choices=_PRECISIONS,
        metavar='P',
        help=f'some of {", ".join(_PRECISIONS)}; networks are converted for engines without plans (exported)',
    )
    add_plans(parser)
    parser.add_argument(
        '--calibration',
        type=Path,
        metavar='FILE',
        help='ranges for fp8 and int8 on engines without plans',
    )
    add_preprocess(parser)
    parser.add_argument(
        '--cuda-graph',
        choices=tuple(_GRAPHS),
        default='both',
        help='whether engines on the GPU run as one CUDA graph (both)',
    )


def _add_measurement(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--iterations', type=at_least(1), default=100, metavar='N', help='that count (100)'
    )
    parser.add_argument(
        '--warmup', type=at_least(1), default=10, metavar='N', help='before those (10)'
    )
    parser.add_argument(
        '--episode',
        type=at_least(0),
        metavar='K',
        help='walk through this episode, from its start again when it ends '
        '(without it: the first step of episode 0, again and again)',
    )
    parser.add_argument(
        '--backbone',
        nargs='+',
        metavar='STAGE',
        help='stages that count as backbone (those before the loop)',
    )
    parser.add_argument(
        '--out', type=Path, metavar='DIR', help='write benchmark.json and .md there'
    )


def run(args: argparse.Namespace) -> int:
    """Measure and print; returns 1 when no engine could run, else 0.

    Raises:
        VlaPolicyError: Dataset, bundle or an option is wrong.
    """
    from vla_policy_ros.bundle.bundle import load_bundle
    from vla_policy_ros.evaluation.component_times import split_stages

    for name in args.engine:
        check_engine(name, runs_networks=True)
    bundle = load_bundle(bundle_path(args.bundle))
    stages = [(stage.name, stage.in_loop) for stage in bundle.manifest.stages]
    groups = split_stages(stages, args.backbone)
    observations = _read_observations(args, bundle)
    with ExitStack() as stack:
        rows, contenders = _open_all(args, bundle, stack)
        _measure(args, contenders, observations)
    return _report(args, bundle, rows, groups)


def _read_observations(args: argparse.Namespace, bundle: Bundle) -> list[Observation]:
    """Return the observations to walk through, at least one, images in memory."""
    from itertools import islice

    from vla_policy_ros.evaluation.observations import EpisodeObservations

    count = 1 if args.episode is None else args.iterations
    with closing(open_named_dataset(args.dataset)) as dataset:
        episode = dataset.episode(args.episode or 0)
        try:
            source = EpisodeObservations(dataset.info, episode, spec=bundle.spec)
            observations = list(islice(source.iterate(), count))
        finally:
            episode.close()
    if not observations:
        raise ConfigurationError(
            '--dataset',
            got=f'episode {args.episode or 0} of {args.dataset!r} without a step',
            expected='observations to measure on',
            next_step='Choose another episode with `--episode`.',
            code='nothing_to_measure',
        )
    return observations


def _open_all(
    args: argparse.Namespace, bundle: Bundle, stack: ExitStack
) -> tuple[list[Row], list[Contender]]:
    """Open every contender; one that cannot run here keeps the reason."""
    from vla_policy_ros.core.errors import VlaPolicyError
    from vla_policy_ros.export.calibration import read_calibration
    from vla_policy_ros.tools.benchmark_rows import Contender, choices

    calibration = read_calibration(args.calibration) if args.calibration else None
    rows = choices(
        args.engine,
        precisions=[None if name == _AS_EXPORTED else name for name in args.precision],
        preprocess=args.preprocess,
        graphs=_GRAPHS[args.cuda_graph],
    )
    contenders = []
    for row in rows:
        say(f'loading {row.title}')
        try:
            contenders.append(
                Contender(row, bundle, stack, plan_folder=args.plans, calibration=calibration)
            )
        except VlaPolicyError as fault:
            row.fault = fault
    return rows, contenders


def _measure(
    args: argparse.Namespace, contenders: list[Contender], observations: list[Observation]
) -> None:
    """Let the contenders take turns, one inference each."""
    from vla_policy_ros.core.errors import VlaPolicyError

    total = args.warmup + args.iterations
    with show_progress('measuring', total) as show:
        for index in range(total):
            show(index, 'rounds')
            for contender in contenders:
                if contender.row.fault is None:
                    observation = observations[index % len(observations)]
                    try:
                        contender.infer(observation, is_counted=index >= args.warmup)
                    except VlaPolicyError as fault:
                        contender.row.fault = fault


def _report(
    args: argparse.Namespace,
    bundle: Bundle,
    rows: list[Row],
    groups: tuple[tuple[str, ...], tuple[str, ...]],
) -> int:
    from vla_policy_ros.tools.benchmark_rows import (
        component_table,
        failure_lines,
        group_table,
        make_document,
        to_markdown,
    )

    document = make_document(
        rows,
        groups,
        command=args.command_line,
        policy_id=bundle.spec.policy_id,
        episode=args.episode,
    )
    if args.out:
        write_report(args.out, 'benchmark', document, to_markdown(document))
    if args.json:
        print_json(document)
    else:
        for headers, cells, left in (group_table(document), component_table(document)):
            right = tuple(range(left, len(headers)))
            if cells:
                print_table(headers, cells, right=right)
        for line in failure_lines(document):
            print(line)
    return 0 if any('error' not in row for row in document['rows']) else 1
