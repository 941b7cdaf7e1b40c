# SPDX-License-Identifier: Apache-2.0
"""`vla-policy verify`: an engine against ONNX Runtime on the CPU, with the same inputs and the same noise."""

from __future__ import annotations

import argparse
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from vla_policy_ros.core.errors import ConfigurationError
from vla_policy_ros.tools.arguments import (
    Subparsers,
    add_bundle,
    add_command,
    add_plans,
    add_precision,
    at_least,
    bundle_path,
    check_engine,
    open_named_dataset,
)
from vla_policy_ros.tools.console import (
    print_facts,
    print_json,
    print_table,
    print_verdict,
    show_waiting,
)

if TYPE_CHECKING:
    from vla_policy_ros.bundle.bundle import Bundle
    from vla_policy_ros.export.verify import Case, PartVerdict, Verification

_EXAMPLES = """\
  vla-policy verify --bundle bundles/pick_v3 --engine tensorrt --precision fp16
  vla-policy verify --bundle bundles/pick_v3 --engine tensorrt --precision fp8 --dataset ~/datasets/pick --samples 16
  vla-policy verify --bundle sample --engine onnxruntime --precision int8 --calibration pick.json     without a GPU
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        'verify',
        run=run,
        summary='hold an engine against ONNX Runtime on the CPU',
        description='Run a bundle on an engine and on ONNX Runtime on the CPU with the same inputs and the same noise, '
        "first each stage alone on the reference's inputs, then the whole policy. Exit status 1 when one lies outside of the limits.",
        examples=_EXAMPLES,
    )
    add_bundle(parser)
    parser.add_argument(
        '--engine',
        default='tensorrt',
        metavar='E',
        help='engine to hold against it (tensorrt, as `vla-policy build`), such as onnxruntime_cuda, torch, torch_cpu',
    )
    add_precision(parser)
    parser.add_argument(
        '--dataset',
        metavar='D',
        help="take observations of a dataset instead of the bundle's probe",
    )
    parser.add_argument(
        '--samples', type=at_least(1), default=8, metavar='N', help='observations of it (8)'
    )
    add_plans(parser)
    parser.add_argument(
        '--calibration',
        type=Path,
        metavar='FILE',
        help='ranges for fp8 and int8 on engines without plans, for which networks are converted here and now',
    )


def run(args: argparse.Namespace) -> int:
    """Compare and show; returns 0 when every stage and the policy are near enough, else 1.

    Raises:
        VlaPolicyError: Bundle, dataset or an option is wrong, or a network cannot be loaded or failed.
    """
    from vla_policy_ros.bundle.bundle import load_bundle
    from vla_policy_ros.engines.settings import EngineSettings
    from vla_policy_ros.export.calibration import read_calibration
    from vla_policy_ros.export.prepare import choose_loader
    from vla_policy_ros.export.verify import verify

    check_engine(args.engine, runs_networks=True)
    calibration = read_calibration(args.calibration) if args.calibration else None
    load = choose_loader(args.engine, args.precision, calibration)
    bundle = load_bundle(bundle_path(args.bundle))
    with show_waiting(f'{bundle.spec.policy_id} on {args.engine}'):
        result = verify(
            bundle,
            _cases(args, bundle),
            engine=args.engine,
            settings=EngineSettings(precision=args.precision, plan_folder=args.plans),
            load=load,
        )
    if args.json:
        print_json(_document(result))
    else:
        _print_text(args, bundle, result)
    return 0 if result.passed else 1


def _cases(args: argparse.Namespace, bundle: Bundle) -> list[Case]:
    from vla_policy_ros.bundle.probe import read_probe
    from vla_policy_ros.evaluation.sampling import sample_observations
    from vla_policy_ros.export.verify import Case, observed_cases

    if args.dataset:
        with closing(open_named_dataset(args.dataset)) as dataset:
            observations = sample_observations(dataset, bundle.spec, count=args.samples)
            cases = list(observed_cases(bundle, observations))
    elif bundle.manifest.probe:
        probe = read_probe(bundle.folder / bundle.manifest.probe)
        cases = [Case(probe.inputs, probe.noise)]
    else:
        cases = []
    if not cases:
        raise ConfigurationError(
            '--dataset',
            got=f'{args.dataset!r} without a step' if args.dataset else 'none, and no probe',
            expected='observations to compare on',
            next_step='Add `--dataset` with a recording that the policy can read.',
            code='nothing_to_compare',
        )
    return cases


def _document(result: Verification) -> dict[str, object]:
    return {
        'passed': result.passed,
        'first_outside': result.first_outside,
        'stages': [_part(part) for part in result.stages],
        'policy': _part(result.policy),
    }


def _part(part: PartVerdict) -> dict[str, object]:
    return {**asdict(part), 'passed': part.passed}


def _print_text(args: argparse.Namespace, bundle: Bundle, result: Verification) -> None:
    print_verdict(passed=result.passed, text=f'{bundle.spec.policy_id} on {args.engine}')
    print_table(
        ('part', 'precision', 'runs', 'cosine', 'max error', 'mean error', 'limit', ''),
        [_row(part) for part in (*result.stages, result.policy)],
        right=(2, 3, 4, 5),
    )
    print_facts(
        {
            'first outside': result.first_outside
            and f'stage {result.first_outside}, on inputs of the reference'
        }
    )


def _row(part: PartVerdict) -> tuple[str, ...]:
    parity, limit = part.parity, part.limit
    return (
        part.name,
        part.precision,
        str(part.runs),
        f'{parity.cosine:.6f}',
        f'{parity.max_error:.2e}',
        f'{parity.mean_error:.2e}',
        f'cosine >= {limit.min_cosine}, error <= {limit.max_error}',
        'ok' if part.passed else 'OUTSIDE',
    )
