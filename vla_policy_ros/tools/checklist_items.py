# SPDX-License-Identifier: Apache-2.0
"""The items of the deployment checklist, made of what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from vla_policy_ros.core.errors import VlaPolicyError
from vla_policy_ros.evaluation import checklist
from vla_policy_ros.evaluation.checklist import Item, failed, judge, not_checked, worst
from vla_policy_ros.evaluation.component_times import TOTAL, TimeSummary
from vla_policy_ros.evaluation.process_memory import ProcessMemory
from vla_policy_ros.tools.comparing import PART_HEADERS, describe, part_row

if TYPE_CHECKING:
    from vla_policy_ros.bundle.bundle import Bundle
    from vla_policy_ros.evaluation.action_error import ActionError
    from vla_policy_ros.export.comparison import Comparison
    from vla_policy_ros.export.edge_inputs import EdgeResult
    from vla_policy_ros.export.limit_check import LimitFindings
    from vla_policy_ros.export.operators import StageSupport

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class MemoryMark:
    """Memory at one moment: of the process, and what is free on the GPU; None where nobody tells."""

    process: ProcessMemory | None
    free_device_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class MemoryMarks:
    """Memory before anything is loaded, with the policy loaded, after the warm-up, and after the counted runs."""

    before: MemoryMark
    loaded: MemoryMark
    warm: MemoryMark
    ended: MemoryMark


def judge_bundle(faults: Sequence[VlaPolicyError], bundle: Bundle | None) -> Item:
    """Return the item of the bundle's files; `bundle` is None where there are faults."""
    if bundle is None:
        item = failed(checklist.BUNDLE, faults[0])
        rows = [(fault.where, fault.got, fault.expected) for fault in faults]
        return Item(
            name=item.name,
            status=item.status,
            found=item.found + (f', and {len(rows) - 1} more' if rows[1:] else ''),
            wanted=item.wanted,
            next_step=item.next_step,
            details={'faults': [fault.as_dict() for fault in faults]},
            table=(('where', 'got', 'expected'), *rows),
        )
    return Item(
        name=checklist.BUNDLE,
        status='PASS',
        found=f'{len(bundle.manifest.files)} files, {len(bundle.manifest.stages)} stages that join',
        wanted='every file there, with its hash',
        details={'content_hash': bundle.content_hash, 'files': dict(bundle.manifest.files)},
    )


def judge_operators(engine: str, stages: Sequence[StageSupport]) -> Item:
    """Return the item of the operators."""
    kinds = {name for stage in stages for name in stage.operators}
    rows = [
        (
            stage.stage,
            ', '.join(f'{name} {count}' for name, count in stage.operators.items()),
            'no: ' * bool(stage.fault) + (stage.fault.got if stage.fault else 'yes'),
        )
        for stage in stages
    ]
    bad = [stage for stage in stages if stage.fault]
    found = f'{len(kinds)} operators in {len(stages)} stages'
    if bad and bad[0].fault:
        what = f'operator {", ".join(bad[0].named)}: ' if bad[0].named else ''
        others = ''.join(f', {stage.stage} neither' for stage in bad[1:])
        found = f'stage {bad[0].stage}: {what}{bad[0].fault.got}{others}'
    return Item(
        name=checklist.OPERATORS,
        status='FAIL' if bad else 'PASS',
        found=found,
        wanted=f'{engine} loads every stage',
        next_step=bad[0].fault.next_step if bad and bad[0].fault else '',
        details={
            'stages': [
                {
                    'stage': stage.stage,
                    'operators': stage.operators,
                    'named': list(stage.named),
                    'error': stage.fault.as_dict() if stage.fault else None,
                }
                for stage in stages
            ]
        },
        table=(('stage', 'operators', 'loaded'), *rows),
    )


