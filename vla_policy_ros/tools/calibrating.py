# SPDX-License-Identifier: Apache-2.0
"""Options for calibration, and the calibration that they ask for."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from vla_policy_ros.core.errors import ConfigurationError
from vla_policy_ros.tools.arguments import at_least, in_range, open_named_dataset
from vla_policy_ros.tools.console import show_progress, show_waiting

if TYPE_CHECKING:
    from vla_policy_ros.bundle.bundle import Bundle
    from vla_policy_ros.core.dataset import Dataset
    from vla_policy_ros.core.observation import Observation
    from vla_policy_ros.export.calibration import Calibration
    from vla_policy_ros.export.quantize import QuantizedPrecision

_MEASURED_OBSERVATIONS = 8  # for --keep-loss-below: each gives many numbers per product


def add_calibration(parser: argparse.ArgumentParser, *, title: str) -> None:
    """Add the options, under a title."""
    group = parser.add_argument_group(title)
    group.add_argument(
        '--calibrate', metavar='DATASET', help='run the policy on this dataset, on the CPU, first'
    )
    group.add_argument(
        '--samples', type=at_least(1), default=32, metavar='N', help='observations of it (32)'
    )
    group.add_argument(
        '--calibration',
        type=Path,
        metavar='FILE',
        help='ranges of an earlier run; with --calibrate they are written there',
    )
    group.add_argument(
        '--keep-loss-below',
        type=in_range(0, 1),
        metavar='LOSS',
        help='with --calibrate: run the policy with every product alone in 8 bits, and keep the worst out of it, so that the '
        'squared error of the actions stays below this part of their squares, such as 1e-4',
    )


def check_measuring(args: argparse.Namespace) -> None:
    """Refuse `--keep-loss-below` without observations (`no_calibration`)."""
    if args.keep_loss_below is not None and not args.calibrate:
        raise ConfigurationError(
            '--keep-loss-below',
            got='no --calibrate',
            expected='observations to measure on',
            next_step='Add `--calibrate DATASET`; `--calibration FILE` holds what was measured.',
            code='no_calibration',
        )


def find_calibration(
    args: argparse.Namespace, bundle: Bundle, precisions: Sequence[QuantizedPrecision]
) -> Calibration | None:
    """Calibrate a bundle as the options ask for, or read the file of an earlier run; None when they ask for neither.

    Raises:
        VlaPolicyError: The dataset or the file is broken, or is not this bundle's.
    """
    from vla_policy_ros.evaluation.sampling import sample_observations
    from vla_policy_ros.export.calibration import calibrate, read_calibration, write_calibration

    if not args.calibrate:
        return read_calibration(args.calibration) if args.calibration else None
    with closing(open_named_dataset(args.calibrate)) as dataset:
        name = dataset.info.name
        with show_progress(f'calibrating on {name}', args.samples) as show:
            observations = sample_observations(dataset, bundle.spec, count=args.samples)
            calibration = calibrate(bundle, _count(observations, show), source=name)
        for precision in precisions if args.keep_loss_below is not None else ():
            calibration = _keep_costly(args, bundle, dataset, calibration, precision)
    if args.calibration:
        write_calibration(args.calibration, calibration)
    return calibration


def _keep_costly(
    args: argparse.Namespace,
    bundle: Bundle,
    dataset: Dataset,
    calibration: Calibration,
    precision: QuantizedPrecision,
) -> Calibration:
    from vla_policy_ros.evaluation.sampling import sample_observations
    from vla_policy_ros.export.sensitivity import keep_costly

    count = min(args.samples, _MEASURED_OBSERVATIONS)
    with show_waiting(f'measuring every product in {precision}'):
        return keep_costly(
            bundle,
            sample_observations(dataset, bundle.spec, count=count),
            calibration,
            precision=precision,
            loss_limit=args.keep_loss_below,
        )


def _count(
    observations: Iterable[Observation], show: Callable[[int, str], None]
) -> Iterator[Observation]:
    for done, observation in enumerate(observations):
        show(done, 'observations')
        yield observation
