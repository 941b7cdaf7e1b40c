# SPDX-License-Identifier: Apache-2.0
"""A verdict as one HTML page that needs nothing else: no network, no script, no font."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

from vla_policy_ros.evaluation.frames import EncodedFrame
from vla_policy_ros.evaluation.html_motion import show_executed
from vla_policy_ros.evaluation.html_parts import Markup, format_number, pill, section, table
from vla_policy_ros.evaluation.html_results import (
    common_unit,
    show_counts,
    show_errors,
    show_motion,
    show_smoothness,
    show_timing,
)
from vla_policy_ros.evaluation.metrics import Comparison
from vla_policy_ros.evaluation.motion_recording import MotionRecording
from vla_policy_ros.evaluation.recording import ChunkRecording
from vla_policy_ros.evaluation.style import STYLE
from vla_policy_ros.evaluation.timing import Timing
from vla_policy_ros.evaluation.verdict import Check, Verdict


def render_html(
    verdict: Verdict,
    *,
    policy: ChunkRecording,
    truth: ChunkRecording,
    frames: Sequence[EncodedFrame] = (),
    motion: MotionRecording | None = None,
) -> str:
    """Return the page; `motion` are the commands that the figures of the verdict are of."""
    parts = [
        _header(verdict),
        _checks(verdict.checks),
        _frames(frames),
        show_motion(verdict.comparison, policy, truth=truth),
        show_executed(verdict, motion, truth=truth),
        show_errors(verdict.comparison),
        show_smoothness(verdict.comparison),
        show_timing(verdict, policy),
        show_counts(verdict.timing),
        _reproduce(verdict, policy),
    ]
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{_word(verdict)}: {escape(verdict.run.name)}</title><style>{STYLE}</style></head>'
        f'<body><main>{"".join(parts)}</main></body></html>\n'
    )


def _word(verdict: Verdict) -> str:
    return 'PASSED' if verdict.passed else 'FAILED'


def _header(verdict: Verdict) -> str:
    style = 'good' if verdict.passed else ''
    facts = ' · '.join(f'{name} {value}' for name, value in verdict.run.details.items())
    cards = (_error_card(verdict.comparison), _latency_card(verdict.timing), _share_card(verdict))
    return (
        f'<header class="{style}"><div class="head"><div>'
        f'<div class="overline">Policy verdict</div><h1>{escape(verdict.run.name)}</h1>'
        f'<p>{escape(_summary(verdict.checks))}</p>'
        f'<div class="note">{escape(facts)}</div></div>'
        f'<div class="stamp {style}">{_word(verdict)}</div></div>'
        f'<div class="cards">{"".join(cards)}</div></header>'
    )


def _summary(checks: Sequence[Check]) -> str:
    failed = [check for check in checks if not check.passed]
    if not failed:
        return f'All {len(checks)} checks passed.' if len(checks) > 1 else 'The one check passed.'
    reasons = '; '.join(check.detail for check in failed[:3])
    return f'{len(failed)} of {len(checks)} checks failed. {reasons[:1].upper()}{reasons[1:]}.'


def _card(title: str, number: str, *, unit: str = '', note: str = '') -> str:
    return (
        f'<div class="card"><div class="note">{escape(title)}</div>'
        f'<div class="number">{escape(number)} <small>{escape(unit)}</small></div>'
        f'<div class="note">{escape(note)}</div></div>'
    )


def _error_card(comparison: Comparison) -> str:
    title = 'Mean absolute error, open loop'
    overall = comparison.overall
    if overall is None or overall.open_loop is None:
        return _card(title, 'not compared', note='no recorded chunk to compare with')
    known = [joint for joint in comparison.joints if joint.open_loop]
    worst = max(known, key=lambda joint: joint.open_loop.mae if joint.open_loop else 0.0)
    error = format_number(worst.open_loop.mae if worst.open_loop else None, worst.unit)
    note = f'worst joint {worst.name}: {error}'
    if comparison.hold_last:
        note += f'; standing still: {format_number(comparison.hold_last.mae)}'
    number = format_number(overall.open_loop.mae)
    return _card(title, number, unit=common_unit(comparison), note=note)


def _latency_card(timing: Timing) -> str:
    title = 'Capture to chunk, 99th percentile'
    summary = timing.capture_to_chunk
    if not summary.count:
        return _card(
            title,
            'not measured',
            note='no chunk was published, or the clock stood still (lock-step)',
        )
    note = f'median {summary.p50_ms:.1f} ms, longest {summary.max_ms:.1f} ms'
    return _card(title, f'{summary.p99_ms:.1f}', unit='ms', note=note)


def _share_card(verdict: Verdict) -> str:
    counts, timing = verdict.timing.counts, verdict.timing
    refused = sum(counts.refusals.values())
    note = f'{refused} refused, {counts.missing} missing, {timing.sequence_gaps} lost'
    if counts.reference_samples is None:
        return _card('Chunks', str(timing.num_chunks), note=note)
    return _card(
        'Observations answered with a chunk',
        str(timing.num_chunks),
        unit=f'of {counts.reference_samples}',
        note=note,
    )


def _checks(checks: Sequence[Check]) -> str:
    rows = [
        (
            _check_pill(check),
            check.name,
            format_number(check.got),
            f'{check.limit:g}',
            check.detail,
        )
        for check in checks
    ]
    body = table(('', 'Check', 'Got', 'Limit', 'In words'), rows, right=(2, 3))
    return section('Checks', body)


def _check_pill(check: Check) -> Markup:
    if check.passed:
        return pill('passed', 'good')
    return pill('not compared', 'warn') if check.got is None else pill('failed', '')


def _frames(frames: Sequence[EncodedFrame]) -> str:
    if not frames:
        return ''
    origin_ns = min(frame.stamp_ns for frame in frames)
    figures = ''.join(_figure(frame, origin_ns) for frame in frames)
    return section('What the cameras saw', f'<div class="frames">{figures}</div>')


def _figure(frame: EncodedFrame, origin_ns: int) -> str:
    data = base64.b64encode(frame.png).decode('ascii')
    camera, stamp = escape(frame.camera), f'{frame.stamp_ns / 1e9:.3f} s'
    since = f' (+{(frame.stamp_ns - origin_ns) / 1e9:.2f} s)' if origin_ns else ''
    return (
        f'<figure><img alt="camera {camera} at {stamp}" src="data:image/png;base64,{data}">'
        f'<figcaption>{camera} · {stamp}{since}</figcaption></figure>'
    )


def _reproduce(verdict: Verdict, policy: ChunkRecording) -> str:
    run = verdict.run
    command = f'<pre>{escape(run.command)}</pre>' if run.command else ''
    facts = {
        **run.details,
        'policy': ', '.join(policy.policy_ids) or 'none',
        'SHA-256 of policy/chunks.npz': policy.digest(),
    }
    body = (
        f'{command}<div class="columns facts"><div><h3>Run</h3>{table(("", ""), list(facts.items()))}'
        f'</div><div><h3>Versions</h3>{table(("", ""), list(run.versions.items()))}</div></div>'
    )
    note = 'Two lock-step runs of the same input give the same SHA-256.'
    return section('How to reproduce', body, note=note)