def judge_accuracy(result: Comparison, *, max_error: float) -> Item:
    """Return the item of the engine against the reference."""
    parts = (*result.stages, result.policy)
    parity, limit = result.policy.parity, result.policy.limit
    outside = f'; first outside: stage {result.first_outside}' if result.first_outside else ''
    return Item(
        name=checklist.ACCURACY,
        status=worst([result.grade, judge(result.relative_error, max_error)]),
        found=f'error {_percent(result.relative_error)}, cosine {parity.cosine:.6f}, greatest {parity.max_error:.1e}, '
        f'{result.policy.runs} observations{outside}',
        wanted=f'error < {_percent(max_error)}, cosine >= {limit.min_cosine}, greatest <= {limit.max_error}',
        next_step='Look at every stage and column with `vla-policy compare`; use more bits, or keep the products that lose '
        'most in 16 bits (`vla-policy build --keep-loss-below`).',
        details={
            'relative_error': result.relative_error,
            'max_error': max_error,
            **describe(result),
        },
        table=(PART_HEADERS, *map(part_row, parts)),
    )


def judge_loss(engine: ActionError, unquantised: ActionError, *, max_loss: float) -> Item:
    """Return the item of what lower precision costs: the growth of the error, or what the difference alone comes to."""
    growth, difference = engine.growth(unquantised), engine.difference(unquantised)
    loss = float(np.maximum(growth, difference))  # a NaN stays one
    rows = [
        (column.name, f'{own:.3e}', f'{other:.3e}')
        for column, own, other in zip(
            engine.columns, engine.mean_squares, unquantised.mean_squares, strict=True
        )
    ]
    return Item(
        name=checklist.LOSS,
        status=judge(loss, max_loss),
        found=f'error against the recorded actions {100 * growth:+.3g} %, difference {_percent(difference)} of it, '
        f'{len(engine.actions)} chunks',
        wanted=f'both < {_percent(max_loss)}',
        next_step='Use more bits, calibrate on more observations, or keep the products that lose most in 16 bits '
        '(`vla-policy build --keep-loss-below`).',
        details={
            'loss': loss,
            'growth': growth,
            'difference': difference,
            'max_loss': max_loss,
            'chunks': len(engine.actions),
            'episodes': list(engine.episodes),
            'relative_squared_error': engine.relative,
            'unquantised_relative_squared_error': unquantised.relative,
        },
        table=(('column', 'squared error', 'unquantised'), *rows),
    )


def judge_latency(
    times: dict[str, TimeSummary], *, period_ms: float, period_source: str, execution: str
) -> Item:
    """Return the item of the time from raw images to actions.

    Args:
        times: Figures of every component; at least `TOTAL`.
        period_ms: Control period that a chunk has to come within.
        period_source: Where the period comes from.
        execution: How the policy really runs.
    """
    total = times[TOTAL]
    rows = [
        (name, *(f'{value:.3f}' for value in (own.p50_ms, own.p95_ms, own.p99_ms)))
        for name, own in times.items()
    ]
    return Item(
        name=checklist.LATENCY,
        status=judge(total.p99_ms / period_ms, checklist.MAX_PERIOD_SHARE),
        found=f'p50 {total.p50_ms:.2f}, p95 {total.p95_ms:.2f}, p99 {total.p99_ms:.2f} ms, {total.count} runs, {execution}',
        wanted=f'p99 < {period_ms:.4g} ms, {period_source}',
        next_step='Execute more rows of a chunk, infer less often, or use a faster engine; `vla-policy benchmark` says where '
        'the time goes.',
        details={
            'period_ms': period_ms,
            'period_source': period_source,
            'execution': execution,
            'components': {name: asdict(own) for name, own in times.items()},
        },
        table=(('component', 'p50 ms', 'p95 ms', 'p99 ms'), *rows),
    )


