# SPDX-License-Identifier: Apache-2.0
"""`vla-policy check`: every fault of a dataset, a bag, a bundle, a deployment or an executor file."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from vla_policy_ros.core.errors import ConfigurationError, VlaPolicyError
from vla_policy_ros.tools.arguments import Subparsers, add_command, bundle_path
from vla_policy_ros.tools.console import (
    print_facts,
    print_faults,
    print_json,
    print_verdict,
    show_waiting,
)
from vla_policy_ros.tools.summaries import (
    Fact,
    bundle_summary,
    dataset_summary,
    deployment_summary,
    executor_summary,
    to_text,
)

_EXAMPLES = """\
  vla-policy check ~/datasets/my_robot               a LeRobot dataset
  vla-policy check recordings/run_7.mcap             a bag
  vla-policy check bundles/pick_v3                   a policy bundle
  vla-policy check --json config/my_robot.yaml       a deployment file, and whether its bundle fits
  vla-policy check config/my_executor.yaml           an executor file, and its limits
"""
_MANIFEST = 'bundle.yaml'


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What came of a check: every fault, or what the thing holds."""

    kind: str
    faults: Sequence[VlaPolicyError] = ()
    summary: Mapping[str, Fact] = field(default_factory=dict)


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        'check',
        run=run,
        summary='list every fault of a dataset, bag, bundle, deployment or executor file',
        description='Look for every fault of a dataset, a bag, a policy bundle, a deployment or an executor file, and say '
        'what it holds when there is none. What it is is seen from its files.',
        examples=_EXAMPLES,
    )
    parser.add_argument('path', metavar='PATH', type=Path, help='folder or file to check')


def run(args: argparse.Namespace) -> int:
    """Print every fault, or what the thing holds; returns 1 when there are faults.

    Raises:
        ConfigurationError: There is nothing at the path.
    """
    path = args.path.expanduser()
    if not path.exists():
        raise ConfigurationError(
            str(path),
            got='nothing there',
            expected='a dataset, a bag, a bundle, a deployment or an executor file',
            next_step='Check the path.',
            code='no_such_path',
        )
    with show_waiting(f'checking {path}'):
        finding = choose_check(path)(path)
    if args.json:
        _print_document(path, finding)
    else:
        _print_text(path, finding)
    return 1 if finding.faults else 0


def choose_check(path: Path) -> Callable[[Path], Finding]:
    """Return the check that fits what lies at a path."""
    if path.name == _MANIFEST or (path / _MANIFEST).is_file():
        return check_bundle
    if path.is_file() and path.suffix in ('.yaml', '.yml'):
        return check_executor_file if _names_controllers(path) else check_deployment_file
    return check_dataset


def check_bundle(path: Path) -> Finding:
    """Check a bundle, named by its folder or by its manifest."""
    from vla_policy_ros.bundle.bundle import find_bundle_faults, load_bundle

    folder = path if path.is_dir() else path.parent
    faults = find_bundle_faults(folder)
    if faults:
        return Finding(kind='bundle', faults=faults)
    return Finding(kind='bundle', summary=bundle_summary(load_bundle(folder)))


def check_deployment_file(path: Path) -> Finding:
    """Check a deployment file, its bundle, and whether both fit."""
    from vla_policy_ros.bundle.bundle import find_bundle_faults, load_bundle
    from vla_policy_ros.deployment.config import (
        check_deployment,
        find_deployment_faults,
        load_deployment,
    )

    faults = find_deployment_faults(path)
    if faults:
        return Finding(kind='deployment', faults=faults)
    deployment = load_deployment(path)
    folder = bundle_path(deployment.policy.bundle)
    faults = find_bundle_faults(folder)
    if faults:
        return Finding(kind='deployment', faults=faults)
    bundle = load_bundle(folder)
    faults = check_deployment(deployment, bundle.spec)
    if faults:
        return Finding(kind='deployment', faults=faults)
    return Finding(kind='deployment', summary=deployment_summary(deployment, bundle))


def check_executor_file(path: Path) -> Finding:
    """Check an executor file and its limits, as far as that goes without the policy's columns."""
    from vla_policy_ros.deployment.executor import find_executor_faults, load_executor
    from vla_policy_ros.deployment.limits import read_limits_file

    faults = find_executor_faults(path)
    if faults:
        return Finding(kind='executor', faults=faults)
    settings = load_executor(path)
    try:
        limits = read_limits_file(settings.limits.file) if settings.limits.file else None
    except VlaPolicyError as fault:
        return Finding(kind='executor', faults=[fault])
    return Finding(kind='executor', summary=executor_summary(settings, limits))


def _names_controllers(path: Path) -> bool:
    """Whether a YAML file is an executor file: a deployment file has no controllers."""
    from vla_policy_ros.bundle.strict import read_yaml

    try:
        return 'controllers' in read_yaml(path, ConfigurationError)
    except ConfigurationError:
        return False


def check_dataset(path: Path) -> Finding:
    """Check a dataset or a bag."""
    from vla_policy_ros.datasets.registry import find_dataset_faults, open_dataset

    faults = find_dataset_faults(path)
    if faults:
        return Finding(kind='dataset', faults=[_widen(fault) for fault in faults])
    with closing(open_dataset(path)) as dataset:
        return Finding(kind='dataset', summary=dataset_summary(dataset.info))


def _widen(fault: VlaPolicyError) -> VlaPolicyError:
    """Return a fault; where the format is not known, a bundle or a deployment file would have been right, too."""
    if fault.code != 'unknown_format':
        return fault
    return ConfigurationError(
        fault.where,
        got=fault.got,
        expected=f'{fault.expected}, {_MANIFEST} (bundle) or a deployment file or executor file (.yaml)',
        next_step=fault.next_step,
        code=fault.code,
    )


def _print_document(path: Path, finding: Finding) -> None:
    print_json(
        {
            'path': str(path),
            'kind': finding.kind,
            'passed': not finding.faults,
            'faults': [fault.as_dict() for fault in finding.faults],
            'summary': dict(finding.summary),
        }
    )


def _print_text(path: Path, finding: Finding) -> None:
    count = len(finding.faults)
    if not count:
        print_verdict(passed=True, text=f'{finding.kind} {path}')
        print_facts(to_text(finding.summary))
        return
    print_verdict(passed=False, text=f'{finding.kind} {path}: {count} fault{"s"[: count > 1]}')
    print_faults(finding.faults)
