# SPDX-License-Identifier: Apache-2.0
"""What `verify` and `compare` share: which engines run, on which inputs, and how their verdicts are shown."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, cast

from vla_policy_ros.core.errors import ConfigurationError
from vla_policy_ros.tools.arguments import (
    PRECISIONS,
    add_plans,
    at_least,
    check_engine,
    open_named_dataset,
)

if TYPE_CHECKING:
    from vla_policy_ros.bundle.bundle import Bundle
    from vla_policy_ros.bundle.manifest import Precision
    from vla_policy_ros.export.compare import Case, Contender
    from vla_policy_ros.export.comparison import Comparison, PartVerdict

PART_HEADERS = ('part', 'precision', 'runs', 'cosine', 'L1', 'Linf', 'limit', '')
"""Titles of `part_row`."""


def add_comparison(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what goes into both sides, and how networks are loaded."""
    parser.add_argument(
        '--dataset',
        metavar='D',
        help="take observations of a dataset instead of the bundle's probe",
    )
    parser.add_argument(
        '--samples', type=at_least(1), default=8, metavar='N', help='observations of it (8)'
    )
    add_plans(parser)
    add_calibration(parser)


def add_calibration(parser: argparse.ArgumentParser) -> None:
    """Add `--calibration`."""
    parser.add_argument(
        '--calibration',
        type=Path,
        metavar='FILE',
        help='ranges for fp8 and int8 on engines without plans, for which networks are converted here and now',
    )


def make_contender(
    args: argparse.Namespace, engine: str, precision: Precision | None
) -> Contender:
    """Return what runs a bundle on an engine; its networks are converted where the engine needs that.

    Raises:
        ConfigurationError: There is no such engine, or it cannot run that precision.
        VlaPolicyError: The calibration cannot be read.
    """
    from vla_policy_ros.engines.settings import EngineSettings
    from vla_policy_ros.export.calibration import read_calibration
    from vla_policy_ros.export.compare import Contender
    from vla_policy_ros.export.prepare import choose_loader

    check_engine(engine, runs_networks=True)
    calibration = read_calibration(args.calibration) if args.calibration else None
    return Contender(
        engine=engine,
        settings=EngineSettings(precision=precision, plan_folder=args.plans),
        load=choose_loader(engine, precision, calibration),
    )


def read_contender(args: argparse.Namespace, word: str) -> Contender:
    """Return what runs a bundle on the engine and in the precision of a word such as `openvino:bf16`.

    Raises:
        ConfigurationError: There is no such precision (`unknown_precision`), or as make_contender().
        VlaPolicyError: The calibration cannot be read.
    """
    engine, colon, precision = word.partition(':')
    if colon and precision not in PRECISIONS:
        raise ConfigurationError(
            '--engine',
            got=repr(word),
            expected=f'after the colon one of {", ".join(PRECISIONS)}',
            next_step='Choose one of these, or leave the colon out.',
            code='unknown_precision',
        )
    return make_contender(args, engine, cast('Precision', precision) if precision else None)


def read_cases(args: argparse.Namespace, bundle: Bundle) -> list[Case]:
    """Return the inputs of the dataset, or of the bundle's probe.

    Raises:
        ConfigurationError: There is neither (`nothing_to_compare`).
        VlaPolicyError: The dataset or the probe cannot be read.
    """
    from vla_policy_ros.bundle.probe import read_probe
    from vla_policy_ros.evaluation.sampling import sample_observations
    from vla_policy_ros.export.compare import Case, observed_cases

    cases: list[Case] = []
    if args.dataset:
        with closing(open_named_dataset(args.dataset)) as dataset:
            observations = sample_observations(dataset, bundle.spec, count=args.samples)
            cases = list(observed_cases(bundle, observations))
    elif bundle.manifest.probe:
        probe = read_probe(bundle.folder / bundle.manifest.probe)
        cases = [Case(probe.inputs, probe.noise)]
    if not cases:
        raise ConfigurationError(
            '--dataset',
            got=f'{args.dataset!r} without a step' if args.dataset else 'none, and no probe',
            expected='observations to compare on',
            next_step='Add `--dataset` with a recording that the policy can read.',
            code='nothing_to_compare',
        )
    return cases


def part_row(part: PartVerdict) -> tuple[str, ...]:
    """Return the cells of one stage or policy under `PART_HEADERS`."""
    parity, limit = part.parity, part.limit
    return (
        part.name,
        part.precision,
        str(part.runs),
        f'{parity.cosine:.6f}',
        f'{parity.mean_error:.2e}',
        f'{parity.max_error:.2e}',
        f'cosine >= {limit.min_cosine}, Linf <= {limit.max_error}',
        part.grade,
    )


def describe(comparison: Comparison) -> dict[str, object]:
    """Return the verdicts as what JSON can hold."""
    return {
        'passed': comparison.passed,
        'grade': comparison.grade,
        'first_outside': comparison.first_outside,
        'stages': _describe_all(comparison.stages),
        'policy': _describe_all([comparison.policy])[0],
        'columns': [{**asdict(column), 'grade': column.grade} for column in comparison.columns],
    }


def _describe_all(parts: Iterable[PartVerdict]) -> list[dict[str, object]]:
    return [
        {**asdict(part), 'grade': part.grade, 'passed': part.grade != 'FAIL'} for part in parts
    ]