def judge_memory(marks: MemoryMarks, *, runs: int, on_device: bool) -> Item:
    """Return the item of the memory of process and GPU."""
    before, loaded = marks.before.process, marks.loaded.process
    warm, ended = marks.warm.process, marks.ended.process
    if before is None or loaded is None or warm is None or ended is None:
        return not_checked(checklist.MEMORY, 'this system does not say what memory a process has')
    growth_bytes = ended.resident_bytes - warm.resident_bytes
    found = f'peak {_mib(before.peak_bytes)} before, {_mib(loaded.peak_bytes)} loaded, {_mib(ended.peak_bytes)} at the end; '
    found += f'{_signed_mib(growth_bytes)} over {runs} runs'
    details: dict[str, object] = {
        name: None if mark.process is None else asdict(mark.process)
        for name, mark in _by_name(marks).items()
    }
    details |= {'growth_bytes': growth_bytes, 'max_growth_bytes': checklist.MAX_GROWTH_BYTES}
    grades = [judge(growth_bytes, checklist.MAX_GROWTH_BYTES)]
    if on_device:
        used = _device_growth(marks.before, marks.loaded)
        device_growth_bytes = _device_growth(marks.warm, marks.ended)
        found += f'; GPU {_mib(used)} loaded, {_signed_mib(device_growth_bytes)}'
        details |= {'device_bytes': used, 'device_growth_bytes': device_growth_bytes}
        grades.append(judge(device_growth_bytes, checklist.MAX_GROWTH_BYTES))
    return Item(
        name=checklist.MEMORY,
        status=worst(grades),
        found=found,
        wanted=f'growth < {_mib(checklist.MAX_GROWTH_BYTES)}',
        next_step='Repeat with more `--runs`: what grows with them is a leak, of the engine or of ours.',
        details=details,
    )


def judge_edge_inputs(results: Sequence[EdgeResult]) -> Item:
    """Return the item of the inputs at the edges."""
    wrong = [result for result in results if not result.is_right]
    rows = [
        (result.name, result.wanted, result.got, 'ok' if result.is_right else 'WRONG')
        for result in results
    ]
    found = f'{len(results) - len(wrong)} of {len(results)} answered rightly'
    if wrong:
        found += f'; {", ".join(result.name for result in wrong)}'
    return Item(
        name=checklist.EDGE_INPUTS,
        status='FAIL' if wrong else 'PASS',
        found=found,
        wanted='a finite chunk, or an error of ours',
        next_step='A chunk that is refused as not finite is a network that overflows: use more bits. Anything else is a fault '
        'of ours: report it.',
        details={'cases': [asdict(result) for result in results]},
        table=(('input', 'wanted', 'got', ''), *rows),
    )


def judge_limits(findings: LimitFindings, *, mode: str) -> Item:
    """Return the item of the robot's limits; where the executor's mode mends what is refused here, it is a warning."""
    rows = [(column, code, str(count)) for (column, code), count in findings.refused.items()]
    is_mended = all(_mends(mode, code) for _, code in findings.refused)
    found = f'{findings.num_refused} of {findings.chunks} chunks refused'
    if rows:
        found += ': ' + ', '.join(f'{column} ({code}) {count}' for column, code, count in rows)
        found += f'; the executor would mend them ({mode})' * is_mended
    return Item(
        name=checklist.LIMITS,
        status='PASS' if not rows else 'WARN' if is_mended else 'FAIL',
        found=found,
        wanted='every chunk within the limits',
        next_step='Check units and limits of these joints; then look at the motion with `vla-policy replay --executor`.',
        details={
            'chunks': findings.chunks,
            'mode': mode,
            'refused': [
                {'column': column, 'limit': code, 'chunks': count}
                for (column, code), count in findings.refused.items()
            ],
        },
        table=(('column', 'limit', 'chunks'), *rows) if rows else (),
    )


def _mends(mode: str, code: str) -> bool:
    """Tell whether a mode of the executor's limits brings such a chunk within them: no time mends a position."""
    return mode == 'clamp' or (mode == 'stretch' and code != 'position_limit')


def _by_name(marks: MemoryMarks) -> dict[str, MemoryMark]:
    """Return the marks by their names."""
    return {name: getattr(marks, name) for name in ('before', 'loaded', 'warm', 'ended')}


def _device_growth(first: MemoryMark, second: MemoryMark) -> int:
    return (first.free_device_bytes or 0) - (second.free_device_bytes or 0)


def _percent(share: float) -> str:
    return f'{100 * share:.3g} %'


def _mib(num_bytes: int) -> str:
    return f'{num_bytes / _MIB:.0f} MiB'


def _signed_mib(num_bytes: int) -> str:
    return f'{num_bytes / _MIB:+.1f} MiB'
