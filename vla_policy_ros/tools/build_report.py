# SPDX-License-Identifier: Apache-2.0
"""What `vla-policy build` says of the plans: as JSON, and as a table."""

from __future__ import annotations

import argparse
import shlex
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from vla_policy_ros.tools.console import print_facts, print_table

if TYPE_CHECKING:
    from vla_policy_ros.engines.plan_facts import BuildReport
    from vla_policy_ros.export.prepare import PreparationReport
    from vla_policy_ros.export.stage_plans import FinishedPlan, PlanJob

_MIB = 1 << 20


def describe_plan(finished: FinishedPlan) -> dict[str, object]:
    """Return one plan as what JSON can hold."""
    plan, prepared = finished.plan, finished.preparation
    report = plan.report
    return {
        'stages': list(finished.job.stages),
        'precision': finished.job.precision,
        'path': str(plan.path),
        'bytes': plan.num_bytes,
        'origin': plan.origin,
        'cached': finished.is_cached,
        'network_hash': plan.key.network_hash,
        'build_s': report.seconds if report else None,
        'workspace_bytes': report.workspace_bytes if report else None,
        'warnings': list(report.warnings) if report else [],
        'layers_of': report.layers_of if report else None,
        'layers': [
            {'precision': group.precision, 'kind': group.kind, 'count': group.count}
            for group in (report.layers if report else ())
        ],
        'shares': report.shares() if report else {},
        'conversion': _conversion(prepared) if prepared else None,
    }


def _conversion(prepared: PreparationReport) -> dict[str, object]:
    conversion, quantization = prepared.conversion, prepared.quantization
    return {
        'nodes': dict(conversion.nodes),
        'weights': dict(conversion.weights),
        'casts': conversion.casts,
        'kept': [
            {'node': node.name, 'operator': node.operator, 'reason': node.reason}
            for node in conversion.kept
        ],
        'wide_weights': dict(conversion.wide_weights),
        'quantized_products': list(quantization.products) if quantization else [],
        'quantized_weights': quantization.weights if quantization else 0,
        'kept_products': dict(quantization.left_out) if quantization else {},
    }


def print_plans(args: argparse.Namespace, plans: list[FinishedPlan], folder: Path) -> None:
    """Print a table of the plans, what was done to their networks, and the command that proves them.

    Args:
        args: Options of the command.
        plans: The plans.
        folder: Where they lie.
    """
    print_table(
        ('stage', 'asked', 'layers got', 'plan MiB', 'workspace MiB', 'build s', ''),
        [_row(plan) for plan in plans],
        right=(3, 4, 5),
    )
    facts: dict[str, str] = {}
    for finished in plans:
        if finished.preparation:
            facts |= _conversion_facts(finished.job, finished.preparation)
        facts |= _warning_facts(finished)
    command = ['vla-policy', 'verify', '--bundle', args.bundle, '--engine', args.engine]
    command += ['--precision', args.precision] if args.precision else []
    command += ['--plans', str(args.plans)] if args.plans else []
    print_facts({**facts, 'plans': str(folder), 'now prove it': shlex.join(command)})


def _row(finished: FinishedPlan) -> tuple[str, ...]:
    plan = finished.plan
    report = plan.report
    known = report is not None and report.workspace_bytes is not None
    state = (
        'was there'
        if finished.is_cached
        else {'built': 'built', 'foreign': 'taken in'}[plan.origin]
    )
    return (
        ', '.join(finished.job.stages),
        finished.job.precision,
        _layers(report) if report else 'not known',
        f'{plan.num_bytes / _MIB:.1f}',
        f'{(report.workspace_bytes or 0) / _MIB:.1f}' if report and known else '?',
        f'{report.seconds:.1f}' if report else '',
        state,
    )


def _layers(report: BuildReport) -> str:
    """Return the shares of all layers by precision, such as `fp16 80 %, fp32 20 % of 165 in the network`."""
    shares = ', '.join(f'{name} {share:.0%}' for name, share in report.shares().items())
    total = sum(group.count for group in report.layers)
    return f'{shares} of {total} in the {report.layers_of}'


def _warning_facts(finished: FinishedPlan) -> dict[str, str]:
    """Return the first thing that the library warned of, and how many more there are."""
    report = finished.plan.report
    if not report or not report.warnings:
        return {}
    more = f' (and {len(report.warnings) - 1} more: --json)' if len(report.warnings) > 1 else ''
    name = ', '.join(finished.job.stages)
    return {f'{name}: the library warned': f'{report.warnings[0]}{more}'}


def _conversion_facts(job: PlanJob, prepared: PreparationReport) -> dict[str, str]:
    conversion, quantization = prepared.conversion, prepared.quantization
    left_out = quantization.left_out.values() if quantization else ()
    name = ', '.join(job.stages)
    nodes = ', '.join(f'{count} {kind}' for kind, count in conversion.nodes.items())
    return {
        f'{name}: nodes': nodes,
        f'{name}: in 8 bits': f'{len(quantization.products)} products' if quantization else '',
        f'{name}: products kept fp16': _join_reasons(left_out),
        f'{name}: kept fp32': _join_reasons(node.reason for node in conversion.kept),
        f'{name}: constants kept fp32': ', '.join(
            f'{weight} ({reason})' for weight, reason in conversion.wide_weights.items()
        ),
    }


def _join_reasons(reasons: Iterable[str]) -> str:
    """Return how often each reason occurs, such as `3 few weights, 1 last product`."""
    return ', '.join(f'{count} {reason}' for reason, count in Counter(reasons).most_common())
